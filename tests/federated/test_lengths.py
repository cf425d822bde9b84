"""Rounds that do not count the lengths of messages: what is left of a run, and who needs every round."""

import jax
import numpy as np
import pytest

from cepam_jax import errors
from cepam_jax.federated import lengths
from cepam_jax.federated.state import Report, RoundReport
from cepam_jax.run import finished, training
from cepam_jax.run.config import validate
from cepam_jax.run.lines import summarize
from configs import digits

pytestmark = pytest.mark.compiled_fast

TIMES = {"seconds", "seconds_per_round"}
TOLD = {"bits_per_coordinate", "uplink_bits", "uplink_bits_estimate", "messages_counted", "messages"}
CLIENTS = 4


def config_of(bits, **changes):
    config = digits.get_config("cepam_gaussian")
    config.rounds, config.eval_every, config.local.steps, config.num_clients = 5, 3, 2, CLIENTS
    config.model, config.metrics.bits = "linear", bits
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Schedule -> (lines of metrics.jsonl, work directory) of one run of three rounds and two more."""
    found = {}
    for bits in lengths.SCHEDULES:
        workdir = tmp_path_factory.mktemp(bits)
        found[bits] = training.train(config_of(bits), workdir, progress=False), workdir
    return found


def test_the_model_is_the_same_to_the_bit_and_so_is_the_rest_of_each_line(runs):
    every, workdir = runs["every_round"]
    model = jax.tree.leaves(finished.load(workdir).model)
    for bits in ("at_evaluation", "never"):
        lines, workdir = runs[bits]
        for a, b in zip(model, jax.tree.leaves(finished.load(workdir).model), strict=True):
            np.testing.assert_array_equal(a, b)
        for line, counted in zip(lines, every, strict=True):
            assert line.keys() - TOLD == counted.keys() - TOLD
            for name in line.keys() - TOLD - TIMES:
                if isinstance(line[name], float):
                    assert line[name] == pytest.approx(counted[name], rel=1e-6), name
                else:
                    assert line[name] == counted[name], name


def test_the_last_round_before_an_evaluation_is_counted_and_the_total_is_called_an_estimate(runs):
    every, some = runs["every_round"][0][1:], runs["at_evaluation"][0][1:]
    for whole, line, rounds in zip(every, some, (3, 2), strict=True):
        coordinates = whole["uplink_bits"] / whole["bits_per_coordinate"] / CLIENTS / rounds
        of_rounds = [np.mean(row) for row in whole["messages"]["up"]]  # rounded up, each
        mean = line["bits_per_coordinate"] * coordinates
        assert of_rounds[-1] - 1.01 <= mean <= of_rounds[-1] + 0.01
        assert all(abs(mean - other) > 2 for other in of_rounds[:-1])  # the test can tell rounds apart
        assert line["uplink_bits_estimate"] == pytest.approx(mean * CLIENTS * rounds, rel=1e-6)
        assert line["messages_counted"] == CLIENTS
        assert not line.keys() & {"uplink_bits", "messages"}


def test_a_run_that_never_counts_says_nothing_of_bits(runs):
    for line in runs["never"][0]:
        assert not line.keys() & TOLD


def test_totals_are_exact_where_all_rounds_that_ran_were_counted():
    """Blocks of one round; and the last round of a run that is alone in its block."""
    each = dict.fromkeys(Report._fields[:11], np.ones((3, CLIENTS), np.float32))
    each["bits"] = np.array([[7, 9, 7, 9], [np.nan] * CLIENTS, [1, 1, 1, 1]], np.float32)
    report = RoundReport(np.array([True, False, False]), Report(**each), None, None)
    counted = report._replace(counted=np.array([True, False, True]))
    whole, line = (summarize(one, 10, 1.0) for one in (report, counted))
    assert line == whole and line["uplink_bits"] == 32 and line["bits_per_coordinate"] == 0.8
    longer = summarize(counted._replace(ran=np.array([True, True, False])), 10, 1.0)
    assert longer["uplink_bits_estimate"] == 64 and longer["messages_counted"] == CLIENTS
    assert "uplink_bits" not in longer and longer["bits_per_coordinate"] == 0.8


@pytest.mark.parametrize(
    "changes",
    [
        {"wire": True},
        {"links.name": "phones"},
        {"control": "greedy", "filter.bits": 0.5, "filter.rounds": 1000.0, "mechanism.gamma": 1.0},
        {"needs.bits": (1e5,) * CLIENTS},
        {"needs.rate": (1e5,) * CLIENTS, "needs.deadline": (1.0,) * CLIENTS},
        {"needs.profiles": "short: bits 1e5", "needs.clients": f"{CLIENTS} short"},
    ],
)
def test_who_needs_the_lengths_of_all_messages_refuses_a_schedule_by_name(changes):
    for bits in ("at_evaluation", "never"):
        with pytest.raises(errors.ConfigError, match="config.metrics.bits is .* must be 'every_round' w"):
            validate(config_of(bits, **changes))


def test_an_epsilon_alone_asks_for_no_lengths():
    changes = {"needs.profiles": "shy: epsilon 8", "needs.clients": f"{CLIENTS} shy"}
    every, never = (config_of(bits, **changes) for bits in ("every_round", "never"))
    validate(every)
    validate(never)
