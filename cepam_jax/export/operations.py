"""JAX's primitives as operations of ONNX, as far as models for images, tables and characters need them.

A rule is given the graph, the primitive's inputs, its parameters and the shape of its result in JAX.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend import core

from cepam_jax.errors import ConfigError
from cepam_jax.export import windows
from cepam_jax.export.graph import Graph, Known, Shape, Value, kind_of
from cepam_jax.export.loader import attribute

Rule = Callable[[Graph, list[Known], dict[str, Any], Shape], Known]

# Each takes its inputs as they are, and ONNX broadcasts as numpy does.
_ELEMENTWISE = {
    **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "min": "Min"},
    **{"neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf"},
    **{"sqrt": "Sqrt", "abs": "Abs", "floor": "Floor", "sign": "Sign", "sin": "Sin", "cos": "Cos"},
    **{"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
    **{"and": "And", "or": "Or", "not": "Not", "max": "Max"},
}
# The function inside of these is written in their place.
_INNER = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
}


def _closed(equation: Any) -> Any:
    """The ClosedJaxpr of an equation that calls a function."""
    inner = next(each for each in equation.params.values() if isinstance(each, core.ClosedJaxpr | core.Jaxpr))
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, [])


def inner_of(equation: Any) -> Any:
    """The jaxpr of the function that an equation calls, which has the same inputs; None: there is none."""
    return _closed(equation).jaxpr if equation.primitive.name in _INNER else None


def run(graph: Graph, jaxpr: Any, constants: list, inputs: list[Known]) -> list[Known]:
    """The outputs of a jaxpr, whose operations are added to a graph.

    Args:
      graph: is added to.
      jaxpr: of JAX.
      constants: of it, in the order of its constvars.
      inputs: in the order of its invars.

    Raises:
      ConfigError: a primitive has no translation.
    """
    known: dict[Any, Known] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def of(variable):
        return np.asarray(variable.val) if isinstance(variable, core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        outputs = _results(graph, equation, [of(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=False))
    return [of(variable) for variable in jaxpr.outvars]


def _results(graph: Graph, equation, inputs: list[Known]) -> list[Known]:
    name, params = equation.primitive.name, equation.params
    if name in _INNER:
        inner = _closed(equation)
        return run(graph, inner.jaxpr, inner.consts, inputs)
    if name == "dim_as_value":
        raise ConfigError("the model computes with the batch's size, which has no translation to ONNX")
    shape = tuple(equation.outvars[0].aval.shape)
    still = all(isinstance(n, int) for n in shape) and not any(isinstance(v, Value) for v in inputs)
    if still and name != "broadcast_in_dim":
        inputs = [np.broadcast_to(x, v.aval.shape) for x, v in zip(inputs, equation.invars, strict=True)]
        found = equation.primitive.bind(*inputs, **params)
        return [np.asarray(each) for each in (found if equation.primitive.multiple_results else [found])]
    kinds = [v.aval.dtype for v in equation.invars]
    if name in ("and", "or", "not") and any(str(kind) != "bool" for kind in kinds):
        name = f"{name} of {kinds[0]}"
    if name in _ELEMENTWISE:
        return [_elementwise(graph, _ELEMENTWISE[name], inputs, np.dtype(kinds[0]))]
    if name not in RULES:
        raise ConfigError(f"the model computes {name!r}, which has no translation to ONNX; use --format=jax")
    if name not in _AS_THEY_ARE:
        inputs = [graph.full(x, v.aval.shape) for x, v in zip(inputs, equation.invars, strict=True)]
    return [RULES[name](graph, inputs, {**params, "from": kinds[0]}, shape)]


def _broadcast(*values: Known) -> Shape:
    """The shape of values that are broadcast against each other; two that do not fit cannot meet here."""
    longest = max(len(value.shape) for value in values)
    padded = [(1,) * (longest - len(value.shape)) + tuple(value.shape) for value in values]
    return tuple(
        next((n for n in sizes if not isinstance(n, int) or n != 1), 1) for sizes in zip(*padded, strict=True)
    )


def _elementwise(graph: Graph, operation: str, inputs: list[Known], kind: np.dtype) -> Known:
    if operation == "Max":
        rest = [x for x in inputs if isinstance(x, Value) or np.any(x)]
        low = [x for x in inputs if not isinstance(x, Value) and np.all(x == -np.inf)]
        if low and len(inputs) == 2:
            return next(x for x in inputs if isinstance(x, Value))
        if len(rest) == 1 and len(inputs) == 2 and kind.kind == "f":
            return graph.add("Relu", rest, rest[0].shape)
    return graph.add(operation, inputs, _broadcast(*inputs))


def _broadcast_in_dim(graph, inputs, params, shape):
    """A reshape that puts ones where JAX repeats; whoever needs the repetition asks `Graph.full` for it."""
    x, places = inputs[0], params["broadcast_dimensions"]
    if not x.shape:
        return x
    padded = (1,) * (len(places) - len(x.shape)) + tuple(x.shape)
    ones: list[Any] = [1] * len(shape)
    for place, size in zip(places, padded, strict=True):
        ones[place] = size
    return _reshaped(graph, x, tuple(ones))


def _reshaped(graph: Graph, x: Known, shape: Shape) -> Known:
    """The value in another shape of as many entries; ones in front are left out."""
    if not isinstance(x, Value):
        return x.reshape(shape)
    if tuple(x.shape) == tuple(shape) or (_bare(x.shape) == _bare(shape) and len(x.shape) <= len(shape)):
        return x
    open_sizes = [n for n in shape if not isinstance(n, int)]
    if len(open_sizes) > 1:
        raise ConfigError(
            "the model has an array with two axes of the batch's size, which has no translation"
        )
    target = np.array([n if isinstance(n, int) else -1 for n in shape], np.int64)
    return graph.add("Reshape", [x, target], tuple(shape))


def _bare(shape: Shape) -> Shape:
    """A shape without the ones in front."""
    first = next((i for i, n in enumerate(shape) if not isinstance(n, int) or n != 1), len(shape))
    return tuple(shape[first:])


def _select(graph, inputs, params, shape):
    del params, shape
    if len(inputs) != 3:
        raise ConfigError("the model selects among more than two arrays, which has no translation")
    which, no, yes = inputs
    if not isinstance(which, Value) and np.all(which == which.flat[0]):
        return yes if which.flat[0] else no
    return graph.add("Where", [which, yes, no], _broadcast(which, yes, no))


def _convert(graph, inputs, params, shape):
    del shape
    x, kind = inputs[0], kind_of(params["new_dtype"])
    if not isinstance(x, Value):
        return x.astype(params["new_dtype"])
    if np.dtype(params["from"]).kind == "f" and np.dtype(params["new_dtype"]).kind in "iu":
        raise ConfigError("the model makes integers of floats, which JAX and ONNX cut off differently")
    return (
        x if params["from"] == params["new_dtype"] else graph.add("Cast", [x], x.shape, attribute("to", kind))
    )


def _reduction(operation: str) -> Rule:
    def rule(graph, inputs, params, shape):
        axes = np.array(params["axes"], np.int64)
        if not axes.size:  # ONNX would reduce over all
            return inputs[0]
        return graph.add(operation, [inputs[0], axes], shape, attribute("keepdims", 0))

    return rule


def _dot_general(graph, inputs, params, shape):
    """A MatMul where it is one, else an Einsum."""
    (contract, batch), (left, right) = params["dimension_numbers"], inputs
    if contract == ((len(left.shape) - 1,), (0,)) and len(right.shape) == 2 and not batch[0]:
        return graph.add("MatMul", inputs, shape)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[""] * len(left.shape), [""] * len(right.shape)]
    for pair in (batch, contract):
        for i, j in zip(*pair, strict=True):
            names[0][i] = names[1][j] = next(letters)
    names = [[name or next(letters) for name in side] for side in names]
    free = [
        [name for i, name in enumerate(side) if i not in contract[k] and i not in batch[k]]
        for k, side in enumerate(names)
    ]
    result = [names[0][i] for i in batch[0]] + free[0] + free[1]
    text = ",".join(map("".join, names)) + "->" + "".join(result)
    return graph.add("Einsum", inputs, shape, attribute("equation", text))


def _gather(graph, inputs, params, shape):
    """Rows of a matrix by their numbers, as an embedding has it; a wrong number is an error in ONNX."""
    table, places = inputs
    numbers = params["dimension_numbers"]
    rows = (
        numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and numbers.offset_dims == tuple(range(len(shape) - len(table.shape) + 1, len(shape)))
        and tuple(params["slice_sizes"]) == (1, *table.shape[1:])
        and not numbers.operand_batching_dims
    )
    if not rows:
        raise ConfigError("the model gathers something else than rows, which has no translation")
    if "CLIP" in str(params.get("mode", "")).upper():
        raise ConfigError("the model gathers rows with mode='clip', which has no translation")
    places = _reshaped(graph, places, tuple(places.shape[:-1]))
    return graph.add("Gather", [table, places], shape)


def _concatenate(graph, inputs, params, shape):
    return graph.add("Concat", inputs, shape, attribute("axis", int(params["dimension"])))


def _slice(graph, inputs, params, shape):
    if tuple(inputs[0].shape) == tuple(shape):
        return inputs[0]
    strides = params["strides"] or (1,) * len(shape)
    cut = [
        i for i, (n, m) in enumerate(zip(inputs[0].shape, shape, strict=True)) if n != m or strides[i] != 1
    ]
    parts = ([params["start_indices"][i] for i in cut], [params["limit_indices"][i] for i in cut])
    arrays = [np.array(part, np.int64) for part in (*parts, cut, [strides[i] for i in cut])]
    return graph.add("Slice", [inputs[0], *arrays], shape)


def _pad(graph, inputs, params, shape):
    low, high, inner = zip(*params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise ConfigError("the model pads between entries or by less than nothing, which has no translation")
    return graph.add("Pad", [inputs[0], np.array([*low, *high], np.int64), inputs[1]], shape)


def _integer_power(graph, inputs, params, shape):
    del shape
    x, power = inputs[0], params["y"]
    result = x
    if power < 1:
        return graph.add("Pow", [x, np.float32(power)], x.shape)
    for _ in range(power - 1):
        result = graph.add("Mul", [result, x], x.shape)
    return result


def _rsqrt(graph, inputs, params, shape):
    del params, shape
    root = graph.add("Sqrt", inputs, inputs[0].shape)
    return graph.add("Reciprocal", [root], root.shape)


def _erfc(graph, inputs, params, shape):
    del params, shape
    erf = graph.add("Erf", inputs, inputs[0].shape)
    return graph.add("Sub", [np.float32(1), erf], erf.shape)


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": windows.convolution,
    "convert_element_type": _convert,
    "copy": lambda graph, inputs, params, shape: inputs[0],
    "dot_general": _dot_general,
    "erfc": _erfc,
    "expand_dims": lambda graph, inputs, params, shape: _reshaped(graph, inputs[0], shape),
    "gather": _gather,
    "integer_pow": _integer_power,
    "pad": _pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": windows.max_pool,
    "reshape": lambda graph, inputs, params, shape: _reshaped(graph, inputs[0], shape),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "square": lambda graph, inputs, params, shape: graph.add("Mul", inputs * 2, inputs[0].shape),
    "squeeze": lambda graph, inputs, params, shape: _reshaped(graph, inputs[0], shape),
    "stop_gradient": lambda graph, inputs, params, shape: inputs[0],
    "transpose": lambda graph, inputs, params, shape: graph.transposed(inputs[0], params["permutation"]),
}
# Rules that take inputs as ONNX has them, before they are repeated.
_AS_THEY_ARE = {"broadcast_in_dim", "convert_element_type", "copy", "integer_pow", "rsqrt", "select_n"}
_AS_THEY_ARE |= {"square", "stop_gradient"}
