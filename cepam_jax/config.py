"""What a configuration may contain: checked before anything is loaded or compiled."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cepam_jax import mechanisms
from cepam_jax.data.augment import AUGMENTATIONS
from cepam_jax.data.partition import KINDS
from cepam_jax.data.sources import SOURCES
from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.clients import SAMPLINGS, UPDATES
from cepam_jax.federated.participation import SCHEDULES
from cepam_jax.mechanisms import Knobs, Mechanism
from cepam_jax.mechanisms.clipped import GRANULARITIES, ROUNDINGS, THRESHOLDS
from cepam_jax.mechanisms.code_length import CODINGS
from cepam_jax.mechanisms.code_length import SOURCES as SCALE_SOURCES
from cepam_jax.mechanisms.dither import RATES
from cepam_jax.mechanisms.latents import TARGETS
from cepam_jax.mechanisms.lattices import LATTICES
from cepam_jax.mechanisms.transforms import NORMS
from cepam_jax.models import MODELS
from cepam_jax.privacy.events import ADVERSARIES
from cepam_jax.privacy.federation import RELATIONS

SERVER_OPTIMIZERS = {
    "sgd": lambda rate, momentum: optax.sgd(rate, momentum or None),
    "adam": lambda rate, momentum: optax.adam(rate, b2=0.99, eps=1e-3),  # 2003.00295, section 4
    "yogi": lambda rate, momentum: optax.yogi(rate, b2=0.99, eps=1e-3),
    "adagrad": lambda rate, momentum: optax.adagrad(rate, eps=1e-3),
}

SPARSIFIERS = {"mask": mechanisms.random_mask, "top_k": mechanisms.top_k}

# Settings and tensor shapes -> mechanism, for each name that `config.mechanism.name` may have.
FACTORIES = {
    "identity": lambda c, coded, shapes: mechanisms.identity(),
    "lrsuq": lambda c, coded, shapes: mechanisms.lrsuq(c.target, c.lattice, **coded),
    "sdq": lambda c, coded, shapes: mechanisms.sdq(c.lattice, c.rate, **coded),
    "split": lambda c, coded, shapes: mechanisms.split(c.lattice, c.share, **coded),
    "noise": lambda c, coded, shapes: mechanisms.additive(c.target),
    "noise_sdq": lambda c, coded, shapes: mechanisms.noise_then_sdq(c.target, lattice=c.lattice, **coded),
    "noise_rounding": lambda c, coded, shapes: mechanisms.noise_then_rounding(c.target, **coded),
    "jopeq": lambda c, coded, shapes: mechanisms.jopeq(c.target, c.lattice, **coded),
    "clipped": lambda c, coded, shapes: mechanisms.clipped(c.rounding, c.threshold, c.granularity, shapes),
    "binary": lambda c, coded, shapes: mechanisms.binary(),
    "k_level": lambda c, coded, shapes: mechanisms.k_level(),
    "qsgd": lambda c, coded, shapes: mechanisms.qsgd(),
}

SCALED = ("lrsuq", "split", "sdq", "noise_sdq", "noise_rounding", "jopeq")  # mechanisms that code with scales


_SIGMAS = (1e-30, 1e30)  # squares of a few of them still fit into f32


def _integer(low, high=None):
    text = f"an integer of at least {low}" + (f" and at most {high}" if high is not None else "")
    return (
        text,
        lambda v: (
            isinstance(v, Integral) and not isinstance(v, bool) and v >= low and (high is None or v <= high)
        ),
    )


def _real(test, text):
    return text, lambda v: isinstance(v, Real) and not isinstance(v, bool) and test(v)


_LEAST, _MOST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
_RANGE = f"{_LEAST:.2g} and {_MOST:.2g}, which 32-bit floats hold"
_POSITIVE = _real(lambda v: _LEAST <= v <= _MOST, f"a positive number (between {_RANGE})")
_NOT_NEGATIVE = _real(
    lambda v: v == 0 or _LEAST <= v <= _MOST, f"a number of at least 0 (0, or between {_RANGE})"
)
_COUNT = _integer(1, 2**31 - 1)  # counted in 32-bit integers
_SEED = _integer(0, 2**32 - 1)
_BOOLEAN = ("True or False", lambda v: isinstance(v, bool))
_UNIT = _real(lambda v: _LEAST <= v <= 1, "a number above 0 and at most 1")
_BITS = _integer(1, 8)
_SHARE = _real(lambda v: 1e-6 <= v <= 1 - 1e-6, "a number between 1e-6 and 1 - 1e-6")
_STEP = _real(lambda v: 1e-30 <= v <= 1e30, "a number between 1e-30 and 1e30")
_BELOW_ONE_POSITIVE = _real(lambda v: 0 < v < 1, "a number above 0 and below 1")
_BELOW_ONE = _real(lambda v: 0 <= v < 1, "a number of at least 0 and below 1")


def _per_client(test):
    return (
        f"a tuple with {test[0]} for each client, or () to use one value for all",
        lambda v: isinstance(v, (tuple, list)) and all(test[1](item) for item in v),
    )


def _choice(names, *more):
    """One of the names in a registry (or of `more`), as it is when asked: forks add to it at any time."""

    def allowed():
        return "one of " + ", ".join(map(repr, sorted((*names, *more))))

    return allowed, lambda v: isinstance(v, str) and (v in names or v in more)


FIELDS = {
    "rounds": _COUNT,
    "eval_every": _COUNT,
    "num_clients": _COUNT,
    "clients_per_round": _integer(0, 2**31 - 1),
    "clients_per_chunk": _integer(0, 2**31 - 1),
    "devices": _integer(0, 2**31 - 1),
    "model": _choice(MODELS),
    "aggregator": _choice(AGGREGATORS),
    "wire": _BOOLEAN,
    "data.name": _choice(SOURCES),
    "data.dir": ("a path", lambda v: isinstance(v, str)),
    "partition.kind": _choice(KINDS),
    "partition.alpha": _POSITIVE,
    "partition.shards_per_client": _COUNT,
    "partition.exponent": _NOT_NEGATIVE,
    "local.update_kind": _choice(UPDATES),
    "local.steps": _COUNT,
    "local.batch_size": _COUNT,
    "local.learning_rate": _POSITIVE,
    "local.momentum": _BELOW_ONE,
    "local.sampling": _choice(SAMPLINGS),
    "local.augment": _choice(AUGMENTATIONS),
    "local.steps_by_size": _BOOLEAN,
    "local.proximal": _NOT_NEGATIVE,
    "local.normalize": _BOOLEAN,
    "local.example_clip": _NOT_NEGATIVE,
    "server.optimizer": _choice(SERVER_OPTIMIZERS),
    "server.learning_rate": _POSITIVE,
    "server.momentum": _BELOW_ONE,
    "mechanism.name": _choice(FACTORIES),
    "mechanism.target": _choice(TARGETS),
    "mechanism.lattice": _choice(LATTICES),
    "mechanism.share": _SHARE,
    "mechanism.gamma": _POSITIVE,
    "mechanism.step": _STEP,
    "mechanism.rate": _choice(RATES),
    "mechanism.bits": _BITS,
    "mechanism.levels": _integer(2, 2**20),
    "mechanism.rounding": _choice(ROUNDINGS),
    "mechanism.threshold": _choice(THRESHOLDS),
    "mechanism.granularity": _choice(GRANULARITIES),
    "mechanism.clip": _choice(NORMS, "none"),
    "mechanism.clip_norm": _POSITIVE,
    "mechanism.rotate": _BOOLEAN,
    "mechanism.sparsify": _choice(SPARSIFIERS, "none"),
    "mechanism.fraction": _UNIT,
    "mechanism.error_feedback": _BOOLEAN,
    "mechanism.quantize": _choice(("updates", "weights")),
    "mechanism.coding": _choice(CODINGS),
    "mechanism.scales": _choice(SCALE_SOURCES),
    "mechanism.per_client.gamma": _per_client(_POSITIVE),
    "mechanism.per_client.bits": _per_client(_BITS),
    "mechanism.per_client.fraction": _per_client(_UNIT),
    "schedule.knob": _choice(("none", "gamma", "step", "bits", "levels", "fraction")),
    "schedule.kind": _choice(SCHEDULES),
    "schedule.end": _POSITIVE,
    "privacy.delta": _BELOW_ONE_POSITIVE,
    "privacy.relation": _choice(RELATIONS),
    "privacy.adversary": _choice(ADVERSARIES),
    "privacy.target_epsilon": _NOT_NEGATIVE,
    "privacy.calibrate": _BOOLEAN,
    "seeds.partition": _SEED,
    "seeds.model": _SEED,
    "seeds.training": _SEED,
    "seeds.shared": _SEED,
}


def plain(config: Mapping | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a configuration (frozen or not, or a nested dictionary) with plain Python values.

    NumPy scalars become Python's, and arrays of one axis tuples: what JSON can hold, and what hashes.
    """
    if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
        raise ConfigError(f"config is {config!r}; it must be a ConfigDict, as configs/common.py makes it")
    found = ml_collections.ConfigDict()
    try:
        for name, value in config.items():
            require(isinstance(name, str) and "." not in name, "name of a field", name, "a word without dots")
            nested = isinstance(value, (Mapping, ml_collections.ConfigDict))
            found[name] = plain(value) if nested else _plain_value(value)
    except ml_collections.config_dict.RequiredValueError as error:
        raise ConfigError(f"config has a field without a value: {error}") from error
    return found


def _plain_value(value):
    if isinstance(value, np.generic):
        value = value.item()  # of a long double: itself
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain_value, value))
    if isinstance(value, Real) and not isinstance(value, (int, float)):  # fractions and the like
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted field names and values."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            fields[name] = value
    return fields


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field by itself and against the others.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    fields = flat(plain(config))
    for name in sorted(fields.keys() - FIELDS.keys()):
        if any(field.startswith(f"{name}.") for field in FIELDS):
            raise ConfigError(f"config.{name} is {fields[name]!r}; it must be a section with fields")
        raise ConfigError(f"config.{name} is not a field; there are: {', '.join(sorted(FIELDS))}")
    for name, (text, test) in FIELDS.items():
        allowed = text() if callable(text) else text
        if name not in fields:
            raise ConfigError(f"config.{name} is missing; it must be {allowed}")
        require(test(fields[name]), f"config.{name}", fields[name], allowed)
    for ok, name, allowed in _combinations(fields):
        require(ok, f"config.{name}", fields[name], allowed)


def _combinations(fields):
    """(whether it holds, field, what is allowed) for every rule about several fields."""
    clients = fields["num_clients"]
    yield (
        fields["clients_per_round"] <= clients,
        "clients_per_round",
        f"at most config.num_clients = {clients} (0: all)",
    )
    for knob in ("gamma", "bits", "fraction"):
        yield (
            len(fields[f"mechanism.per_client.{knob}"]) in (0, clients),
            f"mechanism.per_client.{knob}",
            f"empty or one number for each of config.num_clients = {clients} clients",
        )
    for name in ("local.steps_by_size", "local.normalize"):
        yield (
            not fields[name] or fields["local.update_kind"] == "weights",
            name,
            "False where config.local.update_kind is 'gradient'",
        )
    yield (
        not fields["mechanism.rotate"] or fields["mechanism.sparsify"] != "top_k",
        "mechanism.sparsify",
        "'mask' or 'none' where config.mechanism.rotate is True: rotated coordinates are all alike",
    )
    yield (
        not fields["mechanism.rotate"]
        or fields["mechanism.name"] != "clipped"
        or fields["mechanism.granularity"] == "model",
        "mechanism.granularity",
        "'model' where config.mechanism.rotate is True: a rotation mixes the tensors",
    )
    yield (
        fields["mechanism.quantize"] == "updates" or fields["mechanism.clip"] == "none",
        "mechanism.clip",
        "'none' where config.mechanism.quantize is 'weights': weights are not bounded like updates",
    )
    yield (
        fields["mechanism.scales"] == "own"
        or not (fields["mechanism.rotate"] or fields["mechanism.quantize"] == "weights"),
        "mechanism.scales",
        "'own' where config.mechanism.rotate is True or config.mechanism.quantize is 'weights': the last "
        "aggregated update says nothing about what is coded",
    )
    yield (
        fields["mechanism.scales"] == "own" or fields["mechanism.name"] in SCALED,
        "mechanism.scales",
        "'own' unless config.mechanism.name is one of " + ", ".join(map(repr, SCALED)),
    )
    yield (
        fields["mechanism.name"] != "split" or fields["mechanism.target"] == "gaussian",
        "mechanism.target",
        "'gaussian' where config.mechanism.name is 'split': a Laplace law has no Laplace part",
    )
    yield (
        fields["local.steps"] * fields["local.batch_size"] < 2**31,
        "local.steps",
        f"below 2**31 / config.local.batch_size = {2**31 // fields['local.batch_size']:,}",
    )
    examples = fields["local.example_clip"] > 0
    yield (
        not examples or (fields["local.update_kind"], fields["local.sampling"]) == ("gradient", "shuffle"),
        "local.example_clip",
        "0 unless config.local.update_kind is 'gradient' and config.local.sampling is 'shuffle': after "
        "several local steps one example may have moved every later gradient",
    )
    yield (
        not examples or fields["mechanism.clip"] == "none",
        "mechanism.clip",
        "'none' where config.local.example_clip is positive: the examples are clipped",
    )
    calibrates = fields["privacy.target_epsilon"] > 0 and fields["privacy.calibrate"]
    yield (
        not calibrates or not fields["mechanism.per_client.gamma"],
        "mechanism.per_client.gamma",
        "() where config.privacy.target_epsilon is given with config.privacy.calibrate",
    )
    yield from _noise_range(fields)
    yield from _schedule_range(fields)
    yield (
        fields["server.momentum"] == 0 or fields["server.optimizer"] == "sgd",
        "server.momentum",
        "0 unless config.server.optimizer is 'sgd'",
    )


def _knob_values(fields, knob: str) -> tuple:
    """What the clients' knobs are at the start."""
    return tuple(fields.get(f"mechanism.per_client.{knob}", ())) or (fields[f"mechanism.{knob}"],)


def _noise_range(fields):
    """sigma must be a number that f32 arithmetic can work with."""
    low, high = _SIGMAS
    for gamma in _knob_values(fields, "gamma"):
        sigma = sigma_of_gamma(fields["mechanism.target"], gamma, fields["mechanism.clip_norm"])
        yield (
            low <= sigma <= high,
            "mechanism.per_client.gamma" if fields["mechanism.per_client.gamma"] else "mechanism.gamma",
            f"such that the noise's deviation, config.mechanism.clip_norm / gamma = {sigma:.3g}, lies "
            f"between {low:g} and {high:g}",
        )


def _schedule_range(fields):
    """A schedule goes from 1 to `end` without leaving what lies between, so its end decides."""
    knob, end = fields["schedule.knob"], fields["schedule.end"]
    if knob == "none":
        return
    allowed, test = FIELDS[f"mechanism.{knob}"]
    for value in _knob_values(fields, knob):
        final = round(value * end) if knob in ("bits", "levels") else value * end
        inside = test(final)
        if knob == "gamma":
            sigma = sigma_of_gamma(fields["mechanism.target"], final, fields["mechanism.clip_norm"])
            inside = inside and _SIGMAS[0] <= sigma <= _SIGMAS[1]
        yield (
            inside,
            "schedule.end",
            f"such that {knob} = {value:g} times it stays within its range: {allowed} (it becomes {final:g})",
        )


def build_mechanism(settings, shapes: tuple[tuple[int, ...], ...]) -> Mechanism:
    """The mechanism of `config.mechanism`, for updates made of tensors with these shapes."""
    segments = tuple(math.prod(shape) for shape in shapes)
    mixed = settings.rotate  # a rotation leaves no tensor where it was
    coded = {"segments": None if mixed else segments, "coding": settings.coding, "scales": settings.scales}
    steps = [] if settings.clip == "none" else [mechanisms.clip(settings.clip)]
    if settings.rotate:
        steps.append(mechanisms.rotate())
    if settings.sparsify != "none":
        steps.append(SPARSIFIERS[settings.sparsify]())
    last = FACTORIES[settings.name](settings, coded, None if mixed else shapes)
    return mechanisms.chain(*steps, last) if steps else last


def knobs_of(config: ml_collections.ConfigDict) -> Knobs:
    """Knobs of all clients, f32[clients] each."""
    settings = config.mechanism

    def all_clients(name):
        values = settings.per_client.get(name, ())
        return np.array(values or [settings[name]] * config.num_clients, np.float64)

    sigma = sigma_of_gamma(settings.target, all_clients("gamma"), settings.clip_norm)
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
    return clip_norm / gamma * (math.sqrt(2) if target == "laplace" else 1.0)
