"""Subtractive dithered quantization (SDQ), alone and after private noise.

  x_hat = d (Q(x/d - V) + V),  V uniform modulo the lattice, known to client and server

Q names the nearest lattice point and d is the lattice's scale. The error is uniform on the scaled Voronoi
cell and independent of x (Schuchman: Dither signals and their effect on quantization noise, 1964; Zamir and
Feder: On universal quantization by randomized uniform/lattice quantizers, 1992), but it is not a privacy
noise: its support is bounded. Where there is privacy, it comes from noise that is added before:
`noise_then_sdq`, `jopeq`.

Sources of its use in federated learning: Shlezinger, Chen, Eldar, Poor, Cui: UVeQFed: Universal Vector
Quantization for Federated Learning (arXiv 2006.03262); Lang, Sofer, Shaked, Shlezinger: Joint Privacy
Enhancement and Quantization in Federated Learning (JoPEQ, arXiv 2208.10888).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import acceptance, block_bits, blocks, code_length, counter, exact, lattices
from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, check_vector
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.noise import add_noise, coded_as_noise, scaled_noise
from cepam_jax.mechanisms.plain_rounding import noise_then_rounding, rounding

__all__ = ["RATES", "jopeq", "noise_then_rounding", "noise_then_sdq", "rounding", "sdq"]

RATES = ("sigma", "step", "bits")
_DITHERS = 4  # tag of the shared stream; part of the message format
# Least part of JoPEQ's variance that is private. Below, float32 does not know it to a tenth of a percent.
_LEAST_PRIVATE_PART = 1e-3


class _Setting(NamedTuple):
    """What is fixed when an SDQ is built.

    Attributes:
      lat: the lattice, of n dimensions.
      rate: the knob that sets the lattice's scale, one of `RATES`.
      scales: where the scales for the entropy coder come from, and the assumed law of the coordinates.
    """

    lat: lattices.Lattice
    rate: str
    scales: code_length.Scales

    @property
    def factor(self) -> float:
        """Lattice's scale for a knob of 1: unless the knob is the scale, it is an error's deviation."""
        return 1.0 if self.rate == "step" else self.lat.second_moment**-0.5

    @property
    def bits_of_unit_cells(self) -> float:
        """Bits per coordinate at high resolution where the lattice's scale is that of the coordinates.

        This is the differential entropy of the coordinates less the log volume of the cell, per axis.
        """
        return code_length.ENTROPY[self.scales.family] - float(np.log2(self.lat.volume)) / self.lat.dimension


def sdq(
    lattice: str = "Z1",
    rate: str = "step",
    segments: tuple[int, ...] | None = None,
    coding: str = "auto",
    scales: str = "own",
) -> Mechanism:
    """Subtractive dithered quantization: UVeQFed (arXiv 2006.03262), or FL + SDQ of CEPAM (arXiv 2501.12046).

    Args:
      lattice: "Z1", "Z2", "Z3", "A2", "D4" or "E8".
      rate: the knob that sets the lattice's scale: "step", the scale itself; "sigma", the error's
        standard deviation per coordinate; or "bits", the rate per coordinate that the update's own
        scale leads to at high resolution (the scale is then sent).
      segments: lengths of the update's tensors, as for `lrsuq`.
      coding: law assumed by the entropy coder, as for `lrsuq`.
      scales: where the scales for the entropy coder come from, as for `lrsuq`.

    Returns:
      A mechanism with the knob that `rate` names. Its message has `symbols` int32[d], and `side["scale"]`
      int32[segments] unless the scales are public; with the rate "bits" also `side["whole"]` int32[1].

    Raises:
      ConfigError: unknown lattice, rate, coding or scales.
    """
    lat = lattices.lattice(lattice)
    require_choice("rate", rate, RATES)
    coding = code_length.resolved(coding, "mixture")
    sized = code_length.Scales(segments, coding, scales).check()
    setting = _Setting(lat, rate, sized)
    return Mechanism(
        encode=partial(_encode, setting),
        decode=partial(_decode, setting),
        bits=partial(_bits, setting),
        reference=lambda x, knobs: x,
        about=About(
            name=f"sdq-{lattice}",
            law="uniform",
            block=lat.dimension,
            randomness=("shared",),
            knobs=(rate, *sized.knobs),
            local=rate != "bits",
            independent=rate != "bits",
            leaves_noise=rate != "bits",
        ),
        code=Code(
            "lattice",
            lattice=lattice,
            streams=(None, _DITHERS),
            width=partial(_host_width, setting),
            family=coding,
            segments=segments,
        ),
        variance=partial(_variance, setting),
    )


def _width(setting: _Setting, side: dict, knobs: Knobs) -> jax.Array:
    """f32[], the lattice's scale in units of the update; for "bits" it follows from side["whole"]."""
    given = knob(knobs, setting.rate)
    if setting.rate != "bits":
        return given * np.float32(setting.factor)
    scale = side["whole"][0].astype(jnp.float32) / code_length.SCALES_PER_OCTAVE
    return jnp.exp2(scale + np.float32(setting.bits_of_unit_cells) - given)


def _host_width(setting: _Setting, side: dict, knobs: Knobs) -> np.float64 | float:
    """For a coder on the host: near `_width`, but the same number on every machine."""
    if setting.rate != "bits":
        return np.float64(getattr(knobs, setting.rate)) * setting.factor
    log_scale = side["whole"][0] / code_length.SCALES_PER_OCTAVE
    return exact.power_of_two(log_scale + setting.bits_of_unit_cells - np.float64(knobs.bits))


def _encode(
    setting: _Setting, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    check_vector(x)
    lat, d = setting.lat, x.shape[0]
    n = lat.dimension
    side = setting.scales.measure(x, weight, knobs)
    if setting.rate == "bits":
        side["whole"] = code_length.fit_scales(x, (d,), setting.scales.family, weight)
    ids = jnp.arange(blocks.count(n, d), dtype=jnp.uint32)
    stream = counter.stream(keys.shared, _DITHERS)
    dither = lat.point([jnp.float32(0)] * n, blocks.dither_samples(lat, stream, np.uint32(0), ids))
    width = _width(setting, side, knobs)
    axes = blocks.split(x, n)
    moved = [y / width - v for y, v in zip(axes, dither, strict=True)]
    valid = blocks.codable(axes, width)
    symbols = [blocks.integers(q, valid) for q in lat.nearest(moved)]
    return Message(blocks.join(symbols, blocks.symbols_sent(lat, d)), None, side, d)


def _reconstruct(setting: _Setting, shared: jax.Array, message: Message) -> jax.Array:
    """f32[d], lattice point plus dither of every coordinate, in units of the lattice's scale."""
    stream = counter.stream(shared, _DITHERS)
    return blocks.reconstruct(setting.lat, stream, message.symbols, np.uint32(0), message.length)


def _decode(setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    return _width(setting, message.side, knobs) * _reconstruct(setting, shared, message)


def _bits(
    setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the ideal code length of a message in bits; see `Mechanism.bits`."""
    lat, scales, d = setting.lat, setting.scales, message.length
    width = _width(setting, message.side, knobs)
    if acceptance.needed(lat, "cell"):
        stream = counter.stream(shared, _DITHERS)
        scale = blocks.in_memory(scales.per_coordinate(message.side, knobs, d))
        total = block_bits.block_bits(lat, "cell", stream, message, width, scale, scales.family, weight)
    else:
        center, scale = _reconstruct(setting, shared, message), scales.of_tensors(message.side, knobs)
        total = block_bits.tensor_bits(center, width, scales.lengths(d), scale, scales.family, weight)
    return total + scales.bits(message.side, d) + (code_length.SCALE_BITS if setting.rate == "bits" else 0)


def _variance(setting: _Setting, x: jax.Array, knobs: Knobs) -> jax.Array:
    """f32[], expected squared error per coordinate of x f32[d]: the second moment of the scaled cell."""
    side = {"whole": code_length.fit_scales(x, (x.shape[0],), setting.scales.family)}
    return jnp.square(_width(setting, side, knobs)) * np.float32(setting.lat.second_moment)


def noise_then_sdq(target: str = "gaussian", **options: Any) -> Mechanism:
    """Private noise `knobs.sigma`, then SDQ with `knobs.step`: FL + noise + SDQ of CEPAM (arXiv 2501.12046).

    Args:
      target: law of the noise, "gaussian" or "laplace".
      **options: as for `sdq`. Coding "auto" is the law of the noise, because most of what is quantized is
        noise; with public scales it is the mixture.

    Returns:
      A mechanism with the knobs `sigma` and `step`.

    Raises:
      ConfigError: unknown target, or what `sdq` raises.
    """
    return chain(add_noise(target), sdq(rate="step", **coded_as_noise(target, options)))


def jopeq(target: str = "gaussian", lattice: str = "Z1", **options: Any) -> Mechanism:
    """Private noise that complements the dither's error to a target variance (JoPEQ, arXiv 2208.10888).

    The total error is private noise plus a uniform error on the cell, with standard deviation
    `knobs.sigma`; the lattice of scale `knobs.step` contributes its own part of the variance, and the noise
    the rest. Unlike LRSUQ its law is only near the target. It cannot be exact: by Cramer's theorem a sum of
    independent variables is Gaussian only if each is, and a Laplace law has no uniform component either (the
    characteristic function of the uniform law has zeros, that of the Laplace law has none). Noise
    and cell are therefore matched in variance, and the noise alone carries any guarantee.

    Args:
      target: law of the private noise, "gaussian" or "laplace".
      lattice: as for `sdq`.
      **options: as for `sdq`; coding as for `noise_then_sdq`.

    Returns:
      A mechanism with the knobs `sigma` and `step`.

    Raises:
      ConfigError: unknown target, or what `sdq` raises.
    """
    complement = partial(_complement, lattices.lattice(lattice).second_moment)
    noise = scaled_noise(target, complement, ("sigma", "step"), "complement")
    built = chain(noise, sdq(lattice, "step", **coded_as_noise(target, options)))
    # The error that the dither adds has bounded support, so it gives no guarantee.
    return built._replace(about=built.about._replace(name=f"jopeq-{target}-{lattice}", law="other"))


def _complement(second_moment: float, knobs: Knobs) -> jax.Array:
    """f32[], standard deviation of the private noise of `jopeq`; 0 where the cell leaves it (almost) nothing.

    Args:
      second_moment: mean square per coordinate of a uniform point of the cell at scale 1.
      knobs: with sigma and step.
    """
    total, step = knob(knobs, "sigma"), knob(knobs, "step")
    private_part = 1 - second_moment * jnp.square(step / total)
    # The difference of nearly equal numbers is rounding: too little noise to be sure of counts as none.
    return total * jnp.sqrt(jnp.where(private_part >= _LEAST_PRIVATE_PART, private_part, 0.0))
