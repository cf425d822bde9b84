"""Secure sums in a configuration: their settings, and what does not go with them and why."""

from cepam_jax import settings
from cepam_jax.mechanisms.registry import Entry, register
from cepam_jax.mechanisms.secure_sum import LEAST_CELLS, MOST_CELLS, secure_sum

_ARRAY = {"compiled": False}

settings.declare(
    "mechanism.secure",
    {
        "survivors": settings.integer(
            0,
            "Messages whose sum is opened, at least; noise is counted as theirs. 0: all participants'.",
            low=0,
        ),
        "colluders": settings.integer(0, "Participants who may tell the server their noise.", low=0),
        "cells": settings.number(
            1.5,
            "Deviation of one client's noise over the common step of the integers.",
            lambda v: LEAST_CELLS <= v <= MOST_CELLS,
            f"a number from {LEAST_CELLS:g} to {MOST_CELLS:g}",
        ),
        "wrap": settings.number(
            1e-6,
            "Bound on the probability that a coordinate of a sum wraps around; the modulus follows.",
            lambda v: 1e-12 <= v <= 0.1,
            "a probability from 1e-12 to 0.1",
        ),
        "lost": settings.number(
            0.0,
            "Chance with which a participant's message does not arrive.",
            lambda v: 0 <= v < 1,
            "a probability of at least 0 and below 1",
        ),
    },
    "Secure sums: the server sees the sum of all integers alone.",
)

_NAMES = ("secure_sum",)
_SUM = "where config.mechanism.name is {!r}: the server sees nothing but one sum of all updates"

# Field -> the one value that goes with a secure sum, and why no other does.
_ONLY: dict[str, tuple] = {
    "aggregator": (
        "mean",
        "robust rules need single updates, weights by error or precision need what single updates are worth, "
        "and one common step means equal weights",
    ),
    "links.ends": ("slowest", "who is late follows from messages and times, not from chance alone"),
    "byzantine.check": (False, "the norm of a single update cannot be checked"),
    "mechanism.clip": ("l2", "the Gaussian noise of all hides what an L2 clip bounds"),
    "mechanism.error_feedback": (False, "what a message lost cannot be told from the sum"),
    "mechanism.per_client.gamma": ((), "all share one step, and so one noise"),
    "mechanism.quantize": ("updates", "weights are not bounded like updates"),
    "mechanism.rotate": (False, "it has a rotation of its own that all participants share"),
    "mechanism.sparsify": ("none", "all coordinates of all clients are added up"),
    "mechanism.target": ("gaussian", "sums of Laplace noises are not Laplace"),
    **{
        f"needs.{name}": (none, "all share one noise, whatever single clients need")
        for name, none in (("epsilon", ()), ("bits", ()), ("rate", ()), ("clients", ""))
    },
}


@settings.rule
def _rules(fields):
    name, colluders = fields["mechanism.name"], fields["mechanism.secure.colluders"]
    yield (
        fields["privacy.adversary"] != "server_and_colluders" or (name in _NAMES and colluders > 0),
        "privacy.adversary",
        "another one unless config.mechanism.secure.colluders is given with config.mechanism.name "
        "'secure_sum': nobody else is said to collude",
    )
    if name not in _NAMES:
        yield from settings.unread(fields, "mechanism.secure", "unless config.mechanism.name is 'secure_sum'")
        return
    yield (
        fields["control"] != "quantile_clip",
        "control",
        "another than 'quantile_clip', which needs a vote of each client, " + _SUM.format(name),
    )
    for field, (only, why) in _ONLY.items():
        value = fields.get(field, only)
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        yield value == only, field, f"{only!r} {_SUM.format(name)}, and {why}"
    participants = fields["clients_per_round"] or fields["num_clients"]
    survivors = fields["mechanism.secure.survivors"]
    yield (
        survivors <= participants,
        "mechanism.secure.survivors",
        f"at most the {participants} participants of a round (0: all of them)",
    )
    yield (
        colluders < (survivors or participants),
        "mechanism.secure.colluders",
        f"fewer than the {survivors or participants} messages whose sum is opened",
    )


register(
    "secure_sum",
    Entry(
        lambda c, coder, shapes: secure_sum(**c.secure),
        range_by=lambda settings: "gamma",
    ),
    # No instances: the laws of `base` are those of single messages. Its own are in tests of sums.
)
