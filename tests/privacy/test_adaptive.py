"""A rule that peeks at what was released, attacked: the epsilon of its budget holds, its run's does not.

A lower bound is wrong with probability 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from privacy import small_federation

from cepam_jax import mechanisms, privacy
from cepam_jax.federated import control
from cepam_jax.federated.control import CONTROLS, Released, filters
from cepam_jax.privacy import audit
from cepam_jax.run import build, guarantees
from configs import digits

pytestmark = pytest.mark.compiled_fast

CLIENTS, ROUNDS, TRIALS, D, DELTA = 4, 4, 20_000, 8, 0.05
COUNTS = np.full(CLIENTS, 10)


def peeking(config) -> control.Control:
    """Next to nothing is spent after a first round that shows no canary, and all that there is after one."""

    def observe(state, square, released):
        seen = released.aggregate[0] > 0.4 / CLIENTS
        first = state == 0
        return jnp.where(first, jnp.where(seen, jnp.float32(1e6), 1e-6), state)

    def wanted(state, purse):
        return jnp.where(state == 0, np.float32(0.15), state)

    spender = filters.Spender(wanted, lambda: jnp.float32(0), observe)
    return control.filtered(spender, config.rounds, least=1e-4)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(CONTROLS, "peeking", peeking)
    config = digits.get_config("cepam_gaussian")
    fields = {"num_clients": CLIENTS, "rounds": ROUNDS, "control": "peeking", "mechanism.gamma": 2.0}
    config.update_from_flattened_dict({**fields, "privacy.delta": DELTA})
    return config


def squares(config, models):
    """f^2 of each round of each run, f64[trials, rounds], which the rule's state and releases decide."""
    rule, knobs = build.control_of(config), mechanisms.knobs_of(config)

    def run(moves):
        def step(state, move):
            applied = rule.knobs(state, knobs, jnp.int32(0)).sigma[0]
            return rule.observe(state, Released(jnp.int32(0), move, None, jnp.float32(0))), applied

        return jax.lax.scan(step, rule.initialize(knobs), moves)[1]

    applied = jax.jit(jax.vmap(run))(jnp.diff(models, axis=1))
    return np.square(float(knobs.sigma[0]) / np.asarray(applied, np.float64))


def attacked(config):
    """(proved epsilon, sum of f^2 of each run without the canary)."""
    run = small_federation._run(config, COUNTS, 0.0, D)
    canary = jnp.zeros(D).at[0].set(100.0)
    scores, spent = [], []
    for seeds, first in ((jnp.arange(TRIALS), canary), (jnp.arange(TRIALS, 2 * TRIALS), 0 * canary)):
        models = run(seeds, first)
        f2 = squares(config, models)
        moves = np.diff(np.asarray(models, np.float64)[:, :, 0], axis=1)
        # The logarithm of the likelihood ratio, up to a factor: each round with its own noise.
        scores.append(np.sum(f2 * (moves - 0.5 / CLIENTS), axis=1))
        spent.append(f2.sum(1))
    proved = audit.epsilon_lower_bound(*scores, DELTA, small_federation.SIGNIFICANCE)
    return proved, spent


def of_one_mechanism(config, total: float) -> float:
    """Epsilon of Gaussian rounds whose f^2 sum up to this."""
    federation = guarantees.federation_of(config, COUNTS)._replace(budget=total)
    return float(privacy.report(federation, DELTA)[0].epsilon[0])


def test_the_budget_covers_a_rule_that_peeks_and_the_sum_of_a_run_does_not(config):
    """The sum says what this run spent; what the rule may do in others is part of what privacy is lost."""
    proved, (with_canary, without) = attacked(config)
    printed = small_federation.printed(config, COUNTS)
    assert printed == pytest.approx(of_one_mechanism(config, ROUNDS), rel=1e-9)
    assert proved <= printed
    assert proved > printed / 3  # the attack is no empty threat
    assert max(with_canary.max(), without.max()) <= ROUNDS
    after_the_fact = of_one_mechanism(config, float(np.median(without)))
    assert after_the_fact < proved  # a wrong accountant's number, in most runs of people who are not there


def test_an_accountant_with_an_eighth_of_the_budget_is_caught(config):
    """The attack would find a filter that lets eight times as much through."""
    proved, _ = attacked(config)
    assert proved > of_one_mechanism(config, ROUNDS / 8)


def total_of_random_walk(seed: int) -> np.ndarray:
    """Log-likelihood ratios under the canary of a stopping analyst whose sum of squares is exactly 1."""
    random = np.random.default_rng(seed)
    left, total = np.ones(200_000), np.zeros(200_000)
    for number in range(6):
        noise = random.normal(size=len(left))
        # Spends by what was seen, in a way made to bend the law; the last round takes all that is left.
        share = np.where(total > 0.5 * (1 - left), 0.6, 0.05) if number < 5 else 1.0
        square = share * left
        total += np.sqrt(square) * noise + square / 2
        left -= square
    return total


def test_the_proof_in_numbers():
    """Whatever the analyst does, the ratio is that of one Gaussian mechanism: normal, of variance 1."""
    total = total_of_random_walk(0)
    from scipy import stats  # noqa: PLC0415

    assert stats.kstest(total, stats.norm(0.5, 1.0).cdf).pvalue > 1e-4
    # The twin: with a budget that is kept only in the mean it is another law.
    random = np.random.default_rng(1)
    first = random.normal(size=200_000)
    second = np.where(first > 0, np.sqrt(1.5), np.sqrt(0.5)) * random.normal(size=200_000)
    ratio = first + 0.5 + second + np.where(first > 0, 1.5, 0.5) / 2
    assert stats.kstest(ratio, stats.norm(1.0, np.sqrt(2)).cdf).pvalue < 1e-10
