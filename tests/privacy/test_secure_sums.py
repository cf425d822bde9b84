"""What a server learns of a secure sum: the theorem against exact laws, epsilon, attacks on real rounds."""

import math

import numpy as np
import pytest
from privacy import small_federation
from scipy import integrate, stats

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.privacy import releases, secure_sums
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits

pytestmark = pytest.mark.compiled_fast

REACH = 40  # integers on either side that have any probability


def exact(u, cells):
    """P(S = s) of the sum of round(u_k + N(0, cells^2)), f64[n (2 REACH + 1)]; the middle one is s = 0."""
    at = np.arange(-REACH, REACH + 1)
    law = np.ones(1)
    for one in u:
        one_law = stats.norm.cdf((at - one + 0.5) / cells) - stats.norm.cdf((at - one - 0.5) / cells)
        law = np.convolve(law, one_law)
    return law


def ideal(u, cells, s):
    """Q(s): density of N(0, n cells^2) plus n uniform numbers at s - sum u, by its Fourier transform."""
    n, w = len(u), np.linspace(-40, 40, 160_001)
    transform = np.exp(-n * (cells * w) ** 2 / 2) * np.sinc(w / 2 / np.pi) ** n
    at = np.asarray(s, np.float64) - np.sum(u)
    return np.array([integrate.trapezoid(transform * np.cos(w * t), w) / (2 * np.pi) for t in at])


def offsets(n):
    """Some u of n clients: all alike, spread over a cell, and drawn."""
    random = np.random.default_rng(n)
    return [np.zeros(n), np.arange(n) / n, np.arange(n) / n + 0.5, *random.uniform(-0.5, 0.5, (4, n))]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("cells", [0.55, 0.7, 0.9])
def test_no_sum_is_farther_from_a_rounded_gaussian_than_stated(n, cells):
    """Over all u; and somewhere as far as a sixth of the bound, which with 1.2 times the noise is broken."""
    worst = 0.0
    for u in offsets(n):
        law, middle = exact(u, cells), n * REACH
        s = np.arange(-2 - n, 3 + n)
        q = ideal(u, cells, s)
        sure = q > 1e-5
        worst = max(worst, np.max(np.abs(law[middle + s] / q - 1)[sure]))
    bound = secure_sums.closeness(cells, n, n)
    assert bound / 6 < worst <= bound
    assert worst > secure_sums.closeness(1.2 * cells, n, n)


def test_a_sum_of_one_is_a_rounded_gaussian():
    law, s = exact([0.3], 0.7), np.arange(-5, 6)
    np.testing.assert_allclose(law[REACH + s], ideal([0.3], 0.7, s), rtol=1e-6, atol=1e-12)
    assert secure_sums.closeness(0.7, 1, 1) == 0


def test_the_bound_is_that_of_the_theta_series_and_grows_with_what_is_unknown():
    """For n = 2 the dual lattice is Z / sqrt 2, whose theta series is known."""
    for cells in (0.6, 1.0, 1.5):
        theta = 2 * sum(math.exp(-((math.pi * cells * v) ** 2)) for v in range(1, 9))
        found = secure_sums.closeness(cells, 2, 2)
        assert theta <= found < 2.3 * theta
    each = [secure_sums.closeness(1.25, n, n) for n in range(2, 60)]
    for fewest, most in ((2, 59), (5, 30), (30, 40)):
        assert secure_sums.closeness(1.25, fewest, most) >= max(each[fewest - 2 : most - 1])
    assert secure_sums.closeness(0.3, 2, 10) == math.inf


def hockey_stick(p, q, epsilon):
    return np.maximum(p - np.exp(epsilon) * q, 0).sum()


@pytest.mark.parametrize("n", [2, 3])
def test_the_best_attack_on_one_coordinate_gains_no_more_than_is_accounted(n):
    """The server knows all dithers and all other updates; exact deltas at some epsilons, both ways round."""
    cells, move = 0.5, 0.7  # cells too few for any real sum: here what rounding leaks can be seen
    eta = -math.log1p(-secure_sums.closeness(cells, n, n))
    broken, leaks = False, 0.0
    for u in [*offsets(n), *np.random.default_rng(9).uniform(-0.5, 0.5, (30, n))]:
        moved = u + move * np.eye(n)[0]
        p, q = exact(u, cells), exact(moved, cells)
        for epsilon in (0.2, 1.0, 2.0, 3.0):
            gained = max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon))
            mu = move / (cells * math.sqrt(n))
            stated = math.exp(eta) * releases.gaussian_delta(max(epsilon - 2 * eta, 0), mu)
            assert gained <= stated
            leaks = max(leaks, gained / releases.gaussian_delta(epsilon, mu))
            broken |= gained > releases.gaussian_delta(epsilon, mu / 1.5)
    # Two clients' sum tells more than it would with Gaussian noise: the slack is needed.
    assert leaks > 1.1 or n > 2
    assert broken  # noise 1.5 times as large would not be this one


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    some = {"num_clients": 6, "rounds": 4, "mechanism.name": "secure_sum", "mechanism.gamma": 1.0}
    config.update_from_flattened_dict(some | fields)
    validate(config)
    return config


def rows(**fields):
    config = config_of(**fields)
    federation = guarantees.federation_of(config, np.full(config.num_clients, 10))
    return {row.adversary: row for row in privacy.report(federation, config.privacy.delta)}


def of_noise(n, **fields):
    """Epsilon of Gaussian noise of n clients, from additive noise of a federation of n."""
    return rows(**{"num_clients": n, "mechanism.name": "noise", **fields})["released_model"].epsilon[0]


def test_the_server_faces_the_noise_of_all():
    found = rows()
    assert found["server"].epsilon[0] == pytest.approx(of_noise(6), rel=1e-4)
    assert found["server"].epsilon[0] > of_noise(6)  # with the slack of the theorem
    assert found["server"].epsilon[0] == found["released_model"].epsilon[0]
    own = rows(num_clients=6, **{"mechanism.name": "noise"})["decoded_updates"].epsilon[0]
    assert found["decoded_updates"].epsilon[0] == found["colluding_clients"].epsilon[0] == own
    assert "server_and_colluders" not in found


def test_the_server_faces_the_noise_of_the_fewest_that_do_not_collude():
    found = rows(**{"mechanism.secure.survivors": 5, "mechanism.secure.colluders": 1})
    assert found["server"].epsilon[0] == pytest.approx(of_noise(5), rel=1e-4)
    assert found["server_and_colluders"].epsilon[0] == pytest.approx(of_noise(4), rel=1e-3)
    assert "4 participants" in found["server_and_colluders"].text()


def test_draws_are_seen_by_the_server_and_amplify_only_where_all_must_arrive():
    drawn = {"num_clients": 60, "clients_per_round": 6}
    hidden = "nobody knowing who was drawn"
    for survivors in (0, 5):
        config = config_of(**drawn, **{"mechanism.secure.survivors": survivors})
        federation = guarantees.federation_of(config, np.full(60, 10))
        model, server = (privacy.ADVERSARIES[name](federation)[0] for name in ("released_model", "server"))
        assert any(hidden in basis for basis in model.bases) == (survivors == 0)
        assert not any(hidden in basis for basis in server.bases)
        assert model.releases[:2] == server.releases and len(server.releases) == 2


def test_too_large_a_step_has_no_guarantee_or_one_that_says_so():
    assert rows(num_clients=2)["server"].epsilon[0] > of_noise(2) + 4  # 2 eta = 4 in each of four rounds
    few = rows(**{"num_clients": 2, "mechanism.secure.cells": 1.0})["server"]
    assert math.isinf(few.epsilon[0]) and "too large beside the noise" in few.text()
    federation = guarantees.federation_of(config_of(num_clients=5), np.full(5, 10))
    lost = federation._replace(summed=federation.summed._replace(cells=0.2))
    row = {row.adversary: row for row in privacy.report(lost, 1e-5)}["server"]
    assert math.isinf(row.epsilon[0]) and "too large beside the noise" in row.text()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"survivors": 6}, "survivors is 6; it must be 0, or at most 5"),
        ({"survivors": 0, "colluders": 5}, "colluders is 5; it must be below 5"),
        ({"survivors": 2, "colluders": 3}, "colluders is 3; it must be below 2"),
    ],
)
def test_sums_without_any_noise_are_refused(changes, field):
    federation = guarantees.federation_of(config_of(num_clients=5), np.full(5, 10))
    wrong = federation._replace(summed=federation.summed._replace(**changes))
    with pytest.raises(ConfigError, match=field):
        privacy.report(wrong, 1e-5)


def test_where_noises_do_not_add_up_a_client_has_its_own():
    federation = guarantees.federation_of(config_of(), np.full(6, 10))
    own = rows()["decoded_updates"].epsilon[0]
    for changes in ({"fresh": False}, {"aggregation": "function"}, {"sampling": "poisson", "per_round": 3}):
        changed = federation._replace(**changes)
        found = {row.adversary: row.epsilon[0] for row in privacy.report(changed, 1e-5)}
        assert found["server"] >= (own if changes.get("sampling") is None else 0.5 * own)
        assert found["server"] > rows()["server"].epsilon[0]


SUMS = [
    {"mechanism.secure.survivors": 3, "mechanism.secure.lost": 0.2},
    {"clients_per_round": 3, "privacy.relation": "replace", "mechanism.secure.cells": 2.0},
]


@pytest.mark.parametrize("fields", SUMS)
def test_no_attack_on_real_rounds_proves_more_than_is_printed(fields):
    """The released sums of a small federation, 10,000 runs of each world; false alarm 1e-5 each.

    What an attack on a third of the noise proves is more than what is printed for the whole noise.
    """
    some = {"num_clients": 4, "rounds": 2, "privacy.delta": 0.05}
    config, counts = config_of(**some | fields), np.full(4, 10)
    printed = small_federation.printed(config, counts)
    assert small_federation.lower_bound(config, counts, 10_000) <= printed
    if fields is SUMS[0]:
        weaker = config_of(**some | fields, **{"mechanism.gamma": 3.0})
        assert small_federation.lower_bound(weaker, counts, 10_000) > printed


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"aggregator": "median"}, "robust rules need single updates"),
        ({"aggregator": "inverse_error"}, "what single updates are worth"),
        ({"aggregator": "examples"}, "one common step means equal weights"),
        ({"aggregator": "precision"}, "one common step means equal weights"),
        ({"mechanism.error_feedback": True}, "cannot be told from the sum"),
        ({"mechanism.per_client.gamma": (1.0,) * 6}, "all share one step"),
        ({"mechanism.rotate": True}, "a rotation of its own"),
        ({"mechanism.sparsify": "mask", "mechanism.fraction": 0.5}, "all coordinates"),
        ({"mechanism.clip": "l1"}, "L2 clip"),
        ({"mechanism.quantize": "weights", "mechanism.clip": "none"}, "not bounded like updates|L2 clip"),
        ({"mechanism.secure.survivors": 7}, "at most the 6 participants"),
        ({"mechanism.secure.colluders": 6}, "fewer than the 6 messages"),
        ({"byzantine.check": True}, "norm of a single update"),
        ({"privacy.adversary": "server_and_colluders"}, "nobody else is said to collude"),
        ({"needs.epsilon": (1.0,) * 6}, "all share one noise"),
        ({"mechanism.target": "laplace", "mechanism.clip": "l2"}, "sums of Laplace noises"),
    ],
)
def test_what_does_not_go_with_a_sum_is_refused_by_name(fields, text):
    with pytest.raises(ConfigError, match=text):
        config_of(**fields)
