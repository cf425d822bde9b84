"""What a configuration may contain: checked before anything is loaded or compiled."""

import math
from numbers import Integral, Real
from typing import Any

import ml_collections
import optax

from cepam_jax.data.augment import AUGMENTATIONS
from cepam_jax.data.partition import KINDS
from cepam_jax.data.sources import SOURCES
from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.clients import SAMPLINGS, UPDATES
from cepam_jax.mechanisms import Mechanism, chain, clip, identity, lrsuq
from cepam_jax.mechanisms.code_length import FAMILIES
from cepam_jax.mechanisms.latents import TARGETS
from cepam_jax.mechanisms.lattices import LATTICES
from cepam_jax.mechanisms.transforms import NORMS
from cepam_jax.models import MODELS

SERVER_OPTIMIZERS = {
    "sgd": lambda rate, momentum: optax.sgd(rate, momentum or None),
    "adam": lambda rate, momentum: optax.adam(rate, b2=0.99, eps=1e-3),  # 2003.00295, section 4
    "yogi": lambda rate, momentum: optax.yogi(rate, b2=0.99, eps=1e-3),
    "adagrad": lambda rate, momentum: optax.adagrad(rate, eps=1e-3),
}


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


_POSITIVE = _real(lambda v: 0 < v < math.inf, "a positive number")
_NOT_NEGATIVE = _real(lambda v: 0 <= v < math.inf, "a number of at least 0")
_SEED = _integer(0, 2**32 - 1)
_FRACTION = _real(lambda v: 0 <= v < 1, "a number of at least 0 and below 1")


def _choice(names):
    names = sorted(names)
    return "one of " + ", ".join(map(repr, names)), lambda v: isinstance(v, str) and v in names


FIELDS = {
    "rounds": _integer(1),
    "eval_every": _integer(1),
    "num_clients": _integer(1),
    "clients_per_round": _integer(0),
    "clients_per_chunk": _integer(0),
    "model": _choice(MODELS),
    "aggregator": _choice(AGGREGATORS),
    "data.name": _choice(SOURCES),
    "data.dir": ("a path", lambda v: isinstance(v, str)),
    "partition.kind": _choice(KINDS),
    "partition.alpha": _POSITIVE,
    "partition.shards_per_client": _integer(1),
    "partition.exponent": _NOT_NEGATIVE,
    "local.update": _choice(UPDATES),
    "local.steps": _integer(1),
    "local.batch_size": _integer(1),
    "local.learning_rate": _POSITIVE,
    "local.momentum": _FRACTION,
    "local.sampling": _choice(SAMPLINGS),
    "local.augment": _choice(AUGMENTATIONS),
    "server.optimizer": _choice(SERVER_OPTIMIZERS),
    "server.learning_rate": _POSITIVE,
    "server.momentum": _FRACTION,
    "mechanism.name": _choice(("identity", "lrsuq")),
    "mechanism.target": _choice(TARGETS),
    "mechanism.lattice": _choice(LATTICES),
    "mechanism.gamma": _POSITIVE,
    "mechanism.gamma_per_client": (
        "a tuple of positive numbers, or () to use gamma for every client",
        lambda v: isinstance(v, (tuple, list)) and all(_POSITIVE[1](g) for g in v),
    ),
    "mechanism.clip": _choice(("none", *NORMS)),
    "mechanism.clip_norm": _POSITIVE,
    "mechanism.coding": _choice(FAMILIES),
    "seeds.partition": _SEED,
    "seeds.model": _SEED,
    "seeds.training": _SEED,
    "seeds.shared": _SEED,
}


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
    fields = flat(config)
    for name in fields.keys() - FIELDS.keys():
        raise ConfigError(f"config.{name} is not a field; there are: {', '.join(sorted(FIELDS))}")
    for name, (allowed, test) in FIELDS.items():
        if name not in fields:
            raise ConfigError(f"config.{name} is missing; it must be {allowed}")
        require(test(fields[name]), f"config.{name}", fields[name], allowed)
    clients = fields["num_clients"]
    require(
        fields["clients_per_round"] <= clients,
        "config.clients_per_round",
        fields["clients_per_round"],
        f"at most config.num_clients = {clients} (0: all)",
    )
    gammas = fields["mechanism.gamma_per_client"]
    require(
        len(gammas) in (0, clients),
        "config.mechanism.gamma_per_client",
        tuple(gammas),
        f"empty or one number for each of config.num_clients = {clients} clients",
    )
    require(
        fields["mechanism.name"] == "identity"
        or fields["mechanism.target"] == "gaussian"
        or fields["mechanism.lattice"] == "Z1",
        "config.mechanism.lattice",
        fields["mechanism.lattice"],
        "'Z1' where config.mechanism.target is 'laplace'",
    )
    require(
        fields["server.momentum"] == 0 or fields["server.optimizer"] == "sgd",
        "config.server.momentum",
        fields["server.momentum"],
        "0 unless config.server.optimizer is 'sgd'",
    )


def build_mechanism(settings, segments: tuple[int, ...]) -> Mechanism:
    """The mechanism of `config.mechanism`, for updates made of these tensors."""
    if settings.name == "identity":
        mechanism = identity()
    else:
        mechanism = lrsuq(settings.target, settings.lattice, segments, settings.coding)
    return mechanism if settings.clip == "none" else chain(clip(settings.clip), mechanism)


def sigma_of_gamma(target: str, gamma, clip_norm):
    """Standard deviation of the error: gamma = C / sigma (Gaussian) or C / b (Laplace, b = sigma/sqrt 2)."""
    require_choice("target", target, TARGETS)
    return clip_norm / gamma * (math.sqrt(2) if target == "laplace" else 1.0)
