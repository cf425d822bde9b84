"""LRSUQ: the layered rejection-sampled universal quantizer (2501.12046, 2402.03030).

  shared:   latent -> layer of radius r, scale d = r / inradius; dithers V_1, V_2, ... uniform on the cell
  encoder:  for h = 1, 2, ...: m = Q(x/d - V_h); stop when d (m + V_h) - x lies in the layer; send (h, m)
  decoder:  x_hat = d (m + V_h)

The error x_hat - x has exactly the target density and is independent of x. "Exactly" means: up to
f32 arithmetic, the radius table of `latents` (relative error 1e-6) and 32-bit words (the layer's
radius stops at its 2^-33 quantiles).

Laplace on Z1 and Gaussian on Z1 never reject: the layer is the cell. On Z2 and Z3 the layer is
the ball inside the cube.

The decoder's arithmetic is arranged so that every platform computes the same bits: see
`latents` and `counter`; the only other operations are one rounded addition and two rounded
multiplications.
"""

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import code_length, counter, latents, lattices, rejection
from cepam_jax.mechanisms.base import About, Knobs, Mechanism, Message, check_knobs, check_vector

# Tags of the two shared streams. They are part of the message format.
_LAYERS, _DITHERS = 1, 2
# Stands for a coordinate that cannot be coded: NaN, infinite, or 2^31 cells away from zero.
INVALID = np.int32(-(2**31))


def lrsuq(
    target: str = "gaussian",
    lattice: str = "Z1",
    segments: tuple[int, ...] | None = None,
    coding: str = "laplace",
) -> Mechanism:
    """LRSUQ whose error is exactly Gaussian or Laplace, i.i.d. over coordinates.

    Args:
      target: "gaussian", or "laplace" (Z1 only).
      lattice: "Z1", "Z2" or "Z3".
      segments: lengths of the update's tensors, which are coded with one scale each; by default
        the update is one segment.
      coding: law assumed by the entropy coder for an update's coordinates, "laplace" or
        "gaussian". Costs or saves bits, changes nothing else.

    Returns:
      A mechanism with knob `sigma`. Its message has `symbols` int32[d], `index` uint32[ceil(d/n)] for
      n > 1, and `side["scale"]` int32[segments].

    Raises:
      ConfigError: unknown target, lattice or coding, or a combination that does not exist.
    """
    require_choice("target", target, latents.TARGETS)
    require_choice("coding", coding, code_length.FAMILIES)
    lat = lattices.lattice(lattice)
    n = lat.dimension
    require(target == "gaussian" or n == 1, "lattice", lattice, "'Z1' where the target is 'laplace'")
    table = latents.radius_table(target, n)
    # Cell width over sigma, per unit of the table's radius.
    unit = (1.0 if target == "gaussian" else 2**-0.5) / lat.inradius
    acceptance = lattices.ball_acceptance(lat)

    def step(word, knobs: Knobs):
        return latents.radius(word, table) * (jnp.asarray(knobs.sigma, jnp.float32) * np.float32(unit))

    def layers(shared, blocks, knobs):
        first, second = counter.words(counter.stream(shared, _LAYERS), 0, blocks)
        return step(first, knobs), second

    def encode(keys, x, knobs):
        check_vector(x)
        check_knobs(knobs, ("sigma",))
        d = x.shape[0]
        count = -(-d // n)
        blocks = jnp.arange(count, dtype=jnp.uint32)
        width, spare = layers(keys.shared, blocks, knobs)
        side = {"scale": code_length.fit_scales(x, _segments(segments, d), coding)}
        if n == 1:
            return Message(_integers(jnp.round(x / width - counter.centered(spare))), None, side)
        padded = jnp.pad(x, (0, count * n - d)).reshape(count, n)
        scaled = [padded[:, i] / width for i in range(n)]
        stream = counter.stream(keys.shared, _DITHERS)

        def propose(proposal, ids, points):
            shifts = _dithers(n, stream, proposal, ids)
            moved = [y - v for y, v in zip(points, shifts, strict=True)]
            nearest = [jnp.round(y) for y in moved]
            error = sum(jnp.square(q - y) for q, y in zip(nearest, moved, strict=True))
            # A block that cannot be coded is taken as it comes: NaN would be rejected forever.
            hopeless = ~(sum(jnp.abs(q) for q in nearest) < 2.0**31)
            return (error <= lat.inradius**2) | hopeless, [_integers(q) for q in nearest]

        index, symbols = rejection.first_accepted(propose, blocks, scaled, acceptance)
        return Message(jnp.stack(symbols, axis=1).reshape(-1)[:d], index, side)

    def cells(shared, message, knobs):
        """Center (m + V) in cells, and cell width, of every coordinate."""
        check_knobs(knobs, ("sigma",))
        d = message.symbols.shape[0]
        blocks = jnp.arange(-(-d // n), dtype=jnp.uint32)
        width, spare = layers(shared, blocks, knobs)
        if n == 1:
            shift = counter.centered(spare)
        else:
            coordinate = jnp.arange(d, dtype=jnp.uint32)
            block, axis = coordinate // np.uint32(n), coordinate % np.uint32(n)
            take = lambda a: a.at[block].get(mode="promise_in_bounds")  # noqa: E731
            stream = counter.stream(shared, _DITHERS)
            shift = _dither_of_coordinate(n, stream, take(message.index), block, axis)
            width = take(width)
        return message.symbols.astype(jnp.float32) + shift, width

    def decode(shared, message, knobs):
        center, width = cells(shared, message, knobs)
        return jnp.where(message.symbols == INVALID, jnp.nan, width * center)

    def bits(shared, message, knobs):
        center, width = cells(shared, message, knobs)
        lengths = _segments(segments, message.symbols.shape[0])
        scale = code_length.scale_per_coordinate(message.side["scale"], lengths)
        nats = jnp.sum(code_length.cell_nats(width * center, width, scale, coding))
        if n > 1:
            # The index as a geometric variable, independent of the coordinates.
            rejected = message.index.astype(jnp.float32)
            nats += jnp.sum(-np.log(acceptance) - rejected * np.log1p(-acceptance))
        return nats / np.float32(np.log(2)) + np.float32(code_length.SCALE_BITS * len(lengths))

    return Mechanism(
        encode=encode,
        decode=decode,
        bits=bits,
        reference=lambda x, knobs: x,
        about=About(
            name=f"lrsuq-{target}-{lattice}",
            law=target,
            block=n,
            randomness=("shared",),
            knobs=("sigma",),
        ),
    )


def _dithers(n, stream, proposal, blocks):
    """The dither of a proposal for whole blocks: n arrays like `blocks`."""
    pairs = (n + 1) // 2  # calls for two words that one proposal of one block takes
    found = []
    for pair in range(pairs):
        found += counter.words(stream, proposal * np.uint32(pairs) + np.uint32(pair), blocks)
    return [counter.centered(word) for word in found[:n]]


def _dither_of_coordinate(n, stream, proposal, block, axis):
    """The same dithers one by one: elementwise over coordinates, which XLA vectorizes."""
    pairs = np.uint32((n + 1) // 2)
    pair, second = axis >> np.uint32(1), axis & np.uint32(1)
    first, other = counter.words(stream, proposal * pairs + pair, block)
    return counter.centered(jnp.where(second == 1, other, first))


def _segments(segments, d):
    segments = (d,) if segments is None else segments
    require(sum(segments) == d, "segments", segments, f"lengths with sum {d}, the length of x")
    return tuple(n for n in segments if n)


def _integers(rounded):
    """int32 of already rounded floats; INVALID where they do not fit or are NaN."""
    fits = jnp.abs(rounded) < 2.0**31
    return jnp.where(fits, jnp.where(fits, rounded, 0).astype(jnp.int32), INVALID)
