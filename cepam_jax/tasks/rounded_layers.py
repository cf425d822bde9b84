"""Local training in few bits: what goes into layers, and the gradients that come back out of them.

Every dense layer and every convolution sees its inputs rounded to the nearest of 2^b - 1 levels, and hands
on, on the way back, the gradient of its outputs rounded to one of the two nearest at random, so that it is
right in the mean. Levels are spread evenly up to the largest magnitude of each example. Gradients go through
the rounding of inputs as if it were not there (Hubara, Courbariaux, Soudry, El-Yaniv, Bengio: Quantized
Neural Networks, arXiv 1609.07061; Banner, Hubara, Hoffer, Soudry: Scalable Methods for 8-bit Training of
Neural Networks, arXiv 1805.11046). Products are computed in floats: what is simulated is accuracy, not speed.

What an example adds to the loss still depends on that example alone, the first law of a task, so whatever is
said of clips and of privacy stays as it was. Evaluation rounds nothing.

Bozorgasl, Chen (arXiv 2405.13365) leave this open for future work.
"""

import functools
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError, require
from cepam_jax.models.convolution import Conv
from cepam_jax.tasks.base import Task

LAYERS = (nn.Dense, nn.Conv, nn.DenseGeneral, Conv)
_MOST_BITS = 16
_ROUNDING = np.uint32(0x42495453)  # where a key is for the rounding, apart from dropout's

settings.declare(
    "local",
    {
        "activation_bits": settings.integer(
            0, "Bits of what goes into a layer in local training, from 2; 0: floats.", low=0, high=_MOST_BITS
        ),
        "gradient_bits": settings.integer(
            0, "Bits of the gradients of layers' outputs, from 2; 0: floats.", low=0, high=_MOST_BITS
        ),
    },
)


@settings.rule
def _rules(fields):
    for name in ("local.activation_bits", "local.gradient_bits"):
        yield fields[name] != 1, name, f"0, or from 2 to {_MOST_BITS}: one bit has no level beside zero"


def of_config(config, task: Task) -> Task:
    """The task as a configuration trains it; read are local.activation_bits and local.gradient_bits."""
    bits = config.local.activation_bits, config.local.gradient_bits
    return few_bits(task, *bits) if any(bits) else task


def few_bits(task: Task, activations: int = 0, gradients: int = 0) -> Task:
    """The same task, trained with rounded inputs and gradients of layers.

    Args:
      task: whose loss calls layers of flax, `LAYERS`.
      activations: bits of the inputs of layers, 0 (floats) or from 2 to 16.
      gradients: of the gradients of their outputs, likewise.

    Raises:
      ConfigError: another number of bits; when it trains, a task that calls no such layer.
    """
    for name, bits in (("activations", activations), ("gradients", gradients)):
        require(bits == 0 or 2 <= bits <= _MOST_BITS, name, bits, f"0, or from 2 to {_MOST_BITS} bits")

    def loss(model, batch, constants, key):
        layers = itertools.count()
        noise = jax.random.fold_in(key, _ROUNDING)

        def inside(call, arguments, options, context):
            if not isinstance(context.module, LAYERS) or context.method_name != "__call__":
                return call(*arguments, **options)
            inputs = nearest(arguments[0], activations) if activations else arguments[0]
            outputs = call(inputs, *arguments[1:], **options)
            if not gradients:
                return outputs
            words = jax.random.key_data(jax.random.fold_in(noise, next(layers)))
            return _with_gradient(gradients, outputs, words)

        called = _Called(inside)
        with nn.intercept_methods(called):
            result = task.loss(model, batch, constants, key)
        if not called.layers:
            known = ", ".join(sorted({layer.__name__ for layer in LAYERS}))
            raise ConfigError(
                f"local training in few bits rounds what layers are given; the model has none of: {known}"
            )
        return result

    return task._replace(loss=loss)


class _Called:
    """An interceptor that knows whether it met a layer."""

    def __init__(self, inside: Callable):
        self.inside, self.layers = inside, 0

    def __call__(self, call, arguments, options, context):
        self.layers += isinstance(context.module, LAYERS)
        return self.inside(call, arguments, options, context)


def _step(x: jax.Array, bits: int) -> jax.Array:
    """f32[batch, 1, ...]: between levels, for each entry of the leading axis; 1 where all is zero."""
    most = jnp.abs(x).max(axis=tuple(range(1, x.ndim)), keepdims=True).astype(jnp.float32)
    return jnp.where(most > 0, most, 2 ** (bits - 1) - 1) / np.float32(2 ** (bits - 1) - 1)


def nearest(x: jax.Array, bits: int) -> jax.Array:
    """x [batch, ...] at the nearest of 2^bits - 1 levels up to each example's largest magnitude.

    Its derivative is taken as that of x.
    """
    step = _step(x, bits)
    rounded = (jnp.round(x.astype(jnp.float32) / step) * step).astype(x.dtype)
    return x + jax.lax.stop_gradient(rounded - x)


def at_random(x: jax.Array, bits: int, key: jax.Array) -> jax.Array:
    """x [batch, ...] at one of the two nearest of these levels, such that the mean is x."""
    step = _step(x, bits)
    moved = x.astype(jnp.float32) / step + jax.random.uniform(key, x.shape)
    return (jnp.floor(moved) * step).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradient(bits: int, x: jax.Array, words: jax.Array) -> jax.Array:
    """x, whose gradient is rounded at random by a key's words."""
    return x


def _forward(bits, x, words):
    return x, words


def _backward(bits, words, gradient):
    key = jax.random.wrap_key_data(words)
    return at_random(gradient, bits, key), np.zeros(words.shape, jax.dtypes.float0)


_with_gradient.defvjp(_forward, _backward)
