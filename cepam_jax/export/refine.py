"""Rounded weights that are trained on, so that their model answers as the trained one does.

What it learns from the trained model writes itself, and nothing else is read: no data, no labels. So what
protects the trained model protects what is made of it. (Liu, Oguz, Zhao and others: LLM-QAT: Data-Free
Quantization Aware Training for Large Language Models, arXiv 2305.17888, sections 2.1 and 2.2.) Gradients go
through the rounding as if it were not there (Bengio, Léonard, Courville: Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432), and what is trained is how far the
outputs' law is from that of the trained model (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural
Network, arXiv 1503.02531).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax.errors import ConfigError
from cepam_jax.export.loader import Weight, quantized, steps
from cepam_jax.export.predictor import Predictor
from cepam_jax.export.quantize import pruned

WINDOWS, BATCH, RATE = 1024, 32, 3e-4


def can_be_refined(predictor: Predictor) -> None:
    """ConfigError where the model has no inputs of its own making."""
    if predictor.head.samples is None:
        raise ConfigError(
            "--refine trains on what the model writes itself; a model of text does, this one writes nothing"
        )


def refine(
    predictor: Predictor, weights: Mapping[str, Weight], count: int, prune: float = 0.0, seed: int = 0
) -> dict[str, Weight]:
    """The same steps with other codes, after `count` steps of Adam.

    Args:
      predictor: the trained model; its outputs are logits over the last axis, its head has `samples`.
      weights: name -> Weight, all quantized.
      count: of training steps, at least 1, each of 32 of 1,024 inputs that the trained model made.
      prune: the share that was set to zero before rounding, and stays zero.
      seed: of these inputs, and of their order.

    Returns:
      name -> Weight in the same order. Codes keep within the largest that their bits allow.

    Raises:
      ConfigError: the model has no inputs of its own making.
    """
    can_be_refined(predictor)
    trained = {name: jnp.asarray(predictor.leaves[name], jnp.float32) for name in weights}
    grids = {name: _grid(w, predictor.leaves[name], prune) for name, w in weights.items()}
    key, order = jax.random.split(jax.random.key(seed))
    inputs = predictor.head.samples(predictor.model, key, WINDOWS)  # type: ignore[misc]  # it was looked for
    answer = jax.jit(predictor.function)
    wanted = jnp.concatenate([answer(trained, part) for part in jnp.split(inputs, WINDOWS // BATCH)])
    rows = jax.random.randint(order, (count, BATCH), 0, WINDOWS)
    found = _trained(predictor.function, grids, trained, inputs, wanted, rows)
    return {name: _rounded(w, found[name], grids[name]) for name, w in weights.items()}


def _grid(w: Weight, values: np.ndarray, prune: float) -> tuple[np.ndarray, float, np.ndarray]:
    """(step of each weight f32[...], largest code, whether it may be other than zero bool[...])."""
    assert w.codes is not None and w.numbers is not None, f"{w.name} is not quantized"
    shape = [1] * w.codes.ndim
    if w.axis is not None:
        shape[w.axis] = -1
    step = np.broadcast_to(steps(w.numbers).reshape(shape), w.codes.shape)
    left = pruned(values, prune) != 0 if prune and values.ndim > 1 else np.ones(values.shape, bool)
    return step, float(2 ** (w.bits - 1) - 1), (step > 0) & left


def _codes(values, grid):
    """Numbers of steps f[...], rounded and cut off."""
    step, largest, free = grid
    whole = jnp.clip(jnp.round(values / jnp.where(step > 0, step, 1)), -largest, largest)
    return jnp.where(free, whole, 0)


def _trained(
    function: Callable,
    grids: Mapping[str, Any],
    values: dict,
    inputs: jax.Array,
    wanted: jax.Array,
    rows: jax.Array,
) -> dict[str, jax.Array]:
    """The values before rounding, after a step for each of rows int32[steps, batch]."""

    def loss(values, chosen):
        # The value is the rounded one, and the gradient that of the one before rounding.
        rounded = {
            name: v + jax.lax.stop_gradient(_codes(v, grids[name]) * grids[name][0] - v)
            for name, v in values.items()
        }
        law = jax.nn.log_softmax(wanted[chosen])
        ours = jax.nn.log_softmax(function(rounded, inputs[chosen]))
        return jnp.sum(jnp.exp(law) * (law - ours), -1).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, len(rows)))

    @jax.jit
    def run(values):
        def step(carry, chosen):
            values, state = carry
            updates, state = optimizer.update(jax.grad(loss)(values, chosen), state)
            return (optax.apply_updates(values, updates), state), None

        return jax.lax.scan(step, (values, optimizer.init(values)), rows)[0][0]

    return run(values)


def _rounded(w: Weight, values: jax.Array, grid) -> Weight:
    codes = np.asarray(_codes(values, grid)).astype(np.int8)
    assert w.numbers is not None
    return quantized(w.name, codes, w.numbers, w.axis, w.bits)
