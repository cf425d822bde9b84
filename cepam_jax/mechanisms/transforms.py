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
    scale, rest = _l2_parts(x)
    return scale * rest


def l1_norm(x: jax.Array) -> jax.Array:
    """Sum of absolute values f32[] of f32[d] that neither overflows nor vanishes for extreme scales."""
    scale, rest = _l1_parts(x)
    return scale * rest


def _l2_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two factors f32[] of `l2_norm`: the scale, and the norm in units of it."""
    scale = _scale(x)
    return scale, jnp.sqrt(jnp.sum(jnp.square(x / scale)))


def _l1_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two factors f32[] of `l1_norm`: the scale, and the norm in units of it."""
    scale = _scale(x)
    return scale, jnp.sum(jnp.abs(x) / scale)


def _scale(x: jax.Array) -> jax.Array:
    """Largest magnitude f32[] of x f32[d], at most `LARGEST`; 1 where all coordinates are zero."""
    largest = jnp.max(jnp.abs(x), initial=0.0)
    return jnp.where(largest > 0, jnp.minimum(largest, LARGEST), 1.0)


NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {"l2": l2_norm, "l1": l1_norm}
_PARTS: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {"l2": _l2_parts, "l1": _l1_parts}


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
    project = partial(_clip, norm) if segments is None else partial(_clip_each, norm, segments)
    return Transform(
        name=f"clip_{norm}" + ("" if segments is None else "_each_tensor"),
        forward=lambda keys, x, knobs: (project(x, knobs), None),
        reference=project,
        variance=lambda x, knobs, rest: rest(x, knobs),
        about=About("", "none", knobs=("clip",), clip=norm, local=False),
        # Scaling down to the L2 ball is the projection on it; on the L1 ball it may drive updates apart.
        keeps=("l2",) if norm == "l2" else (),
        radial=norm == "l2" and segments is None,
    )


_HUGE = 2.0**64


def _clip(norm: str, x: jax.Array, knobs: Knobs) -> jax.Array:
    """x f32[d], scaled down to norm `knobs.clip` where it is longer."""
    longest, (scale, rest) = knob(knobs, "clip"), _PARTS[norm](x)
    size = scale * rest
    usual = jnp.minimum(1.0, longest / jnp.maximum(size, longest))
    # Of a huge update the norm may be beyond f32, and the factor below it: then it is made small first.
    small = jnp.where((scale > _HUGE) & (size > longest), np.float32(1 / _HUGE), np.float32(1))
    factor = jnp.where(small < 1, longest / (scale * small * rest), usual)
    return (x * small) * factor


def share_of_tensor(norm: str, tensors: int) -> float:
    """What a clip of each tensor leaves to each of so many, as a part of the bound of the whole."""
    require(tensors > 0, "number of tensors", tensors, "at least 1, where each has a share of the clip")
    return tensors**-0.5 if norm == "l2" else 1.0 / tensors


def _clip_each(norm: str, segments: tuple[int, ...], x: jax.Array, knobs: Knobs) -> jax.Array:
    """x f32[d], each of its tensors scaled down to its share of `knobs.clip` where it is longer."""
    require(sum(segments) == x.shape[0], "segments", segments, f"lengths with sum {x.shape[0]}, that of x")
    mine = knobs._replace(clip=knob(knobs, "clip") * share_of_tensor(norm, len(segments)))
    parts = jnp.split(x, np.cumsum(segments)[:-1])
    return jnp.concatenate([_clip(norm, part, mine) for part in parts])


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
    return jnp.where(chosen | ~jnp.isfinite(y), y, 0.0) / _chance(knobs)


def _chance(knobs: Knobs) -> jax.Array:
    """f32[], the probability with which `_mask` sends a coordinate: the fraction in whole 2^-24, exactly."""
    return jnp.ceil(knob(knobs, "fraction") * np.float32(2.0**24)) * np.float32(2.0**-24)


def _mask_variance(x: jax.Array, knobs: Knobs, rest: Callable) -> jax.Array:
    """f32[d], expected squared error per coordinate; that of the rest is one number, as `chain` sees to."""
    chance = _chance(knobs)
    return jnp.square(x) * (1 / chance - 1) + rest(x, knobs) / chance


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
    wanted = knob(knobs, "fraction") * x.shape[0]
    # .09 of 300 is 27.000002 in f32.
    number = jnp.ceil(jnp.where(wanted < 2.0**20, wanted * np.float32(1 - 2.0**-22), wanted)).astype(
        jnp.int32
    )
    return jnp.zeros(x.shape, bool).at[order].set(jnp.arange(x.shape[0], dtype=jnp.int32) < number)


def _top_k_forward(keys: Keys, x: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """x f32[d] with zeros where a coordinate is not sent, and bool[d], which are; NaN is never removed."""
    del keys
    kept = _support(x, knobs)
    x = jnp.where(jnp.isnan(knob(knobs, "fraction")), jnp.nan, x)  # an invalid knob, an invalid update
    return jnp.where(kept | ~jnp.isfinite(x), x, 0.0), kept


def _support_bits(kept: jax.Array, knobs: Knobs, d: int) -> jax.Array:
    """f32[], log2 of the number of subsets of d coordinates that are as large as `kept` bool[d]."""
    del knobs
    number = jnp.sum(kept)
    k, m = (jnp.maximum(n, 1).astype(jnp.float32) for n in (number, d - number))
    # By Stirling's series, in which nothing large cancels: a difference of ln d! is off by percents in f32.
    entropy = k * jnp.log1p(m / k) + m * jnp.log1p(k / m)
    ends = 0.5 * jnp.log((k + m) / (k * m) / np.float32(2 * math.pi)) + _stirling(k + m)
    choose = entropy + ends - _stirling(k) - _stirling(m)
    return jnp.where((number > 0) & (number < d), choose, 0.0) / np.float32(np.log(2))


def _stirling(n: jax.Array) -> jax.Array:
    """f32[], what Stirling's series adds to ln n!, to .0003 for n = 1 and far less beyond."""
    return 1 / (12 * n) - 1 / (360 * n**3) + 1 / (1260 * n**5)
