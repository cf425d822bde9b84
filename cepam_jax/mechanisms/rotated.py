"""Rotated lattice cells: an exactly Gaussian error in blocks, of which almost nothing is rejected.

RSUQ cuts a ball out of the lattice's cell and rejects the rest: on E8 three proposals of four. Here the whole
cell is used, and a random rotation makes its error spherical:

  shared:   scale S, rotation R, dither V uniform on the cell P
  encoder:  m = Q(R^-1 x / (sigma S) - V)
  decoder:  x_hat = sigma S R (m + V);   error = sigma S R U, U uniform on P, independent of x

R U is a mixture of uniform laws on balls, and S has the law that makes the error of a block N(0, sigma^2 I):
see `cell_scales`. No such law covers the last of the probability, about 1e-5 of the blocks: those are "ball
blocks", quantized as by RSUQ, with proposals 0, 1, 2, ... until the error lies in the ball inscribed in the
cell. Both sides know from the shared words which blocks these are. The law of the error is exact, up to f32
arithmetic and the tables.

The rotation of dithered cells is due to Kobus, Theis and Gündüz: Gaussian Channel Simulation with Rotated
Dithered Quantization (arXiv 2407.12970), where the scale is fixed and the error comes near to Gaussian noise
as the dimension grows. The random scale that makes it exact is derived in docs/rotated.md.

The decoder's arithmetic is arranged so that every platform computes the same bits: see `rotations`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import (
    blocks,
    cell_bits,
    cell_scales,
    code_length,
    counter,
    inscribed,
    lattices,
    rotations,
)
from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, Noise, check_vector
from cepam_jax.mechanisms.knobs import knob

LATTICES = cell_scales.LATTICES
# Tags of the shared streams. They are part of the message format.
SCALES, DITHERS, ROTATIONS = 1, 2, 3


class _Setting(NamedTuple):
    """What is fixed when the mechanism is built.

    Attributes:
      lat: the lattice, of n dimensions.
      table: law of S.
      scales: where the scales for the entropy coder come from.
    """

    lat: lattices.Lattice
    table: cell_scales.ScaleTable
    scales: code_length.Scales


class _Shared(NamedTuple):
    """What both sides know of k blocks.

    Attributes:
      multiplier: f32[n, k], q.
      factor: f32[k], sigma S / |q|, in units of the update.
      ball: bool[k], which blocks are ball blocks.
    """

    multiplier: jax.Array
    factor: jax.Array
    ball: jax.Array


def rotated(
    lattice: str = "E8",
    segments: tuple[int, ...] | None = None,
    coding: str = "auto",
    scales: str = "own",
) -> Mechanism:
    """Randomly rotated lattice cells whose error is exactly Gaussian, i.i.d. over coordinates.

    Args:
      lattice: "A2", "D4" or "E8".
      segments: lengths of the update's tensors, as for `lrsuq`.
      coding: law assumed by the entropy coder for an update's coordinates, as for `lrsuq`.
      scales: where the scales for the entropy coder come from, as for `lrsuq`.

    Returns:
      A mechanism with knob `sigma`, the standard deviation of the error. Its message has `symbols` of whole
      blocks, int32[n ceil(d/n)], because each depends on all coordinates of its block; `index`
      uint32[ceil(d/n)], 0 but for some ball blocks; and `side["scale"]` int32[segments] unless the scales are
      public.

    Raises:
      ConfigError: unknown lattice, coding or scales.
    """
    require_choice("lattice", lattice, LATTICES)
    family = code_length.resolved_of_blocks(coding)
    lat = lattices.lattice(lattice)
    sized = code_length.Scales(segments, family, scales, lat.dimension).check()
    setting = _Setting(lat, cell_scales.scale_table(lattice), sized)
    return Mechanism(
        encode=partial(_encode, setting),
        decode=partial(_decode, setting),
        bits=partial(_bits, setting),
        reference=lambda x, knobs: x,
        about=About(
            name=f"rotated-{lattice}",
            law="gaussian",
            block=lat.dimension,
            randomness=("shared",),
            knobs=("sigma", *sized.knobs),
            outsiders=Noise("gaussian", lambda knobs: knobs.sigma),
            summable=True,
            leaves_noise=True,
        ),
        code=Code(
            "lattice",
            lattice=lattice,
            layer="rotated",
            streams=(SCALES, DITHERS),
            width=lambda side, knobs: np.float64(knobs.sigma),
            family=family,
            segments=segments,
            mixed=True,
        ),
        variance=lambda x, knobs: jnp.square(knob(knobs, "sigma")),
    )


def _known(setting: _Setting, shared: jax.Array, count: int, knobs: Knobs) -> _Shared:
    """What both sides know of the first `count` blocks."""
    n = setting.lat.dimension
    ids = jnp.arange(count, dtype=jnp.uint32)
    words = [*counter.words(counter.stream(shared, SCALES), 0, ids)]
    stream = counter.stream(shared, ROTATIONS)
    for call in range((n + 3) // 4):
        words += counter.words(stream, np.uint32(call), ids)
    word, spare, *turns = blocks.settled(words[: 2 + n // 2])
    q = blocks.settled(rotations.components(turns))
    scale, ball = cell_scales.scales(word, spare, setting.table)
    factor = (knob(knobs, "sigma") * scale) * rotations.inverse_root(rotations.square(list(q)))
    return _Shared(q, blocks.settled([factor])[0], ball)


def _dithers(setting: _Setting, shared: jax.Array, index: jax.Array) -> jax.Array:
    """The dithers of proposals uint32[k] of k blocks: f32[n, k], in units of the lattice's scale."""
    lat = setting.lat
    ids = jnp.arange(index.shape[0], dtype=jnp.uint32)
    samples = blocks.dither_samples(lat, counter.stream(shared, DITHERS), index, ids, unrolled=True)
    return blocks.settled(lat.point([jnp.float32(0)] * lat.dimension, samples))


class _Turned(NamedTuple):
    """Blocks and what takes them into the frame of the lattice.

    Attributes:
      x: f32[k, n], in units of the update.
      unit: f32[k], 1 / (sigma S |q|); NaN for a block that must not be coded.
      multiplier: f32[n, k], q.
    """

    x: jax.Array
    unit: jax.Array
    multiplier: jax.Array

    def points(self) -> list[jax.Array]:
        """n arrays f32[k], in units of the lattice's scale."""
        axes = [self.x[:, axis] * self.unit for axis in range(self.x.shape[1])]
        return rotations.times(list(self.multiplier), axes, inverse=True)

    def points_of(self, ids: jax.Array) -> list[jax.Array]:
        """The same of blocks int32[room] alone."""
        some = lambda a, axis: jnp.take(a, ids, axis, mode="clip")  # noqa: E731
        return _Turned(some(self.x, 0), some(self.unit, 0), some(self.multiplier, 1)).points()


def _encode(
    setting: _Setting, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    check_vector(x)
    lat, d = setting.lat, x.shape[0]
    side = setting.scales.measure(x, weight, knobs)
    count = blocks.count(lat.dimension, d)
    if not count:
        return Message(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.uint32), side, d)
    known = _known(setting, keys.shared, count, knobs)
    axes = blocks.split(x, lat.dimension)
    # Where a block is not valid, all of it becomes NaN and comes back as INVALID.
    valid = blocks.codable(axes, knob(knobs, "sigma"))
    width = known.factor * rotations.square(list(known.multiplier))  # conj(q) (q w) = |q|^2 w
    (unit,) = blocks.settled([jnp.where(valid, 1.0 / width, jnp.nan)])
    turned = _Turned(blocks.rows(x, lat.dimension), unit, known.multiplier)
    room = inscribed.room_for(count, setting.table.threshold / 2**32)
    stream = counter.stream(keys.shared, DITHERS)
    index = inscribed.first_inside(inscribed.Search(lat, stream, turned.points_of, room), known.ball)
    dithers = _dithers(setting, keys.shared, index)
    moved = list(blocks.settled([y - v for y, v in zip(turned.points(), dithers, strict=True)]))
    symbols = [blocks.integers(m) for m in blocks.nearest(lat, moved)]
    return Message(blocks.join(symbols, blocks.symbols_sent(lat, d, mixed=True)), index, side, d)


def _decode(setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    lat, d = setting.lat, message.length
    count = blocks.count(lat.dimension, d)
    if not count:
        return jnp.zeros(0, jnp.float32)
    known = _known(setting, shared, count, knobs)
    dithers = _dithers(setting, shared, jnp.asarray(message.index))
    points = lat.point(
        blocks.split(blocks.numbers(message.symbols), lat.dimension), [jnp.float32(0)] * lat.dimension
    )
    places = blocks.settled([p + v for p, v in zip(points, dithers, strict=True)])
    turned = rotations.times_exactly(list(known.multiplier), list(places))
    return blocks.join([axis * known.factor for axis in turned], d)


def _bits(
    setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the ideal code length of a message in bits; see `Mechanism.bits`."""
    lat, scales, d = setting.lat, setting.scales, message.length
    count = blocks.count(lat.dimension, d)
    if not count:
        return scales.bits(message.side, d)
    scale = blocks.in_memory(scales.per_coordinate(message.side, knobs, d)[:: lat.dimension])
    ids = jnp.arange(count, dtype=jnp.uint32)
    words = counter.words(counter.stream(shared, SCALES), 0, ids)
    width, ball = cell_scales.scales(*words, setting.table)
    width = width * knob(knobs, "sigma")
    stream = counter.stream(shared, DITHERS)
    bits = cell_bits.block_bits(lat, scales.family, stream, message, scale / width, ball)
    if weight is not None:
        bits = jnp.where(blocks.rows(weight > 0, lat.dimension).any(1), bits, 0)
    return jnp.sum(bits) + scales.bits(message.side, d)
