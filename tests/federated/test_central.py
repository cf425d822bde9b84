"""Noise that the server adds: its law, its keys, what it refuses, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.plans import SERVER, clipped, compiled, own
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.errors import CheckpointMismatchError, ConfigError
from cepam_jax.federated import (
    AGGREGATORS,
    ClientArrays,
    LocalUpdate,
    Plan,
    initial_state,
)
from cepam_jax.federated.plan import CLIENTS
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from cepam_jax.run.devices import Layout
from cepam_jax.run.training import train, train_many
from cepam_jax.tasks import Model
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

D, N = 200_000, 4
SIGMAS, COUNTS = np.float32([0.5, 1.0, 1.0, 2.0]), np.int32([10, 20, 30, 40])
ALARM = 1e-4  # of each test of a law, at a fixed seed


class NotRun(Exception):
    """A round that was not applied."""


def one_round(updates, law="gaussian", mechanism=None, aggregator="mean", per_round=N, **changes):
    """The aggregate f32[d] of the first round, and its report."""
    d = updates.shape[1]
    plan = Plan(
        local_update=LocalUpdate(own),
        mechanism=clipped("l2" if law == "gaussian" else "l1", mechanism),
        aggregator=AGGREGATORS[aggregator],
        server=SERVER,
        segments=(d,),
        per_round=per_round,
        per_chunk=1,
        server_noise=law,
    )
    keys, sigmas = changes.pop("keys", (1, 2)), changes.pop("sigmas", SIGMAS)
    plan = plan._replace(**changes)
    full = np.ones(N, np.float32)
    knobs = Knobs(sigma=jnp.asarray(sigmas), clip=jnp.asarray(full), step=jnp.asarray(np.float32(1.9) * full))
    arrays = ClientArrays(
        examples={"update": jnp.asarray(updates, jnp.float32)},
        constants={},
        rows=jnp.zeros((N, 1), jnp.int32),
        counts=jnp.asarray(COUNTS),
        steps=jnp.ones(N, jnp.int32),
        knobs=knobs,
        training_key=jax.random.key(keys[0]),
        shared_key=jax.random.key(keys[1]),
    )
    model = Model({"w": jnp.zeros(d)})
    state = initial_state(plan, model, knobs, N, False, knobs.clip[0])
    after, report = compiled(plan)(state, arrays)
    if not report.ran:
        raise NotRun
    return np.asarray(after.params["w"]), jax.tree.map(np.asarray, report)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize(("aggregator", "per_round"), [("mean", N), ("examples", N), ("examples", 2)])
def test_the_noise_has_the_deviation_of_all_participants_together(law, aggregator, per_round):
    """Zeros are sent, so the aggregate is the server's noise; a deviation wrong by 5 % is found."""
    found, report = one_round(np.zeros((N, D)), law, aggregator=aggregator, per_round=per_round)
    drawn = report.participants.client
    weights = np.ones(len(drawn)) if aggregator == "mean" else COUNTS[drawn]
    deviation = np.sqrt(np.sum(np.square(weights * SIGMAS[drawn]))) / weights.sum()
    exact = stats.norm(0, deviation) if law == "gaussian" else stats.laplace(0, deviation / np.sqrt(2))
    assert stats.kstest(found, exact.cdf).pvalue > ALARM
    assert stats.kstest(1.05 * found, exact.cdf).pvalue < ALARM


def test_the_noise_is_of_the_servers_key_alone():
    zeros = np.zeros((N, 100))
    first, again = one_round(zeros)[0], one_round(zeros)[0]
    assert np.array_equal(first, again)
    assert np.array_equal(first, one_round(zeros, keys=(1, 3))[0])  # the shared key has no part in it
    assert abs(np.corrcoef(first, one_round(zeros, keys=(3, 2))[0])[0, 1]) < 0.5
    # With another client's update nothing but that update changes.
    updates = zeros.copy()
    updates[2, 0] = 0.8
    np.testing.assert_allclose(one_round(updates)[0] - first, np.eye(100)[0] * 0.2, atol=1e-6)


def test_what_is_decoded_is_clipped_again_unless_its_error_is_independent():
    """Rounded to a grid of 1.9, an update of norm 1 becomes one of norm 1.9; a dither's error is left."""
    updates = np.zeros((N, D))
    updates[:, 0] = 1.0
    noise = one_round(np.zeros((N, D)))[0]
    rounded, report = one_round(updates, mechanism=mechanisms.rounding())
    assert (rounded - noise)[0] == pytest.approx(1.0, abs=1e-5)
    dithered = one_round(updates, mechanism=mechanisms.sdq())[0] - noise
    assert np.linalg.norm(dithered) == pytest.approx(1.9 * np.sqrt(D / 12 / N), rel=0.05)  # beyond 1
    assert report.participants.noise.max() < 1e-5  # the error is that of what the server goes by


def test_noise_that_would_vanish_beside_an_update_is_not_added_in_silence():
    """At 1e7 deviations the sum of 32-bit numbers lacks the noise: the round is not applied."""
    updates = np.zeros((N, 4))
    updates[:, 0] = 1.0
    with pytest.raises(NotRun):
        one_round(updates, sigmas=1e-7 * SIGMAS)


def test_one_device_and_a_mesh_give_the_same():
    updates = np.random.default_rng(0).normal(size=(N, 50)).astype(np.float32)
    mesh = Layout(CLIENTS, 1).mesh
    alone = one_round(updates)[0]
    spread = one_round(updates, mesh=mesh or jax.sharding.Mesh(np.array(jax.devices()[:1]), (CLIENTS,)))[0]
    np.testing.assert_allclose(alone, spread, atol=1e-6)


def config_of(**fields):
    config = digits.get_config("server_sdq")
    config.model, config.rounds, config.eval_every = "linear", 2, 1
    config.update_from_flattened_dict({"mechanism.rate": "step", "mechanism.step": 0.5, **fields})
    return config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mechanism.name": "lrsuq"}, "adds noise of its own at the clients"),
        ({"mechanism.name": "jopeq"}, "adds noise of its own at the clients"),
        ({"mechanism.name": "split"}, "adds noise of its own at the clients"),
        ({"mechanism.clip": "none"}, "updates are not clipped"),
        ({"mechanism.target": "laplace"}, "Laplace noise needs an L1 clip"),
        ({"aggregator": "median"}, "no weighted sum: its sensitivity to one client"),
        ({"aggregator": "krum"}, "no weighted sum: its sensitivity to one client"),
        ({"aggregator": "precision"}, "weighs clients by the noise of their own updates"),
        ({"aggregator": "inverse_error"}, "weights are not public"),
        ({"byzantine.attack": "sign_flip", "byzantine.clients": 1}, "where clients lie or are checked"),
        ({"byzantine.check": True}, "where clients lie or are checked"),
        ({"needs.epsilon": (8.0,) * 10}, "config.needs, which sets the noise of each client"),
        (
            {
                "local.example_clip": 1.0,
                "local.update_kind": "gradient",
                "local.sampling": "shuffle",
                "mechanism.clip": "none",
            },
            "updates are not clipped",
        ),
    ],
)
def test_what_has_no_bounded_sensitivity_is_refused_by_name(fields, text):
    with pytest.raises(ConfigError, match=f"config.server.noise is True; it must be False .*{text}"):
        validate(config_of(**fields))


def test_a_round_in_python_refuses_the_same():
    zeros = np.zeros((N, 4))
    for aggregator, text in (("median", "no weighted sum"), ("precision", "weighs clients by the noise")):
        with pytest.raises(ConfigError, match=text):
            one_round(zeros, aggregator=aggregator)
    with pytest.raises(ConfigError, match="adds noise of its own"):
        one_round(zeros, mechanism=mechanisms.lrsuq())
    with pytest.raises(ConfigError, match="law of the server's noise is 'cauchy'"):
        one_round(zeros, law="cauchy")


def test_equal_sigmas_mean_the_epsilon_of_cepam_and_who_sees_it():
    """All take part: the same noise in the sum, so the same epsilon; the clients together face it, too."""
    counts, fields = np.full(10, 140), {"mechanism.gamma": 2.0, "rounds": 4}
    ours = digits.get_config("cepam_gaussian")
    ours.update_from_flattened_dict(fields)
    cepam = guarantees.epsilons(ours, counts, guarantees.plan(ours, 4))
    config = config_of(**fields)
    found = guarantees.epsilons(config, counts, guarantees.plan(config, 4))
    assert found["released_model"] == cepam["released_model"] == found["colluding_clients"]
    assert cepam["colluding_clients"] > found["colluding_clients"]
    assert found["decoded_updates"] is None and found["server"] is None
    text = guarantees.report_text(config, counts)
    assert "counts on the noise that the server adds" in text and "not covered: the server's honesty" in text


def test_the_other_clients_together_know_who_was_drawn():
    """Of a fixed number of participants; against the model alone nobody knows it."""
    fields = {"num_clients": 1000, "clients_per_round": 10, "rounds": 80, "privacy.relation": "replace"}
    config, counts = config_of(**fields, **{"mechanism.gamma": 1.0}), np.full(1000, 10)
    found = guarantees.epsilons(config, counts, guarantees.plan(config, 80))
    assert found["released_model"] < found["colluding_clients"]
    remembering = config_of(**fields, **{"mechanism.gamma": 1.0, "mechanism.error_feedback": True})
    with_memory = guarantees.epsilons(remembering, counts, guarantees.plan(remembering, 80))
    assert with_memory["released_model"] == with_memory["colluding_clients"]


@pytest.mark.compiled_fast(mlir=True)
def test_sweeps_resumption_and_bytes(tmp_path):
    """Two seeds as one sweep, and one of them alone in two parts: the same to the bit."""
    fields = {
        "aggregator": "examples",
        "mechanism.error_feedback": True,
        "clients_per_round": 5,
        "wire": True,
    }
    configs = [config_of(**fields), config_of(**fields, **{"seeds.training": 1})]
    _, whole = train_many(configs, [tmp_path / "0", tmp_path / "1"], progress=False)
    train(config_of(**fields, **{"seeds.training": 1, "rounds": 1}), tmp_path / "parts", progress=False)
    parts = train(configs[1], tmp_path / "parts", progress=False)
    times = ("seconds", "seconds_per_round")
    assert [[(k, v) for k, v in line.items() if k not in times] for line in parts] == [
        [(k, v) for k, v in line.items() if k not in times] for line in whole
    ]
    assert whole[-1]["uplink_bytes"] > 0 and whole[-1]["epsilon"]["released_model"] > 0
    assert '"central": "gaussian"' in (tmp_path / "1/ledger.jsonl").read_text()
    without = config_of(**fields)
    without.server.noise = False
    with pytest.raises(CheckpointMismatchError, match="config.server.noise = True"):
        train(without, tmp_path / "0", progress=False)


def test_schedules_and_budgets_are_counted():
    """Round by round as applied; a rule that reads results by the budget that it states."""
    counts, plain = np.full(10, 140), config_of(**{"mechanism.gamma": 1.0})
    rising = config_of(**{"mechanism.gamma": 1.0, "schedule.knob": "gamma", "schedule.end": 4.0})
    found = [guarantees.epsilons(c, counts, guarantees.plan(c, 4))["released_model"] for c in (plain, rising)]
    assert found[0] < found[1]
    by_budget = config_of(**{"mechanism.gamma": 1.0, "control": "plateau", "rounds": 4})
    text = guarantees.report_text(by_budget, counts)
    assert "released_model: epsilon" in text and "a budget fixed beforehand" in text
    laplace = config_of(
        **{"control": "plateau", "mechanism.target": "laplace", "mechanism.clip": "l1", "rounds": 4}
    )
    assert "the filter for that is one of Gaussian noise" in guarantees.report_text(laplace, counts)
