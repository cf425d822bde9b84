"""Local training with few bits in its layers: what goes into them, and the gradients that they hand back.

Every dense layer and every convolution sees its inputs rounded to the nearest of 2^b - 1 levels, and hands
on, on the way back, the gradient of its outputs rounded to one of the two nearest at random, so that it is
right in the mean. Levels lie evenly on both sides of zero, up to the largest magnitude of each vector that a
dense layer is given, and of each image that a convolution is given. Gradients go through the rounding of
inputs as if it were not there (Hubara, Courbariaux, Soudry, El-Yaniv, Bengio: Quantized Neural Networks,
arXiv 1609.07061; Banner, Hubara, Hoffer, Soudry: Scalable Methods for 8-bit Training of Neural Networks,
arXiv 1805.11046).

Weights stay floats, and so does what is no such layer: embeddings and what reads out by them, products of
attention, sums over the neighbours in a graph, cells of an LSTM. Products are computed in floats: what is
simulated is accuracy, not speed. Evaluation rounds nothing.

Where the leading axis of a layer's inputs is the example, what an example adds to the loss still depends on
that example alone, the first law of a task; so all that is said of clips and of privacy stays as it was.

Bozorgasl, Chen (arXiv 2405.13365) leave this open for future work.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError, is_whole, require
from cepam_jax.models.convolution import Conv
from cepam_jax.tasks.base import Task

DENSE, CONVOLUTIONS = (nn.Dense, nn.DenseGeneral), (nn.Conv, Conv)
LAYERS = (*DENSE, *CONVOLUTIONS)
_MOST_BITS = 16
_ROUNDING = np.uint32(0x42495453)  # where a key is for the rounding, apart from dropout's
_LEAST = np.float32(2.0**-100)  # a vector below is zero: its steps would be no normal floats

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
        good = is_whole(bits) and (bits == 0 or 2 <= bits <= _MOST_BITS)
        require(good, name, bits, f"0, or from 2 to {_MOST_BITS} bits")

    def loss(model, batch, constants, key):
        rounding = _Rounding(activations, gradients, jax.random.fold_in(key, _ROUNDING))
        with nn.intercept_methods(rounding):
            result = task.loss(model, batch, constants, key)
        if not rounding.layers:
            known = ", ".join(sorted({layer.__name__ for layer in LAYERS}))
            raise ConfigError(
                "local training in few bits (config.local.activation_bits, config.local.gradient_bits) "
                f"rounds what layers are given, and the model has none of: {known}"
            )
        return result

    return task._replace(loss=loss)


class _Rounding:
    """An interceptor of flax: rounds around each call of a layer while a loss is traced.

    Attributes:
      layers: how many were called.
      within: whether one of them is being called, as by a subclass that calls the layer that it extends.
    """

    def __init__(self, activations: int, gradients: int, key: jax.Array):
        self.activations, self.gradients, self.key = activations, gradients, key
        self.layers, self.within = 0, False

    def __call__(self, call, arguments, options, context):
        if self.within or context.method_name != "__call__" or not isinstance(context.module, LAYERS):
            return call(*arguments, **options)
        # A vector for a dense layer, an image for a convolution.
        axes = 1 if isinstance(context.module, DENSE) else 3
        if self.activations and arguments:
            arguments = (nearest(arguments[0], self.activations, axes), *arguments[1:])
        elif self.activations:  # it was given by name
            options = {name: nearest(value, self.activations, axes) for name, value in options.items()}
        self.within = True
        try:
            outputs = call(*arguments, **options)
        finally:
            self.within = False
        words = jax.random.key_data(jax.random.fold_in(self.key, self.layers))
        self.layers += 1
        return _with_gradient(self.gradients, axes, outputs, words) if self.gradients else outputs


def _in_steps(x: jax.Array, bits: int, axes: int) -> tuple[jax.Array, jax.Array, int]:
    """(x over its steps f32[...], steps f32[..., 1 for each of the last axes], largest level)."""
    largest = 2 ** (bits - 1) - 1
    wide = x.astype(jnp.float32)
    most = jnp.abs(wide).max(axis=tuple(range(-min(axes, x.ndim), 0)), keepdims=True)
    tiny = most <= _LEAST  # not so of NaN, which stays what it is
    step = jnp.where(tiny, 1, most / np.float32(largest))
    return jnp.where(tiny, 0, wide / step), step, largest


def nearest(x: jax.Array, bits: int, axes: int = 1) -> jax.Array:
    """x [...] at the nearest of 2^bits - 1 levels; what is no float stays as it is.

    Args:
      x: finite.
      bits: at least 2.
      axes: so many last axes share their levels, which reach up to their largest magnitude.

    Returns:
      The same shape and type. Its derivative is taken as that of x.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    places, step, _ = _in_steps(x, bits, axes)
    return x + jax.lax.stop_gradient((jnp.round(places) * step).astype(x.dtype) - x)


def at_random(x: jax.Array, bits: int, axes: int, key: jax.Array) -> jax.Array:
    """x [...] at one of the two nearest of these levels, such that the mean over keys is x."""
    places, step, largest = _in_steps(x, bits, axes)
    low = jnp.floor(places)
    up = jax.random.uniform(key, x.shape) < places - low
    return (jnp.clip(low + up, -largest, largest) * step).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(bits: int, axes: int, x: jax.Array, words: jax.Array) -> jax.Array:
    """x, whose gradient is rounded at random by a key's words."""
    return x


def _forward(bits, axes, x, words):
    return x, words


_GENERATORS = {2: "threefry2x32", 4: "rbg"}  # by words of a key


def _backward(bits, axes, words, gradient):
    # A layer inside a scan is traced once, with one key for all steps: the gradient's own bits part them.
    own = jax.lax.bitcast_convert_type(gradient.astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl=_GENERATORS[words.shape[-1]]), own)
    return at_random(gradient, bits, axes, key), np.zeros(words.shape, jax.dtypes.float0)


_with_gradient.defvjp(_forward, _backward)
