"""Every printed epsilon is held against what an attack on a small federation proves.

The walk goes through valid configurations at random (a fixed seed); the attack runs the real round thousands
of times. A lower bound is wrong with probability 1e-5, so a false alarm of the whole file has less than 2e-4.
"""

import math

import numpy as np
import pytest
from privacy import small_federation

from cepam_jax.errors import ConfigError
from cepam_jax.federated import ATTACKS
from cepam_jax.federated.aggregation import RULES
from cepam_jax.federated.aggregation.robust import BEFORE, NOISE
from cepam_jax.privacy import accounting, report
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

CLIENTS, TRIALS = 4, 40_000
WALK = 12
# Attacks that say something finite, and that need no labels.
CRAFTED = [name for name in ATTACKS if name not in ("label_flip", "not_finite")]


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


CHECKS = ({}, {"byzantine.check": True}, {"byzantine.check": True, "byzantine.pairs": True})

# What came after the first release: {part: (fields that it draws, its law against the accountant's facts)}.
NEWER = {
    "robust": lambda random: {
        "aggregator": str(random.choice(list(RULES))),
        "byzantine.before": str(random.choice(BEFORE)),
        "byzantine.noise": str(random.choice(NOISE)),
    },
    "lies": lambda random: {
        "aggregator": str(random.choice(["mean", "examples", "median", "trimmed_mean", "centered_clipping"])),
        "byzantine.attack": str(random.choice(CRAFTED)),
        "byzantine.clients": 1,
        **CHECKS[random.choice(3)],
    },
    "check": lambda random: {
        "aggregator": str(random.choice(["mean", "examples", *RULES])),
        **CHECKS[1 + random.choice(2)],
        "byzantine.false_alarm": float(random.choice([1e-9, 0.3])),
    },
    "momentum": lambda random: {"local.worker_momentum": float(random.choice([0.5, 0.9]))},
    "precision": lambda random: {
        "aggregator": "precision",
        "precision.tau": float(random.choice([0.0, 0.3])),
    },
    "budget": lambda random: {
        "control": str(random.choice(["plateau", "signal_to_noise", "greedy"])),
        "filter.rounds": float(random.choice([0.0, 1.0])),
    },
}


def draw_newer(random, part):
    """A random configuration with a newer part, as fields, and numbers of examples."""
    fields, counts = draw(random)
    if part == "budget":
        fields |= {"schedule.knob": "none", "schedule.end": 1.0}
    fields |= NEWER[part](random)
    if fields["aggregator"] in RULES and fields.get("byzantine.clients"):
        fields["byzantine.tolerated"] = 1
    return fields, counts


def own_noise(config, counts):
    """The released model's epsilon and that of the decoded updates: equal where nobody counts on others."""
    found = report(guarantees.federation_of(config, counts), config.privacy.delta)
    return {row.adversary: float(row.epsilon[0]) for row in found}


def keeps_its_law(part, config, counts) -> bool:
    """What the accountant must have understood of the part, whatever else was drawn."""
    federation, found = guarantees.federation_of(config, counts), own_noise(config, counts)
    if part in ("robust", "lies", "check"):
        alone = found["released_model"] == found["decoded_updates"]
        return federation.aggregation == "function" and alone
    if part == "momentum":
        return not federation.hidden
    if part == "precision":
        return (
            federation.aggregation == "weighted_sum" and found["released_model"] <= found["decoded_updates"]
        )
    rounds = config.filter.rounds or config.rounds
    return federation.budget is not None and rounds <= federation.budget <= rounds * (1 + 1e-3)


def configurations_of(part, number):
    """The first valid ones with the part and a guarantee."""
    random, found = np.random.default_rng([17, *part.encode()]), []
    while len(found) < number:
        fields, counts = draw_newer(random, part)
        try:
            config = config_of(fields)
            small_federation.check(config)
        except ConfigError:
            continue
        if not math.isinf(small_federation.printed(config, counts)):
            found.append((config, counts, fields))
    return found


@pytest.mark.parametrize("part", NEWER)
def test_newer_parts_keep_their_law_in_every_combination(part):
    for config, counts, fields in configurations_of(part, 25):
        assert keeps_its_law(part, config, counts), (fields, counts)


@pytest.mark.parametrize("part", NEWER)
def test_no_attack_proves_more_than_is_printed_of_newer_parts(part):
    for config, counts, fields in configurations_of(part, 2):
        proved = small_federation.lower_bound(config, counts, TRIALS // 2)
        assert proved <= small_federation.printed(config, counts), (fields, counts)


def test_the_attack_exposes_an_accountant_that_takes_a_robust_rule_for_the_mean():
    """Rules that know the noise prefer quiet clients, and leave them without the noise of loud ones."""
    fields = {"rounds": 4, "mechanism.gamma": 1.0, "mechanism.per_client.gamma": (1.0, 0.05, 0.05, 0.05)}
    rule = {"aggregator": "multi_krum", "byzantine.noise": "known"}
    config, counts = config_of(fields | rule), np.full(CLIENTS, 10)
    proved = small_federation.lower_bound(config, counts, TRIALS // 2, markers=0.0)
    of_mean = small_federation.printed(config_of(fields), counts)
    assert of_mean < proved <= small_federation.printed(config, counts)


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
