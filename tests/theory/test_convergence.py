"""The bounds of federated averaging with CEPAM's noise: by hand, against other orders, and against runs."""

import dataclasses
import math

import flax.linen as nn
import numpy as np
import pytest

import cepam_jax as cepam
from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated.control import scheduled
from cepam_jax.theory import convergence as theory
from experiments import convex

PROBLEM = theory.Problem(
    smoothness=2.0,
    weights=(0.25, 0.75),
    dimension=10,
    sigmas=(0.1, 0.2),
    gradient_noise=(0.4, 0.8),
    gradient_bound=3.0,
    strong_convexity=0.5,
    heterogeneity=0.3,
    distance=4.0,
    local_steps=3,
)
EQUAL = dataclasses.replace(PROBLEM, weights=(0.2,) * 5, sigmas=(0.1,) * 5, gradient_noise=(0.4,) * 5)


def change(problem, **fields):
    return dataclasses.replace(problem, **fields)


def test_noise_of_all_of_draws_and_of_a_subset():
    assert theory.released_noise(PROBLEM) == pytest.approx(10 * (0.0625 * 0.01 + 0.5625 * 0.04))
    drawn = change(PROBLEM, participants=2, replacement=True)
    assert theory.released_noise(drawn) == pytest.approx(10 * (0.25 * 0.01 + 0.75 * 0.04) / 2)
    assert theory.released_noise(change(EQUAL, participants=2)) == pytest.approx(10 * 0.01 / 2)
    assert theory.released_noise(change(EQUAL, participants=5)) == pytest.approx(theory.released_noise(EQUAL))


@pytest.mark.parametrize("replacement", [True, False])
def test_second_moment_of_the_noise_and_of_the_draw_meet_simulation(replacement):
    """Within five standard errors of 20,000 draws, a false alarm in a million; the other way does not fit."""
    random = np.random.default_rng(0)
    sigmas, draws = np.array([0.1, 0.5, 1.0, 2.0, 0.3]), 20_000
    problem = change(EQUAL, sigmas=tuple(sigmas), participants=3, replacement=replacement, dimension=4)
    moved = np.array([1.0, -1.0, 1.0, -1.0, 0.0])  # |x_k| at most 1, mean 0
    noises, means = np.empty(draws), np.empty(draws)
    for n in range(draws):
        drawn = random.choice(5, 3, replace=replacement)
        noises[n] = np.square((random.normal(size=(3, 4)) * sigmas[drawn, None]).mean(0)).sum()
        means[n] = moved[drawn].mean() ** 2
    assert abs(noises.mean() - theory.released_noise(problem)) < 5 * noises.std() / math.sqrt(draws)
    # The bound has max|x|^2 = 1 where the variance has mean|x|^2 = .8.
    here = 0.8 * theory.sampling_factor(problem)
    other = 0.8 * theory.sampling_factor(change(problem, replacement=not replacement))
    assert abs(means.mean() - here) < 5 * means.std() / math.sqrt(draws)
    assert abs(means.mean() - other) > 5 * means.std() / math.sqrt(draws)


@pytest.mark.parametrize("release", theory.RELEASES)
def test_one_round_by_hand(release):
    steps = np.array([[0.1, 0.05, 0.02]])
    problem = change(PROBLEM, release=release)
    variance = 0.0625 * 0.16 + 0.5625 * 0.64
    value = 0.95**2 * 4 + 0.01 * variance
    value = 0.975 * value + 0.0025 * (variance + 6 * 2 * 0.3) + 2 * 0.1**2 * 9
    value = 0.99 * value + 0.0004 * (variance + 6 * 2 * 0.3) + 2 * 0.15**2 * 9
    value += 0.23125 * (0.01 if release == "gradient_sum" else 1)
    assert theory.distances(problem, steps).tolist() == pytest.approx([4, value])
    assert theory.gaps(problem, steps)[1] == pytest.approx(value)  # L / 2 = 1


def li_and_others(problem, iterations, partial):
    """1907.02189, theorem 1 (C = 0), 2 and 3, as the paper writes them; iterations count from 1."""
    p, mu, smooth = problem, problem.strong_convexity, problem.smoothness
    kappa = smooth / mu
    gamma = max(8 * kappa, p.local_steps)
    b = sum(w**2 * s**2 for w, s in zip(p.weights, p.gradient_noise, strict=True))
    b += 6 * smooth * p.heterogeneity + 8 * (p.local_steps - 1) ** 2 * p.gradient_bound**2 + partial
    return kappa / (gamma + iterations - 1) * (2 * b / mu + mu * gamma / 2 * p.distance)


def test_without_noise_it_is_the_bound_of_1907_02189():
    quiet = change(EQUAL, sigmas=(0.0,) * 5)
    steps = theory.decreasing_steps(quiet, 40)
    for fields, partial in (
        ({}, 0.0),
        ({"participants": 2, "replacement": True}, 4 / 2 * 3**2 * 9),
        ({"participants": 2}, 3 / 4 * 4 / 2 * 3**2 * 9),
    ):
        found = theory.closed_form(change(quiet, **fields), steps)
        expected = [li_and_others(quiet, 3 * r + 1, partial) for r in range(41)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_with_one_local_step_noise_is_gradient_noise():
    """S beside sum p_k^2 s_k^2, in every bound, as if clients' gradients were that much noisier."""
    one = change(EQUAL, local_steps=1)
    noisier = change(one, sigmas=(0.0,) * 5, gradient_noise=(math.sqrt(0.16 + 10 * 0.01),) * 5)
    steps = theory.decreasing_steps(one, 50)
    for bound in (theory.closed_form, theory.gaps, lambda p, s: theory.squared_gradients(p, s, 3.0)):
        np.testing.assert_allclose(bound(one, steps), bound(noisier, steps), rtol=1e-12)


def test_the_recursion_is_below_the_closed_form():
    for fields in ({}, {"participants": 2}, {"participants": 3, "replacement": True}, {"local_steps": 1}):
        problem = change(EQUAL, **fields)
        steps = theory.decreasing_steps(problem, 300)
        assert (theory.gaps(problem, steps) <= theory.closed_form(problem, steps)).all()


@pytest.mark.parametrize(
    ("field", "larger"),
    [
        ("sigmas", (0.2, 0.4)),
        ("gradient_noise", (0.8, 1.6)),
        ("gradient_bound", 4.0),
        ("heterogeneity", 0.5),
        ("distance", 5.0),
        ("dimension", 20),
    ],
)
def test_bounds_grow_with_each_constant(field, larger):
    steps = theory.decreasing_steps(PROBLEM, 10)
    worse = change(PROBLEM, **{field: larger})
    for bound in (theory.gaps, theory.closed_form):
        assert (bound(worse, steps)[1:] > bound(PROBLEM, steps)[1:]).all()


def test_noise_on_differences_adds_what_the_proof_says():
    """All of it together: the telescoped sum, for the later steps' contraction; it grows like T / (3 E)."""
    one = change(EQUAL, local_steps=1, release="difference", gradient_noise=(0.0,) * 5, distance=0.0)
    for rounds in (1, 10, 2000):
        steps = theory.decreasing_steps(one, rounds)
        follow = [np.prod(np.square(1 - 0.5 * steps[r:, 0])) for r in range(1, rounds + 1)]
        found = theory.distances(one, steps)[-1]
        assert found == pytest.approx(theory.released_noise(one) * np.sum(follow), rel=1e-9)
        g, r = one.offset, np.arange(1, rounds + 1)
        above = (g + r - 1) * (g + r - 2) / ((g + rounds - 1) * (g + rounds - 2))
        assert found <= theory.released_noise(one) * above.sum() * (1 + 1e-12)
    grown = theory.distances(one, theory.decreasing_steps(one, 4000))
    assert grown[4000] / grown[2000] == pytest.approx(2, rel=0.02)
    assert above.sum() == pytest.approx(rounds / 3, rel=0.05)


def test_a_clip_and_noise_that_fall_with_the_step_are_those_of_sums():
    """In each round the same noise is added and the same clip is needed, in units of the model."""
    steps = theory.decreasing_steps(PROBLEM, 20)
    sums = theory.longest(PROBLEM, steps)
    differences = theory.longest(change(PROBLEM, release="difference"), steps)
    np.testing.assert_allclose(differences, sums * steps[:, 0])


def test_floor_is_where_a_constant_step_ends_and_grows_with_the_square_of_sigma():
    quiet = change(EQUAL, local_steps=1, gradient_noise=(0.0,) * 5)
    steps = np.full((2000, 1), 0.1)
    assert theory.floor(quiet, 0.1) == pytest.approx(theory.gaps(quiet, steps)[-1], rel=1e-9)
    doubled = change(quiet, sigmas=(0.2,) * 5)
    assert theory.floor(doubled, 0.1) == pytest.approx(4 * theory.floor(quiet, 0.1))


def test_without_convexity_by_hand():
    problem = change(PROBLEM, local_steps=1, strong_convexity=0.0)
    steps = np.array([[0.5], [0.25]])
    each = np.array([0.25, 0.0625]) * (0.0625 * 0.16 + 0.5625 * 0.64 + 0.23125)
    expected = [(2 * 7 + 2 * each[0]) / 0.5, (2 * 7 + 2 * each.sum()) / 0.75]
    assert theory.squared_gradients(problem, steps, 7.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 8.0}, "clip is 8.0; it must be at least .*: a clip that acts makes updates biased"),
        ({"momentum": 0.5}, "momentum is 0.5; it must be 0"),
        ({"unbiased": False}, "unbiased is False"),
        ({"strong_convexity": 0.0}, "strong_convexity is 0.0; it must be positive"),
        ({"smoothness": 0.4}, "strong_convexity is 0.5; it must be positive and at most smoothness = 0.4"),
        ({"gradient_bound": math.inf}, "gradient_bound is inf; it must be finite"),
        ({"heterogeneity": -0.1}, "heterogeneity is -0.1"),
        ({"distance": -1.0}, "distance is -1.0"),
        ({"weights": (0.5, 0.6)}, "weights is .* positive numbers with sum 1"),
        ({"participants": 1}, "weights is .* equal where a subset takes part"),
        ({"participants": 3, "replacement": True}, "participants is 3; it must be at most 2"),
        ({"sigmas": (0.1,)}, "sigmas is .* 2 numbers"),
        ({"release": "weights"}, "release is 'weights'; it must be one of"),
        ({"local_steps": 2}, "shape of steps"),
    ],
)
def test_what_the_proof_does_not_cover_is_refused_by_name(fields, message):
    steps = theory.decreasing_steps(PROBLEM, 5)
    theory.distances(PROBLEM, steps)
    with pytest.raises(ConfigError, match=message):
        theory.distances(change(PROBLEM, **fields), steps)


def test_steps_that_a_bound_does_not_allow_are_refused():
    with pytest.raises(ConfigError, match=r"(?s)steps is .* at most 0.125"):
        theory.distances(PROBLEM, np.full((2, 3), 0.2))
    with pytest.raises(ConfigError, match="steps is 'constant'; it must be decreasing"):
        theory.closed_form(PROBLEM, np.full((2, 3), 0.1))
    with pytest.raises(ConfigError, match="release is 'difference'; it must be 'gradient_sum'"):
        theory.closed_form(change(PROBLEM, release="difference"), theory.decreasing_steps(PROBLEM, 5))
    with pytest.raises(ConfigError, match="local_steps is 3; it must be 1 where losses are not convex"):
        theory.squared_gradients(PROBLEM, theory.decreasing_steps(PROBLEM, 5), 1.0)
    with pytest.raises(ConfigError, match=r"(?s)steps is .* at most 0.5"):
        theory.squared_gradients(change(PROBLEM, local_steps=1), np.full((2, 1), 0.6), 1.0)


@pytest.mark.parametrize("loss", convex.LOSSES)
def test_computed_constants_bound_what_they_say(loss):
    """At random points of the ball, for all clients: curvature, gradients and their spread."""
    found = convex.bounded(convex.digits(loss, "by label", 0.05), batch=1)
    problem, clients = found.problem, found.clients
    random = np.random.default_rng(0)
    direction = random.normal(size=(20, 2, problem.dimension))
    points = direction / np.linalg.norm(direction, axis=2, keepdims=True) * min(found.radius, 3.0)
    closest = 0.0
    for a, b in points:
        for k, (x, y) in enumerate(zip(clients.x, clients.y, strict=True)):
            slope = [convex.gradient(loss, 0.05, x, y, w) for w in (a, b)]
            change_of, moved = slope[0] - slope[1], a - b
            assert np.linalg.norm(change_of) <= problem.smoothness * np.linalg.norm(moved)
            assert change_of @ moved >= problem.strong_convexity * moved @ moved or loss == "bumpy"
            each = np.array([convex.gradient(loss, 0.05, x[i : i + 1], y[i : i + 1], a) for i in range(20)])
            assert np.linalg.norm(each, axis=1).max() <= problem.gradient_bound
            spread = np.square(each - each.mean(0)).sum(1).mean()
            assert spread <= problem.gradient_noise[k] ** 2
            closest = max(closest, np.linalg.norm(slope[0]) / problem.gradient_bound)
        step = 1e-6 * moved
        rise = convex.value(clients, a + step).mean() - convex.value(clients, a - step).mean()
        whole = [convex.gradient(loss, 0.05, x, y, a) for x, y in zip(clients.x, clients.y, strict=True)]
        assert rise == pytest.approx(2 * np.mean(whole, 0) @ step, rel=1e-4, abs=1e-10)
    assert closest > 0.02  # a bound, but not one from nowhere


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
def test_the_minimum_is_one(loss):
    found = convex.bounded(convex.digits(loss, "iid", 0.05))
    gaps = convex.excess(found, found.best + 0.01 * np.random.default_rng(0).normal(size=(20, 65)))
    assert (gaps > 0).all() and found.problem.heterogeneity > 0
    assert convex.squared_slopes(found, found.best[None])[0] < 1e-20


@pytest.mark.parametrize(("local_steps", "participants", "least"), [(5, 0, 0.9), (1, 4, 0.6)])
def test_the_worst_gradient_makes_most_of_the_bound_beyond_one_step_of_all(local_steps, participants, least):
    loss = "logistic" if local_steps > 1 else "ridge"
    found = convex.bounded(convex.digits(loss, "by label", 0.05), local_steps, 16, participants)
    steps = theory.decreasing_steps(found.problem, 1000)
    problem = convex.with_noise(found, 0.03 if local_steps > 1 else 0.3, steps, "gradient_sum")
    without = change(problem, gradient_bound=0.0)
    share = 1 - theory.gaps(without, steps)[-1] / theory.gaps(problem, steps)[-1]
    assert share > least


def test_a_real_run_has_the_second_moment_that_the_recursion_adds():
    """One round with full gradients: E|w - its mean|^2 is S times the squared step.

    Within five standard errors of 400 runs, a false alarm in a million; noise a tenth larger does not fit.
    """
    found = convex.bounded(convex.digits("ridge", "iid", 0.05))
    steps = np.array([[found.first_step]])
    problem = convex.with_noise(found, 0.3, steps, "gradient_sum")
    mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))
    runs = convex.descend(found, problem, mechanism, steps, 0, 400)[:, 1]
    x, y = np.concatenate(found.clients.x), np.concatenate(found.clients.y)
    expected = -found.first_step * convex.gradient("ridge", 0.05, x, y, np.zeros(65))
    squares = np.square(runs - expected).sum(1)
    allowed = 5 * squares.std() / 20
    added = theory.distances(change(problem, distance=0.0), steps)[1]
    assert abs(squares.mean() - added) < allowed < abs(squares.mean() - 1.1**2 * added)


def test_the_accountant_of_a_federation_counts_clip_over_sigma():
    """Both fall with the step: the epsilon of constant knobs. Sigma alone: more."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 4)).astype(np.float32), random.integers(0, 2, 40)
    falls = lambda number: 20 / (20 + 5 * number)  # noqa: E731

    def epsilon(*names):
        federation = cepam.Federation(
            cepam.tasks.classification(nn.Dense(2), example=x[0]),
            cepam.clients({"inputs": x, "labels": y}, owners=np.arange(40) % 4),
            mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian")),
            sigma=1.0,
            clip=1.0,
            control=scheduled(dict.fromkeys(names, falls)),
        )
        return federation.epsilons(planned_rounds=20)["decoded_updates"].max()

    assert epsilon("sigma", "clip") == pytest.approx(epsilon(), rel=1e-4)
    assert epsilon("sigma") > 3 * epsilon()
