"""One label of several for each example: cross-entropy and accuracy."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax.errors import DatasetError
from cepam_jax.tasks.base import Sums, Task
from cepam_jax.tasks.networks import Network, network

FORMATS = {"loss": ".3f", "accuracy": ".3f"}


def classification(
    model: nn.Module | Network,
    example: Any = None,
    inputs: str = "inputs",
    labels: str = "labels",
    prepare: Callable | None = None,
    num_classes: int = 0,
) -> Task:
    """Learns which of several labels an example has.

    Args:
      model: flax module whose outputs are logits f32[batch, classes], or a `tasks.network` of one.
      example: inputs of one example, where `model` is a module.
      inputs: name of the examples' array that goes into the module.
      labels: name of the array int[examples] of labels, from 0 on.
      prepare: (inputs of a batch, constants, key or None) -> what goes into the module; with a key it may
        augment. By default nothing is done.
      num_classes: how many labels there are, for attacks that turn label k into the last one less k; 0: not
        known, and there are none.
    """
    net = model if isinstance(model, Network) else network(model, example)

    def loss(model, batch, constants, key):
        prepare_key, apply_key = jax.random.split(key)
        x = batch[inputs] if prepare is None else prepare(batch[inputs], constants, prepare_key)
        logits, statistics = net.apply(model, x, apply_key)
        return cross_entropy(logits, batch[labels]).mean(), statistics

    def evaluate(model, batch, constants):
        x = batch[inputs] if prepare is None else prepare(batch[inputs], constants, None)
        logits, _ = net.apply(model, x, None)
        correct = (logits.argmax(-1) == batch[labels]).astype(jnp.float32)
        return {"loss": cross_entropy(logits, batch[labels]), "accuracy": correct}

    def turned(examples):
        return {**examples, labels: num_classes - 1 - examples[labels]}

    return Task(
        net.initialize,
        loss,
        evaluate,
        means,
        "accuracy",
        higher_is_better=True,
        formats=FORMATS,
        project=net.project,
        turned=turned if num_classes else None,
        check=lambda examples, constants: _check(net, inputs, labels, prepare, examples, constants),
    )


def _check(net: Network, inputs: str, labels: str, prepare: Callable | None, examples, constants) -> None:
    """Raises DatasetError unless every example has one label, and an output of the model stands for it."""
    for name in (inputs, labels):
        if name not in examples:
            raise DatasetError(f"examples have no array {name!r}; they have: {', '.join(sorted(examples))}")
    found = np.asarray(examples[labels])
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DatasetError(
            f"{labels!r} is an array {found.dtype}{list(found.shape)}; it must be one whole number for each "
            "example"
        )
    one = jax.ShapeDtypeStruct((1, *np.shape(examples[inputs])[1:]), np.asarray(examples[inputs]).dtype)

    def outputs(key, x):
        x = x if prepare is None else prepare(x, constants, None)
        return net.apply(net.initialize(key), x, None)[0]

    check_labels(found, labels, jax.eval_shape(outputs, jax.random.key(0), one).shape[-1])


def check_labels(found: np.ndarray, name: str, classes: int) -> None:
    """Raises DatasetError unless an output of the model stands for every label.

    Args:
      found: whole numbers.
      name: of their array.
      classes: outputs.
    """
    if len(found) and not 0 <= found.min() <= found.max() < classes:
        raise DatasetError(
            f"{name!r} has labels from {found.min()} to {found.max()}; the model's {classes} outputs stand "
            f"for those from 0 to {classes - 1}"
        )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """f32[...] in nats, of logits [..., classes], computed in float32 whatever the outputs are."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def means(sums: Sums, count: float) -> dict[str, float]:
    """Each sum divided by the number of examples."""
    return {name: float(total) / count for name, total in sums.items()}
