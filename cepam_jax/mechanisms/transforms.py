"""Steps before a mechanism: clipping, random rotation, random masks, top-k.

Clipping bounds how far one client can move the result, which is the sensitivity in every privacy
statement: in the L2 norm for Gaussian noise, in the L1 norm for Laplace noise.

Sources: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy
(arXiv 1607.00133) for clipping; Suresh, Yu, Kumar, McMahan: Distributed Mean Estimation with Limited
Communication (arXiv 1611.00429) for rotations; Konečný, McMahan, Yu, Richtárik, Suresh, Bacon: Federated
Learning: Strategies for Improving Communication Efficiency (arXiv 1610.05492) for masks; Lin, Han, Mao, Wang,
Dally: Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training (arXiv
1712.01887) for top-k.
"""

import functools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.base import LARGEST, About, Keys, Knobs, Transform
from cepam_jax.mechanisms.knobs import knob


def l2_norm(x: jax.Array) -> jax.Array:
    """Euclidean norm f32[] of f32[d] that neither overflows nor vanishes for extreme scales."""
    scale = _scale(x)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))


def l1_norm(x: jax.Array) -> jax.Array:
    """Sum of absolute values f32[] of f32[d] that neither overflows nor vanishes for extreme scales."""
    scale = _scale(x)
    return scale * jnp.sum(jnp.abs(x) / scale)


def _scale(x: jax.Array) -> jax.Array:
    """Largest magnitude f32[] of x f32[d], at most `LARGEST`; 1 where all coordinates are zero."""
    largest = jnp.max(jnp.abs(x), initial=0.0)
    return jnp.where(largest > 0, jnp.minimum(largest, LARGEST), 1.0)


NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {"l2": l2_norm, "l1": l1_norm}


def clip(norm: str, segments: tuple[int, ...] | None = None) -> Transform:
    """Scales x down to norm `knobs.clip` where it is longer (arXiv 1607.00133, algorithm 1).

    Args:
      norm: "l2" or "l1".
      segments: lengths of the update's tensors, for a clip of each alone (McMahan, Ramage, Talwar, Zhang:
        Learning Differentially Private Recurrent Language Models, arXiv 1710.06963, section 3.1). The bound
        is shared out evenly: each of T tensors is scaled down to clip / sqrt(T) in the L2 norm, to clip / T
        in the L1 norm, so that the whole keeps the norm `knobs.clip`, which is its sensitivity. T tensors
        that are each cut at C have together the bound sqrt(T) C, or T C. By default one bound for the whole.

    Returns:
      A transform with knob `clip`, the bound of the whole in units of the update.
    """
    require_choice("norm", norm, NORMS)
    measure = NORMS[norm]
    project = partial(_clip, measure) if segments is None else partial(_clip_each, norm, segments)
    return Transform(
        name=f"clip_{norm}" + ("" if segments is None else "_each_tensor"),
        forward=lambda keys, x, knobs: (project(x, knobs), None),
        reference=project,
        variance=lambda x, knobs, rest: rest(x, knobs),
        about=About("", "none", knobs=("clip",), clip=norm, local=False),
        # Scaling down to the L2 ball is the projection on it; on the L1 ball it may drive updates apart.
        keeps=("l2",) if norm == "l2" else (),
    )


def _clip(measure: Callable[[jax.Array], jax.Array], x: jax.Array, knobs: Knobs) -> jax.Array:
    """x f32[d], scaled down to norm `knobs.clip` where `measure(x)` exceeds it."""
    longest = knob(knobs, "clip")
    return x * jnp.minimum(1.0, longest / jnp.maximum(measure(x), longest))


def share_of_tensor(norm: str, tensors: int) -> float:
    """What a clip of each tensor leaves to each of so many, as a part of the bound of the whole."""
    require(tensors > 0, "number of tensors", tensors, "at least 1, where each has a share of the clip")
    return tensors**-0.5 if norm == "l2" else 1.0 / tensors


def _clip_each(norm: str, segments: tuple[int, ...], x: jax.Array, knobs: Knobs) -> jax.Array:
    """x f32[d], each of its tensors scaled down to its share of `knobs.clip` where it is longer."""
    require(sum(segments) == x.shape[0], "segments", segments, f"lengths with sum {x.shape[0]}, that of x")
    mine = knobs._replace(clip=knob(knobs, "clip") * share_of_tensor(norm, len(segments)))
    parts = jnp.split(x, np.cumsum(segments)[:-1])
    return jnp.concatenate([_clip(NORMS[norm], part, mine) for part in parts])


_SIGNS, _MASK = 5, 6  # tags of shared streams; part of the message format
_FACTOR = 7  # Hadamard matrices up to 2^7 are multiplied out; larger ones are Kronecker products


@functools.cache
def _hadamard(exponent: int) -> np.ndarray:
    """The orthonormal Hadamard matrix f32[2^exponent, 2^exponent]."""
    matrix = np.ones((1, 1), np.float32)
    for _ in range(exponent):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(2.0 ** (exponent / 2))


def walsh_hadamard(x: jax.Array) -> jax.Array:
    """Orthonormal Walsh-Hadamard transform f32[2^k] of f32[2^k], its own inverse, in O(d log d)."""
    exponent = x.shape[0].bit_length() - 1
    full, rest = divmod(exponent, _FACTOR)
    factors = [_FACTOR] * full + ([rest] if rest else [])
    y = x.reshape([2**e for e in factors] or [1])
    for axis, e in enumerate(factors):
        y = jnp.moveaxis(
            jnp.tensordot(jnp.asarray(_hadamard(e)), y, ([1], [axis]), precision="highest"), 0, axis
        )
    return y.reshape(-1)


def rotate() -> Transform:
    """Random signs, then a Walsh-Hadamard transform (arXiv 1611.00429, section 3).

    It spreads the update's energy evenly over the coordinates, so that min and max come close and a
    quantizer of the range errs less. The update may have any length: it is padded with zeros to a power of
    two. The signs come from the shared key.
    """
    return Transform(
        name="rotate",
        forward=_rotate,
        inverse=_rotate_back,
        size=_power_of_two,
        mixes=True,
        about=About("", "none", randomness=("shared",), local=False, summable=True),
        keeps=("l2",),
    )


def _power_of_two(d: int) -> int:
    """The least power of two that is at least d."""
    return 1 << max(d - 1, 0).bit_length()


def _signs(shared: jax.Array, length: int) -> jax.Array:
    """f32[length] of random signs, from the shared key."""
    ids = jnp.arange(length, dtype=jnp.uint32)
    word, _ = counter.words(counter.stream(shared, _SIGNS), 0, ids)
    return jnp.where(word >> np.uint32(31) == 1, np.float32(-1), np.float32(1))


def _rotate(keys: Keys, x: jax.Array, knobs: Knobs) -> tuple[jax.Array, None]:
    """x f32[d], padded and rotated; see `Transform.forward`."""
    del knobs
    length = _power_of_two(x.shape[0])
    padded = jnp.pad(x, (0, length - x.shape[0]))
    return walsh_hadamard(padded * _signs(keys.shared, length)), None


def _rotate_back(shared: jax.Array, y: jax.Array, side: None, knobs: Knobs, d: int) -> jax.Array:
    """The update f32[d] whose rotation is y f32[2^k]; see `Transform.inverse`."""
    del side, knobs
    return (walsh_hadamard(y) * _signs(shared, y.shape[0]))[:d]


def random_mask() -> Transform:
    """Sends each coordinate with probability `knobs.fraction`, scaled up: unbiased (arXiv 1610.05492).

    Which coordinates are sent follows from the shared key, so their positions cost nothing.
    """
    return Transform(
        name="mask",
        forward=_mask_forward,
        inverse=_mask_inverse,
        weight=lambda shared, side, knobs, d: _mask(shared, knobs, d),
        variance=_mask_variance,
        about=About("", "other", randomness=("shared",), knobs=("fraction",)),
        keeps=("l1", "l2"),
    )


def _mask(shared: jax.Array, knobs: Knobs, d: int) -> jax.Array:
    """f32[d], 1 where a coordinate is sent and 0 elsewhere."""
    ids = jnp.arange(d, dtype=jnp.uint32)
    word, _ = counter.words(counter.stream(shared, _MASK), 0, ids)
    # 24 bits, which f32 holds exactly: the same on every platform.
    uniform = (word >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
    return (uniform < knob(knobs, "fraction")).astype(jnp.float32)


def _mask_forward(keys: Keys, x: jax.Array, knobs: Knobs) -> tuple[jax.Array, None]:
    """x f32[d] with zeros where a coordinate is not sent; an invalid update stays invalid."""
    chosen = _mask(keys.shared, knobs, x.shape[0]) > 0
    return jnp.where(chosen | ~jnp.isfinite(x), x, 0.0), None


def _mask_inverse(shared: jax.Array, y: jax.Array, side: None, knobs: Knobs, d: int) -> jax.Array:
    """y f32[d], scaled up where it was sent and zero elsewhere; see `Transform.inverse`."""
    del side
    chosen = _mask(shared, knobs, d) > 0
    return jnp.where(chosen | ~jnp.isfinite(y), y, 0.0) / knob(knobs, "fraction")


def _mask_variance(x: jax.Array, knobs: Knobs, rest: Callable) -> jax.Array:
    """f32[d], expected squared error per coordinate; NaN where that of the rest depends on the coordinate."""
    after = rest(x, knobs)
    if after.ndim:  # depends on which coordinates were drawn
        return jnp.full(x.shape, jnp.nan)
    fraction = knob(knobs, "fraction")
    return jnp.square(x) * (1 / fraction - 1) + after / fraction


def top_k() -> Transform:
    """Sends the `knobs.fraction` largest coordinates by magnitude (arXiv 1712.01887): biased.

    Which coordinates are sent depends on the update and is part of the message: no noise covers it.
    """
    return Transform(
        name="top-k",
        forward=_top_k_forward,
        inverse=lambda shared, y, kept, knobs, d: jnp.where(kept | ~jnp.isfinite(y), y, 0.0),
        weight=lambda shared, kept, knobs, d: kept.astype(jnp.float32),
        side_bits=_support_bits,
        about=About(
            "",
            "other",
            unbiased=False,
            knobs=("fraction",),
            local=False,
            leaks=("which coordinates are largest (top-k)",),
        ),
    )


def _support(x: jax.Array, knobs: Knobs) -> jax.Array:
    """bool[d], true for the `knobs.fraction` of the coordinates of x f32[d] that are largest."""
    order = jnp.argsort(-jnp.abs(x), stable=True)
    number = jnp.ceil(knob(knobs, "fraction") * x.shape[0])
    return jnp.zeros(x.shape, bool).at[order].set(jnp.arange(x.shape[0]) < number)


def _top_k_forward(keys: Keys, x: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """x f32[d] with zeros where a coordinate is not sent, and bool[d], which are; NaN is never removed."""
    del keys
    kept = _support(x, knobs)
    x = jnp.where(jnp.isnan(knob(knobs, "fraction")), jnp.nan, x)  # an invalid knob, an invalid update
    return jnp.where(kept | ~jnp.isfinite(x), x, 0.0), kept


def _support_bits(kept: jax.Array, knobs: Knobs, d: int) -> jax.Array:
    """f32[], log2 of the number of subsets of d coordinates that are as large as `kept` bool[d]."""
    del knobs
    number = jnp.sum(kept).astype(jnp.float32)
    choose = math.lgamma(d + 1) - jax.lax.lgamma(number + 1) - jax.lax.lgamma(d - number + 1)
    return jnp.maximum(choose, 0.0) / np.float32(np.log(2))
