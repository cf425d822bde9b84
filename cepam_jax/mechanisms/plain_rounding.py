"""Plain rounding to multiples of a step, alone and after private noise.

Without a dither the error depends on the update. "Noise, then quantization" is what CEPAM compares itself to:
Ling, Shiu, Wu, Sun, Li, Song, Xu: Communication-Efficient and Privacy-Adaptable Mechanism for Federated
Learning (arXiv 2501.12046).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import block_bits, blocks, code_length
from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, check_vector
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.noise import add_noise, coded_as_noise


def rounding(segments: tuple[int, ...] | None = None, coding: str = "auto", scales: str = "own") -> Mechanism:
    """Plain rounding to multiples of `knobs.step`, without dither: an error that depends on x.

    It is unbiased only in so far as noise came before.

    Args:
      segments: lengths of the update's tensors, as for `lrsuq`.
      coding: law assumed by the entropy coder, as for `lrsuq`.
      scales: where the scales for the entropy coder come from, as for `lrsuq`.

    Returns:
      A mechanism with knob `step`, in units of the update. Its message has `symbols` int32[d], and
      `side["scale"]` int32[segments] unless the scales are public.

    Raises:
      ConfigError: unknown coding or scales.
    """
    coding = code_length.resolved(coding, "mixture")
    sized = code_length.Scales(segments, coding, scales).check()
    return Mechanism(
        encode=partial(_encode, sized),
        decode=_decode,
        bits=partial(_bits, sized),
        reference=lambda x, knobs: x,
        about=About(name="rounding", law="other", unbiased=False, knobs=("step", *sized.knobs)),
        code=Code(
            "lattice", width=lambda side, knobs: np.float64(knobs.step), family=coding, segments=segments
        ),
    )


def _encode(
    scales: code_length.Scales, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The multiples of the step that are nearest to the coordinates of x f32[d]."""
    del keys
    check_vector(x)
    step = knob(knobs, "step")
    symbols = blocks.integers(jnp.round(x / step), blocks.codable([x], step))
    return Message(symbols, None, scales.measure(x, weight, knobs), x.shape[0])


def _decode(shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d]: the symbols times the step."""
    del shared
    return knob(knobs, "step") * blocks.numbers(message.symbols)


def _bits(
    scales: code_length.Scales,
    shared: jax.Array,
    message: Message,
    knobs: Knobs,
    weight: jax.Array | None = None,
) -> jax.Array:
    """f32[], the ideal code length of rounded coordinates in bits."""
    del shared
    step, center = knob(knobs, "step"), blocks.numbers(message.symbols)
    scale, lengths = scales.of_tensors(message.side, knobs), scales.lengths(message.length)
    symbols = block_bits.tensor_bits(center, step, lengths, scale, scales.family, weight)
    return symbols + scales.bits(message.side, message.length)


def noise_then_rounding(target: str = "gaussian", **options: Any) -> Mechanism:
    """Private noise `knobs.sigma`, then rounding to multiples of `knobs.step`.

    Args:
      target: law of the noise, "gaussian" or "laplace".
      **options: as for `rounding`; coding as for `noise_then_sdq`.

    Returns:
      A mechanism with the knobs `sigma` and `step`.

    Raises:
      ConfigError: unknown target, or what `rounding` raises.
    """
    return chain(add_noise(target), rounding(**coded_as_noise(target, options)))
