"""An ONNX graph under construction: operations, constants, and in which layout it wants the weights.

Shapes are kept as ONNX has them: a broadcast that the next operation does by itself is left out.
"""

from typing import Any, NamedTuple

import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.export import loader

Shape = tuple[Any, ...]  # whole numbers, and the symbol of the batch
_KINDS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}


class Value(NamedTuple):
    """An array that is known when the graph runs.

    Attributes:
      name: in the graph.
      shape: in the graph; where JAX has broadcast it, its own is larger.
    """

    name: str
    shape: Shape


Known = Value | np.ndarray  # an array is known already


class Graph:
    """A graph under construction.

    Args:
      weights: their names.

    Attributes:
      layouts: name of a weight -> permutation of the axes in which the graph wants it.
    """

    def __init__(self, weights: list[str]) -> None:
        self._nodes: list[tuple[str, list[str], str, tuple[bytes, ...]]] = []
        self.layouts: dict[str, tuple[int, ...]] = {}
        self._weights = frozenset(weights)
        self._tensors: dict[tuple, tuple[str, bytes]] = {}
        self._turned: dict[str, tuple[Value, tuple[int, ...]]] = {}

    def add(self, operation: str, inputs: list[Known], shape: Shape, *attributes: bytes) -> Value:
        """The result, of this shape, of an operation on inputs."""
        name = f"~{len(self._nodes):x}"
        self._nodes.append((operation, [self.name_of(value) for value in inputs], name, attributes))
        return Value(name, shape)

    def name_of(self, value: Known) -> str:
        """The name of a value; a constant becomes a part of the graph, once."""
        if isinstance(value, Value):
            return value.name
        value = np.asarray(value)
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._tensors:
            name = f"~c{len(self._tensors):x}"
            kind = kind_of(value.dtype)
            self._tensors[key] = name, loader.tensor(name, value.shape, kind, value.tobytes())
        return self._tensors[key][0]

    def written(self, last: Known, name: str) -> tuple[list[bytes], list[bytes]]:
        """(NodeProtos, TensorProtos of constants) of what a value needs; it has this name there."""
        last = self.add("Identity", [last], last.shape)
        needed, nodes = {last.name}, []
        for operation, inputs, output, attributes in reversed(self._nodes):
            if output in needed:
                needed |= set(inputs)
                called = name if output == last.name else output
                nodes.append(loader.node(operation, inputs, [called], *attributes))
        return nodes[::-1], [content for n, content in self._tensors.values() if n in needed]

    def transposed(self, value: Known, order: tuple[int, ...]) -> Known:
        """The value with its axes in this order; two turns that undo each other are none."""
        if not isinstance(value, Value):
            return np.ascontiguousarray(np.transpose(value, order))
        if order == tuple(range(len(order))):
            return value
        if value.name in self._turned:
            before, first = self._turned[value.name]
            if tuple(first[i] for i in order) == tuple(range(len(order))):
                return before
        shape = tuple(value.shape[i] for i in order)
        found = self.add("Transpose", [value], shape, loader.attribute("perm", list(order)))
        self._turned[found.name] = value, order
        return found

    def laid_out(self, value: Known, order: tuple[int, ...]) -> Known:
        """Like `transposed`; a weight is stored so, if this is the only way in which it is used."""
        if isinstance(value, Value) and value.name in self._weights:
            self.layouts[value.name] = order
            return value._replace(shape=tuple(value.shape[i] for i in order))
        return self.transposed(value, order)

    def full(self, value: Known, shape: Shape) -> Known:
        """The value in the shape that JAX has; ConfigError where only the batch's size would tell it."""
        own = tuple(value.shape)
        if own == tuple(shape):
            return value
        if not isinstance(value, Value) and all(isinstance(n, int) for n in shape):
            return np.ascontiguousarray(np.broadcast_to(value, shape))
        padded = (1,) * (len(shape) - len(own)) + own
        if any(not isinstance(n, int) and m == 1 for n, m in zip(shape, padded, strict=True)):
            raise ConfigError("the model repeats an array once for each example, which has no translation")
        target = np.array([n if isinstance(n, int) else 1 for n in shape], np.int64)
        return self.add("Expand", [value, target], tuple(shape))


def kind_of(dtype: Any) -> int:
    """The number of a type in ONNX; ConfigError where it is none of those that are translated."""
    if str(dtype) not in _KINDS:
        raise ConfigError(
            f"the model computes in {dtype}, which has no translation; there are: {', '.join(_KINDS)}"
        )
    return _KINDS[str(dtype)]
