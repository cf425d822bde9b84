"""Rounds that do not wait for all: what an attack proves that sees whose message was late.

The attack runs the real round; a lower bound is wrong with probability 1e-5, so a false alarm of the whole
file has less than 1e-4.
"""

import math

import numpy as np
import pytest
from privacy import small_federation

from cepam_jax.privacy import accounting, audit
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TRIALS = 20_000
COUNTS = np.full(2, 10)


def config_of(name, deadline, **fields):
    """Two clients, and a deadline in bits: both links carry one bit a second, and nothing else takes time."""
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(
        {
            "num_clients": 2,
            "rounds": 2,
            "privacy.delta": 0.05,
            "mechanism.name": name,
            "mechanism.gamma": 0.5,
            "mechanism.step": 0.5,
            "links.name": "arrays",
            "links.up": (1.0, 1e9),
            "links.down": (1e20, 1e20),
            "links.ends": "deadline",
            "links.deadline": deadline,
            **fields,
        }
    )
    validate(config)
    return config


def proved(config, seen) -> float:
    """Epsilon of the first client that a score of the models f64[trials, rounds + 1, d] proves."""
    run = small_federation._run(config, COUNTS, 0.0, small_federation.COORDINATES)
    canary = np.zeros(small_federation.COORDINATES, np.float32)
    canary[0] = config.mechanism.clip_norm
    scores = [
        seen(np.asarray(run(np.arange(TRIALS) + world * TRIALS, sent), np.float64))
        for world, sent in enumerate((canary, 0 * canary))
    ]
    return audit.epsilon_lower_bound(*scores, config.privacy.delta, small_federation.SIGNIFICANCE)


def moves(models):
    """Sum over rounds of the moves along the canary: what the accountant's own noise is about."""
    return np.diff(models, axis=1)[:, :, 0].sum(1)


def spread(models):
    """Small where the first client was late: the other's noise alone moved the model, by its whole weight."""
    return -np.square(np.diff(models, axis=1)).mean((1, 2))


def own_noise(config) -> float:
    """What the report would say if who is late told nothing: by the first client's own noise."""
    waits = config.copy_and_resolve_references()
    waits.links.ends, waits.links.deadline = "slowest", 0.0
    federation = guarantees.federation_of(waits, COUNTS)._replace(aggregation="function")
    return float(accounting.report(federation, config.privacy.delta)[0].epsilon[0])


def test_lengths_of_lrsuq_betray_what_its_noise_hides_so_nothing_is_guaranteed():
    """Scales are measured on the update: a message of zeros has 16 bits, one of the canary mostly more.

    The other client is quiet, so the model stands still where the first one was late.
    """
    config = config_of("lrsuq", 16.01, **{"mechanism.per_client.gamma": (0.5, 1000.0)})
    assert math.isinf(small_federation.printed(config, COUNTS))
    text = guarantees.report_text(config, COUNTS)
    assert "who is late follows from the lengths of messages" in text and "epsilon =" not in text
    attack = proved(config, lambda models: -np.square(np.diff(models, axis=1)).sum((1, 2)))
    assert attack > own_noise(config)


@pytest.mark.parametrize(("name", "median"), [("noise_sdq", 48.0), ("split", 23.5)])
def test_private_noise_covers_who_is_late(name, median):
    """About half of the messages are late."""
    config = config_of(name, median, **{"mechanism.per_client.gamma": (0.5, 1000.0)})
    printed = small_federation.printed(config, COUNTS)
    server = accounting.report(guarantees.federation_of(config, COUNTS), config.privacy.delta)[3]
    assert server.adversary == "server" and printed == server.epsilon[0] < math.inf
    scores = (moves, spread, lambda models: -spread(models))
    assert max(proved(config, score) for score in scores) <= printed


def test_waiting_for_all_is_accounted_for_as_before():
    config = config_of("split", 50.0)
    waits = config.copy_and_resolve_references()
    waits.links.ends, waits.links.deadline = "slowest", 0.0
    assert small_federation.printed(waits, COUNTS) < small_federation.printed(config, COUNTS)
    facts = guarantees.facts_of(config, COUNTS)
    assert not facts.hidden and facts.about.outsiders == facts.about.server
