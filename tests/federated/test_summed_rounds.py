"""Secure sums in the round: by hand, over chunks, as bytes, with messages that do not arrive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SEGMENTS, SIZE, as_local_update, federation, make, start
from mechanisms.programs import FAST

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import greedy, rounds, summed
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.federated.state import client_keys

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def sums(**arguments):
    return mechanisms.chain(mechanisms.clip("l2"), mechanisms.secure_sum(**arguments))


def fed(**changes):
    found = federation()
    return found._replace(knobs=found.knobs._replace(sigma=jnp.full(CLIENTS, 0.05), **changes))


def update(params, data, row, count, steps, key):
    """Client 3 diverges where the model says so."""
    x = jnp.sin(jnp.arange(SIZE) * (1 + row[0])) * 0.1
    return jnp.where((row[0] == 3) & (params["w"][0] > 5), jnp.nan, x), jnp.float32(row[0]), 1.0


def runner(mechanism, **changes):
    run = make(mechanism=mechanism, local_update=as_local_update(update), **changes)[1]
    return jax.jit(run, compiler_options=FAST)


PLAIN = sums()


@functools.cache
def everything():
    """State and report of a round in which all messages arrive."""
    return runner(PLAIN)(start(), fed())


@functools.cache
def one_message(mechanism):
    """(client, state) -> its symbols and dithers, compiled."""

    def one(k, state):
        arrays = fed()
        knobs = jax.tree.map(lambda a: a[0], arrays.knobs)
        bits, common = mechanism.joint.bits(knobs, CLIENTS, SIZE), summed.common_key(arrays, state)
        _, keys = client_keys(arrays, state.round, k)
        x = update(state.params, None, k[None], None, None, None)[0]
        message = mechanism.joint.encode(keys, common, CLIENTS, bits, x, knobs)
        return message.symbols, mechanism.joint.dithers(keys.shared, SIZE)

    return jax.jit(one, compiler_options=FAST)


def by_hand(mechanism, arrays, state, who):
    """The mean that clients `who` send, from messages one after another."""
    joint = mechanism.joint
    knobs = jax.tree.map(lambda a: a[0], arrays.knobs)
    bits, common = joint.bits(knobs, CLIENTS, SIZE), summed.common_key(arrays, state)
    sent = [one_message(mechanism)(jnp.int32(k), state) for k in who]
    symbols, dithers = (sum(parts) for parts in zip(*sent, strict=True))
    total = joint.decode(common, CLIENTS, jnp.float32(len(who)), symbols, dithers, bits, knobs, SIZE)
    return np.asarray(total) / len(who)


def test_a_round_is_the_sum_of_all_messages():
    """And that is the mean of the updates, but for the noise of a mean; without one client it is not."""
    mechanism, arrays = PLAIN, fed()
    state, report = everything()
    moved = np.asarray(state.params["w"]) - np.asarray(start().params["w"])
    np.testing.assert_allclose(moved, by_hand(mechanism, arrays, start(), range(CLIENTS)), atol=1e-6)
    assert np.abs(moved - by_hand(mechanism, arrays, start(), range(CLIENTS - 1))).max() > 1e-3
    plain = np.mean([update(start().params, None, jnp.array([k]), 0, 0, 0)[0] for k in range(CLIENTS)], 0)
    deviation = 0.05 * (1 + 1 / 27) ** 0.5 / CLIENTS**0.5
    assert 0.6 * deviation < np.std(moved - plain) < 1.5 * deviation
    assert bool(report.opened) and (np.asarray(report.participants.weight) == 1).all()
    bits = float(report.participants.bits[0])
    assert (
        bits
        == SIZE * int(mechanism.joint.bits(jax.tree.map(lambda a: a[0], arrays.knobs), CLIENTS, SIZE)) + 16
    )


@pytest.fixture(scope="module")
def lossy():
    """A mechanism of which some messages are lost, its round, and its results over seven rounds."""
    mechanism = sums(survivors=5, lost=0.25)
    return mechanism, runner(mechanism)


def after(run, number, **changes):
    begin = start()._replace(round=jnp.int32(number), **changes)
    return begin, *run(begin, fed())


def test_messages_that_do_not_arrive_are_not_added_and_small_sums_are_not_opened(lossy):
    """One lost, as many as are borne, and one more; the model then stays as it was to the bit."""
    mechanism, run = lossy
    seen = {}
    for number in range(30):
        before, state, report = after(run, number)
        who = np.flatnonzero(report.participants.weight)
        seen.setdefault(len(who), (before, state, report, who))
    assert {CLIENTS - 1, 5, 4} <= seen.keys()
    for count, (before, state, report, who) in seen.items():
        assert bool(report.ran) and int(state.round) == int(before.round) + 1
        assert bool(report.opened) == (count >= 5)
        if count < 5:
            np.testing.assert_array_equal(state.params["w"], before.params["w"])
        else:
            moved = np.asarray(state.params["w"]) - np.asarray(before.params["w"])
            np.testing.assert_allclose(moved, by_hand(mechanism, fed(), before, who), atol=1e-6)


def test_who_drops_out_depends_on_no_update(lossy):
    _, run = lossy
    weights = [np.asarray(after(run, n)[2].participants.weight) for n in range(60)]
    loud = {"params": {"w": jnp.linspace(-4, 4, SIZE)}}
    again = [np.asarray(after(run, n, **loud)[2].participants.weight) for n in range(60)]
    np.testing.assert_array_equal(weights, again)
    # 420 draws at .75: five deviations. And one draw for each round and client.
    assert abs(np.mean(weights) - 0.75) < 5 * (0.1875 / 420) ** 0.5
    assert len({tuple(w) for w in weights}) > 20


def test_an_update_that_diverged_fails_the_round_unless_it_did_not_arrive(lossy):
    _, run = lossy
    codes = set()
    for number in range(30):
        begin = start()._replace(round=jnp.int32(number))
        begin = begin._replace(params={"w": begin.params["w"].at[0].set(9.0)})
        state, report = run(begin, fed())
        if not report.ran:
            codes.add(rounds.failure(state.invalid_client))
            np.testing.assert_array_equal(state.params["w"], begin.params["w"])
        else:
            assert report.participants.weight[3] == 0
    assert codes == {(3, rounds.LOCAL)}


def test_chunks_and_bytes_change_no_bit():
    expected, _ = everything()
    for changes in ({"per_chunk": 3, "wire": True}, {"per_chunk": CLIENTS}):
        state, report = runner(PLAIN, **changes)(start(), fed())
        np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=0, atol=0)
        assert (np.asarray(report.participants.bytes) > 0).all() == changes.get("wire", False)


def test_knobs_that_differ_are_no_sum():
    """Each client with its own step cannot be decoded: the round fails by name."""
    state, report = runner(sums())(start(), fed(clip=jnp.full(CLIENTS, 2.0).at[2].set(1.0)))
    assert not report.ran and rounds.failure(state.invalid_client)[1] == rounds.MECHANISM


def largest_stacked(run):
    """Size of the largest array that a loop over participants leaves, in arrays of an update's length."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                left = equation.outvars[equation.params["num_carry"] :]
                yield from (v.aval.size for v in left if v.aval.ndim > 1)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
            ):
                closed = getattr(inner, "jaxpr", inner)
                if hasattr(closed, "eqns"):
                    yield from walk(closed)

    return max(walk(jax.make_jaxpr(run)(start(), fed()).jaxpr), default=0)


def test_nothing_of_a_single_client_survives_the_sum():
    """No loop over participants leaves their messages; a median's does."""
    assert largest_stacked(make(mechanism=sums())[1]) < SIZE
    assert largest_stacked(make(aggregator=AGGREGATORS["median"])[1]) >= CLIENTS * SIZE


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aggregator": AGGREGATORS["median"]}, "compares updates"),
        ({"aggregator": AGGREGATORS["krum"]}, "compares updates"),
        ({"aggregator": AGGREGATORS["inverse_error"]}, "weights by error"),
        ({"aggregator": AGGREGATORS["examples"]}, "equal weights"),
        ({"quantize": "weights"}, "not bounded"),
        ({"false_alarm": 0.01}, "cannot be checked"),
        ({"mechanism": mechanisms.secure_sum()}, "clipped in L2"),
        ({"mechanism": mechanisms.chain(mechanisms.clip("l1"), mechanisms.secure_sum())}, "clipped in L2"),
        ({"mechanism": sums(survivors=8)}, "sums of at least 8 messages of 7"),
        ({"mechanism": sums(colluders=7)}, "7 of whom"),
        ({"mechanism": sums(survivors=5, lost=0.1), "control": greedy(rounds=9)}, "no result"),
    ],
)
def test_a_round_that_needs_more_than_a_sum_is_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        make(**{"mechanism": sums(), **changes})


def test_error_feedback_is_refused():
    plan = rounds.Plan(None, sums(), AGGREGATORS["mean"], None, SEGMENTS, CLIENTS, 1)
    with pytest.raises(ConfigError, match="error feedback"):
        rounds.initial_state(plan, None, fed().knobs, CLIENTS, True, 1.0)
