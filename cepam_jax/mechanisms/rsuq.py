"""LRSUQ, the layered rejection-sampled universal quantizer.

Sources: Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors (arXiv
2402.03030)
for the quantizer, and Ling, Shiu, Wu, Sun, Li, Song, Xu: Communication-Efficient and Privacy-Adaptable
Mechanism for Federated Learning (CEPAM, arXiv 2501.12046) for its use in federated learning.

  shared:   latent -> layer of radius r, scale d = r / inradius; dithers V_1, V_2, ... uniform on the cell
  encoder:  for h = 1, 2, ...: m = Q(x/d - V_h); stop when d (m + V_h) - x lies in the layer; send (h, m)
  decoder:  x_hat = d (m + V_h)

Here the cell is the Voronoi cell of the lattice, Q names the nearest lattice point by integers, and the layer
is a ball (Gaussian target) or a cross-polytope (Laplace target) inscribed in the scaled cell. Its radius is
random and known to both sides. On Z1 nothing is rejected, because there the layer is the cell.

The error x_hat - x has exactly the target density and is independent of x. "Exactly" means: up to
f32 arithmetic, the radius table of `latents` (relative error 1e-6) and 32-bit words (the layer's
radius stops at its 2^-33 quantiles).

The decoder's arithmetic is arranged so that every platform computes the same bits: see
`latents` and `counter`. What remains are single rounded additions and multiplications, in an
order in which a fused multiply-add changes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import (
    block_bits,
    blocks,
    code_length,
    counter,
    fitted,
    latents,
    lattices,
    rejection,
)
from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, Noise, check_vector
from cepam_jax.mechanisms.knobs import knob

# Tags of the two shared streams. They are part of the message format.
_LAYERS, _DITHERS = 1, 2
# Points whose integers have an absolute sum of this or more are accepted without a test. E8 counts halves,
# but its narrowest layer is so wide that blocks within `RANGE` stay below 2^20.7.
_FAR = 2.0**21


class _Setting(NamedTuple):
    """What is fixed when an LRSUQ is built.

    Attributes:
      target: law of the error, "gaussian" or "laplace".
      lat: the lattice, of n dimensions.
      unit: scale of the lattice over sigma, per unit of `latents.radius`.
      scales: where the scales for the entropy coder come from.
    """

    target: str
    lat: lattices.Lattice
    unit: float
    scales: code_length.Scales


def lrsuq(
    target: str = "gaussian",
    lattice: str = "Z1",
    segments: tuple[int, ...] | None = None,
    coding: str = "auto",
    scales: str = "own",
) -> Mechanism:
    """LRSUQ whose error is exactly Gaussian or Laplace, i.i.d. over coordinates.

    Args:
      target: "gaussian" or "laplace".
      lattice: "Z1", "Z2", "Z3", "A2", "D4" or "E8". Laplace layers fit badly into higher dimensions: on E8
        one proposal in 157 is accepted.
      segments: lengths of the update's tensors, which are coded with one scale each; by default
        the update is one segment.
      coding: law assumed by the entropy coder for an update's coordinates: "mixture" (of two Laplace laws;
        fits trained updates well), "laplace" or "gaussian". With "auto" on Z1, with own scales, the encoder
        chooses a law for each tensor, see `fitted`; elsewhere it is the mixture. It costs or saves bits and
        changes nothing else.
      scales: "own": the update's scales are measured and sent; "public": they come from the knob
        `scale`, so that nothing but the symbols depends on the update.

    Returns:
      A mechanism with knob `sigma`, the standard deviation of the error. Its message has `symbols` int32[d],
      `index` uint32[ceil(d/n)] for n > 1, and `side["scale"]` int32[segments] unless the scales are public;
      beside it `side["law"]` int32[segments] where the encoder chooses laws.

    Raises:
      ConfigError: unknown target, lattice, coding or scales.
    """
    require_choice("target", target, latents.TARGETS)
    lat = lattices.lattice(lattice)
    free = lat.dimension == 1 and scales == "own"
    coding = code_length.resolved(coding, code_length.FITTED if free else "mixture")
    sized = code_length.Scales(segments, coding, scales).check()
    unit = 1.0 / lat.inradius if target == "gaussian" else 2**-0.5 / lat.cross
    setting = _Setting(target, lat, unit, sized)
    return Mechanism(
        encode=partial(_encode, setting),
        decode=partial(_decode, setting),
        bits=partial(_bits, setting),
        reference=lambda x, knobs: x,
        about=About(
            name=f"lrsuq-{target}-{lattice}",
            law=target,
            block=lat.dimension,
            randomness=("shared",),
            knobs=("sigma", *sized.knobs),
            outsiders=Noise(target, lambda knobs: knobs.sigma),
            summable=True,
            leaves_noise=True,
        ),
        code=Code(
            "lattice",
            lattice=lattice,
            layer=target,
            streams=(_LAYERS, _LAYERS if lat.dimension == 1 else _DITHERS),
            width=partial(_host_width, setting),
            family=coding,
            segments=segments,
        ),
        variance=lambda x, knobs: jnp.square(knob(knobs, "sigma")),
    )


def proposals(lat: lattices.Lattice, target: str, shared: jax.Array) -> Callable:
    """The test of one proposal, as `rejection.first_accepted` calls it.

    Args:
      lat: lattice of n dimensions.
      target: "gaussian" (the layer is a ball) or "laplace" (a cross-polytope).
      shared: key of the dithers.

    Returns:
      (proposal number, blocks uint32[k], n arrays f32[k] of coordinates in units of the lattice's scale)
      -> (accepted bool[k], n arrays int32[k]).
    """
    return partial(propose, lat, target, counter.stream(shared, _DITHERS))


def propose(
    lat: lattices.Lattice,
    target: str,
    stream: counter.Words,
    proposal: jax.Array,
    ids: jax.Array,
    points: Sequence[jax.Array],
) -> tuple[jax.Array, list[jax.Array]]:
    """Quantizes blocks with the dithers of one proposal, and tests whether their errors lie in the layer.

    Args:
      lat: lattice of n dimensions.
      target: "gaussian" (the layer is a ball) or "laplace" (a cross-polytope).
      stream: stream of the dithers, from `counter.stream`.
      proposal: uint32[] or uint32[k], number of the proposal.
      ids: uint32[k], numbers of the blocks.
      points: n arrays f32[k], the blocks in units of the lattice's scale.

    Returns:
      bool[k], whether the proposal is accepted, and n arrays int32[k], the symbols.
    """
    zero = [jnp.float32(0)] * lat.dimension
    dither = lat.point(zero, blocks.dither_samples(lat, stream, proposal, ids))
    moved = [y - v for y, v in zip(points, dither, strict=True)]
    integers = blocks.nearest(lat, moved)
    nearest = lat.point(integers, zero)
    errors = [q - y for q, y in zip(nearest, moved, strict=True)]
    if target == "gaussian":
        size, largest = _sum(jnp.square(e) for e in errors), lat.inradius**2
    else:
        size, largest = _sum(jnp.abs(e) for e in errors), lat.cross
    # What cannot be coded is accepted at once: NaN would be rejected forever, and so would points so
    # far out that f32 has no room for the parity of their sum or for an error inside the layer. An
    # update within `RANGE` gets there in layers a hundred times narrower than most alone (of Laplace
    # layers on Z2 two blocks in a million, of the others fewer than one in 1e7), where the nearest point
    # is off by no more than f32's rounding of x.
    hopeless = ~(_sum(jnp.abs(q) for q in integers) < _FAR)
    return (size <= np.float32(largest)) | hopeless, [blocks.integers(q) for q in integers]


def _sum(axes: Iterable[jax.Array]) -> jax.Array:
    """Sum f32[k] of n arrays f32[k]."""
    return jnp.asarray(sum(axes))


def _widths(setting: _Setting, shared: jax.Array, count: int, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """Scale of the lattice for every block, and a spare random word, the dither on Z1.

    Args:
      setting: target, lattice and unit.
      shared: shared key of the symbols.
      count: number of blocks.
      knobs: with sigma.

    Returns:
      f32[count] in units of the update, and uint32[count].
    """
    stream = counter.stream(shared, _LAYERS)
    words = counter.words(stream, 0, jnp.arange(count, dtype=jnp.uint32))
    word, spare = blocks.settled(words)
    table = latents.radius_table(setting.target, setting.lat.dimension)
    return blocks.in_memory(latents.radius(word, table)) * (
        knob(knobs, "sigma") * np.float32(setting.unit)
    ), spare


def _host_width(setting: _Setting, side: dict, knobs: Knobs) -> np.float64:
    """Scale of the lattice per unit of `latents.radius`, for a coder on the host: see `Code.width`."""
    del side
    return np.float64(knobs.sigma) * setting.unit


def _encode(
    setting: _Setting, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    check_vector(x)
    lat, d = setting.lat, x.shape[0]
    n = lat.dimension
    width, spare = _widths(setting, keys.shared, blocks.count(n, d), knobs)
    axes = blocks.split(x, n)
    valid = blocks.codable(axes, knob(knobs, "sigma"))
    fits = setting.scales.family == code_length.FITTED
    side = {} if fits else setting.scales.measure(x, weight, knobs)
    if n == 1:
        dither = counter.centered(spare)
        symbols = blocks.integers(jnp.round(x / width - dither), valid)
        if fits:
            unit, center = knob(knobs, "sigma") * np.float32(setting.unit), blocks.numbers(symbols) + dither
            lengths = setting.scales.lengths(d)
            side = fitted.chosen(x, weight, unit, lengths, setting.target, center, width)
        return Message(symbols, None, side, d)
    # Where a block is not valid, all of it becomes NaN, is accepted at once and comes back as INVALID.
    index, accepted = rejection.first_accepted(
        proposals(lat, setting.target, keys.shared),
        jnp.arange(width.shape[0], dtype=jnp.uint32),
        [jnp.where(valid, axis / width, jnp.nan) for axis in axes],
        lattices.acceptance(lat, setting.target),
    )
    return Message(blocks.join(accepted, blocks.symbols_sent(lat, d)), index, side, d)


def _reconstruct(
    setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs
) -> tuple[jax.Array, jax.Array]:
    """Lattice point plus dither of every coordinate, and the lattice's scale there: f32[d] each."""
    lat, d = setting.lat, message.length
    n = lat.dimension
    width, spare = _widths(setting, shared, blocks.count(n, d), knobs)
    if n == 1:
        return blocks.numbers(message.symbols) + counter.centered(spare), width
    assert message.index is not None  # there is one for every lattice but Z1
    center = blocks.reconstruct(lat, counter.stream(shared, _DITHERS), message.symbols, message.index, d)
    return center, blocks.per_coordinate(width, n, d)


def _decode(setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    center, width = _reconstruct(setting, shared, message, knobs)
    return width * center


def _bits(
    setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the ideal code length of a message in bits; see `Mechanism.bits`."""
    lat, scales, d = setting.lat, setting.scales, message.length
    if lat.dimension == 1:
        center, width = _reconstruct(setting, shared, message, knobs)
        family = message.side.get("law", scales.family)
        scale = scales.of_tensors(message.side, knobs)
        symbols = block_bits.tensor_bits(center, width, scales.lengths(d), scale, family, weight)
    else:
        scale = blocks.in_memory(scales.per_coordinate(message.side, knobs, d))
        width, _ = _widths(setting, shared, blocks.count(lat.dimension, d), knobs)
        stream = counter.stream(shared, _DITHERS)
        symbols = block_bits.block_bits(
            lat, setting.target, stream, message, width, scale, scales.family, weight
        )
    return symbols + scales.bits(message.side, d)
