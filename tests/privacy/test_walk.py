"""Every printed epsilon is held against what an attack on a small federation proves.

The walk goes through valid configurations at random (a fixed seed); the attack runs the real round thousands
of times. A lower bound is wrong with probability 1e-5, so a false alarm of the whole file has less than 2e-4.
"""

import math

import numpy as np
from privacy import small_federation

from cepam_jax.errors import ConfigError
from cepam_jax.privacy import accounting
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits

CLIENTS, TRIALS = 4, 40_000
WALK = 12


def config_of(fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"num_clients": CLIENTS, "privacy.delta": 0.05, **fields})
    validate(config)
    return config


def draw(random):
    """A random configuration, as fields, and numbers of examples."""
    target = random.choice(["gaussian", "gaussian", "laplace"])
    names = ["lrsuq", "lrsuq", "noise", "noise_sdq", "jopeq"] + ["split"] * (target == "gaussian")
    one = {
        "rounds": int(random.choice([1, 2, 4])),
        "clients_per_round": int(random.choice([0, 2])),
        "aggregator": str(
            random.choice(["mean", "examples", "median", "inverse_error"], p=[0.4, 0.3, 0.2, 0.1])
        ),
        "privacy.relation": str(random.choice(["add_remove", "replace"])),
        "mechanism.name": str(random.choice(names)),
        "mechanism.target": str(target),
        "mechanism.clip": "l2" if target == "gaussian" else "l1",
        "mechanism.lattice": str(random.choice(["Z1", "Z2"])),
        "mechanism.gamma": float(random.choice([0.3, 0.6, 1.0])),
        "mechanism.step": 0.5,
        "mechanism.error_feedback": bool(random.choice([False, False, True])),
        "mechanism.sparsify": str(random.choice(["none", "none", "none", "mask"])),
        "mechanism.fraction": 0.5,
        "mechanism.rotate": bool(random.choice([False, False, True])),
        "schedule.knob": str(random.choice(["none", "gamma", "step", "fraction"])),
        "schedule.end": float(random.choice([0.5, 2.0])),
    }
    if random.random() < 0.6:  # loud or quiet others: the latter leave the first client its own noise
        others = float(random.choice([0.3, 1000.0, 1000.0]))
        one["mechanism.per_client.gamma"] = (one["mechanism.gamma"], *[others] * (CLIENTS - 1))
    return one, random.choice([10, 10, 40], CLIENTS)


def configurations():
    """The first `WALK` valid ones with a guarantee; those without are counted, too."""
    random, found, without = np.random.default_rng(13), [], 0
    while len(found) < WALK:
        fields, counts = draw(random)
        try:
            config = config_of(fields)
        except ConfigError:
            continue
        if math.isinf(small_federation.printed(config, counts)):
            without += 1
            continue
        found.append((config, counts, fields))
    assert without > 0
    return found


def test_no_attack_proves_more_than_is_printed():
    sharp = 0
    for config, counts, fields in configurations():
        printed = small_federation.printed(config, counts)
        proved = small_federation.lower_bound(config, counts, TRIALS)
        assert proved <= printed, (fields, counts)
        sharp += proved > printed / 3
    assert sharp >= WALK // 4  # the attacks are no empty threat


def test_the_attack_exposes_noise_that_comes_back():
    """With error feedback the first release counted the others' noise, which telescopes."""
    fields = {"num_clients": 16, "rounds": 8, "mechanism.error_feedback": True, "mechanism.gamma": 2.0}
    config, counts = config_of(fields), np.full(16, 10)
    proved = small_federation.lower_bound(config, counts, TRIALS, markers=0.0, coordinates=1)
    summed = guarantees.federation_of(config, counts)._replace(fresh=True)
    first_release = accounting.report(summed, config.privacy.delta)[0].epsilon[0]
    assert first_release < proved <= small_federation.printed(config, counts)


def test_the_attack_exposes_noise_that_is_too_small():
    config = config_of({"rounds": 2, "mechanism.gamma": 1.0})
    counts = np.full(CLIENTS, 10)
    printed = small_federation.printed(config, counts)
    weaker = config_of({"rounds": 2, "mechanism.gamma": 2.0})
    assert small_federation.lower_bound(config, counts, TRIALS) <= printed
    assert small_federation.lower_bound(weaker, counts, TRIALS) > printed
