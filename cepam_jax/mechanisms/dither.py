"""Subtractive dithered quantization and its relatives.

  x_hat = d (Q(x/d - V) + V),  V uniform modulo the lattice, known to client and server

The error is uniform on the scaled Voronoi cell and independent of x (Schuchman 1964; Zamir and
Feder 1992), but it is not a privacy noise: its support is bounded.
"""

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import acceptance, blocks, code_length, counter, exact, lattices
from cepam_jax.mechanisms.base import (
    About,
    Code,
    Knobs,
    Mechanism,
    Message,
    check_vector,
)
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.noise import add_noise, coded_as_noise, scaled_noise

_DITHERS = 4  # tag of the shared stream; part of the message format

RATES = ("sigma", "step", "bits")
_LEAST_SHARE = (
    1e-3  # of JoPEQ's variance, that is private; below, f32 does not know it to a tenth of a percent
)


def sdq(
    lattice: str = "Z1",
    rate: str = "step",
    segments: tuple[int, ...] | None = None,
    coding: str = "auto",
    scales: str = "own",
) -> Mechanism:
    """Subtractive dithered quantization (FL + SDQ of 2501.12046; UVeQFed, 2006.03262).

    Args:
      lattice: "Z1", "Z2", "Z3", "A2", "D4" or "E8".
      rate: the knob that sets the lattice's scale: "step", the scale itself; "sigma", the error's
        standard deviation per coordinate; or "bits", the rate per coordinate that the update's own
        scale leads to at high resolution (the scale is then sent).
      segments, coding, scales: as for `lrsuq`.
    """
    lat = lattices.lattice(lattice)
    require_choice("rate", rate, RATES)
    coding = code_length.resolved(coding, "mixture")
    sized = code_length.Scales(segments, coding, scales).check()
    n = lat.dimension
    factor = 1.0 if rate == "step" else lat.second_moment**-0.5
    # Differential entropy of the coordinates, less the bits to spend, is the cell's log volume.
    per_axis = code_length.ENTROPY[coding] - float(np.log2(lat.volume)) / n

    def scale(side, knobs):
        given = knob(knobs, rate)
        if rate != "bits":
            return given * np.float32(factor)
        scale = side["whole"][0].astype(jnp.float32) / code_length.SCALES_PER_OCTAVE
        return jnp.exp2(scale + np.float32(per_axis) - given)

    def host_scale(side, knobs):
        """For the coder: near `scale`, but the same number on every machine."""
        if rate != "bits":
            return np.float64(getattr(knobs, rate)) * factor
        log_scale = side["whole"][0] / code_length.SCALES_PER_OCTAVE + per_axis - np.float64(knobs.bits)
        return exact.power_of_two(log_scale)

    def encode(keys, x, knobs, weight=None):
        check_vector(x)
        d = x.shape[0]
        side = sized.measure(x, weight, knobs)
        if rate == "bits":
            side["whole"] = code_length.fit_scales(x, (d,), coding, weight)
        ids = jnp.arange(blocks.count(n, d), dtype=jnp.uint32)
        stream = counter.stream(keys.shared, _DITHERS)
        dither = lat.point([jnp.float32(0)] * n, blocks.boxes(lat, stream, np.uint32(0), ids))
        width = scale(side, knobs)
        axes = blocks.split(x, n)
        moved = [y / width - v for y, v in zip(axes, dither, strict=True)]
        valid = blocks.codable(axes, width)
        symbols = [blocks.integers(q, valid) for q in lat.nearest(moved)]
        return Message(blocks.join(symbols, blocks.symbols_sent(lat, d)), None, side, d)

    def place(shared, message):
        stream = counter.stream(shared, _DITHERS)
        return blocks.place(lat, stream, message.symbols, np.uint32(0), message.length)

    def bits(shared, message, knobs, weight=None):
        d = message.length
        width, own = scale(message.side, knobs), sized.per_coordinate(message.side, knobs, d)
        if acceptance.needed(lat, "cell"):
            stream = counter.stream(shared, _DITHERS)
            total = blocks.block_bits(lat, "cell", stream, message, width, own, coding, weight)
        else:
            total = blocks.code_bits(place(shared, message), width, own, coding, weight)
        return total + sized.bits(d) + (code_length.SCALE_BITS if rate == "bits" else 0)

    def variance(x, knobs):
        side = {"whole": code_length.fit_scales(x, (x.shape[0],), coding)}
        return jnp.square(scale(side, knobs)) * np.float32(lat.second_moment)

    return Mechanism(
        encode=encode,
        decode=lambda shared, message, knobs: scale(message.side, knobs) * place(shared, message),
        bits=bits,
        reference=lambda x, knobs: x,
        about=About(
            name=f"sdq-{lattice}",
            law="uniform",
            block=n,
            randomness=("shared",),
            knobs=(rate, *sized.knobs),
            local=rate != "bits",
        ),
        code=Code(
            "lattice",
            lattice=lattice,
            streams=(None, _DITHERS),
            width=host_scale,
            family=coding,
            segments=segments,
        ),
        variance=variance,
    )


def rounding(segments: tuple[int, ...] | None = None, coding: str = "auto", scales: str = "own") -> Mechanism:
    """Plain rounding to multiples of `knobs.step`: no dither, an error that depends on x.

    The papers' "noise, then quantization"; unbiased only in so far as noise came before.
    """
    coding = code_length.resolved(coding, "mixture")
    sized = code_length.Scales(segments, coding, scales).check()

    def encode(keys, x, knobs, weight=None):
        del keys
        check_vector(x)
        step = knob(knobs, "step")
        symbols = blocks.integers(jnp.round(x / step), blocks.codable([x], step))
        return Message(symbols, None, sized.measure(x, weight, knobs), x.shape[0])

    def center(message):
        symbols = message.symbols
        return jnp.where(symbols == blocks.INVALID, jnp.nan, symbols.astype(jnp.float32))

    def bits(shared, message, knobs, weight=None):
        step = knob(knobs, "step")
        own = sized.per_coordinate(message.side, knobs, message.length)
        return blocks.code_bits(center(message), step, own, coding, weight) + sized.bits(message.length)

    return Mechanism(
        encode=encode,
        decode=lambda shared, message, knobs: knob(knobs, "step") * center(message),
        bits=bits,
        reference=lambda x, knobs: x,
        about=About(name="rounding", law="other", unbiased=False, knobs=("step", *sized.knobs)),
        code=Code(
            "lattice", width=lambda side, knobs: np.float64(knobs.step), family=coding, segments=segments
        ),
    )


def jopeq(
    target: str = "gaussian",
    lattice: str = "Z1",
    **options,
) -> Mechanism:
    """Private noise that complements the dither's error to a target variance (JoPEQ, 2208.10888).

    The total error is private noise plus a uniform error on the cell, with standard deviation
    `knobs.sigma`; of it, the lattice of scale `knobs.step` contributes what it must. Unlike LRSUQ its
    law is only near the target. It cannot be exact: by Cramer's theorem a sum of independent
    variables is Gaussian only if each is, and a Laplace law has no uniform component either (the
    characteristic function of the uniform law has zeros, that of the Laplace law has none). Noise
    and cell are therefore matched in variance, and the noise alone carries any guarantee.

    Args:
      target: law of the private noise, "gaussian" or "laplace".
      lattice, **options: as for `sdq`; coding as for `noise_then_sdq`.
    """
    moment = lattices.lattice(lattice).second_moment

    def complement(knobs: Knobs):
        total, step = knob(knobs, "sigma"), knob(knobs, "step")
        share = 1 - moment * jnp.square(step / total)
        # The difference of nearly equal numbers is rounding: too little noise to be sure of counts as none.
        return total * jnp.sqrt(jnp.where(share >= _LEAST_SHARE, share, 0.0))

    noise = scaled_noise(target, complement, ("sigma", "step"), "complement")
    built = chain(noise, sdq(lattice, "step", **coded_as_noise(target, options)))
    # What the dither adds has bounded support and earns nothing.
    return built._replace(about=built.about._replace(name=f"jopeq-{target}-{lattice}", law="other"))


def noise_then_sdq(target: str = "gaussian", **options) -> Mechanism:
    """Private noise `knobs.sigma`, then SDQ with `knobs.step` (FL + noise + SDQ of 2501.12046).

    Args:
      target: law of the noise, "gaussian" or "laplace".
      **options: as for `sdq`. Coding "auto" is the law of the noise, which most of what is quantized is;
        with public scales the mixture.
    """
    return chain(add_noise(target), sdq(rate="step", **coded_as_noise(target, options)))


def noise_then_rounding(target: str = "gaussian", **options) -> Mechanism:
    """Private noise `knobs.sigma`, then rounding to multiples of `knobs.step`; coding as `noise_then_sdq`."""
    return chain(add_noise(target), rounding(**coded_as_noise(target, options)))
