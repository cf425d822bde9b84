"""A model as `jax.export` writes it: one file that a process with JAX alone loads and calls.

  from jax import export
  logits = export.deserialize(open("model.jax", "rb").read()).call(inputs)

Quantized weights are in it as bytes of one, two or four codes, which the program takes apart and multiplies
by their steps. A code of three bits takes four.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cepam_jax.export.loader import Weight, steps

PLATFORMS = ("cpu", "cuda", "tpu")


def artifact(function: Callable, weights: Mapping[str, Weight], example: np.ndarray) -> bytes:
    """The bytes of an exported function of inputs [batch, ...], whose batch may have any size.

    Args:
      function: (name -> f32[...], inputs) -> outputs.
      weights: name -> Weight.
      example: inputs of one example.
    """
    stored = {name: _stored(w) for name, w in weights.items()}

    def call(inputs):
        return function({name: unfold() for name, unfold in stored.items()}, inputs)

    (batch,) = export.symbolic_shape("batch")
    with jax.enable_x64(False):
        inputs = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
        return bytes(export.export(jax.jit(call), platforms=PLATFORMS)(inputs).serialize())


def _stored(w: Weight) -> Callable[[], jax.Array]:
    """What makes a weight f32[...] of constants of few bytes, inside a program."""
    if w.codes is None or w.numbers is None:
        return lambda: jnp.asarray(w.values)
    slot = 8 if w.bits > 4 else 4 if w.bits > 2 else 2
    each = 8 // slot
    flat = w.codes.reshape(-1)
    filled = np.pad(flat, (0, -len(flat) % each)).view(np.uint8) & (2**slot - 1)
    folded = sum((filled[i::each] << (i * slot)).astype(np.uint8) for i in range(each))
    shape = [1] * w.codes.ndim
    if w.axis is not None:
        shape[w.axis] = -1
    shape_of, size = w.codes.shape, steps(w.numbers).reshape(shape)

    def unfold():
        # A shift to the left and back again copies the sign of each code.
        parts = [
            (jnp.asarray(folded) << (8 - slot - i * slot)).astype(jnp.int8) >> (8 - slot) for i in range(each)
        ]
        codes = jnp.stack(parts, 1).reshape(-1)[: len(flat)].reshape(shape_of)
        return codes.astype(jnp.float32) * jnp.asarray(size)

    return unfold
