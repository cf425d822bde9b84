"""The count of updates within their clips: its epsilon by hand, and attacked in the real round.

A lower bound is wrong with probability 1e-5.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from privacy import small_federation
from scipy import optimize

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.privacy import audit, releases
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits

pytestmark = pytest.mark.compiled_fast

CLIENTS, ROUNDS, TRIALS, D, DELTA = 4, 4, 10_000, 8, 0.05
COUNTS = np.full(CLIENTS, 10)
OUTSIDERS = ("released_model", "colluding_clients")


def config_of(variant="cepam_gaussian", **fields):
    config = digits.get_config(variant)
    small = {"num_clients": CLIENTS, "rounds": ROUNDS, "control": "quantile_clip", "privacy.delta": DELTA}
    config.update_from_flattened_dict({**small, **fields})
    validate(config)
    return config


def epsilons(config, rounds=ROUNDS):
    book = guarantees.plan(config, rounds)
    return guarantees.epsilons(config, COUNTS, book)


def of_mu(mu: float) -> float:
    """Epsilon of one Gaussian mechanism with this mu, by the formula of arXiv 1805.06530."""
    return optimize.brentq(
        lambda epsilon: float(releases.gaussian_delta(epsilon, np.array([mu]))[0]) - DELTA, 0, 1e3
    )


@pytest.mark.parametrize(("relation", "reach"), [("add_remove", 1), ("replace", 2)])
def test_epsilon_is_that_of_both_noises_by_hand(relation, reach):
    """mu^2 = rounds reach^2 ((C / noise)^2 + (1 / (2 sigma_b))^2); own noise sigma = C / gamma."""
    gamma, noise = 0.8, 0.7
    config = config_of(
        **{"mechanism.gamma": gamma, "quantile_clip.noise": noise, "privacy.relation": relation}
    )
    found = epsilons(config)
    for name, updates in (("released_model", gamma**2 / CLIENTS), ("colluding_clients", gamma**2)):
        mu = reach * np.sqrt(ROUNDS * (updates + 1 / (2 * noise) ** 2))
        assert found[name] == pytest.approx(of_mu(mu), rel=1e-5)
    assert found["decoded_updates"] is None and found["server"] is None


def test_noise_on_the_count_costs_what_it_says():
    """Without end it costs nothing; and a target is met with it, or refused where it alone is too much."""
    plain = epsilons(config_of(control="schedule"))
    quiet = epsilons(config_of(**{"quantile_clip.noise": 1e6}))
    for name in OUTSIDERS:
        assert quiet[name] == pytest.approx(plain[name], rel=1e-6)
    aimed = {"privacy.target_epsilon": 3.0, "quantile_clip.noise": 2.0}
    assert epsilons(guarantees.calibrated(config_of(**aimed), COUNTS))["released_model"] == pytest.approx(
        3.0, rel=1e-3
    )
    with pytest.raises(ConfigError, match="the noise on that count alone spends more"):
        guarantees.calibrated(config_of(**{**aimed, "quantile_clip.noise": 0.1}), COUNTS)
    stopped = config_of(**{**aimed, "privacy.calibrate": False, "mechanism.gamma": 2.0})
    affordable = guarantees.rounds_within_budget(stopped, COUNTS)
    assert 1 <= affordable < ROUNDS
    kept, over = (epsilons(stopped, affordable + n)["released_model"] for n in (0, 1))
    assert kept <= 3 < over


def test_draws_amplify_and_weights_by_noise_count_each_client_alone():
    """A client in half of the rounds; precision weights follow from sigmas, which the counts move."""
    own = {"mechanism.gamma": 0.5, "quantile_clip.noise": 0.5}
    half, whole = (epsilons(config_of(clients_per_round=n, **own)) for n in (2, 0))
    assert half["colluding_clients"] < 0.9 * whole["colluding_clients"]
    assert half["released_model"] < half["colluding_clients"]
    for rule in ("precision", "median"):
        found = epsilons(config_of(aggregator=rule, **own))
        assert found["released_model"] == pytest.approx(found["colluding_clients"], rel=1e-9)
        assert found["colluding_clients"] == pytest.approx(of_mu(np.sqrt(ROUNDS * (0.25 + 1))), rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "fields", "reason"),
    [
        ("cepam_laplace", {}, "count of updates within their clips is Gaussian"),
        ("cepam_gaussian", {"mechanism.name": "jopeq"}, "is not proportional to sigma, which follows the"),
        ("clipped", {"mechanism.clip": "l2"}, "no noise hides the update"),
        ("cepam_gaussian", {"aggregator": "inverse_error"}, "aggregator states nothing|errors"),
    ],
)
def test_what_is_not_covered_has_no_guarantee(variant, fields, reason):
    config = config_of(variant, **fields)
    text = guarantees.report_text(config, COUNTS, ROUNDS)
    assert text.count("no guarantee") == 4 and re.search(reason, text)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mechanism.clip": "none"}, "config.mechanism.clip"),
        ({"mechanism.quantize": "weights"}, "config.mechanism.quantize"),
        ({"control": "schedule", "quantile_clip.noise": 1.0}, "config.quantile_clip.noise"),
        ({"filter.rounds": 3.0}, "config.filter.rounds"),
        ({"schedule.knob": "gamma"}, "config.schedule.knob"),
        ({"quantile_clip.quantile": 0.0}, "config.quantile_clip.quantile"),
    ],
)
def test_settings_that_do_not_go_together_are_errors(fields, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        config_of(**fields)


def seen(state):
    return state.params["w"], state.control


def scores(config, seeds, canary):
    """The logarithm of the likelihood ratio of what is released, up to an additive number."""
    models, logs = small_federation._run(config, COUNTS, 0.0, D, seen)(seeds, canary)
    moves = np.diff(np.asarray(models, np.float64)[:, :, 0], axis=1)
    logs = np.asarray(logs, np.float64)
    clips = config.mechanism.clip_norm * np.exp(logs[:, :-1])
    within = config.quantile_clip.quantile - np.diff(logs, axis=1) / config.quantile_clip.rate
    count = CLIENTS * (within - 0.5)
    reach = 2 if config.privacy.relation == "replace" else 1
    # Noise of the mean, over the clip, is 1 / (gamma sqrt(clients)), and the canary moves it by 1 / clients.
    updates = (moves / clips) * config.mechanism.gamma**2
    votes = -count * reach / 2 / config.quantile_clip.noise**2
    return np.sum(updates + votes, axis=1)


@pytest.mark.parametrize(("relation", "noise"), [("add_remove", 0.5), ("replace", 1.0)])
def test_no_attack_on_model_and_clips_proves_more_than_is_printed(relation, noise):
    """The canary is beyond the clip; in the other world it is zero, or a small update that is within."""
    fields = {"mechanism.gamma": 0.6, "quantile_clip.noise": noise, "privacy.relation": relation}
    config = config_of(**fields)
    canary = jnp.zeros(D).at[0].set(100.0)
    other = jnp.zeros(D).at[0].set(-0.01) if relation == "replace" else 0 * canary
    proved = audit.epsilon_lower_bound(
        scores(config, jnp.arange(TRIALS), canary),
        scores(config, jnp.arange(TRIALS, 2 * TRIALS), other),
        DELTA,
        small_federation.SIGNIFICANCE,
    )
    printed = small_federation.printed(config, COUNTS)
    assert printed / 2 < proved <= printed
    # Twins: who forgets the count, or takes its noise for 2.5 times what it is, prints less than is proved.
    federation = guarantees.federation_of(config, COUNTS)
    for wrong in (None, 2.5 * federation.counted):
        row = privacy.report(federation._replace(counted=wrong), DELTA)[0]
        assert proved > float(row.epsilon[0])
