"""Poisson sampling: who comes, what empty places do, what the sum is divided by, and what is promised."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.plans import SERVER, clipped, compiled, own
from scipy import stats

import cepam_jax
from cepam_jax import mechanisms, privacy, tasks
from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.federated import (
    AGGREGATORS,
    ClientArrays,
    LocalUpdate,
    Plan,
    initial_state,
    poisson,
    rounds,
)
from cepam_jax.federated.plan import CLIENTS
from cepam_jax.mechanisms import Knobs, chain, clip
from cepam_jax.privacy import accounting, releases
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from cepam_jax.run.training import train
from cepam_jax.tasks import Model
from configs import digits

pytestmark = pytest.mark.compiled_fast

N, EXPECTED, D = 40, 10, 100_000
ALARM = 1e-4  # of each test of a law, at a fixed seed
COUNTS = np.arange(10, 10 + N, dtype=np.int32)
SIGMAS = np.linspace(0.5, 1.0, N, dtype=np.float32)


def test_places_are_the_fewest_that_the_stated_probability_allows():
    for clients, expected in ((60_000, 3000), (40, 10), (1000, 1)):
        number = poisson.places(clients, expected)
        law = stats.binom(clients, expected / clients)
        assert law.sf(number) <= poisson.OVERFLOW < law.sf(number - 1)
    assert poisson.places(30, 15) == 30 and poisson.overflow(30, 15) == 0  # room for everybody


def test_each_client_comes_by_itself():
    """2,000 draws: how many come is binomial, each as often as all others, and pairs are independent."""
    number = poisson.places(N, EXPECTED)
    draw = jax.jit(jax.vmap(lambda key: poisson.choose(key, N, EXPECTED, number)))
    found, over = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    assert not over.any()
    came = (found[:, :, None] == np.arange(N)).sum(1)
    assert came.max() == 1
    totals = np.bincount(came.sum(1), minlength=N + 1)
    law = stats.binom(N, EXPECTED / N).pmf(np.arange(N + 1)) * 2000
    keep = law > 5
    expected = law[keep] * totals[keep].sum() / law[keep].sum()
    assert stats.chisquare(totals[keep], expected).pvalue > ALARM
    chance = EXPECTED / N
    z = (came.sum(0) - 2000 * chance) / math.sqrt(2000 * chance * (1 - chance))
    assert stats.kstest(z, "norm").pvalue > ALARM
    together = came[:, 0] & came[:, 1]
    assert stats.binomtest(int(together.sum()), 2000, chance**2).pvalue > ALARM
    # Draws of a fixed size do not pass.
    fixed = np.bincount(np.full(2000, EXPECTED), minlength=N + 1)
    assert stats.chisquare(fixed[keep], law[keep] * 2000 / law[keep].sum()).pvalue < ALARM


def run(updates, mechanism=None, aggregator="mean", seed=0, expected=EXPECTED, places=None, **changes):
    """(The aggregate of the first round f32[d], State, RoundReport), on the host."""
    d = updates.shape[1]
    plan = Plan(
        local_update=LocalUpdate(own),
        mechanism=clipped("l2", mechanism),
        aggregator=AGGREGATORS[aggregator],
        server=SERVER,
        segments=(d,),
        per_round=places or poisson.places(N, expected),
        per_chunk=8,
        poisson=expected,
    )._replace(**changes)
    knobs = Knobs(sigma=jnp.asarray(SIGMAS), clip=jnp.ones(N))
    arrays = ClientArrays(
        examples={"update": jnp.asarray(updates, jnp.float32)},
        constants={},
        rows=jnp.zeros((N, 1), jnp.int32),
        counts=jnp.asarray(COUNTS),
        steps=jnp.ones(N, jnp.int32),
        knobs=knobs,
        training_key=jax.random.key(seed),
        shared_key=jax.random.key(seed + 1),
    )
    model = Model({"w": jnp.zeros(d)})
    state = initial_state(plan, model, knobs, N, changes.pop("remembers", False), knobs.clip[0])
    after, report = compiled(plan)(state, arrays)
    return np.asarray(after.params["w"]), after, jax.tree.map(np.asarray, report)


def came_to(report):
    clients = report.participants.client
    return clients[clients < N]


@pytest.mark.parametrize("aggregator", ["mean", "examples"])
def test_the_sum_is_divided_by_its_expected_weight(aggregator):
    updates = 0.5 * np.eye(N)
    found, _, report = run(updates, aggregator=aggregator, seed=1)
    came = came_to(report)
    assert report.ran and len(came) != EXPECTED  # of this seed
    weights = np.ones(N) if aggregator == "mean" else COUNTS
    expected = np.zeros(N)
    expected[came] = 0.5 * weights[came] / (weights.sum() * EXPECTED / N)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert report.participants.present.sum() == len(came)


def test_who_does_not_come_betrays_nothing():
    """Not even an update that is not finite: the last client sends from empty places, which count nothing."""
    updates = 0.5 * np.eye(N)
    for seed in range(20):
        found, _, report = run(updates, seed=seed)
        if N - 1 not in came_to(report):
            break
    updates[N - 1] = np.nan
    again, _, report = run(updates, seed=seed)
    assert report.ran and np.array_equal(found, again)


def test_nobody_may_come():
    for seed in range(60):
        found, after, report = run(0.5 * np.eye(N), seed=seed, expected=1, server_noise="gaussian")
        if not len(came_to(report)):
            break
    assert not len(came_to(report)) and report.ran and np.isfinite(found).all() and found.any()
    assert int(after.round) == 1


@pytest.mark.parametrize("mechanism", [None, mechanisms.lrsuq()])
@pytest.mark.parametrize("aggregator", ["mean", "examples"])
def test_the_noise_of_the_sum_is_the_same_whoever_comes(mechanism, aggregator):
    """The server's noise alone, or what clients' noise of their own lacks; 3 % more is found."""
    weights = np.ones(N) if aggregator == "mean" else COUNTS
    places = poisson.places(N, EXPECTED)
    deviation = math.sqrt(places) * np.max(weights * SIGMAS) / (weights.sum() * EXPECTED / N)
    found, numbers = [], set()
    for seed in (0, 1):
        noise, _, report = run(np.zeros((N, D)), mechanism, aggregator, seed, server_noise="gaussian")
        found.append(noise / deviation)
        numbers.add(len(came_to(report)))
    assert len(numbers) == 2
    for noise in found:
        assert stats.kstest(noise, "norm").pvalue > ALARM
        assert stats.kstest(1.03 * noise, "norm").pvalue < ALARM


def test_more_than_there_are_places_for_is_not_applied(monkeypatch, tmp_path):
    found, after, report = run(0.5 * np.eye(N), places=2)
    assert not report.ran and not found.any()
    assert rounds.failure(after.invalid_client)[1] == rounds.OVERFLOW
    config = config_of(clients_per_round=6)  # a program of its own
    choose = poisson.choose
    monkeypatch.setattr(poisson, "choose", lambda *given: (choose(*given)[0], jnp.bool_(True)))
    with pytest.raises(NonFiniteUpdateError, match="more clients came to round 1 than it has places"):
        train(config, tmp_path, progress=False)
    assert '"failed": true' in (tmp_path / "ledger.jsonl").read_text()


def config_of(variant="server_sdq", **fields):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.num_clients = "linear", 2, 1, 20
    given = {"participation.sampling": "poisson", "clients_per_round": 5, "mechanism.rate": "step"}
    config.update_from_flattened_dict({**given, **fields})
    return config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"clients_per_round": 0}, "clients_per_round is 0; it must be the expected number, from 1 to 19"),
        ({"clients_per_round": 20}, "clients_per_round is 20; it must be the expected number"),
        (
            {"byzantine.check": True, "server.noise": False},
            "participation.sampling .* 'fixed' with config.byz",
        ),
        ({"needs.epsilon": (8.0,) * 20, "server.noise": False}, "participation.sampling .* 'fixed' with"),
        (
            {"aggregator": "median", "server.noise": False},
            "aggregator is 'median'; it must be mean or examples",
        ),
        ({"aggregator": "precision", "server.noise": False}, "aggregator is 'precision'; it must be mean"),
        ({"mechanism.name": "lrsuq", "mechanism.error_feedback": True}, "add noise and remember it"),
        ({"mechanism.name": "noise_rounding"}, "do not add up to a Gaussian one"),
        ({"mechanism.name": "lrsuq", "mechanism.sparsify": "mask"}, "do not add up to a Gaussian one"),
        (
            {"mechanism.name": "lrsuq", "mechanism.target": "laplace", "mechanism.clip": "l1"},
            "do not add up to a Gaussian one",
        ),
    ],
)
def test_what_has_no_theorem_is_refused_by_name(fields, text):
    with pytest.raises(ConfigError, match=text):
        validate(config_of(**fields))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aggregator": "median"}, "sum with public weights"),
        ({"aggregator": "precision"}, "sum with public weights"),
        ({"false_alarm": 0.01}, "does not go with config.byzantine"),
    ],
)
def test_parts_that_count_participants_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        run(np.zeros((N, 3)), **changes)


def planned(config, rounds=100):
    return guarantees.federation_of(config, np.full(config.num_clients, 10), rounds)


def test_what_is_promised_to_whom():
    """Noise by the server: amplified, also against the other clients. Clients' own alone: not."""
    fields = {"num_clients": 1000, "clients_per_round": 50, "mechanism.gamma": 1.0}
    central = planned(config_of(**fields))
    z = math.sqrt(poisson.places(1000, 50))
    released, colluding, decoded, server = privacy.report(central, 1e-5)
    event = releases.poisson_sampled(0.05, ((100, z),), 100 * poisson.overflow(1000, 50))
    assert released.epsilon[0] == colluding.epsilon[0] == privacy.epsilon(event, 1e-5)
    assert np.isinf(decoded.epsilon).all() and np.isinf(server.epsilon).all()
    fixed = privacy.report(planned(config_of(**fields, **{"participation.sampling": "fixed"})), 1e-5)[0]
    assert released.epsilon[0] < fixed.epsilon[0]
    cepam = {**fields, "mechanism.name": "lrsuq"}
    filled = privacy.report(planned(config_of(**cepam)), 1e-5)
    assert filled[0].epsilon[0] == released.epsilon[0] and "of the server in place of" in filled[0].basis
    assert filled[1].epsilon[0] == filled[2].epsilon[0] > 10 * filled[0].epsilon[0]  # own noise alone
    own_noise = privacy.report(planned(config_of(**cepam, **{"server.noise": False})), 1e-5)
    assert own_noise[0].epsilon[0] == own_noise[2].epsilon[0] == filled[2].epsilon[0]
    replaced = privacy.report(planned(config_of(**fields, **{"privacy.relation": "replace"})), 1e-5)[0]
    assert "nobody knowing" not in replaced.basis and replaced.epsilon[0] > released.epsilon[0]
    remembered = privacy.report(planned(config_of(**fields, **{"mechanism.error_feedback": True})), 1e-5)[0]
    assert "nobody knowing" not in remembered.basis


def test_rounds_that_overflow_are_paid_for_in_delta():
    """A chance that is not small has its price; for one that delta cannot pay for nothing is promised."""
    event = releases.poisson_sampled(0.05, ((100, 2.0),), 0.0).event
    free = accounting.epsilon(releases.Overflowing(event, 0.0), 1e-5)
    paid = accounting.epsilon(releases.Overflowing(event, 1e-7), 1e-5)
    assert free < paid < 1.1 * free
    assert (1 + math.exp(paid)) * 1e-7 <= 0.5e-5
    assert math.isinf(accounting.epsilon(releases.Overflowing(event, 1e-5), 1e-5))


def test_a_run_writes_who_came_and_goes_on_to_the_bit(tmp_path):
    whole = train(config_of(), tmp_path / "whole", progress=False)
    train(config_of(rounds=1), tmp_path / "parts", progress=False)
    parts = train(config_of(), tmp_path / "parts", progress=False)
    assert whole[-1]["loss"] == parts[-1]["loss"]
    assert whole[-1]["epsilon"] == parts[-1]["epsilon"]
    text = (tmp_path / "whole/ledger.jsonl").read_text()
    assert '"poisson": true' in text and '"drawn"' in text
    assert (tmp_path / "parts/ledger.jsonl").read_text() == text
    assert 0 < whole[-1]["bits_per_coordinate"] < 32


def test_one_device_and_a_mesh_give_the_same():
    updates = np.random.default_rng(0).normal(size=(N, 30)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (CLIENTS,))
    alone, _, one = run(updates, server_noise="gaussian")
    spread, _, other = run(updates, server_noise="gaussian", mesh=mesh)
    np.testing.assert_allclose(alone, spread, atol=1e-6)
    assert np.array_equal(one.participants.client, other.participants.client)


def test_a_federation_in_python_does_the_same():
    """Twenty people with four examples each, who come by themselves; the server adds the noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 3)).astype(np.float32)
    task = tasks.classification(nn.Dense(2), example=x[0])
    clients = cepam_jax.clients(
        {"inputs": x, "labels": (x[:, 0] > 0).astype(np.int32)}, owners=np.arange(80) % 20
    )
    build = functools.partial(
        cepam_jax.Federation, task, clients, chain(clip("l2"), mechanisms.sdq()), batch_size=4
    )
    knobs = Knobs(sigma=0.5, clip=1.0, step=0.1)
    federation = build(knobs=knobs, participants=5, participation="poisson", server_noise="gaussian")
    state = federation.initialize()
    for _ in range(2):
        state, _ = federation.step(state)
    text = federation.privacy()
    assert "counts on the noise that the server adds, and on nobody knowing who was drawn" in text
    assert all(len(entry.drawn) == entry.rounds for entry in federation.ledger.entries)
    with pytest.raises(ConfigError, match="participants is 0; it must be the expected number, from 1 to 19"):
        build(knobs=knobs, participation="poisson", server_noise="gaussian")
    with pytest.raises(ConfigError, match="knob sigma is given, but the mechanism"):
        build(knobs=knobs)
