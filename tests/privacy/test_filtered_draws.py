"""Rules that read results where a part of the clients is drawn: the limit to a round, and what it is worth.

A lower bound is wrong with probability 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_filters import KINDS, adversary, run
from privacy import small_federation
from privacy.test_adaptive import squares

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import control, participation
from cepam_jax.federated.control import CONTROLS, filters
from cepam_jax.mechanisms import knobs_of
from cepam_jax.privacy import audit, filtered_draws, releases
from cepam_jax.run import budgets, guarantees
from cepam_jax.run.config import validate
from configs import digits

pytestmark = pytest.mark.compiled_fast

CLIENTS, ROUNDS, TRIALS, D, DELTA, MOST = 8, 8, 20_000, 8, 0.05, 2.0
COUNTS = np.full(CLIENTS, 10)
ORDERS = 1 + np.geomspace(1e-2, 60, 40)


def draws_of(chance=0.1, budget=20.0, most=3.0, multiplier=2.0, halving=1.0):
    return filtered_draws.FilteredDraws(chance, budget, most, multiplier, halving)


def test_no_course_of_events_has_a_larger_divergence():
    """Sums over rounds f^2 drawn at random within both limits, at every order; some come close."""
    random, draws = np.random.default_rng(0), draws_of()
    limit, largest = filtered_draws.filtered_divergence(draws, ORDERS), 0.0
    for _ in range(200):
        f2 = draws.most * random.beta(*random.choice([0.05, 1.0, 5.0], 2), size=40)
        f2 = f2[np.cumsum(f2) <= draws.budget]
        shifts = ORDERS[:, None] * (ORDERS[:, None] - 1) * f2 / draws.multiplier**2 / 2
        each = np.log1p(draws.chance * np.expm1(np.minimum(shifts, 600))) / (ORDERS[:, None] - 1)
        known = shifts.max(1) < 600 if f2.size else np.zeros(len(ORDERS), bool)
        assert np.all(each.sum(1)[known] <= limit[known] * (1 + 1e-12))
        largest = max(largest, (each.sum(1)[0] / limit[0]) if f2.size else 0)
    assert largest > 0.9


@pytest.mark.parametrize("halving", [1.0, 2.0])
def test_epsilon_is_no_less_than_that_of_planned_rounds(halving):
    """As many rounds at the limit as the budget has, exactly; and draws of everybody are no draws."""
    draws = draws_of(budget=30.0, halving=halving)
    planned = releases.ObservedDraws("gaussian", 0.1, ((10, 2.0 / np.sqrt(3)),), halving)
    all_in = releases.composed("gaussian", ((1, 2.0 / np.sqrt(30)),), halving)
    found = privacy.epsilon(draws, 1e-5)
    assert privacy.epsilon(planned, 1e-5) < found < 0.7 * privacy.epsilon(all_in, 1e-5)
    whole = privacy.epsilon(draws._replace(chance=1.0), 1e-5)
    assert privacy.epsilon(all_in, 1e-5) < whole < 1.25 * privacy.epsilon(all_in, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rounds", "most"), [(1, 1.0), (40, 1.0), (40, 2.5)])
def test_no_release_makes_a_round_exceed_its_limit(kind, rounds, most):
    rule = control.signal_to_noise(rounds, most=most)
    factors = run(rule, *adversary(kind, rounds), rounds)
    assert rule.most == pytest.approx(most) and np.sum(factors**2) <= rounds
    assert np.isfinite(factors).all() and np.all(factors**2 <= rule.most)
    assert control.for_updates(rule, 5).most == rule.most


def test_without_the_limit_a_round_exceeds_it():
    """The twin: what was saved goes to the last round."""
    late = filters.Spender(
        lambda state, purse: jnp.where(purse.number < 39, 0.0, jnp.inf), lambda: (), lambda s, q, r: s
    )
    free, held = (run(control.filtered(late, 40, most=m), np.ones(40), np.ones(40), 40) for m in (0.0, 2.0))
    assert free[-1] ** 2 > 10 and held[-1] ** 2 <= 2.0 and held[-1] ** 2 > 1.99


def peeking(config):
    """Saves until something looks like the canary, or half of the rounds are over, and then spends all."""

    def observe(state, square, released):
        return jnp.where((state >= ROUNDS / 2) | (released.aggregate[0] > 1.5), jnp.float32(99), state + 1)

    spender = filters.Spender(
        lambda state, purse: jnp.where(state >= ROUNDS / 2, jnp.float32(1e6), 1e-6),
        lambda: jnp.float32(0),
        observe,
    )
    return control.filtered(spender, config.rounds, least=1e-4, most=config.filter.most)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(CONTROLS, "peeking", peeking)
    config = digits.get_config("cepam_gaussian")
    fields = {"num_clients": CLIENTS, "clients_per_round": 1, "rounds": ROUNDS, "control": "peeking"}
    fields |= {"mechanism.gamma": 1.5, "filter.most": MOST, "privacy.delta": DELTA}
    config.update_from_flattened_dict(fields)
    validate(config)
    return config


def present(seeds):
    """bool[trials, rounds], whether the first client was drawn: the adversary sees the draws."""

    def one(seed, number):
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return participation.choose(participation.round_key(key, number), CLIENTS, 1)[0] == 0

    every = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    return np.asarray(jax.jit(every)(seeds, jnp.arange(ROUNDS)))


def test_the_printed_epsilon_holds_against_a_rule_that_peeks(config):
    released = small_federation._run(config, COUNTS, 0.0, D)
    scores = []
    for seeds, norm in ((jnp.arange(TRIALS), 100.0), (jnp.arange(TRIALS, 2 * TRIALS), 0.0)):
        models = released(seeds, jnp.zeros(D).at[0].set(norm))
        f2 = squares(config, models)
        moves = np.diff(np.asarray(models, np.float64)[:, :, 0], axis=1)
        scores.append(np.sum(present(seeds) * f2 * (moves - 0.5), axis=1))
        assert f2.max() <= MOST and f2.sum(1).max() <= ROUNDS
    proved = audit.epsilon_lower_bound(*scores, DELTA, small_federation.SIGNIFICANCE)
    printed = small_federation.printed(config, COUNTS)
    federation = guarantees.federation_of(config, COUNTS)
    without_draws = privacy.report(federation._replace(most=None), DELTA)[0]
    assert printed / 4 < proved <= printed < 0.9 * without_draws.epsilon[0]
    assert "on a limit to each round" in privacy.text(federation, DELTA)
    # The twin: who counts an eighth of the budget prints less than is proved.
    wrong = privacy.report(federation._replace(budget=ROUNDS / 8), DELTA)[0]
    assert wrong.epsilon[0] < proved


def test_a_ledger_beyond_the_limit_has_no_guarantee(config):
    facts = guarantees.facts_of(config, COUNTS)
    book = guarantees.plan(config, 2)
    assert budgets.refused(facts, book) == ""
    (entry,) = book.entries
    knobs = knobs_of(config)
    louder = entry._replace(knobs=knobs._replace(sigma=np.asarray(knobs.sigma) / np.float32(1.5)))
    assert "no round has more than 2 rounds' budget" in budgets.refused(
        facts, book._replace(entries=(louder,))
    )


def test_limits_that_mean_nothing_are_errors():
    with pytest.raises(ConfigError, match="most"):
        control.greedy(10, most=0.5)
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"filter.most": 2.0})
    with pytest.raises(ConfigError, match=r"config\.filter\.most"):
        validate(config)
