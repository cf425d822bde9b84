"""What a federation weighed by precision claims: each client's own epsilon, and what holds for every tau."""

import math

import dp_accounting
import numpy as np
import pytest
from privacy import small_federation
from scipy import optimize

from cepam_jax.federated.aggregation import precise, precision
from cepam_jax.privacy import Federation, Phase, report
from cepam_jax.privacy.events import released_model
from cepam_jax.privacy.noise_sums import multipliers
from cepam_jax.run import guarantees, phases
from cepam_jax.run.config import validate
from cepam_jax.run.ledger import read
from cepam_jax.run.training import train
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

GAMMAS = (0.3, 1.0, 0.5, 2.0)
SIGMAS = 1 / np.array(GAMMAS)
COUNTS = np.full(4, 10)
DELTA = 0.05


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(
        {
            "aggregator": "precision",
            "num_clients": 4,
            "rounds": 3,
            "privacy.delta": DELTA,
            "mechanism.per_client.gamma": GAMMAS,
            **fields,
        }
    )
    validate(config)
    return config


def printed(config, adversary="released_model", ledger=None):
    federation = guarantees.federation_of(config, np.full(config.num_clients, 10), ledger=ledger)
    found = {row.adversary: row for row in report(federation, config.privacy.delta)}
    return np.asarray(found[adversary].epsilon)


def multiplier(k, tau, sigmas, others):
    """z_k of section "Privacy" of `aggregation.precise`, with these participants beside k."""
    weights = 1 / (tau**2 + sigmas**2)
    used = [k, *others]
    return math.sqrt(np.sum((weights[used] * sigmas[used]) ** 2)) / weights[k]


@pytest.mark.parametrize("tau", [0.1, 1.0, 30.0])
def test_each_client_has_the_epsilon_of_its_own_weight(tau):
    found = printed(config_of(**{"precision.tau": tau}))
    for k in range(4):
        others = [j for j in range(4) if j != k]
        z = multiplier(k, tau, SIGMAS, others) / math.sqrt(3)
        assert found[k] == pytest.approx(dp_accounting.get_epsilon_gaussian(z, DELTA), rel=1e-4)
    own = printed(config_of(**{"precision.tau": tau}), "decoded_updates")
    assert np.all(found < own)


def test_drawn_clients_count_on_the_quietest_company():
    """Of all draws with client k: the accountant's noise is the least over them, for a known spread."""
    config = config_of(**{"precision.tau": 0.7, "clients_per_round": 2})
    phase = guarantees.federation_of(config, COUNTS).phases[0]
    federation = guarantees.federation_of(config, COUNTS)
    for k, found in enumerate(multipliers(federation, phase)):
        draws = [multiplier(k, 0.7, SIGMAS, [j]) for j in range(4) if j != k]
        assert found == pytest.approx(min(draws), rel=1e-5)


@pytest.mark.parametrize("per_round", [0, 2])
def test_an_estimated_spread_is_bounded_for_every_tau(per_round):
    """No tau and no draw leaves less noise; with noises of two sizes some tau leaves just as much."""
    for gammas in (GAMMAS, (1.0, 1.0, 5.0, 5.0)):
        config = config_of(**{"clients_per_round": per_round, "mechanism.per_client.gamma": gammas})
        federation, sigmas = guarantees.federation_of(config, COUNTS), 1 / np.array(gammas)
        found = multipliers(federation, federation.phases[0])
        for k in range(4):
            others = [j for j in range(4) if j != k]
            draws = [[j] for j in others] if per_round else [others]
            least = min(
                multiplier(k, tau, sigmas, draw) for draw in draws for tau in [1e-5, *np.geomspace(1e-3, 1e5)]
            )
            assert found[k] <= least * (1 + 1e-6)
            if gammas != GAMMAS:
                assert found[k] == pytest.approx(least, rel=1e-4)


def test_two_clients_exactly():
    """One round, tau known: the sum is Gaussian, and its delta at the printed epsilon is the one set."""
    gammas, tau = (0.5, 1.5), 0.8
    config = config_of(
        **{"num_clients": 2, "rounds": 1, "mechanism.per_client.gamma": gammas, "precision.tau": tau}
    )
    found, sigmas = printed(config), 1 / np.array(gammas)
    share = 1 / (tau**2 + sigmas**2)
    share /= share.sum()
    deviation = math.sqrt(np.sum((share * sigmas) ** 2))
    for k in range(2):
        grid = np.linspace(-12 * deviation, 12 * deviation, 400_001)

        def delta(epsilon, k=k, grid=grid):
            """The integral of (p - e^epsilon q)+ with means w_k C_k and 0."""
            p = np.exp(-(((grid - share[k]) / deviation) ** 2) / 2)
            q = np.exp(-((grid / deviation) ** 2) / 2)
            scale = (grid[1] - grid[0]) / (deviation * math.sqrt(2 * math.pi))
            return np.sum(np.maximum(p - math.exp(epsilon) * q, 0)) * scale

        exact = optimize.brentq(lambda e: delta(e) - DELTA, 0, 20)
        assert found[k] == pytest.approx(exact, rel=1e-3)
        wrong = optimize.brentq(lambda e: delta(e) - 1.05 * DELTA, 0, 20)
        assert found[k] != pytest.approx(wrong, rel=1e-3)


@pytest.mark.parametrize("fields", [{"precision.tau": 0.5}, {}, {"clients_per_round": 2}])
def test_no_attack_on_the_real_round_proves_more(fields):
    """Wrong with probability 1e-5 each; the same attack refutes the epsilon of equal weights.

    The first client has the least noise here, and so the largest weight.
    """
    gammas = (2.0, 0.3, 0.3, 0.3)
    config = config_of(**{"mechanism.per_client.gamma": gammas, "rounds": 2, **fields})
    proved = small_federation.lower_bound(config, COUNTS, 20_000)
    limit = small_federation.printed(config, COUNTS)
    assert limit / (5 if "clients_per_round" not in fields else 10) < proved <= limit
    equal = config_of(**{"mechanism.per_client.gamma": gammas, "rounds": 2, "aggregator": "mean"})
    if "clients_per_round" not in fields:
        assert small_federation.printed(equal, COUNTS) < proved


def test_a_client_without_noise_has_no_guarantee_and_a_vanished_weight_has_one():
    def of(sigma, **kinds):
        sigma = np.array(sigma)
        return released_model(
            Federation(
                "gaussian", None, "l2", np.ones(2), (Phase(1, sigma, 0 * sigma, **kinds),), np.ones(2),
                aggregation="weighted_sum", summable=True, fresh=True,
            )
        )  # fmt: skip

    quiet, loud = of([0.0, 1.0], least_ratios=precise.least_ratios)
    assert quiet.reason == "the noise is zero" and not loud.reason
    first, vanished = of([1e-3, 1e30], weights=np.array([1.0, 0.0]))
    assert not first.reason and not vanished.reason


def test_a_run_is_resumed_to_the_bit_and_accounted_by_its_ledger(tmp_path):
    fields = {"model": "linear", "eval_every": 2, "mechanism.per_client.gamma": (5.0, 500.0, 500.0, 500.0)}
    whole = config_of(**fields, rounds=4)
    train(whole, tmp_path / "whole", progress=False)
    train(config_of(**fields, rounds=2), tmp_path / "parts", progress=False)
    train(whole, tmp_path / "parts", progress=False)
    texts = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("whole", "parts")]
    pick = [line.split('"loss"')[1].split(",")[0] for line in lines]
    assert pick[0] == pick[1]
    ledger = read(texts[0])
    applied = [np.asarray(entry.weights) for entry in ledger.entries]
    assert ledger.rounds == 4 and len(applied) == 4  # the estimate moved the weights in every round
    sigma = 1 / np.array(fields["mechanism.per_client.gamma"])
    for weights in applied:
        least = precise.least_ratios(sigma, sigma[0])
        assert np.all(weights / weights[0] >= least * (1 - 1e-5))
    np.testing.assert_array_equal(printed(whole, ledger=ledger), printed(whole))
    assert "whatever weights earlier results led to" in (tmp_path / "whole" / "privacy.txt").read_text()


def test_the_accountant_counts_applied_weights(tmp_path):
    """Weights of a known spread: those of the ledger are the planned ones, and others give other epsilons."""
    config = config_of(**{"model": "linear", "eval_every": 3, "precision.tau": 0.5})
    train(config, tmp_path, progress=False)
    ledger = read((tmp_path / "ledger.jsonl").read_text())
    np.testing.assert_allclose(printed(config, ledger=ledger), printed(config), rtol=1e-6)
    facts = guarantees.facts_of(config, COUNTS)
    changed = ledger._replace(entries=(ledger.entries[0]._replace(weights=np.float32(1)),))
    assert phases.of_ledger(facts, changed)[0].weights.tolist() == [1, 1, 1, 1]
    equal = printed(config_of(aggregator="mean"))
    np.testing.assert_allclose(printed(config, ledger=changed), equal, rtol=1e-6)
    assert np.all(printed(config) != equal)


def test_one_rule_for_all_noise_of_a_client():
    """Of `split` the whole noise counts, not the private share."""
    split = config_of(**{"mechanism.name": "split", "mechanism.share": 0.3, "precision.tau": 0.5})
    plain = config_of(**{"precision.tau": 0.5})
    found = [guarantees.federation_of(c, COUNTS).phases[0].weights for c in (split, plain)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert precision(0.5).initialize is None
