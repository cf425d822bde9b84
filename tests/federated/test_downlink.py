"""A compressed broadcast: which memory is right, what clients then hold, and what it costs each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SIZE, federation, make, start

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import compressed, rounds
from cepam_jax.federated.broadcast import behind_at_start, full_model
from cepam_jax.federated.downlink import best_factor
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.run.config import validate
from configs import digits

pytestmark = pytest.mark.compiled_fast

ROUNDS, D = 40, 400


def keys_of(number):
    key = jax.random.key(number)
    return Keys(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))


def models():
    """f32[ROUNDS, D], of a server whose steps grow shorter."""
    steps = jax.random.normal(jax.random.key(7), (ROUNDS, D)) * 0.9 ** jnp.arange(ROUNDS)[:, None]
    return np.cumsum(np.asarray(steps), 0)


def lost(link):
    """Root mean square of what clients lack of the model after the first and after the last message."""
    path = models()

    @jax.jit
    def run(path):
        def step(state, both):
            number, model = both
            received, state, _ = link.send(state, model, keys_of(number), number, False)
            return state, jnp.sqrt(jnp.mean(jnp.square(received - model)))

        return jax.lax.scan(step, link.initialize(path[0] * 0), (jnp.arange(ROUNDS), path))[1]

    found = np.asarray(run(path))
    return found[0], found[-1]


CLIPPED = mechanisms.clipped("deterministic"), Knobs(bits=2.0)
ONE_BIT = mechanisms.k_level(), Knobs(levels=2.0)


def test_error_feedback_of_the_server_is_the_difference_from_what_clients_hold():
    """By induction, see `downlink`: both code the same vector in every round."""
    link, (mechanism, knobs) = compressed(*CLIPPED, fitted=False), CLIPPED
    path = models()
    received = held = link.initialize(path[0] * 0)
    before, error = path[0] * 0, path[0] * 0
    for number, model in enumerate(path[:12]):
        keys = keys_of(number)
        received, held, _ = link.send(held, model, keys, number, False)
        wanted = model - before + error
        change = mechanism.decode(keys.shared, mechanism.encode(keys, wanted, knobs), knobs)
        before, error = model, wanted - change
        np.testing.assert_allclose(received, model - error, rtol=0, atol=2e-4)
    assert np.abs(error).max() > 0.1  # far above that tolerance: much is lost in each round


def test_a_fitted_factor_keeps_what_is_lost_below_the_change_whatever_is_lost():
    """An unbiased quantizer of one bit loses more than it sends: unfitted, its losses grow."""
    first, last = lost(compressed(*ONE_BIT))
    assert last < first
    unfitted = lost(compressed(*ONE_BIT, fitted=False))
    assert not unfitted[1] < 1e6 * unfitted[0]
    both = [lost(compressed(*CLIPPED, fitted=fitted))[1] for fitted in (True, False)]
    assert max(both) < 0.1 * first  # a contraction either way


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_best_factor_is_that_of_least_squares(scale):
    random = np.random.default_rng(0)
    wanted, found = (np.float32(scale * random.normal(size=50)) for _ in range(2))
    best = float(best_factor(wanted, found))
    expected = np.dot(np.float64(wanted), np.float64(found)) / np.dot(np.float64(found), np.float64(found))
    assert best == pytest.approx(expected, rel=1e-4)
    assert float(best_factor(wanted, found * 0)) == 0


def partial(**changes):
    """A federation of which three take part in a round, with one bit each way; its first state."""
    link = compressed(*ONE_BIT)
    _, run, _ = make("identity", downlink=link, per_round=3, **changes)
    plan = rounds.Plan(None, None, None, None, (20, 30), 3, 1, downlink=link, **changes)
    lack = behind_at_start(plan, CLIENTS)
    return jax.jit(run), start()._replace(downlink=link.initialize(start().params["w"]), behind=lack), plan


@pytest.mark.parametrize(("seeded", "wire"), [(False, False), (True, False), (True, True)])
def test_a_client_that_was_absent_pays_for_what_it_missed_or_for_the_model(seeded, wire):
    run, state, plan = partial(seeded=seeded, wire=wire)
    full = full_model(plan)
    assert float(full.bits) == 32 * SIZE and int(full.bytes) == (4 * SIZE + 26) * wire
    lack = np.zeros(CLIENTS) if seeded else np.full(CLIENTS, 32.0 * SIZE)
    lack_bytes = np.zeros(CLIENTS, int)
    shorter = 0
    for number in range(8):
        state, report = run(state, federation())
        one = float(report.downlink_bits)
        assert one == (0 if number == 0 else SIZE + 64 + 32)  # a bit each, the range, the factor
        who = np.asarray(report.participants.client)
        lack = np.minimum(lack + one, 32 * SIZE)
        np.testing.assert_allclose(report.participants.down_bits, lack[who])
        if wire and number:
            sizes = np.asarray(report.participants.down_bytes)
            present = sizes[lack_bytes[who] == 0]
            message = int(present.min()) if present.size else None
            assert message is None or one / 8 <= message <= one / 8 + 30
            assert (sizes <= 4 * SIZE + 26).all()
        shorter += (lack[who] > one).sum()
        lack[who] = 0
        lack_bytes = lack
    assert shorter > 3  # somebody did miss messages


def test_in_round_0_clients_hold_the_model_and_later_what_they_decoded():
    run, state, _ = partial(seeded=True)
    first, _ = run(state, federation())
    np.testing.assert_array_equal(first.downlink, start().params["w"])
    second, _ = run(first, federation())
    assert np.abs(np.asarray(second.downlink) - np.asarray(first.params["w"])).max() > 1e-3
    whole, _ = jax.jit(make("identity", per_round=3)[1])(start(), federation())
    np.testing.assert_allclose(first.params["w"], whole.params["w"], rtol=1e-6)  # the server's own is exact


def test_a_broadcast_that_cannot_be_coded_is_named_and_nothing_is_applied():
    link = compressed(mechanisms.sdq(), Knobs(step=1e-9), fitted=False)
    _, run, _ = make("identity", downlink=link)
    plan = rounds.Plan(None, None, None, None, (20, 30), CLIENTS, 1, downlink=link)
    state = start()._replace(
        round=jnp.int32(1),
        downlink=link.initialize(start().params["w"] + 1),
        behind=behind_at_start(plan, CLIENTS),
    )
    after, report = jax.jit(run)(state, federation())
    assert not report.ran and rounds.failure(after.invalid_client)[1] == rounds.DOWNLINK
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    np.testing.assert_array_equal(after.downlink, state.downlink)


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"downlink.name": "lrsuq"},
            "downlink.name is 'lrsuq'; it must be 'none' or a mechanism without noi",
        ),
        (
            {"downlink.name": "jopeq"},
            "downlink.name is 'jopeq'; it must be 'none' or a mechanism without noi",
        ),
        (
            {"downlink.name": "sdq", "downlink.rate": "sigma"},
            "downlink.rate is 'sigma'; it must be 'step' or",
        ),
        ({"downlink.bits": 9}, "downlink.bits is 9; it must be an integer of at least 1 and at most 8"),
        (
            {"downlink.name": "none", "downlink.start": "seed", "init": "x"},
            "downlink.start is 'seed'; it must",
        ),
        (
            {"downlink.name": "identity", "downlink.rotate": True, "downlink.sparsify": "top_k"},
            "config.downlink.sparsify is 'top_k'; it must be 'mask' or 'none' where config.downlink.rotate",
        ),
        (
            {"downlink.name": "clipped", "downlink.rotate": True},
            "config.downlink.granularity is 'tensor'; it must be 'model' where config.downlink.rotate",
        ),
    ],
)
def test_what_does_not_fit_a_broadcast_is_named(fields, message):
    with pytest.raises(ConfigError) as error:
        validate(config_of(**fields))
    assert message in str(error.value)


@pytest.mark.parametrize("name", mechanisms.registry.CONFIGURABLE)
def test_every_mechanism_is_allowed_or_refused_by_name(name):
    noisy = {"lrsuq", "rotated", "noise", "noise_sdq", "noise_rounding", "jopeq", "split", "secure_sum"}
    config = config_of(**{"downlink.name": name})
    if name not in noisy:
        return validate(config)
    with pytest.raises(ConfigError, match=f"downlink.name is '{name}'"):
        validate(config)
