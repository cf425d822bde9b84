"""Ideal code length of lattice coordinates, conditioned on the shared randomness.

The receiver knows the lattice's scale d (through the radius of the layer) and the dither V, so a coordinate m
costs -log2 P(m | d, V) with

  P(m | d, V) = F((m + V + 1/2) d) - F((m + V - 1/2) d)

where F is the distribution function of the update's coordinates. Without the conditioning the
cost is H(m) > H(m | d, V): for small updates several times as much. F is a zero-mean law (Gaussian,
Laplace, or a mixture of two Laplace laws) whose scale is sent once per segment, usually a tensor, as a small
integer. On blocks of several coordinates the index of the accepted proposal is predicted, too: see
`acceptance`. The package `wire` writes messages of this length, with the same probabilities.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import blocks, cell_law, laws, scale_code
from cepam_jax.mechanisms.base import Knobs

SCALES_PER_OCTAVE = 8  # a scale off by 4 % costs less than 0.1 % of the bits
SCALE_BITS = 16  # of a scale that is sent alone
LARGEST_SCALE = scale_code.LARGEST_SCALE

FAMILIES = ("gaussian", "laplace", "mixture")
# Families of laws of whole blocks, for mechanisms that mix the coordinates of a block.
BLOCK_FAMILIES = tuple(cell_law.COMPONENTS)
# Of each tensor the encoder chooses a law, one of `laws.LAWS`: see `fitted`.
FITTED = "fitted"
CODINGS = ("auto", *FAMILIES)
SOURCES = ("own", "public")
# Differential entropy in bits of each family's law with scale 1; for the mixture by integration.
ENTROPY = {"gaussian": 2.0471, "laplace": 2.4427, "mixture": 2.3708}
# Standard deviation of each family's law with scale 1.
DEVIATION = {
    "gaussian": 1.0,
    "laplace": 2**0.5,
    "mixture": (0.4**2 + 1.6**2) ** 0.5,
    "spheres": sum(weight * deviation**2 for weight, deviation in cell_law.COMPONENTS["spheres"]) ** 0.5,
}
_MIXTURE: Any = tuple(map(float, laws.PARTS[laws.MIXTURE]))


def resolved(coding: str, best: str) -> str:
    """The family of `FAMILIES` that a setting `coding` stands for, with `best` for "auto".

    Raises:
      ConfigError: the setting is none of `CODINGS`.
    """
    require_choice("coding", coding, CODINGS)
    return best if coding == "auto" else coding


def resolved_of_blocks(coding: str) -> str:
    """The family of `BLOCK_FAMILIES` that a setting `coding` stands for.

    Raises:
      ConfigError: the setting is none of `CODINGS`, or "laplace": mixed coordinates have no Laplace law.
    """
    family = resolved(coding, "mixture")
    require(family != "laplace", "coding", coding, "'auto', 'mixture' or 'gaussian' for rotated cells")
    return "spheres" if family == "mixture" else family


def _block_norms(x: jax.Array, block: int) -> jax.Array:
    """Root mean square f32[d] of each coordinate's block of x f32[d]."""
    rows = blocks.rows(x, block)
    largest = jnp.maximum(jnp.max(jnp.abs(rows), axis=1), jnp.finfo(jnp.float32).tiny)
    norms = largest * jnp.sqrt(jnp.mean(jnp.square(rows / largest[:, None]), axis=1))
    return jnp.repeat(norms, block)[: x.shape[0]]


def _moment(x: jax.Array, sent: jax.Array, family: str) -> jax.Array:
    """Scale f32[] of the coordinates of x f32[n] for which `sent` f32[n] is 1 and not 0; see `fit_scales`."""
    number = jnp.maximum(jnp.sum(sent), 1.0)
    if family != "gaussian":
        return jnp.sum(jnp.abs(x) * sent) / number
    scale = jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), jnp.finfo(jnp.float32).tiny)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale) * sent) / number)


def fit_scales(
    x: jax.Array, segments: tuple[int, ...], family: str, weight: jax.Array | None = None, block: int = 1
) -> jax.Array:
    """Scale of each segment, rounded to eighths of an octave.

    Args:
      x: f32[d], the update.
      segments: lengths of the segments, summing to d.
      family: the scale is the mean absolute value for "laplace" and "mixture", the root mean square for
        "gaussian", and the mean of the blocks' root mean squares for "spheres".
      weight: f32[d], 0 where a coordinate is not sent and does not count; None if all are sent.
      block: coordinates per block, for "spheres".

    Returns:
      int32[len(segments)]: 8 log2(scale), at most `LARGEST_SCALE` in magnitude.
    """
    if not segments:
        return jnp.zeros((0,), jnp.int32)
    starts = np.cumsum((0, *segments[:-1]))
    if family == "spheres":
        x = _block_norms(x, block)
    sent = jnp.ones(x.shape, jnp.float32) if weight is None else (weight > 0).astype(jnp.float32)
    moments = jnp.stack(
        [_moment(x[a : a + n], sent[a : a + n], family) for a, n in zip(starts, segments, strict=True)]
    )
    exponent = jnp.round(SCALES_PER_OCTAVE * jnp.log2(moments))
    bounded = jnp.clip(exponent, -LARGEST_SCALE, LARGEST_SCALE)
    return jnp.where(jnp.isnan(exponent), LARGEST_SCALE, bounded).astype(jnp.int32)


def scale_of(scales: jax.Array) -> jax.Array:
    """int32[...] in eighths of an octave -> f32[...] in units of the update."""
    return jnp.exp2(scales.astype(jnp.float32) / SCALES_PER_OCTAVE)


def scale_per_coordinate(scales: jax.Array, segments: tuple[int, ...]) -> jax.Array:
    """The scale of each coordinate's segment, in units of the update.

    Args:
      scales: int32[len(segments)], from `fit_scales`.
      segments: lengths of the segments, summing to d.

    Returns:
      f32[d].
    """
    values = scale_of(scales)
    return jnp.concatenate(
        [jnp.zeros((0,), jnp.float32)] + [jnp.full((n,), values[i]) for i, n in enumerate(segments)]
    )


class Scales(NamedTuple):
    """Where the scales of an update come from.

    Attributes:
      segments: lengths of the tensors that have a scale each; None: the whole update is one segment.
      family: assumed law of the coordinates, one of `FAMILIES`, or `FITTED` (with own scales).
      source: "own" (measured on the update and sent) or "public" (the knob `scale`).
      block: coordinates that are mixed before they are quantized; with more than one, the family is one of
        `BLOCK_FAMILIES`.
    """

    segments: tuple[int, ...] | None
    family: str
    source: str
    block: int = 1

    def check(self) -> "Scales":
        """Returns itself; raises ConfigError for an unknown family or source, or for wrong segments."""
        require_choice("coding", self.family, (*FAMILIES, FITTED) if self.block == 1 else BLOCK_FAMILIES)
        require_choice("scales", self.source, SOURCES)
        given = self.segments if isinstance(self.segments, tuple) else ()
        whole = all((type(n) is int or isinstance(n, np.integer)) and n >= 0 for n in given)
        fits = self.segments is None or (isinstance(self.segments, tuple) and whole)
        require(fits, "segments", self.segments, "a tuple of whole numbers, the tensors' lengths; or None")
        return self

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the knobs that the scales need."""
        return ("scale",) if self.source == "public" else ()

    def lengths(self, d: int) -> tuple[int, ...]:
        """Lengths of the segments of d coordinates that are not empty; ConfigError unless their sum is d."""
        segments = (d,) if self.segments is None else self.segments
        require(sum(segments) == d, "segments", segments, f"lengths with sum {d}, the length of x")
        return tuple(n for n in segments if n)

    def measure(self, x: jax.Array, weight: jax.Array | None, knobs: Knobs) -> dict[str, jax.Array]:
        """Side information of a message: the scales of the update, unless they are public.

        Args:
          x: f32[d], the update.
          weight: f32[d], 0 where a coordinate does not count; None: all count.
          knobs: with `scale` if the scales are public.

        Returns:
          {"scale": int32[segments]}, or an empty dictionary.

        Raises:
          ConfigError: public scales are missing or too many, or the segments do not fill x.
        """
        lengths = self.lengths(x.shape[0])
        if self.source == "public":
            shape = None if knobs.scale is None else jnp.shape(knobs.scale)
            allowed = (
                f"int32[{len(lengths)}], one for each segment, for a mechanism built with scales='public'"
            )
            require(shape is not None, "knob scale", None, allowed)
            require(shape == (len(lengths),), "shape of knob scale", shape, allowed)
        if self.source == "public":
            return {}
        return {"scale": fit_scales(x, lengths, self.family, weight, self.block)}

    def per_coordinate(self, side: dict[str, jax.Array], knobs: Knobs, d: int) -> jax.Array:
        """Scale of each coordinate, f32[d], from the side information of a message or from the knobs."""
        return scale_per_coordinate(self.of_tensors(side, knobs), self.lengths(d))

    def of_tensors(self, side: dict[str, jax.Array], knobs: Knobs) -> jax.Array:
        """int32[tensors], eighths of an octave, from the side information of a message or from the knobs."""
        return side["scale"] if self.source == "own" else jnp.asarray(knobs.scale)

    @property
    def laws(self) -> int:
        """Number of laws among which the encoder chooses."""
        return len(laws.LAWS) if self.family == FITTED else 1

    def bits(self, side: dict[str, jax.Array], d: int) -> jax.Array:
        """f32[], bits of the side information of an update with d coordinates."""
        if self.source != "own":
            return jnp.float32(0)
        return scale_code.bits(side["scale"], side.get("law"), self.lengths(d), self.laws)

    def most_bits(self, d: int) -> float:
        """Bits that the side information of no update with d coordinates exceeds."""
        return scale_code.most_bits(len(self.lengths(d)), self.laws) if self.source == "own" else 0.0


def cell_nats(center: Any, width: Any, scale: Any, family: str) -> jax.Array:
    """-ln P(center - width/2 < X < center + width/2), accurate far into the tails.

    Args:
      center: f32[...], middle of the cell, in any unit.
      width: f32[...], width of the cell in the same unit, positive; broadcastable.
      scale: f32[...], scale of X in the same unit, positive; broadcastable.
      family: one of `FAMILIES`, the zero-mean law of X with this scale.

    Returns:
      f32[...], in nats.
    """
    if family == "mixture":
        return laws.cell_nats(center, width, scale, _MIXTURE)
    if family == "laplace":
        out, _, *masses = laws.edges(center, width, 1 / scale)
        mass = 0.5 * (masses[0] + masses[1])
        return laws.nats(out, jnp.maximum(mass, jnp.finfo(jnp.float32).tiny))
    # Bounded, so that an all-zero segment (the smallest scale) under huge noise is no inf - inf.
    near = jnp.clip((jnp.abs(center) - width / 2) / scale, -1e30, 1e30)  # negative: cell contains zero
    log_above = jax.scipy.stats.norm.logsf(near)
    log_beyond = jax.scipy.stats.norm.logsf(near + jnp.minimum(width / scale, 4e30))
    return -(log_above + jnp.log(-jnp.expm1(jnp.minimum(log_beyond - log_above, -1e-37))))


def cell_mass(center: Any, width: Any, scale: Any, family: str) -> jax.Array:
    """exp(-`cell_nats`) f32[...], where nobody needs it far into the tails; arguments as there."""
    if family != "mixture":
        return jnp.exp(-cell_nats(center, width, scale, family))
    _, tail, mass = laws.cell(center, width, scale, _MIXTURE)
    return mass * tail
