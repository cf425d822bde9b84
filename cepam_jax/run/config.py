"""All declared settings together: importing this module imports every part that declares any.

A fork's part joins by being imported before a configuration is made or checked.
"""

from cepam_jax import mechanisms, models, privacy, tasks
from cepam_jax import settings as _settings
from cepam_jax.data import partition, sources, text
from cepam_jax.federated import (
    adaptive_levels,
    aggregation,
    byzantine,
    central,
    control,
    downlink,
    lengths,
    links,
    local,
    participation,
    server,
)
from cepam_jax.run import devices, evaluation, needs, origins, writers
from cepam_jax.settings import FIELDS, defaults, flat, plain, table, validate

__all__ = ["FIELDS", "PARTS", "defaults", "flat", "plain", "table", "validate"]

# The modules whose settings are collected here.
PARTS = (
    *(
        tasks,
        models,
        sources,
        text,
        partition,
        participation,
        devices,
        evaluation,
        writers,
        lengths,
        origins,
        local,
        server,
        central,
        mechanisms,
    ),
    *(downlink, links, aggregation, byzantine, control, adaptive_levels, privacy, needs),
)

_settings.declare(
    "",
    {
        "rounds": _settings.integer(80, "Rounds of training."),
        "eval_every": _settings.integer(5, "Rounds between evaluations, which are also the checkpoints."),
        "wire": _settings.boolean(
            False, "Whether every message is packed into bytes and unpacked again; both figures are reported."
        ),
    },
)
_settings.declare(
    "privacy",
    {
        "delta": _settings.number(
            1e-5, "Of (epsilon, delta).", lambda v: 0 < v < 1, "a number above 0 and below 1", compiled=False
        ),
        "relation": _settings.choice(
            "add_remove", "Which federations are neighbours.", privacy.RELATIONS, compiled=False
        ),
        "adversary": _settings.choice(
            "released_model", "Whom the target is meant for.", privacy.ADVERSARIES, compiled=False
        ),
        "target_epsilon": _settings.not_negative(0.0, "0: no target.", compiled=False),
        "calibrate": _settings.boolean(
            True,
            "Whether gamma follows from the target; else the run stops when it is spent.",
            compiled=False,
        ),
    },
    "What is promised to whom.",
)
_settings.declare(
    "seeds",
    {
        "partition": _settings.integer(0, "Who holds which example.", low=0, high=2**32 - 1, compiled=False),
        "model": _settings.integer(0, "The model before training.", low=0, high=2**32 - 1, compiled=False),
        "training": _settings.integer(
            0, "Batches, participation, dropout, private noise.", low=0, high=2**32 - 1, compiled=False
        ),
        "shared": _settings.integer(0, "Dithers and layers.", low=0, high=2**32 - 1, compiled=False),
    },
    "Four seeds, independent of each other.",
)


@_settings.rule
def _rules(fields):
    calibrates = fields["privacy.target_epsilon"] > 0 and fields["privacy.calibrate"]
    yield (
        not calibrates or not fields["mechanism.per_client.gamma"],
        "mechanism.per_client.gamma",
        "() where config.privacy.target_epsilon is given with config.privacy.calibrate",
    )
