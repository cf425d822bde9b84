"""Poisson sampling: what a report says where the noise, or what it is multiplied by, tells who came."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import cepam_jax as cepam
from cepam_jax import mechanisms
from cepam_jax.federated import poisson
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import guarantees, precision
from configs import digits

pytestmark = pytest.mark.compiled_fast

X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
DATA = cepam.clients({"inputs": X, "labels": (X[:, 0] > 0).astype(np.int32)}, owners=np.repeat(range(3), 20))
TASK = cepam.tasks.classification(nn.Dense(2), example=X[0])
OWN = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))
COARSE = mechanisms.chain(mechanisms.clip("l2"), mechanisms.sdq())
NEVER, ZERO = "so that it never takes part", "a client's update, or zero in its place"
WEIGHED = "no guarantee (the result is multiplied by the mean step weight of those who came"


def federation(mechanism=OWN, sigma=1.0, **changes):
    """Of three clients, one of whom comes to a round in the mean."""
    knobs = Knobs(sigma=sigma, clip=1.0, step=0.01 if mechanism is COARSE else None)
    usual = {"knobs": knobs, "batch_size": 4, "participants": 1, "participation": "poisson", "seed": 5}
    return cepam.Federation(TASK, DATA, mechanism, **(usual | changes))


def text_of(name="cepam_gaussian", **fields):
    config = digits.get_config(name)
    config.update_from_flattened_dict({"num_clients": 10, "clients_per_round": 5, "rounds": 4, **fields})
    return guarantees.report_text(config, np.full(10, 100), coordinates=1000)


def test_a_client_that_never_comes_takes_its_own_noise_with_it():
    """Decoded updates of a client are not there without it: its own noise hides it from no such world."""
    alone = text_of(**{"participation.sampling": "poisson"})
    assert alone.count("epsilon = ") == 3 and ZERO in alone and NEVER not in alone
    filled = text_of(**{"participation.sampling": "poisson", "server.noise": True})
    assert f"add/remove of decoded_updates: {ZERO}" in filled
    assert (
        f"add/remove of released_model, colluding_clients: a client, or none in its place, {NEVER}" in filled
    )
    assert NEVER not in text_of()


@pytest.mark.parametrize("normalize", [False, True])
def test_step_weights_of_those_who_came_are_no_noise(normalize):
    """Client 0 takes one step, the others fifteen: alone, it would leave a fifteenth of the noise."""
    fields = {"participation.sampling": "poisson", "server.noise": True, "local.normalize": normalize}
    assert (WEIGHED in text_of(**fields)) == normalize
    assert WEIGHED not in text_of(**fields | {"server.noise": False})
    steps = np.array([1, 15, 15]) if normalize else 1
    fed = federation(COARSE, server_noise="gaussian", normalize=normalize, steps=steps)
    fed.step(fed.initialize())
    assert (WEIGHED in fed.privacy()) == normalize


def test_where_all_places_are_taken_nothing_is_filled_up_and_nothing_fails():
    """Rounding left a millionth of the noise to fill up, beside which every update is too large."""
    for sigma in (0.02, 0.01, 1 / 30, 100.0):
        fed = federation(sigma=sigma, server_noise="gaussian", participants=2)
        assert fed.plan.per_round == 3
        state, came = fed.initialize(), []
        for _ in range(6):
            before = state.params
            state, report = fed.step(state)
            came.append(int(report.participants.present.sum()))
            moved = np.concatenate(
                [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (state.params, before)), strict=True)]
            )
            assert np.isfinite(moved).all()
        assert 3 in came and min(came) < 3


def test_the_server_s_own_view_ends_sooner_than_the_error():
    """Of split noise the server knows the dither: what is left ends where a normal number of 32 bits does."""
    share = {"mechanism.name": "split", "mechanism.share": 0.8, "clients_per_round": 0, "rounds": 1}
    text = text_of(**share, **{"mechanism.gamma": 3.0})
    assert "ends at 7.8" in text and "epsilon against server is that of noise without end" in text
    assert "against server is that" not in text_of(**share, **{"mechanism.gamma": 0.1})
    noise = text_of("noise_gaussian", **{"mechanism.gamma": 2.0, "clients_per_round": 0, "rounds": 1})
    assert "the epsilons against colluding_clients and decoded_updates" in noise
    assert "epsilon against server is that of noise without end" in noise
    alone = text_of("noise_gaussian", **{"mechanism.gamma": 2.0, "participation.sampling": "poisson"})
    assert "the epsilons against released_model, colluding_clients and decoded_updates" in alone


def test_blocks_are_counted_for_all_places():
    """More may come than are expected."""
    blocks = [
        int(text.split(" blocks of the run")[0].split("over all ")[1].replace(",", ""))
        for text in (text_of(), text_of(**{"participation.sampling": "poisson"}))
    ]
    assert blocks == [1000 * 4 * 5, 1000 * 4 * poisson.places(10, 5)]


@pytest.mark.parametrize("name", ["split-half", "lrsuq-mine", "rotated-mine", "my-noise+x", "split-Z1"])
def test_names_that_only_look_like_ours_say_nothing(name):
    """They were parsed: another mechanism's range was stated of them, or the report ended with an error."""
    assert precision.drawn_by(OWN.about._replace(name=name)) is None
    fed = federation(OWN._replace(about=OWN.about._replace(name=name)), optimizer=optax.sgd(0.1))
    fed.step(fed.initialize())
    assert "it ends at" not in fed.privacy() and "epsilon = " in fed.privacy()
