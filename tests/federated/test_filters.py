"""Rules that read what was released: they are pure, read nothing else, and cannot exceed their budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SIZE, federation, make, start

from cepam_jax.errors import ConfigError
from cepam_jax.federated import AGGREGATORS, control
from cepam_jax.federated.control import Control, Released, filters, rules
from cepam_jax.mechanisms import Knobs
from cepam_jax.privacy.calibrate import expected_bits
from cepam_jax.theory import rate

pytestmark = pytest.mark.compiled_fast

RULES = {"plateau": control.plateau, "signal_to_noise": control.signal_to_noise, "greedy": control.greedy}
START = Knobs(sigma=jnp.float32([0.5, 0.7]), clip=jnp.float32([1.0, 2.0]))
D = 6


def released(number, aggregate, noise):
    vector = jnp.broadcast_to(jnp.float32(aggregate), (D,))
    return Released(jnp.int32(number + 1), vector, {"w": vector}, jnp.float32(noise))


def run(rule: Control, aggregates, noises, rounds):
    """f of each round f64[rounds], with what is released given beforehand."""

    def step(state, seen):
        number, aggregate, noise = seen
        knobs = rule.knobs(state, START, number)
        state = rule.observe(state, released(number, aggregate, noise))
        return state, knobs.sigma

    numbers = jnp.arange(rounds)
    seen = (numbers, jnp.float32(aggregates)[:rounds], jnp.float32(noises)[:rounds])
    _, sigma = jax.lax.scan(step, rule.initialize(START), seen)
    each = np.asarray(START.sigma, np.float64) / np.asarray(sigma, np.float64)
    np.testing.assert_allclose(each, each[:, :1] + 0 * each, rtol=1e-6)  # one factor for all clients
    return each.max(1)


def adversary(kind: str, rounds: int):
    """What would have a rule spend too much, if anything could."""
    random = np.random.default_rng(rounds)
    return {
        "zero": (np.zeros(rounds), np.zeros(rounds)),
        "tiny": (np.full(rounds, 1e-30), np.full(rounds, 1e-38)),
        "huge": (np.full(rounds, 1e18), np.full(rounds, 1e30)),
        "infinite": (np.full(rounds, np.inf), np.full(rounds, np.inf)),
        "NaN": (np.full(rounds, np.nan), np.full(rounds, np.nan)),
        "some NaN": (np.where(np.arange(rounds) % 3, 1.0, np.nan), np.ones(rounds)),
        "falling": (0.5 ** np.arange(rounds), np.full(rounds, 1e-6)),
        "rising": (1.5 ** np.arange(rounds), np.full(rounds, 1e-6)),
        "wild": (np.exp(random.normal(0, 20, rounds)), np.exp(random.normal(0, 20, rounds))),
        "negative noise": (np.ones(rounds), -np.ones(rounds)),
    }[kind]


KINDS = ["zero", "tiny", "huge", "infinite", "NaN", "some NaN", "falling", "rising", "wild", "negative noise"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rounds", "budget"), [(1, 1.0), (7, 7.0), (40, 3.5), (300, 1e5)])
def test_no_release_makes_a_rule_exceed_its_budget(name, kind, rounds, budget):
    """In 64 bits, of the sigmas as the rounds applied them: no tolerance."""
    factors = run(RULES[name](rounds, budget=budget), *adversary(kind, rounds), rounds)
    assert np.isfinite(factors).all() and (factors > 0).all()
    assert np.sum(factors**2) <= budget
    # The noise of the last round is never more than `least` allows beyond that of an even spread.
    assert factors.min() ** 2 >= 0.01 * budget / rounds * 0.999


@pytest.mark.parametrize("wanted", [np.inf, 1e30, np.nan, -1.0, 0.0])
def test_a_spender_may_ask_for_anything(wanted):
    spender = filters.Spender(
        lambda state, purse: jnp.float32(wanted), lambda: (), lambda state, square, released: state
    )
    factors = run(control.filtered(spender, 50), np.ones(50), np.ones(50), 50)
    assert np.sum(factors**2) <= 50
    if wanted > 0:  # greed is held to an even spread
        np.testing.assert_allclose(factors, 1, rtol=1e-5)
    else:  # all that the least leaves goes to the end
        assert factors[0] ** 2 == pytest.approx(0.01, rel=1e-4) and (np.diff(factors) > 0).all()


def test_no_round_goes_without_where_shares_are_less_than_a_unit():
    """A million rounds, and a spender that wants nothing: a unit is left for each."""
    nothing = filters.Spender(lambda state, purse: jnp.float32(0), lambda: (), lambda s, square, r: s)
    rule = control.filtered(nothing, 10**6, least=1e-8)
    state = rule.initialize(START)
    assert np.isfinite(rule.knobs(state, START, 0).sigma).all()
    assert int(state.left - rule.observe(state, released(0, 1, 1)).left) == 1


def test_a_filter_that_did_not_hold_would_be_seen():
    """The twin of the property: the same rules without the even share exceed it at once."""
    free = run(control.signal_to_noise(40), *adversary("falling", 40), 40)
    held = 0.25 / np.maximum(0.25 ** np.arange(39), 1e-7)
    assert np.sum(held) > 40 >= np.sum(free**2)


@pytest.mark.parametrize("name", RULES)
def test_a_round_beyond_the_last_has_no_noise_that_is_allowed(name):
    factors = run(RULES[name](3), np.ones(5), np.ones(5), 5)
    assert np.isfinite(factors[:3]).all() and np.isnan(factors[3:]).all()


@pytest.mark.parametrize("name", RULES)
def test_rules_are_functions_of_state_and_release_alone(name):
    """Jitted, or not, or twice: the same bits; and no release before the first round."""
    rule = RULES[name](10)
    state = rule.initialize(START)
    seen = released(0, 0.3, 0.01)
    once, again = rule.observe(state, seen), jax.jit(rule.observe)(state, seen)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(once)
    shapes = [[(a.shape, a.dtype) for a in jax.tree.leaves(s)] for s in (state, once)]
    assert shapes[0] == shapes[1]
    assert rule.adaptive and rule.budget == 10 and rule.advance is None


def test_gamma_grows_at_a_plateau_and_not_before():
    falling = run(control.plateau(40), 0.7 ** np.arange(40), np.full(40, 1e-12), 40)
    np.testing.assert_allclose(
        falling[:39], 0.5, rtol=1e-5
    )  # the last is given its least part of what is left
    stalled = run(control.plateau(40), np.ones(40), np.full(40, 1e-12), 40)
    np.testing.assert_allclose(stalled[:5], 0.5, rtol=1e-5)
    np.testing.assert_allclose(stalled[6:10], 1.0, rtol=1e-5)
    assert stalled[-1] > 1  # what was saved at first is spent at the end


def test_the_ratio_of_signal_to_noise_is_kept():
    """Power falls by 1 / 16: f grows fourfold, late by the running mean."""
    amplitude = np.where(np.arange(200) < 20, 1.0, 0.25)
    factors = run(control.signal_to_noise(200, first=0.2), amplitude, np.full(200, 1e-9), 200)
    np.testing.assert_allclose(factors[:20], 0.2, rtol=1e-4)
    assert factors[150] == pytest.approx(0.8, rel=1e-3)
    given = run(control.signal_to_noise(200, ratio=7.0), np.ones(200), 0.2 / np.ones(200), 200)
    # Noise .2 at f = .5 is .05 at f = 1 (of power 6 - .2): f^2 = 7 * .05 / 5.8 at first.
    assert given[1] ** 2 == pytest.approx(7 * 0.25 * 0.2 / 5.8, rel=1e-3)


def best_spread(a: float, rounds: int):
    """f^2 of each round by the bound, from a general minimizer."""
    from scipy import optimize  # noqa: PLC0415

    weights = (1 - a) ** (2 * np.arange(rounds - 1, -1, -1))

    def last(logits):
        shares = np.exp(logits - logits.max())
        shares *= rounds / shares.sum()
        return np.sum(weights / shares)

    found = optimize.minimize(last, np.zeros(rounds), tol=1e-12).x
    shares = np.exp(found - found.max())
    return shares * rounds / shares.sum()


@pytest.mark.parametrize("a", [0.05, 0.3])
def test_greedy_spends_as_the_bound_is_least(a):
    factors = run(control.greedy(12, contraction=a), np.ones(12), np.ones(12), 12)
    np.testing.assert_allclose(factors**2, best_spread(a, 12), rtol=2e-3)
    np.testing.assert_allclose(factors[1:] ** 2 / factors[:-1] ** 2, 1 / (1 - a), rtol=1e-3)


@pytest.mark.parametrize("a", [0.02, 0.2])
def test_the_contraction_is_estimated_from_releases(a):
    """A linear model: every round mends the part a of the distance, and adds noise of a known size."""
    random, d, sigma = np.random.default_rng(0), 20_000, 0.02
    distance = random.normal(0, 1, d) * 0.3
    rule = control.greedy(200)
    state, observe = rule.initialize(START), jax.jit(rule.observe)
    for number in range(60):
        aggregate = -a * distance + sigma * random.normal(0, 1, d)
        distance += aggregate
        seen = Released(jnp.int32(number), jnp.float32(aggregate), None, jnp.float32(d * sigma**2))
        state = observe(state, seen)
    found = float(rules.contracts(state.spender.sums))
    assert found == pytest.approx(a, abs=0.02)
    without_noise = state.spender.sums.at[2].set(0)  # a wrong formula, which forgets the noise
    assert abs(float(rules.contracts(without_noise)) - a) > 0.1


def test_a_sketch_keeps_inner_products():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 50_000))
    exact = x @ (x + y)
    assert float(rules.sketch(jnp.float32(x)) @ rules.sketch(jnp.float32(x + y))) == pytest.approx(
        exact, abs=6 * 50_000 / np.sqrt(4096) * 2**0.5
    )


def test_the_budget_of_bits_is_kept_by_the_rate_model():
    rounds, d, bits = 20, 1000, 0.3
    rule = control.greedy(rounds, contraction=0.1, budget=1e5, bits=bits, d=d)
    factors = run(rule, np.ones(rounds), np.ones(rounds), rounds)
    gammas = factors * 2 / 0.7  # of the client with the largest
    spent = [expected_bits(gamma, d) for gamma in gammas]
    assert sum(spent) <= bits * rounds * 1.02  # the table's and the quantiles' accuracy
    assert sum(spent) >= bits * rounds * 0.9
    assert (np.diff(factors) > 0).all()


def test_the_table_of_rates_is_that_of_the_theory():
    for ratio in (2.0**-13, 2.0**-6, 0.11, 0.9, 5.0, 100.0):
        assert float(filters._bits_of_ratio(ratio)) == pytest.approx(rate.layered_limit(ratio), rel=0.01)
        assert float(filters._ratio_of_bits(filters._bits_of_ratio(ratio))) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rounds": 0}, "rounds is 0; it must be a whole number from 1"),
        ({"budget": 0.5}, "budget is 0.5; it must be 0, or a number from 1"),
        ({"least": 0.0}, "least is 0.0; it must be a number above 0"),
        ({"bits": -1.0}, "bits is -1.0"),
        ({"contraction": 1.0}, "contraction is 1.0; it must be a number of at least 0 and below 1"),
    ],
)
def test_wrong_budgets_are_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        control.greedy(**{"rounds": 4, **arguments})


def test_a_rule_is_given_the_noise_of_the_sum():
    """As the rounds apply it, against the deviation of many rounds' aggregates of the same updates."""
    seen = []
    rule = Control(lambda s, k, n: k, lambda k: jnp.float32(0), observe=lambda s, r: r.noise)
    _, one_round, _ = make(control=rule)
    state, arrays = start()._replace(control=jnp.float32(0)), federation()
    for key in range(60):
        keyed = arrays._replace(shared_key=jax.random.key(key), training_key=arrays.training_key)
        after, _ = jax.jit(one_round)(state, keyed)
        seen.append(np.asarray(after.params["w"]) - np.asarray(state.params["w"]))
    scale = np.mean(1 + 0.1 * np.arange(1, CLIENTS + 1))  # what the server multiplies aggregates by
    power = np.var(np.stack(seen) / scale, axis=0, ddof=1).sum()
    said = float(after.control)
    expected = SIZE * np.sum(np.square(np.asarray(federation().knobs.sigma) * np.ones(CLIENTS))) / CLIENTS**2
    assert said == pytest.approx(expected, rel=1e-5)
    assert power == pytest.approx(said, rel=5 * np.sqrt(2 / (59 * SIZE)))


@pytest.mark.parametrize("name", ["median", "inverse_error"])
def test_a_rule_that_needs_the_noise_is_refused_where_it_is_not_known(name):
    with pytest.raises(ConfigError, match="goes by the noise in the released aggregate"):
        make(control=control.greedy(4), aggregator=AGGREGATORS[name])
    with pytest.raises(ConfigError, match="goes by the noise"):
        make("identity", control=control.greedy(4))
