"""LRSUQ: the layered rejection-sampled universal quantizer (2501.12046, 2402.03030).

  shared:   latent -> layer of radius r, scale d = r / inradius; dithers V_1, V_2, ... uniform on the cell
  encoder:  for h = 1, 2, ...: m = Q(x/d - V_h); stop when d (m + V_h) - x lies in the layer; send (h, m)
  decoder:  x_hat = d (m + V_h)

The error x_hat - x has exactly the target density and is independent of x. "Exactly" means: up to
f32 arithmetic, the radius table of `latents` (relative error 1e-6) and 32-bit words (the layer's
radius stops at its 2^-33 quantiles).

On Z1 nothing is rejected: the layer is the cell. In more dimensions the layer is the ball
(Gaussian) or the cross-polytope (Laplace) inscribed in the cell.

The decoder's arithmetic is arranged so that every platform computes the same bits: see
`latents` and `counter`; what remains are single rounded additions and multiplications, in an
order in which a fused multiply-add changes nothing.
"""

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import blocks, code_length, counter, latents, lattices, rejection
from cepam_jax.mechanisms.base import About, Code, Mechanism, Message, Noise, check_vector
from cepam_jax.mechanisms.knobs import knob

# Tags of the two shared streams. They are part of the message format.
_LAYERS, _DITHERS = 1, 2
_FAR = 2.0**21  # sum of the integers of a point; E8 counts halves, so its blocks stay below 2^20.7


def proposals(lat: lattices.Lattice, target: str, shared):
    """The test of one proposal, as `rejection.first_accepted` wants it.

    Args:
      lat: lattice.
      target: "gaussian" (the layer is a ball) or "laplace" (a cross-polytope).
      shared: key of the dithers.

    Returns:
      (proposal number, blocks uint32[k], n arrays f32[k] of coordinates in units of the lattice's scale)
      -> (accepted bool[k], n arrays int32[k]).
    """
    n = lat.dimension
    stream = counter.stream(shared, _DITHERS)
    zero = [jnp.float32(0)] * n

    def propose(proposal, ids, points):
        dither = lat.point(zero, blocks.boxes(lat, stream, proposal, ids))
        moved = [y - v for y, v in zip(points, dither, strict=True)]
        integers = lat.nearest(moved)
        nearest = lat.point(integers, zero)
        errors = [q - y for q, y in zip(nearest, moved, strict=True)]
        if target == "gaussian":
            inside = sum(jnp.square(e) for e in errors) <= np.float32(lat.inradius**2)
        else:
            inside = sum(jnp.abs(e) for e in errors) <= np.float32(lat.cross)
        # What cannot be coded is taken as it comes: NaN would be rejected forever, and so would points so
        # far out that f32 has no room for the parity of their sum or for an error inside the layer. An
        # update within `RANGE` gets there in layers a thousand times narrower than most alone (fewer than
        # one block in 1e7), where the nearest point is off by no more than f32's rounding of x.
        hopeless = ~(sum(jnp.abs(q) for q in integers) < _FAR)
        return inside | hopeless, [blocks.integers(q) for q in integers]

    return propose


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
        fits trained updates best), "laplace" or "gaussian"; "auto": the mixture. Costs or saves bits,
        changes nothing else.
      scales: "own": the update's scales are measured and sent; "public": they come from the knob
        `scale`, so that nothing but the symbols depends on the update.

    Returns:
      A mechanism with knob `sigma`. Its message has `symbols` int32[d], `index` uint32[ceil(d/n)] for
      n > 1, and `side["scale"]` int32[segments] unless the scales are public.

    Raises:
      ConfigError: unknown target, lattice, coding or scales.
    """
    require_choice("target", target, latents.TARGETS)
    coding = code_length.resolved(coding, "mixture")
    sized = code_length.Scales(segments, coding, scales).check()
    lat = lattices.lattice(lattice)
    n = lat.dimension
    table = latents.radius_table(target, n)
    # Lattice scale over sigma, per unit of the table's radius.
    unit = 1.0 / lat.inradius if target == "gaussian" else 2**-0.5 / lat.cross
    acceptance = lattices.acceptance(lat, target)

    def layers(shared, count, knobs):
        """Scale of the lattice for every block; and a spare word, the dither where n = 1."""
        stream = counter.stream(shared, _LAYERS)
        word, spare = counter.words(stream, 0, jnp.arange(count, dtype=jnp.uint32))
        return latents.radius(word, table) * (knob(knobs, "sigma") * np.float32(unit)), spare

    def encode(keys, x, knobs, weight=None):
        check_vector(x)
        d = x.shape[0]
        width, spare = layers(keys.shared, blocks.count(n, d), knobs)
        side = sized.measure(x, weight, knobs)
        axes = blocks.split(x, n)
        valid = blocks.codable(axes, knob(knobs, "sigma"))
        if n == 1:
            nearest = jnp.round(x / width - counter.centered(spare))
            return Message(blocks.integers(nearest, valid), None, side, d)
        # NaN through the whole block, which is accepted at once and comes back as INVALID.
        index, symbols = rejection.first_accepted(
            proposals(lat, target, keys.shared),
            jnp.arange(width.shape[0], dtype=jnp.uint32),
            [jnp.where(valid, axis / width, jnp.nan) for axis in axes],
            acceptance,
        )
        return Message(blocks.join(symbols, blocks.symbols_sent(lat, d)), index, side, d)

    def place(shared, message, knobs):
        """Lattice point plus dither, and the lattice's scale, of every coordinate."""
        d = message.length
        width, spare = layers(shared, blocks.count(n, d), knobs)
        if n == 1:
            valid = message.symbols != blocks.INVALID
            return jnp.where(valid, message.symbols.astype(jnp.float32), jnp.nan) + counter.centered(
                spare
            ), width
        center = blocks.place(lat, counter.stream(shared, _DITHERS), message.symbols, message.index, d)
        return center, blocks.per_coordinate(width, n, d)

    def decode(shared, message, knobs):
        center, width = place(shared, message, knobs)
        return width * center

    def bits(shared, message, knobs, weight=None):
        d = message.length
        scale = sized.per_coordinate(message.side, knobs, d)
        if n == 1:
            center, width = place(shared, message, knobs)
            symbols = blocks.code_bits(center, width, scale, coding, weight)
        else:
            width, _ = layers(shared, blocks.count(n, d), knobs)
            stream = counter.stream(shared, _DITHERS)
            symbols = blocks.block_bits(lat, target, stream, message, width, scale, coding, weight)
        return symbols + sized.bits(d)

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
            knobs=("sigma", *sized.knobs),
            outsiders=Noise(target, lambda knobs: knobs.sigma),
            summable=True,
        ),
        code=Code(
            "lattice",
            lattice=lattice,
            layer=target,
            streams=(_LAYERS, _LAYERS if n == 1 else _DITHERS),
            width=lambda side, knobs: np.float64(knobs.sigma) * unit,
            family=coding,
            segments=segments,
        ),
        variance=lambda x, knobs: jnp.square(knob(knobs, "sigma")),
    )
