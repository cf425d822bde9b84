import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cepam_jax import mechanisms
from cepam_jax.federated import aggregators, clients, participation, rounds
from cepam_jax.mechanisms import Knobs

CLIENTS, SIZE = 7, 50


def federation(counts=None):
    return rounds.Federation(
        data=clients.Images(jnp.zeros((CLIENTS, 1, 1, 1), jnp.uint8), jnp.zeros(CLIENTS, jnp.int32), 0, 1),
        rows=jnp.arange(CLIENTS)[:, None],
        counts=jnp.ones(CLIENTS, jnp.int32) if counts is None else jnp.asarray(counts),
        knobs=Knobs(jnp.geomspace(1e-3, 1, CLIENTS), jnp.full(CLIENTS, 2.0)),
        training_key=jax.random.key(1),
        shared_key=jax.random.key(2),
    )


def local_update(params, data, row, count, key):
    """An update that depends on everything a real one depends on."""
    noise = jax.random.normal(key, (SIZE,))
    return params["w"] * 0.1 + noise * (1 + row[0]) + count, jnp.float32(row[0])


def start(server=None):
    params = {"w": jnp.linspace(-1, 1, SIZE)}
    return rounds.State(params, (server or optax.sgd(1.0)).init(params), jnp.int32(0), jnp.int32(-1))


def make(
    name="lrsuq_gaussian_z1",
    weigh=aggregators.mean,
    server=None,
    per_round=CLIENTS,
    per_chunk=1,
    local=local_update,
):
    mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.make(name))
    return mechanism, rounds.make_round(
        local, mechanism, weigh, server or optax.sgd(1.0), per_round, per_chunk
    )


@pytest.mark.parametrize("weigh", aggregators.AGGREGATORS.values())
@pytest.mark.parametrize("name", mechanisms.REGISTRY)
def test_a_round_is_what_its_pseudocode_says(name, weigh):
    mechanism, run = make(name, weigh)
    fed = federation(np.arange(1, CLIENTS + 1))
    state, metrics = jax.jit(run)(start(), fed)
    total, weight, bits, signal, noise = 0, 0, 0, 0, 0
    for k in range(CLIENTS):
        knobs = Knobs(fed.knobs.sigma[k], fed.knobs.clip[k])
        train_key, keys = rounds.client_keys(fed, 0, k)
        update, _ = local_update(start().params, None, fed.rows[k], fed.counts[k], train_key)
        message = mechanism.encode(keys, update, knobs)
        x_hat = mechanism.decode(keys.shared, message, knobs)
        clipped = update * min(1, 2.0 / np.linalg.norm(update))
        total, weight = total + weigh(fed.counts)[k] * x_hat, weight + weigh(fed.counts)[k]
        bits += mechanism.bits(keys.shared, message, knobs)
        signal, noise = signal + np.square(clipped).sum(), noise + np.square(x_hat - clipped).sum()
    np.testing.assert_allclose(state.params["w"], start().params["w"] + total / weight, rtol=1e-4, atol=1e-5)
    assert float(metrics.bits) == pytest.approx(float(bits), rel=1e-4)
    assert float(metrics.signal) == pytest.approx(signal, rel=1e-4)
    assert float(metrics.noise) == pytest.approx(noise, rel=1e-3, abs=1e-8)
    assert float(metrics.train_loss) == pytest.approx(np.mean(np.arange(CLIENTS)))
    assert float(metrics.clipped_norm) == pytest.approx(2.0, rel=1e-4)
    assert int(state.round) == 1 and float(metrics.ran) == pytest.approx(1)


@pytest.mark.parametrize("per_round", [CLIENTS, 5])
@pytest.mark.parametrize("per_chunk", [2, 3, 5])
def test_chunks_change_nothing_but_rounding(per_chunk, per_round):
    _, one = make(per_round=per_round)
    _, chunked = make(per_round=per_round, per_chunk=per_chunk)
    alone, together = (jax.jit(run)(start(), federation()) for run in (one, chunked))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_server_optimizer_and_several_rounds():
    server = optax.sgd(0.5, momentum=0.9)
    _, run = make("identity", server=server)
    state, fed = start(server), federation()
    velocity, expected = 0, np.asarray(state.params["w"])
    for _ in range(3):
        before = state
        state, _ = jax.jit(run)(state, fed)
        updates = []
        for k in range(CLIENTS):
            key, _ = rounds.client_keys(fed, before.round, k)
            update = np.asarray(local_update(before.params, None, fed.rows[k], fed.counts[k], key)[0])
            updates.append(update * min(1, 2 / np.linalg.norm(update)))
        velocity = 0.9 * velocity + np.mean(updates, 0)
        expected = expected + 0.5 * velocity
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_chunk", [1, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_invalid_update_stops_before_it_is_averaged(per_chunk, poison):
    def poisoned(params, data, row, count, key):
        update, loss = local_update(params, data, row, count, key)
        late = jnp.abs(params["w"] - start().params["w"]).max() > 1e-3  # from the second round on
        return jnp.where(late & (row[0] >= 4) & (jnp.arange(SIZE) == 3), poison, update), loss

    _, run = make(per_chunk=per_chunk, local=poisoned)
    block = rounds.make_block(run, lambda params, test: params["w"].sum(), length=5)
    state, metrics, total = block(start(), federation(), None, 5)
    assert int(state.invalid_client) == 4 and int(state.round) == 1
    good, _ = run(start(), federation())
    np.testing.assert_allclose(state.params["w"], good.params["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.ran, [1, 0, 0, 0, 0], rtol=1e-5)
    assert np.isfinite(total)
    again, _, _ = block(state, federation(), None, 5)  # stays stopped
    assert int(again.round) == 1


def test_a_block_stops_at_the_last_round_without_compiling_again():
    _, run = make()
    block = rounds.make_block(run, lambda params, test: params["w"].sum(), length=4)
    state, metrics, _ = block(start(), federation(), None, jnp.int32(6))
    assert int(state.round) == 4
    state, metrics, _ = block(state, federation(), None, jnp.int32(6))
    assert int(state.round) == 6
    np.testing.assert_allclose(metrics.ran, [1, 1, 0, 0], rtol=1e-5)
    assert block._cache_size() == 1


def test_participation_is_a_uniform_subset():
    chosen = jax.vmap(lambda k: participation.choose(k, 10, 3))(jax.random.split(jax.random.key(0), 4000))
    assert (np.diff(chosen, axis=1) > 0).all()
    share = np.bincount(np.asarray(chosen).ravel(), minlength=10) / 4000
    np.testing.assert_allclose(share, 0.3, atol=5 * np.sqrt(0.21 / 4000))  # false alarm 6e-6
    np.testing.assert_array_equal(participation.choose(jax.random.key(0), 4, 4), np.arange(4))


def test_no_key_is_used_twice():
    fed = federation()
    keys = [rounds.client_keys(fed, r, k) for r in range(20) for k in range(20)]
    words = np.array([jax.random.key_data(key) for train, ks in keys for key in (train, *ks)])
    assert len(np.unique(words, axis=0)) == len(words)


def test_evaluation_counts_every_image_once():
    module = lambda: None  # noqa: E731
    module.apply = lambda variables, images: jnp.stack([images[:, 0, 0, 0], -images[:, 0, 0, 0]], 1)
    test = clients.Images(
        jnp.array([0, 255, 255, 0, 255], jnp.uint8)[:, None, None, None],
        jnp.array([0, 0, 1, 1, 0]),
        jnp.array([0.5]),
        jnp.array([0.5]),
    )
    for batch_size in (1, 2, 5, 100):
        loss, accuracy = rounds.make_evaluate(module, batch_size)(None, test)
        assert float(accuracy) == pytest.approx(3 / 5)
        assert float(loss) == pytest.approx(
            (3 * np.log1p(np.exp(-2)) + 2 * np.log1p(np.exp(2))) / 5, rel=1e-5
        )
