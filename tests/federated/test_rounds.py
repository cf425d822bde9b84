import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mechanisms.programs import FAST

from cepam_jax import mechanisms
from cepam_jax.federated import control, participation, rounds, spread
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.federated.local import LocalUpdate, Trained
from cepam_jax.federated.state import ClientArrays, State, client_keys, shared_key
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import evaluation
from cepam_jax.run.evaluation import HeldOut
from cepam_jax.tasks import Model, Network, classification

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

CLIENTS, SIZE = 7, 50


def federation(counts=None):
    return ClientArrays(
        examples={"x": jnp.zeros(CLIENTS)},
        constants={},
        rows=jnp.arange(CLIENTS)[:, None],
        counts=jnp.ones(CLIENTS, jnp.int32) if counts is None else jnp.asarray(counts),
        steps=jnp.arange(1, CLIENTS + 1),
        knobs=Knobs(
            sigma=jnp.geomspace(1e-3, 1, CLIENTS),
            clip=jnp.full(CLIENTS, 2.0),
            bits=jnp.arange(1.0, CLIENTS + 1),
        ),
        training_key=jax.random.key(1),
        shared_key=jax.random.key(2),
    )


def local_update(params, data, row, count, steps, key):
    """An update that depends on everything a real one depends on."""
    noise = jax.random.normal(key, (SIZE,))
    return params["w"] * 0.1 + noise * (1 + row[0]) + count, jnp.float32(row[0]), 1.0 + 0.1 * steps


def as_local_update(update):
    """A function of what these tests vary as the local part of a round."""

    def run(model, arrays, client, key, state, number):
        of_client = (arrays.rows[client], arrays.counts[client], arrays.steps[client])
        return Trained(*update(model.params, None, *of_client, key), state)

    return LocalUpdate(run)


def start(server=None, memory=None):
    params = {"w": jnp.linspace(-1, 1, SIZE)}
    state = (server or optax.sgd(1.0)).init(params)
    return State(params, state, jnp.int32(0), jnp.int32(-1), memory)


SEGMENTS = (20, 30)
ROUND_NAMES = (
    "identity",
    "lrsuq_gaussian_z1",
    "lrsuq_gaussian_z3",
    "noise_laplace_sdq",
    "clipped_stochastic",
)


@functools.cache
def clipped(name):
    return mechanisms.chain(mechanisms.clip("l2"), mechanisms.make(name))


def make(name="lrsuq_gaussian_z1", **changes):
    mechanism = clipped(name)
    plan = rounds.Plan(
        as_local_update(local_update),
        mechanism,
        AGGREGATORS["mean"],
        optax.sgd(1.0),
        SEGMENTS,
        CLIENTS,
        per_chunk=1,
    )
    federation_knobs = {"step": jnp.full(CLIENTS, 0.1)} if "sdq" in name else {}
    return mechanism, rounds.make_round(plan._replace(**changes)), federation_knobs


@functools.lru_cache(maxsize=8)
def alone(mechanism):
    """The mechanism as programs of its own: outside of one, each operation is compiled for itself."""
    names = ("encode", "decode", "bits", "reference")
    return mechanism._replace(**{n: jax.jit(getattr(mechanism, n), compiler_options=FAST) for n in names})


def by_hand(mechanism, fed, state, weigh, memory=None, base=0.0):
    """One round as the pseudocode has it, client after client: (mean update, sums, messages' losses)."""
    mechanism = alone(mechanism)
    top, below, scale, lost = 0.0, 0.0, 0.0, []
    sums = {"bits": 0.0, "signal": 0.0, "noise": 0.0}
    for k in range(CLIENTS):
        knobs = jax.tree.map(lambda a, k=k: a[k], fed.knobs)
        train_key, keys = client_keys(fed, int(state.round), k)
        update, _, step_weight = local_update(
            state.params, None, fed.rows[k], fed.counts[k], fed.steps[k], train_key
        )
        if memory is not None:
            update = update + memory[k]
        message = mechanism.encode(keys, update + base, knobs)
        x_hat = mechanism.decode(keys.shared, message, knobs) - base
        clipped = mechanism.reference(update + base, knobs) - base
        error = np.square(x_hat - clipped)
        weight = weigh(float(fed.counts[k]), np.array([error[:20].mean(), error[20:].mean()]))
        across = np.repeat(weight, SEGMENTS) if np.ndim(weight) else weight
        top, below = top + across * np.asarray(x_hat), below + across
        scale += np.mean(weight) * step_weight
        sums["bits"] += float(mechanism.bits(keys.shared, message, knobs))
        sums["signal"] += float(np.square(clipped).sum())
        sums["noise"] += float(error.sum())
        lost.append(update - x_hat)
    return top / below * (scale / np.mean(below if np.ndim(below) == 0 else below[[0, -1]])), sums, lost


WEIGHTS = {
    "mean": lambda examples, errors: 1.0,
    "examples": lambda examples, errors: examples,
    "inverse_error": lambda examples, errors: 1 / (errors + 1e-20),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ROUND_NAMES)
def test_a_round_is_what_its_pseudocode_says(name, weights):
    mechanism, run, more = make(name, aggregator=AGGREGATORS[weights])
    fed = federation(np.arange(1, CLIENTS + 1))
    fed = fed._replace(knobs=fed.knobs._replace(**more))
    state, report = jax.jit(run)(start(), fed)
    metrics = report.participants
    np.testing.assert_array_equal(metrics.client, np.arange(CLIENTS))
    mean, sums, _ = by_hand(mechanism, fed, start(), WEIGHTS[weights])
    np.testing.assert_allclose(state.params["w"], start().params["w"] + mean, rtol=2e-4, atol=1e-4)
    extra = 2 * 32 * CLIENTS if weights == "inverse_error" else 0
    assert float(metrics.bits.sum()) == pytest.approx(sums["bits"] + extra, rel=1e-4)
    assert float(metrics.signal.sum()) == pytest.approx(sums["signal"], rel=1e-4)
    assert float(metrics.noise.sum()) == pytest.approx(sums["noise"], rel=1e-3, abs=1e-8)
    assert float(metrics.loss.mean()) == pytest.approx(np.mean(np.arange(CLIENTS)))
    assert float(metrics.clipped_norm.mean()) == pytest.approx(2.0, rel=1e-4)
    assert int(state.round) == 1 and bool(report.ran)


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_error_feedback_remembers_what_was_lost(per_chunk):
    mechanism, run, _ = make("clipped_deterministic", per_chunk=per_chunk)
    state, fed = start(memory=jnp.zeros((CLIENTS, SIZE))), federation()
    for _ in range(3):
        mean, _, lost = by_hand(mechanism, fed, state, WEIGHTS["mean"], state.memory)
        expected = state.params["w"] + mean
        state, _ = jax.jit(run)(state, fed)
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(state.memory, np.stack(lost), rtol=1e-3, atol=1e-3)
    assert np.abs(state.memory).max() > 1


def test_those_absent_keep_their_memory():
    _, run, _ = make("clipped_deterministic", per_round=3)
    state, _ = jax.jit(run)(start(memory=jnp.ones((CLIENTS, SIZE))), federation())
    assert ((np.asarray(state.memory) == 1).all(1)).sum() == CLIENTS - 3


def test_weights_instead_of_updates():
    plain = mechanisms.make("clipped_stochastic")
    _, run, _ = make(mechanism=plain, quantize="weights")
    state, _ = jax.jit(run)(start(), federation())
    base = np.asarray(start().params["w"])
    mean, _, _ = by_hand(plain, federation(), start(), WEIGHTS["mean"], base=base)
    np.testing.assert_allclose(state.params["w"], base + mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", control.SCHEDULES)
def test_schedules_multiply_a_knob(kind):
    factor = control.SCHEDULES[kind](0.25, 80)
    assert float(factor(0)) == pytest.approx(1)
    assert float(factor(80)) == pytest.approx(0.25, rel=1e-5)
    assert 0.25 < float(factor(40)) < 1
    knobs = federation().knobs
    change = control.scheduled({"gamma": factor, "bits": factor})
    later = change.knobs(None, knobs, 80)
    np.testing.assert_allclose(later.sigma, 4 * knobs.sigma, rtol=1e-5)
    np.testing.assert_array_equal(later.bits, np.round(0.25 * np.asarray(knobs.bits)))
    np.testing.assert_array_equal(later.clip, knobs.clip)


def test_a_schedule_acts_in_the_round():
    schedule = control.scheduled({"gamma": lambda t: jnp.where(t < 1, 1.0, 0.01)})
    _, run, _ = make(control=schedule)
    first_state, first = jax.jit(run)(start(), federation())
    _, second = jax.jit(run)(first_state, federation())
    assert (
        3e3 < float(second.participants.noise.sum() / first.participants.noise.sum()) < 3e4
    )  # of few, unequal samples


@pytest.mark.parametrize("per_round", [CLIENTS, 5])
@pytest.mark.parametrize("per_chunk", [2, 3, 5])
def test_chunks_change_nothing_but_rounding(per_chunk, per_round):
    _, one, _ = make(per_round=per_round)
    _, chunked, _ = make(per_round=per_round, per_chunk=per_chunk)
    alone, together = (jax.jit(run)(start(), federation()) for run in (one, chunked))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lrsuq_gaussian_z3", "noise_laplace_sdq"])
def test_large_updates_pass_one_after_another_to_the_same_end(name, monkeypatch):
    """Above the threshold only local training is under the vmap."""
    _, at_once, knobs = make(name, per_chunk=3)
    monkeypatch.setattr(spread, "STREAMING_THRESHOLD", 1)
    _, streamed, _ = make(name, per_chunk=3)
    fed = federation()
    fed = fed._replace(knobs=fed.knobs._replace(**knobs))
    memory = jnp.ones((CLIENTS, SIZE))
    found = [jax.jit(run)(start(memory=memory), fed) for run in (at_once, streamed)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_server_optimizer_and_several_rounds():
    server = optax.sgd(0.5, momentum=0.9)
    _, run, _ = make("identity", server=server)
    state, fed = start(server), federation()
    velocity, expected = 0, np.asarray(state.params["w"])
    for _ in range(3):
        before = state
        state, _ = jax.jit(run)(state, fed)
        updates, scales = [], []
        for k in range(CLIENTS):
            key, _ = client_keys(fed, before.round, k)
            update, _, scale = local_update(
                before.params, None, fed.rows[k], fed.counts[k], fed.steps[k], key
            )
            scales.append(scale)
            updates.append(update * min(1, 2 / np.linalg.norm(update)))
        velocity = 0.9 * velocity + np.mean(updates, 0) * np.mean(scales)
        expected = expected + 0.5 * velocity
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_chunk", [1, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_invalid_update_stops_before_it_is_averaged(per_chunk, poison):
    def poisoned(params, data, row, count, steps, key):
        update, loss, scale = local_update(params, data, row, count, steps, key)
        late = jnp.abs(params["w"] - start().params["w"]).max() > 1e-3  # from the second round on
        return jnp.where(late & (row[0] >= 4) & (jnp.arange(SIZE) == 3), poison, update), loss, scale

    _, run, _ = make(per_chunk=per_chunk, local_update=as_local_update(poisoned))
    block = jax.jit(evaluation.make_block(run, lambda model, *_: model.params["w"].sum(), length=5))
    state, metrics, total = block(start(), federation(), None, None, 5)
    assert int(state.invalid_client) == 4 and int(state.round) == 1
    good, _ = jax.jit(make(per_chunk=per_chunk)[1])(start(), federation())
    np.testing.assert_allclose(state.params["w"], good.params["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics.ran, [1, 0, 0, 0, 0])
    assert np.isfinite(total)
    again, _, _ = block(state, federation(), None, None, 5)  # stays stopped
    assert int(again.round) == 1


def test_a_block_stops_at_the_last_round_without_compiling_again():
    _, run, _ = make()
    block = jax.jit(evaluation.make_block(run, lambda model, *_: model.params["w"].sum(), length=4))
    state, metrics, _ = block(start(), federation(), None, None, jnp.int32(6))
    assert int(state.round) == 4
    state, metrics, _ = block(state, federation(), None, None, jnp.int32(6))
    assert int(state.round) == 6
    np.testing.assert_array_equal(metrics.ran, [1, 1, 0, 0])
    assert block._cache_size() == 1


def test_participation_is_a_uniform_subset():
    chosen = jax.vmap(lambda k: participation.choose(k, 10, 3))(jax.random.split(jax.random.key(0), 4000))
    assert (np.diff(chosen, axis=1) > 0).all()
    share = np.bincount(np.asarray(chosen).ravel(), minlength=10) / 4000
    np.testing.assert_allclose(share, 0.3, atol=5 * np.sqrt(0.21 / 4000))  # false alarm 6e-6
    np.testing.assert_array_equal(participation.choose(jax.random.key(0), 4, 4), np.arange(4))


def test_no_key_is_used_twice():
    """Over rounds, clients and purposes, also where all seeds are equal, and one step further down:
    the steps of a chain fold small numbers into their keys."""
    fed = federation()._replace(training_key=jax.random.key(0), shared_key=shared_key(0))
    keys = [client_keys(fed, r, k) for r in range(8) for k in range(8)]
    ends = [key for train, ks in keys for key in (train, *ks)]
    below = [jax.random.fold_in(key, i) for key in ends for i in range(4)]
    words = np.array([jax.random.key_data(key) for key in ends + below])
    assert len(np.unique(words, axis=0)) == len(words)


def two_classes():
    """A task whose logits are x and -x."""
    net = Network(lambda key: Model({}), lambda model, x, key: (jnp.stack([x, -x], 1), None))
    return classification(net, inputs="x", labels="label")


def test_evaluation_counts_every_example_once():
    test = HeldOut(
        {"x": jnp.array([-1.0, 1, 1, -1, 1]), "label": jnp.array([0, 0, 1, 1, 0])},
        {},
    )
    for batch_size in (1, 2, 5, 100):
        task = two_classes()
        found = evaluation.make_evaluate(task, batch_size)(Model({}), test, None, None)
        metrics = task.summarize(found.test, 5.0)
        assert metrics["accuracy"] == pytest.approx(3 / 5)
        expected = (3 * np.log1p(np.exp(-2)) + 2 * np.log1p(np.exp(2))) / 5
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_by_clients_is_each_client_s_own(batch_size):
    examples = {"x": jnp.array([-1.0, 1, 1, -1, 1]), "label": jnp.array([0, 0, 1, 1, 0])}
    arrays = federation()._replace(
        examples=examples, rows=jnp.array([[0, 1, 4], [2, 2, 2], [3, 2, 3]]), counts=jnp.array([3, 1, 2])
    )
    task = two_classes()
    right = np.array([0, 1, 0, 1, 1.0])
    found = evaluation.make_evaluate(task, batch_size, "train")(
        Model({}), HeldOut(examples, {}), arrays, None
    )
    np.testing.assert_array_equal(found.counts, [3, 1, 2])
    np.testing.assert_allclose(
        found.clients["accuracy"], [right[[0, 1, 4]].sum(), right[2], right[[3, 2]].sum()]
    )
    owners = jnp.array([2, 2, 0, 3, 0])  # 3: of nobody here
    found = evaluation.make_evaluate(task, batch_size, "test")(
        Model({}), HeldOut(examples, {}), arrays, owners
    )
    np.testing.assert_array_equal(found.counts, [2, 0, 2])
    np.testing.assert_allclose(found.clients["accuracy"], [right[[2, 4]].sum(), 0, right[[0, 1]].sum()])
    np.testing.assert_allclose(found.test["accuracy"], right.sum())
