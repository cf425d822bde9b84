"""Every pair of settings meets in some run: a feature that was only ever tried alone is not tested.

`covering` builds few configurations in which every pair of values of any two fields occurs, unless a rule
between fields forbids it. All are reported on, which is cheap; some are trained for two rounds as well (all
with CEPAM_ALL_PAIRS=1 in the environment).
"""

import itertools
import math
import os

import numpy as np
import pytest

from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from cepam_jax.run.training import train
from configs import digits

pytestmark = pytest.mark.compiled_fast

CLIENTS = 4
# What may meet. The first value is the plain one.
VALUES = {
    "aggregator": ["mean", "examples", "inverse_error", "median", "precision"],
    "clients_per_round": [0, 2],
    "participation.sampling": ["fixed", "poisson"],
    "server.noise": [False, True],
    "clients_per_chunk": [0, 3],
    "wire": [False, True],
    "partition.kind": ["iid", "quantity"],
    "local.update_kind": ["weights", "gradient"],
    "local.optimizer": ["sgd", "adam"],
    "local.sampling": ["replacement", "shuffle"],
    "local.augment": ["none", "crop_flip"],
    "local.steps_by_size": [False, True],
    "local.proximal": [0.0, 0.1],
    "local.normalize": [False, True],
    "local.example_clip": [0.0, 1.0],
    "server.optimizer": ["sgd", "adam"],
    "evaluation.clients": ["none", "train"],
    "mechanism.name": [
        "lrsuq",
        "identity",
        "split",
        "sdq",
        "noise",
        "noise_sdq",
        "noise_rounding",
        "jopeq",
        "clipped",
        "binary",
        "k_level",
        "qsgd",
    ],
    "mechanism.target": ["gaussian", "laplace"],
    "mechanism.lattice": ["Z1", "D4"],
    "mechanism.rate": ["step", "sigma", "bits"],
    "mechanism.clip": ["l2", "l1", "none"],
    "mechanism.rotate": [False, True],
    "mechanism.sparsify": ["none", "mask", "top_k"],
    "mechanism.error_feedback": [False, True],
    "mechanism.quantize": ["updates", "weights"],
    "mechanism.scales": ["own", "public"],
    "mechanism.granularity": ["tensor", "model", "channel"],
    "mechanism.per_client.gamma": [(), (50.0, 100.0, 200.0, 400.0)],
    "mechanism.per_client.bits": [(), (2, 3, 4, 5)],
    "mechanism.per_client.fraction": [(), (0.2, 0.3, 0.4, 0.5)],
    "schedule.knob": ["none", "gamma", "step", "bits", "levels", "fraction"],
    "schedule.kind": ["linear", "cosine"],
    "privacy.relation": ["add_remove", "replace"],
    "privacy.target_epsilon": [0.0, 1000.0],
    "privacy.calibrate": [True, False],
}


def config_of(fields):
    """A small valid configuration; ConfigError where a rule forbids it."""
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(
        {
            "num_clients": CLIENTS,
            "rounds": 2,
            "eval_every": 2,
            "model": "linear",
            "local.steps": 2,
            "local.learning_rate": 0.01,
            "schedule.end": 0.75,
            **fields,
        }
    )
    validate(config)
    return config


def allowed(fields) -> bool:
    try:
        config_of(fields)
    except ConfigError:
        return False
    return True


def covering(random):
    """Configurations as fields, and the pairs of (field, value) that no valid configuration has."""
    options = [(field, value) for field, values in VALUES.items() for value in values[1:]]
    pairs = {frozenset(pair) for pair in itertools.combinations(options, 2) if pair[0][0] != pair[1][0]}
    impossible = {pair for pair in pairs if not allowed(dict(pair)) and not _somehow(pair)}
    open_pairs, rows = pairs - impossible, []
    while open_pairs:
        first = min(open_pairs, key=lambda pair: sorted(map(str, pair)))
        fields = dict(first) if allowed(dict(first)) else _somehow(first)
        for place in random.permutation(len(options)):
            field, value = options[place]
            gain = any(frozenset([(field, value), item]) in open_pairs for item in fields.items())
            if field not in fields and gain and allowed(fields | {field: value}):
                fields[field] = value
        rows.append(fields)
        open_pairs -= {frozenset(pair) for pair in itertools.combinations(fields.items(), 2)}
    return rows, impossible


# What a value needs of other fields.
COMPANIONS = (
    {"local.update_kind": "gradient", "local.sampling": "shuffle", "mechanism.clip": "none"},
    {"mechanism.clip": "none"},
    {"local.update_kind": "gradient", "local.sampling": "shuffle", "mechanism.clip": "none"},
    {"mechanism.granularity": "model"},
    {"mechanism.name": "noise", "mechanism.granularity": "model"},
    {"mechanism.name": "identity"},
    {"privacy.calibrate": False},
    {"clients_per_round": 2},
    {"clients_per_round": 2, "mechanism.clip": "none"},
    {"clients_per_round": 2, "mechanism.granularity": "model"},
    {"clients_per_round": 2, "mechanism.name": "identity"},
    {"clients_per_round": 2, "privacy.calibrate": False},
    {
        "clients_per_round": 2,
        "local.update_kind": "gradient",
        "local.sampling": "shuffle",
        "mechanism.clip": "none",
    },
    {"mechanism.name": "identity", "mechanism.granularity": "model"},
    {"mechanism.name": "sdq"},
    {"mechanism.name": "identity", "mechanism.clip": "l1"},
    {"clients_per_round": 2, "participation.sampling": "poisson"},
)


def _somehow(pair):
    """The pair with companions that make it valid, or None."""
    for companions in COMPANIONS:
        fields = companions | dict(pair)
        if allowed(fields):
            return fields
    return None


ROWS, IMPOSSIBLE = covering(np.random.default_rng(0))

# Each pair that is left out is forbidden by a rule between fields, which says why.
FORBIDDEN = 31
TRAINED = ROWS if os.environ.get("CEPAM_ALL_PAIRS") else ROWS[:: max(1, len(ROWS) // 8)]
COUNTS = np.array([30, 20, 40, 50])


def test_the_walk_covers_the_pairs():
    assert len(IMPOSSIBLE) == FORBIDDEN
    met = set().union(*({frozenset(p) for p in itertools.combinations(row.items(), 2)} for row in ROWS))
    options = [(field, value) for field, values in VALUES.items() for value in values[1:]]
    for pair in itertools.combinations(options, 2):
        assert pair[0][0] == pair[1][0] or frozenset(pair) in met | IMPOSSIBLE


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_pair_has_a_report(number):
    config = config_of(ROWS[number])
    text = guarantees.report_text(config, COUNTS)
    found = guarantees.epsilons(config, COUNTS, guarantees.plan(config, config.rounds))
    assert "nan" not in text and all(e is None or 0 <= e < math.inf for e in found.values())
    if found["colluding_clients"] is not None:
        assert found["released_model"] <= found["colluding_clients"] * (1 + 1e-9)


@pytest.mark.parametrize("number", range(len(TRAINED)))
def test_pairs_train(number, tmp_path):
    """Two rounds, or one of the messages that are meant for people."""
    fields = TRAINED[number]
    try:
        lines = train(config_of(fields), tmp_path, progress=False)
    except ConfigError as error:
        assert fields.get("privacy.target_epsilon"), error  # no gamma, or not one round, meets the target
        return
    except NonFiniteUpdateError as error:
        # Quantized weights and gradients without a clip may diverge at these noises.
        assert fields.get("mechanism.clip") == "none" or fields.get("mechanism.target"), error
        return
    assert 1 <= lines[-1]["round"] <= 2 and lines[-1]["bits_per_coordinate"] > 0
    assert set(lines[-1]["epsilon"]) == {"released_model", "colluding_clients", "decoded_updates", "server"}
