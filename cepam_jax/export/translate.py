"""A function of weights and inputs, written down as an ONNX graph without its weights.

JAX traces the function with a batch of any size, and each of its primitives becomes an operation of ONNX;
what depends on neither weights nor inputs is computed now. `operations` has the primitives, `graph` what they
build.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from cepam_jax.errors import ConfigError
from cepam_jax.export import loader, operations
from cepam_jax.export.graph import Graph, Value, kind_of

_BATCH = "batch"


class Translation(NamedTuple):
    """A function as a graph.

    Attributes:
      graph: bytes of a GraphProto without weights; its input is "input", its output "output".
      layouts: name of a weight -> permutation of its axes that the graph wants, where it is another one.
    """

    graph: bytes
    layouts: dict[str, tuple[int, ...]]


def translate(function: Callable, leaves: Mapping[str, np.ndarray], example: np.ndarray) -> Translation:
    """The graph of a function (leaves, inputs [batch, ...]) -> outputs [batch, ...].

    Args:
      function: pure; its first argument is a dictionary of weights.
      leaves: name -> weight; shapes and types are read.
      example: inputs of one example.

    Raises:
      ConfigError: the function has a primitive or a type that has no translation; names it.
    """
    names = sorted(leaves)  # the order of the leaves of a dictionary in JAX
    if taken := {"input", "output"} & set(names):
        raise ConfigError(f"a parameter of the model is called {min(taken)!r}, as an array of the graph is")
    (batch,) = export.symbolic_shape(_BATCH)
    inputs = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    shapes = {name: jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype) for name in names}
    with jax.enable_x64(False):
        closed = jax.jit(function).trace(shapes, inputs).jaxpr
        if len(closed.out_avals) != 1:
            raise ConfigError(f"the model has {len(closed.out_avals)} outputs; it must be one array")
        output = closed.out_avals[0]
        graph = Graph(_of_one_use(closed.jaxpr, names))
        given = [Value(name, leaves[name].shape) for name in names]
        (last,) = operations.run(graph, closed.jaxpr, closed.consts, [*given, Value("input", inputs.shape)])
        last = graph.full(last, output.shape)
    nodes, constants = graph.written(last, "output")
    parts = [loader.message(1, each) for each in nodes]
    parts += [loader.message(2, b"model")]
    parts += [loader.message(5, each) for each in constants]
    parts += [
        loader.message(11, _described("input", inputs)),
        loader.message(12, _described("output", output)),
    ]
    turned = {name: order for name, order in graph.layouts.items() if order != tuple(range(len(order)))}
    return Translation(b"".join(parts), turned)


def _of_one_use(jaxpr: Any, names: list[str]) -> list[str]:
    """Those of the first inputs that one operation takes, so that they may be stored as it wants them."""
    counts = _uses(jaxpr)
    return [name for name, count in zip(names, counts, strict=False) if count == 1]


def _uses(jaxpr: Any) -> list[int]:
    """How many operations take each input, those of functions inside this one among them."""
    found = dict.fromkeys(map(id, jaxpr.invars), 0)
    for equation in jaxpr.eqns:
        inner = operations.inner_of(equation)
        counts = [1] * len(equation.invars) if inner is None else _uses(inner)
        for variable, count in zip(equation.invars, counts, strict=True):
            if id(variable) in found:
                found[id(variable)] += count
    for variable in jaxpr.outvars:
        if id(variable) in found:
            found[id(variable)] += 1
    return [found[id(variable)] for variable in jaxpr.invars]


def _described(name: str, array: Any) -> bytes:
    """A ValueInfoProto of something with shape and dtype."""
    sizes = [
        loader.whole(1, n) if isinstance(n, int) else loader.message(2, _BATCH.encode()) for n in array.shape
    ]
    shape = b"".join(loader.message(1, size) for size in sizes)
    kind = loader.whole(1, kind_of(array.dtype)) + loader.message(2, shape)
    return loader.message(1, name.encode()) + loader.message(2, loader.message(1, kind))


def laid_out(weight: loader.Weight, order: tuple[int, ...] | None) -> loader.Weight:
    """A Weight with its axes in the order that a graph wants."""
    if order is None:
        return weight
    values = np.ascontiguousarray(np.transpose(weight.values, order))
    if weight.codes is None:
        return weight._replace(values=values)
    codes = np.ascontiguousarray(np.transpose(weight.codes, order))
    return weight._replace(
        values=values, codes=codes, axis=None if weight.axis is None else order.index(weight.axis)
    )
