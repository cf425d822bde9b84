"""Noise by the server, as printed, held against attacks on the real round; see `test_walk`.

A lower bound is wrong with probability 1e-5: a false alarm of the whole file has less than 2e-4.
"""

import math

import numpy as np
import pytest
from privacy import small_federation
from privacy.test_walk import CLIENTS, TRIALS, config_of

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms.registry import CONFIGURABLE, Entry

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

WALK = 10


def draw(random):
    """A random configuration whose server adds the noise, as fields, and numbers of examples."""
    target = random.choice(["gaussian", "gaussian", "laplace"])
    one = {
        "server.noise": True,
        "rounds": int(random.choice([1, 2, 4])),
        "clients_per_round": int(random.choice([0, 2])),
        "participation.sampling": str(random.choice(["fixed", "poisson"])),
        "aggregator": str(random.choice(["mean", "examples"])),
        "privacy.relation": str(random.choice(["add_remove", "replace"])),
        "mechanism.name": str(
            random.choice(["sdq", "clipped", "k_level", "qsgd", "identity", "lrsuq", "jopeq"])
        ),
        "mechanism.target": str(target),
        "mechanism.clip": "l2" if target == "gaussian" else "l1",
        "mechanism.gamma": float(random.choice([0.3, 0.6, 1.0])),
        "mechanism.step": float(random.choice([0.1, 1.0])),
        "mechanism.error_feedback": bool(random.choice([False, False, True])),
        "mechanism.sparsify": str(random.choice(["none", "none", "mask", "top_k"])),
        "mechanism.fraction": 0.5,
        "mechanism.rotate": bool(random.choice([False, False, True])),
        "mechanism.granularity": "model",
        "schedule.knob": str(random.choice(["none", "gamma"])),
        "schedule.end": float(random.choice([0.5, 2.0])),
    }
    if random.random() < 0.3:
        others = float(random.choice([0.3, 4.0]))
        one["mechanism.per_client.gamma"] = (one["mechanism.gamma"], *[others] * (CLIENTS - 1))
    return one, random.choice([10, 10, 40], CLIENTS)


# Plain ones, against which the attack is sharp.
PLAIN = tuple(
    {
        "server.noise": True,
        "rounds": 4,
        "mechanism.name": name,
        "mechanism.gamma": gamma,
        "mechanism.step": 0.1,
    }
    for name, gamma in (("identity", 1.0), ("sdq", 3.0))
)


def configurations():
    """Plain ones, and valid ones that are drawn, `WALK` in all: each has a guarantee."""
    random, found = np.random.default_rng(29), [(config_of(f), np.full(CLIENTS, 10), f) for f in PLAIN]
    while len(found) < WALK:
        fields, counts = draw(random)
        try:
            found.append((config_of(fields), counts, fields))
        except ConfigError:
            continue
    return found


def test_no_attack_proves_more_than_is_printed():
    sharp = 0
    for config, counts, fields in configurations():
        printed = small_federation.printed(config, counts)
        proved = small_federation.lower_bound(config, counts, TRIALS)
        assert math.isfinite(printed), fields
        assert proved <= printed, (fields, counts)
        sharp += proved > printed / 3
    assert sharp >= len(PLAIN)  # the attacks are no empty threat


def test_the_attack_exposes_a_quantizer_that_is_not_clipped_again(monkeypatch):
    """A canary of norm 1 that a grid of 1.9 rounds up: the second clip is what the epsilon rests on."""
    rounding = Entry(lambda settings, coder, shapes: mechanisms.rounding())
    monkeypatch.setitem(CONFIGURABLE, "sdq", rounding)
    fields = {"server.noise": True, "rounds": 4, "mechanism.name": "sdq", "mechanism.step": 1.9}
    config, counts = config_of({**fields, "mechanism.gamma": 1.0}), np.full(CLIENTS, 10)
    printed = small_federation.printed(config, counts)
    assert small_federation.lower_bound(config, counts, TRIALS, markers=0.0) <= printed
    monkeypatch.setattr(
        "cepam_jax.federated.central.bounded", lambda about, decoded, knobs, drawn_alone: decoded
    )
    assert small_federation.lower_bound(config, counts, TRIALS, markers=0.0) > printed
