"""From `config.mechanism` to a mechanism and to the knobs of all clients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms.base import Knobs, Mechanism
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.clipped import GRANULARITIES, ROUNDINGS, THRESHOLDS
from cepam_jax.mechanisms.code_length import CODINGS
from cepam_jax.mechanisms.code_length import SOURCES as SCALE_SOURCES
from cepam_jax.mechanisms.dither import RATES
from cepam_jax.mechanisms.knobs import on_host
from cepam_jax.mechanisms.latents import TARGETS
from cepam_jax.mechanisms.lattices import LATTICES
from cepam_jax.mechanisms.registry import CONFIGURABLE
from cepam_jax.mechanisms.rotated import LATTICES as ROTATED_LATTICES
from cepam_jax.mechanisms.split import QUANTIZERS
from cepam_jax.mechanisms.transforms import NORMS, clip, random_mask, rotate, top_k
from cepam_jax.registry import Registry

if TYPE_CHECKING:
    import ml_collections

CLIPPED = ("model", "tensor")  # what has a bound of its own
SPARSIFIERS = Registry("sparsifier")
SPARSIFIERS.register("mask", random_mask)
SPARSIFIERS.register("top_k", top_k)

_ARRAY = {"compiled": False}  # what a compiled round takes as an array
_FIELDS = {
    "name": settings.choice("lrsuq", "Which mechanism turns an update into a message.", CONFIGURABLE),
    "target": settings.choice("gaussian", "Law of the error, or of the noise that is added.", TARGETS),
    "lattice": settings.choice("Z1", "Lattice of the quantizer.", LATTICES),
    "quantizer": settings.choice("lrsuq", "Of `split`: what quantizes after the private noise.", QUANTIZERS),
    "share": settings.number(
        0.5,
        "Of `split`: part of the error's variance that comes from the client's private key.",
        lambda v: 1e-6 <= v <= 1 - 1e-6,
        "a number between 1e-6 and 1 - 1e-6",
    ),
    "gamma": settings.positive(
        100.0, "Clip bound divided by the noise's deviation sigma (Gaussian) or scale b (Laplace).", **_ARRAY
    ),
    "step": settings.number(
        0.005,
        "Scale of the lattice of sdq, rounding and jopeq, in units of the update.",
        lambda v: 1e-30 <= v <= 1e30,
        "a number between 1e-30 and 1e30",
        **_ARRAY,
    ),
    "rate": settings.choice("step", "What sets the scale of sdq: step, sigma (by gamma), or bits.", RATES),
    "bits": settings.integer(
        4, "Bits per coordinate of `clipped`, and of `sdq` with rate=bits.", high=8, **_ARRAY
    ),
    "levels": settings.integer(16, "Number of levels of k_level and qsgd.", low=2, high=2**20, **_ARRAY),
    "rounding": settings.choice(
        "stochastic", "Of `clipped`: how values between levels are rounded.", ROUNDINGS
    ),
    "threshold": settings.choice("mse", "Of `clipped`: rule for the clipping threshold.", THRESHOLDS),
    "granularity": settings.choice("tensor", "Of `clipped`: what has a threshold of its own.", GRANULARITIES),
    "clip": settings.choice("l2", "The norm of an update that is bounded.", NORMS, "none"),
    "clip_per": settings.choice(
        "model", "Whether the whole update is cut to the bound, or each tensor to its share of it.", CLIPPED
    ),
    "clip_norm": settings.positive(1.0, "The bound on that norm, in units of the update.", **_ARRAY),
    "rotate": settings.boolean(False, "Whether updates are rotated at random before quantization."),
    "sparsify": settings.choice("none", "Which coordinates are sent.", SPARSIFIERS, "none"),
    "fraction": settings.unit(0.25, "Part of the coordinates that a mask or top_k sends.", **_ARRAY),
    "error_feedback": settings.boolean(False, "Whether clients add what was lost to their next update."),
    "quantize": settings.choice(
        "updates", "Whether updates or new weights go through the mechanism.", ("updates", "weights")
    ),
    "coding": settings.choice(
        "auto",
        "Law that the entropy coder assumes; auto: the noise's where noise is added before quantization, "
        "for lrsuq on Z1 with own scales the one that the encoder chooses for each tensor, else the mixture.",
        CODINGS,
    ),
    "scales": settings.choice(
        "own", "The coder's scales: measured and sent, or those of the last aggregate.", SCALE_SOURCES
    ),
}
settings.declare("mechanism", _FIELDS, "How an update becomes a message.")
settings.declare(
    "mechanism.per_client",
    {
        name: settings.per_client(
            _FIELDS[name], f"One {name} for each client in place of the above.", **_ARRAY
        )
        for name in ("gamma", "bits", "fraction")
    },
)

_SIGMAS = (1e-30, 1e30)  # squares of a few of them still fit into f32


@settings.rule
def _rules(fields):
    """What the steps of a chain ask of each other."""
    mechanism = {name: fields[f"mechanism.{name}"] for name in _FIELDS}
    for knob in ("gamma", "bits", "fraction"):
        clients = fields["num_clients"]
        yield (
            len(fields[f"mechanism.per_client.{knob}"]) in (0, clients),
            f"mechanism.per_client.{knob}",
            f"empty or one number for each of config.num_clients = {clients} clients",
        )
    yield from rules_of_steps(fields, "mechanism")
    yield (
        mechanism["quantize"] == "updates" or mechanism["clip"] == "none",
        "mechanism.clip",
        "'none' where config.mechanism.quantize is 'weights': weights are not bounded like updates",
    )
    yield (
        mechanism["clip"] != "none" or mechanism["clip_per"] == "model",
        "mechanism.clip_per",
        "'model' where config.mechanism.clip is 'none': nothing is clipped",
    )
    yield (
        mechanism["scales"] == "own" or not (mechanism["rotate"] or mechanism["quantize"] == "weights"),
        "mechanism.scales",
        "'own' where config.mechanism.rotate is True or config.mechanism.quantize is 'weights': the last "
        "aggregated update says nothing about what is coded",
    )
    scaled = [name for name, entry in CONFIGURABLE.items() if entry.scaled]
    yield (
        mechanism["scales"] == "own" or mechanism["name"] in scaled,
        "mechanism.scales",
        "'own' unless config.mechanism.name is one of " + ", ".join(map(repr, scaled)),
    )
    yield (
        mechanism["name"] != "split" or mechanism["target"] == "gaussian",
        "mechanism.target",
        "'gaussian' where config.mechanism.name is 'split': a Laplace law has no Laplace part",
    )
    turns = "rotated" in (mechanism["name"], mechanism["name"] == "split" and mechanism["quantizer"])
    yield (
        not turns or mechanism["lattice"] in ROTATED_LATTICES,
        "mechanism.lattice",
        f"one of {', '.join(map(repr, ROTATED_LATTICES))} where cells are rotated "
        "(config.mechanism.name or, for 'split', config.mechanism.quantizer is 'rotated')",
    )
    yield (
        not turns or mechanism["target"] == "gaussian",
        "mechanism.target",
        "'gaussian' where config.mechanism.name is 'rotated': rotated cells are round",
    )
    yield (
        not turns or mechanism["coding"] != "laplace",
        "mechanism.coding",
        "'auto', 'mixture' or 'gaussian' where cells are rotated: turned coordinates have no Laplace law",
    )
    yield from _noise_range(fields)


def rules_of_steps(fields: dict[str, Any], section: str):
    """What the steps of a chain ask of each other, in any section that has them; as a rule of `settings`."""
    rotate, name, sparsify, granularity = (
        fields[f"{section}.{field}"] for field in ("rotate", "name", "sparsify", "granularity")
    )
    yield (
        not rotate or sparsify != "top_k",
        f"{section}.sparsify",
        f"'mask' or 'none' where config.{section}.rotate is True: rotated coordinates are all alike",
    )
    yield (
        not rotate or name != "clipped" or granularity == "model",
        f"{section}.granularity",
        f"'model' where config.{section}.rotate is True: a rotation mixes the tensors",
    )


def fields_of_steps(defaults: dict[str, Any]) -> dict[str, settings.Field]:
    """The fields of a chain without noise and without a clip, for a section of its own.

    Args:
      defaults: name -> default, where it is another than that of `config.mechanism`.
    """
    names = ("lattice", "rate", "step", "bits", "levels", "rounding", "threshold", "granularity")
    fields = {name: _FIELDS[name] for name in (*names, "rotate", "sparsify", "fraction", "coding")}
    return {
        name: field._replace(default=defaults.get(name, field.default), compiled=True)
        for name, field in fields.items()
    }


def knob_values(fields: dict[str, Any], knob: str) -> tuple:
    """What the clients' knobs are at the start."""
    return tuple(fields.get(f"mechanism.per_client.{knob}", ())) or (fields[f"mechanism.{knob}"],)


def _noise_range(fields):
    """The noise's deviation must be a number that 32-bit arithmetic can work with."""
    low, high = _SIGMAS
    for gamma in knob_values(fields, "gamma"):
        sigma = sigma_of_gamma(fields["mechanism.target"], gamma, fields["mechanism.clip_norm"])
        yield (
            low <= sigma <= high,
            "mechanism.per_client.gamma" if fields["mechanism.per_client.gamma"] else "mechanism.gamma",
            f"such that the noise's deviation, config.mechanism.clip_norm / gamma = {sigma:.3g}, lies "
            f"between {low:g} and {high:g}",
        )


def stays_in_range(fields: dict[str, Any], knob: str, value: float) -> bool:
    """Whether a knob that was changed to `value` is still one that the mechanism can work with."""
    inside = FIELD_OF_KNOB[knob].test(value)
    if knob != "gamma" or not inside:
        return inside
    sigma = sigma_of_gamma(fields["mechanism.target"], value, fields["mechanism.clip_norm"])
    return _SIGMAS[0] <= sigma <= _SIGMAS[1]


FIELD_OF_KNOB = {name: _FIELDS[name] for name in ("gamma", "step", "bits", "levels", "fraction")}


def build(config, shapes: tuple[tuple[int, ...], ...]) -> Mechanism:
    """The mechanism of `config.mechanism`, for updates made of tensors with these shapes."""
    segments = tuple(math.prod(shape) for shape in shapes)
    mixed = config.rotate  # a rotation leaves no tensor where it was
    coder = {"segments": None if mixed else segments, "coding": config.coding, "scales": config.scales}
    of_each = segments if config.clip_per == "tensor" and segments else None
    steps = [] if config.clip == "none" else [clip(config.clip, of_each)]
    if config.rotate:
        steps.append(rotate())
    if config.sparsify != "none":
        steps.append(SPARSIFIERS[config.sparsify]())
    last = CONFIGURABLE.get_or_raise(config.name).build(config, coder, None if mixed else shapes)
    return chain(*steps, last) if steps else last


def knobs_of(config: ml_collections.ConfigDict) -> Knobs:
    """Knobs of all clients, f32[clients] each."""
    mechanism = config.mechanism

    def all_clients(name):
        values = mechanism.per_client.get(name, ())
        return np.array(values or [mechanism[name]] * config.num_clients, np.float64)

    sigma = sigma_of_gamma(mechanism.target, all_clients("gamma"), mechanism.clip_norm)
    return Knobs(
        sigma=jnp.asarray(sigma, jnp.float32),
        clip=jnp.asarray(all_clients("clip_norm"), jnp.float32),
        step=jnp.asarray(all_clients("step"), jnp.float32),
        bits=jnp.asarray(all_clients("bits"), jnp.float32),
        levels=jnp.asarray(all_clients("levels"), jnp.float32),
        fraction=jnp.asarray(all_clients("fraction"), jnp.float32),
    )


def sigma_of_gamma(target: str, gamma, clip_norm):
    """Standard deviation of the error: gamma = C / sigma (Gaussian) or C / b (Laplace, b = sigma/sqrt 2)."""
    require_choice("target", target, TARGETS)
    known = on_host(gamma)
    if known is not None:
        positive = bool((np.isfinite(known) & (known > 0)).all())
        require(positive, "gamma", gamma, "positive and finite")
    return clip_norm / gamma * (math.sqrt(2) if target == "laplace" else 1.0)
