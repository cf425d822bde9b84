"""Convolutions and pooling as operations of ONNX, which wants the channels before the places."""

from typing import Any

import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.export.graph import Graph, Known, Shape
from cepam_jax.export.loader import attribute


def convolution(graph: Graph, inputs: list[Known], params: dict[str, Any], shape: Shape) -> Known:
    """A Conv between transpositions, of which neighbours cancel; a weight is stored turned."""
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ConfigError("the model has a transposed convolution, which has no translation")
    x = graph.transposed(inputs[0], numbers.lhs_spec)
    kernel = graph.laid_out(inputs[1], numbers.rhs_spec)
    low, high = zip(*params["padding"], strict=True)
    out = tuple(shape[i] for i in numbers.out_spec)
    if min((*low, *high), default=0) < 0:
        raise ConfigError("the model has a convolution that pads by less than nothing, without translation")
    attributes = [attribute("pads", [*low, *high])] if any((*low, *high)) else []
    for name, value in (("strides", params["window_strides"]), ("dilations", params["rhs_dilation"])):
        attributes += [attribute(name, list(value))] if set(value) != {1} else []
    if params["feature_group_count"] != 1:
        attributes.append(attribute("group", params["feature_group_count"]))
    y = graph.add("Conv", [x, kernel], out, *attributes)
    return graph.transposed(y, _inverse(numbers.out_spec))


def max_pool(graph: Graph, inputs: list[Known], params: dict[str, Any], shape: Shape) -> Known:
    """Of windows over all axes but the first and the last, as flax pools images."""
    window, strides, padding = (params[n] for n in ("window_dimensions", "window_strides", "padding"))
    plain = {*params["base_dilation"], *params["window_dilation"], window[0], window[-1]} == {1}
    if not plain or padding[0] != (0, 0) or padding[-1] != (0, 0):
        raise ConfigError(
            "the model has a maximum over windows that are no pooling, which has no translation"
        )
    last = len(window) - 1
    order = (0, last, *range(1, last))
    low, high = zip(*padding[1:-1], strict=True)
    attributes = [attribute("kernel_shape", list(window[1:-1])), attribute("strides", list(strides[1:-1]))]
    attributes += [attribute("pads", [*low, *high])] if any((*low, *high)) else []
    out = tuple(shape[i] for i in order)
    y = graph.add("MaxPool", [graph.transposed(inputs[0], order)], out, *attributes)
    return graph.transposed(y, _inverse(order))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(order))
