"""How long messages take, who is late, and what a round makes of those who are not."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.test_rounds import CLIENTS, SIZE, as_local_update, federation, local_update, make, start

from cepam_jax.errors import ConfigError
from cepam_jax.federated import aggregation, links
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.federated.aggregation.guarded import guarded
from cepam_jax.federated.attacks import ATTACKS
from cepam_jax.federated.links import Links
from cepam_jax.federated.state import client_keys
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import traffic
from cepam_jax.run.config import validate
from configs import digits

pytestmark = pytest.mark.compiled_fast

# Client k needs about k + 1 seconds for messages of 32 bits a number, down at once.
UP = 32.0 * SIZE / np.arange(1, CLIENTS + 1)
GIVEN = Links(up=UP, down=1e12, latency=0.25)


def one_weight(params, data, row, count, steps, key):
    """The update of other tests of rounds, without weights of steps."""
    update, loss, _ = local_update(params, data, row, count, steps, key)
    return update, loss, jnp.float32(1)


SERVER = optax.sgd(1.0, momentum=0.9)


@functools.cache
def compiled(ends, aggregator, per_chunk):
    """The round, for any links."""
    rule = guarded(AGGREGATORS[aggregator], ends == "quorum", True)
    local = as_local_update(one_weight)
    changes = {"per_chunk": per_chunk, "server": SERVER, "local_update": local}
    return jax.jit(make("identity", aggregator=rule, ends=ends, **changes)[1])


def run(state, ends="deadline", aggregator="examples", deadline=math.inf, quorum=1.0, per_chunk=1):
    """One round of clients of which some are late; (state, report)."""
    known = links.checked(GIVEN._replace(deadline=deadline, quorum=quorum), CLIENTS, CLIENTS)
    return compiled(ends, aggregator, per_chunk)(state, federation(COUNTS)._replace(links=known))


COUNTS = np.arange(1, CLIENTS + 1)


def updates():
    """f32[CLIENTS, SIZE], what each of them sends in the first round."""
    fed, found = federation(COUNTS), []
    mechanism, _, _ = make("identity")
    for k in range(CLIENTS):
        key, _ = client_keys(fed, 0, k)
        update, _, _ = local_update(start().params, None, fed.rows[k], fed.counts[k], fed.steps[k], key)
        found.append(mechanism.reference(update, Knobs(clip=2.0)))
    return np.stack(found)


def test_seconds_are_those_of_the_formula():
    given = Links(up=np.array([10.0, 1e4]), down=20.0, latency=0.5, compute=np.array([0.0, 3.0]))
    found = links.seconds(given, np.array([100.0, 5.0]), 40.0)
    np.testing.assert_allclose(found, [0.5 + 2 + 0 + 0.5 + 10, 0.5 + 2 + 3 + 0.5 + 5e-4])


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_who_misses_the_deadline_is_left_out_and_weights_are_those_of_the_others(per_chunk):
    state, report = run(start(SERVER), deadline=3.6, per_chunk=per_chunk)
    each = report.participants
    np.testing.assert_allclose(each.seconds, 0.5 + np.arange(1, CLIENTS + 1), rtol=1e-4)
    np.testing.assert_array_equal(each.late, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(each.weight, [1, 2, 3, 0, 0, 0, 0])
    expected = np.average(updates()[:3], axis=0, weights=COUNTS[:3])
    np.testing.assert_allclose(state.params["w"] - start().params["w"], expected, rtol=1e-4, atol=1e-5)
    assert report.ran and int(state.round) == 1


@pytest.mark.parametrize(("aggregator", "expected"), [("examples", "mean"), ("median", "median")])
def test_a_quorum_ends_the_round_with_its_last_member(aggregator, expected):
    """Four of seven: rounded up from a share of one half."""
    state, report = run(start(SERVER), "quorum", aggregator, quorum=0.5)
    np.testing.assert_array_equal(report.participants.late, [0, 0, 0, 0, 1, 1, 1])
    four = updates()[:4]
    mean = np.average(four, axis=0, weights=COUNTS[:4])
    found = state.params["w"] - start().params["w"]
    np.testing.assert_allclose(
        found, mean if expected == "mean" else np.median(four, axis=0), rtol=1e-4, atol=1e-5
    )
    _, both = run(start(SERVER), "quorum", aggregator, deadline=2.6, quorum=0.5)
    np.testing.assert_array_equal(both.participants.late, [0, 0, 1, 1, 1, 1, 1])


def test_without_an_end_nobody_is_late_and_seconds_are_told():
    _, one, _ = make("identity")
    fed = federation()._replace(links=links.checked(GIVEN, CLIENTS, CLIENTS))
    _, report = jax.jit(one)(start(), fed)
    assert report.participants.late is None
    np.testing.assert_allclose(report.participants.seconds, 0.5 + np.arange(1, CLIENTS + 1), rtol=1e-4)


@pytest.mark.parametrize(("ends", "aggregator"), [("deadline", "examples"), ("quorum", "median")])
def test_a_round_in_which_nobody_is_in_time_changes_nothing(ends, aggregator):
    """Not even by the server's momentum."""
    quorum = 0.5 if ends == "quorum" else 1.0
    before = start(SERVER)
    before = before._replace(server=jax.tree.map(jnp.ones_like, before.server))
    state, report = run(before, ends, aggregator, deadline=0.6, quorum=quorum)
    assert report.ran and int(state.round) == 1
    assert (np.asarray(report.participants.late) == 1).all()
    for name in ("params", "server"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))


def test_what_was_late_stays_in_the_memory_whole():
    memory = jnp.ones((CLIENTS, SIZE))
    state, _ = run(start(SERVER, memory), deadline=3.6)
    whole, _ = run(start(SERVER, memory), deadline=99.0)
    np.testing.assert_array_equal(state.memory[:3], whole.memory[:3])
    sent = np.asarray(state.memory[3:] - whole.memory[3:])  # what arrived in the other world
    assert (np.linalg.norm(sent, axis=1) > 1).all() and (
        np.linalg.norm(sent, axis=1) < 2.01
    ).all()  # the clip


REFUSED = [
    ({"attack": ATTACKS["sign_flip"]}, "how long the messages are that liars craft"),
    (
        {"aggregator": AGGREGATORS["median"]._replace(leaves_out=False)},
        "does not say that it leaves them out",
    ),
    ({"ends": "quorum"}, "adds up updates before it is known"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_parts_that_do_not_bear_late_participants_are_named(changes, message):
    changes = {"ends": "deadline", **changes}
    if "attack" in changes:
        changes["aggregator"] = guarded(AGGREGATORS["mean"], True)
    with pytest.raises(ConfigError, match=message):
        make("identity", **changes)


def test_phones_are_drawn_from_the_law_that_was_measured():
    """Of 20,000 draws each statistic is within five deviations but for one seed in 300,000."""
    n = 20_000
    found = links.phones(n, 3)
    up, down = np.log(found.up / 8000), np.log(found.down / 8000)
    for logs, median, deviation in ((up, 3286, 0.68), (down, 4318, 0.47)):
        assert abs(np.median(logs) - math.log(median)) < 5 * 1.2533 * deviation / math.sqrt(n)
        assert abs(logs.std() - deviation) < 5 * deviation / math.sqrt(2 * n)
    assert abs(np.corrcoef(up, down)[0, 1] - 0.45) < 5 * (1 - 0.45**2) / math.sqrt(n)
    np.testing.assert_array_equal(found.up, links.phones(n, 3).up)
    assert (found.up != links.phones(n, 4).up).all()
    swapped = np.abs(np.median(up) - math.log(4318))  # a twin with the columns exchanged is told apart
    assert swapped > 5 * 1.2533 * 0.68 / math.sqrt(n)


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"num_clients": 3, **fields})
    return config


ARRAYS = {"links.name": "arrays", "links.up": (1.0, 2.0, 3.0), "links.down": (4.0, 5.0, 6.0)}


def test_links_come_from_arrays_presets_and_files(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("up, down,latency\n1,4,0.5\n2,5,0.5\n3,6,0.5\n")
    of_file = config_of(**{"links.name": "file", "links.file": str(path), "links.compute": (7.0, 8.0, 9.0)})
    of_arrays = config_of(**ARRAYS, **{"links.ends": "quorum", "links.quorum": 0.5, "links.deadline": 9.0})
    for config in (of_file, of_arrays):
        validate(config)
        found = links.of_config(config)
        np.testing.assert_array_equal(found.up, [1, 2, 3])
        np.testing.assert_array_equal(found.down, [4, 5, 6])
    assert links.of_config(of_arrays).quorum == 2 and links.of_config(of_arrays).deadline == 9
    assert links.of_config(of_file).latency[1] == 0.5 and links.of_config(of_file).compute[2] == 9
    assert links.of_config(config_of(**{"links.name": "radio10k"})).up[2] == 1e4
    assert links.of_config(config_of()) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("up,speed\n1,2\n1,2\n1,2\n", "it must have up and down"),
        ("", "it must have up and down"),
        ("up,down\n1,2\n", "number of lines"),
        ("up,down\n1,2\n1,x\n1,2\n", "no number"),
        ("up,down\n1,2\n1\n1,2\n", "no number"),
        ("up,down\n1,2\n1,0\n1,2\n", "links.down is \\[0.0\\]; it must be a positive number"),
        ("up,down\n1,2\n1,nan\n1,2\n", "links.down is \\[nan\\]; it must be a positive number"),
    ],
)
def test_a_file_that_holds_no_links_is_refused(tmp_path, text, message):
    path = tmp_path / "links.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        links.of_config(config_of(**{"links.name": "file", "links.file": str(path)}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"links.ends": "deadline", "links.deadline": 1.0}, "links.ends is 'deadline'; it must be 'slowest'"),
        ({"links.up": (1.0, 2.0, 3.0)}, "links.up is (1.0, 2.0, 3.0); it must be empty without"),
        (
            {"links.name": "arrays"},
            "links.up is (); it must be one number for each of config.num_clients = 3",
        ),
        (ARRAYS | {"links.latency": (1.0,)}, "links.latency is (1.0,); it must be one number for each"),
        (ARRAYS | {"links.ends": "deadline"}, "links.deadline is 0.0; it must be positive where"),
        (ARRAYS | {"links.deadline": 1.0}, "links.deadline is 1.0; it must be positive where"),
        (ARRAYS | {"links.ends": "quorum"}, "links.quorum is 1.0; it must be below 1 where"),
        (ARRAYS | {"links.quorum": 0.5}, "links.quorum is 0.5; it must be below 1 where"),
        ({"links.name": "3g", "links.file": "x"}, "links.file is 'x'; it must be the path"),
        (
            ARRAYS | {"links.ends": "quorum", "links.quorum": 0.5, "mechanism.error_feedback": True},
            "mechanism.error_feedback is True; it must be False where a quorum",
        ),
        (
            ARRAYS | {"links.ends": "deadline", "links.deadline": 1.0, "local.normalize": True},
            "local.normalize is True; it must be False where participants may be late",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ConfigError) as error:
        validate(config_of(**fields))
    assert message in str(error.value)


@pytest.mark.parametrize("aggregator", ["precision", "inverse_error"])
def test_weights_by_noise_or_errors_are_refused_where_some_are_late(aggregator):
    config = config_of(
        **ARRAYS, **{"links.ends": "deadline", "links.deadline": 1.0, "aggregator": aggregator}
    )
    with pytest.raises(ConfigError, match="participants that may be late"):
        aggregation.of_config(config)


@pytest.mark.parametrize("numbers", [np.full((2, 3), 5), [[1, 1, 1], [2, 2, 2]], [[1, 2, 3], [4, 4, 4]]])
def test_lengths_are_kept_as_few_numbers_as_they_are(numbers):
    found = traffic.shortened(np.array(numbers))
    np.testing.assert_array_equal(traffic.lengthened(found, 2, 3), numbers)
    with pytest.raises(ValueError):
        traffic.lengthened([[1, 2], [3, 4]], 2, 3)


def test_a_line_says_how_long_rounds_took_and_who_was_late():
    config = config_of(**ARRAYS, **{"links.ends": "deadline", "links.deadline": 4.0})
    late = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1]])
    seconds = np.array([[1.0, 2.0, 3.5], [1.0, 5.0, 6.0], [9.0, 8.0, 7.0]])
    each = {"seconds": seconds, "late": late}
    assert traffic._of_links(config, each) == {
        "link_seconds": 3.5 + 4 + 4,
        "late_per_round": 5 / 3,
        "rounds_without_arrivals": 1,
    }
    config.links.ends, config.links.quorum = "quorum", 1 / 3
    late = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 1]])
    assert traffic._of_links(config, {"seconds": seconds, "late": late})["link_seconds"] == 1 + 1 + 4
    assert traffic._of_links(config, {"seconds": seconds}) == {"link_seconds": 3.5 + 6 + 9}
