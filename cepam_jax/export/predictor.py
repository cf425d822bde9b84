"""From what a run learned to one function of weights and inputs, and to the metrics of what it answers.

The inputs are an example as the data set has it, such as pixels of 8 bits; normalization is a part of the
function. A task that others add joins by `PREDICTORS.register`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import models
from cepam_jax.errors import require_choice
from cepam_jax.models.convolution import Conv
from cepam_jax.registry import Registry
from cepam_jax.tasks import generation, images, language
from cepam_jax.tasks.base import Model, Sums
from cepam_jax.tasks.networks import Network, network
from cepam_jax.tasks.trainable import paths_of

# Name of a task -> function (config, specification, constants) -> Head.
PREDICTORS: Registry = Registry("task that can be exported")


class Head(NamedTuple):
    """What of a task stays on the device, and how its answers are judged.

    Attributes:
      function: (Model, inputs [batch, ...]) -> outputs f32[batch, ...].
      inputs_of: examples (name -> array) -> inputs.
      judge: (outputs f32[batch, ...], examples) -> the sums over them that `Task.evaluate` and
        `Task.summarize` speak of.
      samples: (Model, key, count) -> inputs [count, ...] that the model makes itself, where it can; the
        outputs are then logits over the last axis. See `refine`.
    """

    function: Callable[[Model, Any], Any]
    inputs_of: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    judge: Callable[[np.ndarray, Mapping[str, np.ndarray]], Sums]
    samples: Callable[[Model, jax.Array, int], jax.Array] | None = None


class Predictor(NamedTuple):
    """A trained model as a function of named arrays.

    Attributes:
      leaves: name -> f32[...], the weights, in the order of the model's tree.
      function: (leaves, inputs [batch, ...]) -> outputs f32[batch, ...].
      example: inputs of one example, zeros, without the batch's axis.
      head: of its task.
      model: whole, of which leaves are the arrays.
    """

    leaves: dict[str, np.ndarray]
    function: Callable[[Mapping[str, Any], Any], Any]
    example: np.ndarray
    head: Head
    model: Model


def predictor(config, data, model: Model) -> Predictor:
    """The Predictor of a trained model.

    Args:
      config: settings; read are task, model and what the task's own function reads.
      data: Examples that the task is made for.
      model: whole, as `run.finished.load` gives it.

    Raises:
      ConfigError: the task has no outputs that could be exported; lists those that have.
    """
    require_choice("config.task of the run", config.task, PREDICTORS)
    head = PREDICTORS[config.task](config, data.specification, data.constants)
    structure, leaves = jax.tree.structure(model), paths_of(model)
    # Paths begin with the field of the Model, which is only worth a word where there is more than one.
    only = all(name.startswith("params/") for name in leaves)
    names = [name.removeprefix("params/") if only else name for name in leaves]

    def function(weights, inputs):
        with nn.intercept_methods(_plain_convolution):
            return head.function(jax.tree.unflatten(structure, [weights[name] for name in names]), inputs)

    arrays = dict(zip(names, map(np.asarray, leaves.values()), strict=True))
    first = head.inputs_of({name: array[:1] for name, array in data.test.items()})[0]
    return Predictor(arrays, function, np.zeros_like(first), head, model)


def _plain_convolution(call, arguments, options, context):
    """`models.convolution.Conv` as one convolution and one pooling, which every runtime knows.

    While many clients train, it is matrix products of tiles instead; the results differ by rounding alone.
    """
    module = context.module
    if not isinstance(module, Conv) or context.method_name != "__call__":
        return call(*arguments, **options)
    kernel: Any = module.get_variable("params", "kernel")
    bias: Any = module.get_variable("params", "bias")
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        arguments[0], kernel, (1, 1), module.padding, dimension_numbers=dimensions
    )
    return (nn.max_pool(x, (2, 2), (2, 2)) if module.pool else x) + bias


def _nats(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy f64[...] of logits f32[..., classes] and labels int[...]."""
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    return total - np.take_along_axis(logits, labels[..., None].astype(np.int64), -1)[..., 0]


@PREDICTORS.function
def image_classification(config, specification, constants) -> Head:
    """Logits f32[batch, classes] of images uint8[batch, height, width, channels]."""
    facts, arrays, _ = specification
    shapes = {name: shape for name, _, shape in arrays}
    module = models.build(config.model, dict(facts)["num_classes"])
    net = network(module, np.zeros(shapes["image"], np.float32))

    def judge(outputs, examples):
        right = outputs.argmax(-1) == examples["label"]
        return {"loss": _nats(outputs, examples["label"]).sum(), "accuracy": right.sum()}

    return Head(
        lambda model, inputs: net.apply(model, images.normalized(inputs, constants), None)[0],
        lambda examples: examples["image"],
        judge,
    )


@PREDICTORS.function
def next_character(config, specification, constants) -> Head:
    """Logits f32[batch, context, characters] of characters int32[batch, context]."""
    del constants
    net: Network = language.network_of(config, specification)
    facts = dict(specification[0])

    def judge(outputs, examples):
        wanted = examples["characters"][:, 1:]
        counts = np.arange(1, wanted.shape[1] + 1) < examples["length"][:, None]
        right = outputs.argmax(-1) == wanted
        nats = (counts * _nats(outputs, wanted)).sum()
        return {"nats": nats, "right": (counts & right).sum(), "characters": counts.sum()}

    return Head(
        lambda model, inputs: jnp.asarray(net.apply(model, inputs, None)[0]),
        lambda examples: examples["characters"][:, :-1].astype(np.int32),
        judge,
        functools.partial(generation.windows, net, facts["context"], facts["vocabulary"]),
    )
