"""Weights that are trained on as they will be rounded, so that the file answers as the trained model does.

The trained model writes what is learned from, and nothing else is read: no data, no labels. So what protects
the trained model protects what is made of it. (Liu, Oguz, Zhao and others: LLM-QAT: Data-Free
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
from cepam_jax.export.loader import Weight, quantized
from cepam_jax.export.predictor import Predictor
from cepam_jax.export.quantize import pruned

WINDOWS, BATCH = 1024, 32
# Of Adam, whose steps are about as long, whatever the gradient is: chosen on one Transformer, whose weights
# are rounded to steps of .02 to .2.
RATE = 3e-4


def refine(
    predictor: Predictor, weights: Mapping[str, Weight], count: int, prune: float = 0.0, seed: int = 0
) -> dict[str, Weight]:
    """The same steps with other codes: of the trained weights after `count` more steps, by Adam.

    Where these answer no more like the trained model than the weights that are given, those are returned.

    Args:
      predictor: the trained model; its outputs are logits over the last axis, its head has `samples`.
      weights: name -> Weight, all quantized.
      count: of training steps, at least 1, each of 32 of 1,024 inputs that the trained model made.
      prune: the share that was set to zero before rounding, and stays zero.
      seed: of these inputs, and of their order.

    Returns:
      name -> Weight in the same order. Codes keep within the largest that their bits allow.

    Raises:
      ConfigError: the model has no inputs of its own making; its answers to them are not finite.
    """
    if predictor.head.samples is None:
        raise ConfigError(
            "--refine trains on what the model writes itself; a model of text does, this one writes nothing"
        )
    trained = {name: jnp.asarray(predictor.leaves[name], jnp.float32) for name in weights}
    grids = {name: _grid(w, predictor.leaves[name], prune) for name, w in weights.items()}
    key, order = jax.random.split(jax.random.key(seed))
    inputs = predictor.head.samples(predictor.model, key, WINDOWS)
    answer = jax.jit(predictor.function)
    wanted = jnp.concatenate([answer(trained, part) for part in jnp.split(inputs, WINDOWS // BATCH)])
    if not bool(jnp.isfinite(wanted).all()):
        raise ConfigError("--refine asks the model for its own answers, and some of them are NaN or infinite")
    rows = jax.random.randint(order, (count, BATCH), 0, WINDOWS)
    values = _trained(predictor.function, grids, trained, inputs, wanted, rows)
    found = {name: _rounded(w, values[name], grids[name]) for name, w in weights.items()}

    @jax.jit
    def far(values, inputs, wanted):
        return _divergence(wanted, predictor.function(values, inputs))

    def farness(weights):
        values = {name: w.values for name, w in weights.items()}
        parts = zip(jnp.split(inputs, WINDOWS // BATCH), jnp.split(wanted, WINDOWS // BATCH), strict=True)
        return sum(float(far(values, *part)) for part in parts)

    return found if farness(found) < farness(weights) else dict(weights)


def _divergence(wanted, logits) -> jax.Array:
    """f32[]: Kullback-Leibler divergence of the laws that logits [..., classes] say, in the mean."""
    law = jax.nn.log_softmax(wanted)
    return jnp.sum(jnp.exp(law) * (law - jax.nn.log_softmax(logits)), -1).mean()


def _grid(w: Weight, values: np.ndarray, prune: float) -> tuple[np.ndarray, float, np.ndarray]:
    """(step of each weight f32[...], largest code, whether it may be other than zero bool[...])."""
    assert w.codes is not None and w.numbers is not None, f"{w.name} is not quantized"
    step = quantized(w.name, np.ones_like(w.codes), w.numbers, w.axis, w.bits).values
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
        return _divergence(wanted[chosen], function(rounded, inputs[chosen]))

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
