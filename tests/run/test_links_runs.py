"""Runs with a compressed downlink and a deadline: continued to the bit, in a sweep, and timed afterwards."""

import json

import numpy as np
import pytest

from cepam_jax.errors import CheckpointMismatchError, ConfigError
from cepam_jax.federated import links
from cepam_jax.run import links_kept, traffic, training
from cepam_jax.run.metrics import read_lines
from configs import digits
from experiments import links as afterwards
from experiments.figures import links as figure

pytestmark = [pytest.mark.compiled_fast(mlir=True), pytest.mark.slow]  # sweeps are their runs to the bit

TIMES = ("seconds", "seconds_per_round")


def config_of(**changes):
    """Six of ten clients, bytes, a small model whose broadcast is rounded; a deadline that some miss."""
    config = digits.get_config("cepam_gaussian")
    fields = {
        "model": "linear",
        "rounds": 6,
        "eval_every": 2,
        "clients_per_round": 6,
        "wire": True,
        "downlink.name": "rounding",
        "downlink.start": "seed",
        "links.name": "arrays",
        "links.up": tuple(1000.0 * (k + 1) for k in range(10)),
        "links.down": (1e5,) * 10,
        "links.ends": "deadline",
        "links.deadline": 0.5,
    }
    config.update_from_flattened_dict(fields | changes)
    return config


def timeless(lines):
    return [{name: v for name, v in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("links") / "whole"
    return place, training.train(config_of(), place, progress=False)


def test_a_run_says_what_was_sent_and_who_was_late(whole):
    place, lines = whole
    for line in lines[1:]:
        sent = line["messages"]
        up, down = (traffic.lengthened(sent[name], 2, 6) for name in ("up", "down"))
        assert np.shape(sent["clients"]) == (2, 6)
        assert line["uplink_bytes"] * 8 == up.sum() and line["downlink_bytes"] * 8 == down.sum()
        assert 0 < line["downlink_bits"] < line["downlink_bytes"] * 8
        rates = 1000.0 * (np.array(sent["clients"]) + 1)
        late = up / rates + down / 1e5 > 0.5
        assert line["late_per_round"] == late.sum() / 2 and 0 < line["link_seconds"] <= 1
    assert lines[1]["messages"]["down"][0] == 0  # in round 0 all have the model of the seed
    assert sum(line["late_per_round"] for line in lines[1:]) > 0
    text = (place / "privacy.txt").read_text()
    assert "the broadcast goes through a quantizer" in text and "(post-processing)" in text
    assert "released_model: no guarantee (a round ends before all messages have arrived" in text


def test_a_run_that_was_stopped_continues_to_the_bit(whole, tmp_path):
    training.train(config_of(rounds=4), tmp_path, progress=False)
    found = training.train(config_of(), tmp_path, progress=False)
    assert timeless(found) == timeless(whole[1])
    assert timeless(read_lines(tmp_path / "metrics.jsonl")) == timeless(found)


def test_a_sweep_over_seeds_and_rates_is_its_runs_one_by_one(whole, tmp_path):
    configs = [config_of(), config_of(**{"seeds.training": 5, "links.deadline": 0.3})]
    places = [tmp_path / str(number) for number in range(2)]
    first, second = training.train_many(configs, places, progress=False)
    assert timeless(first) == timeless(whole[1])
    assert second[-1]["loss"] != first[-1]["loss"]


def test_links_of_a_file_are_kept_and_must_not_change(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("up,down\n" + "1000,1e5\n" * 10)
    config = config_of(**{"links.name": "file", "links.file": str(path), "links.up": (), "links.down": ()})
    assert links_kept.text_of(config_of()) == ""
    links_kept.write(links_kept.check(config, tmp_path / "run"), tmp_path)
    kept = (tmp_path / "links.csv").read_text()
    config.links.file = str(tmp_path / "links.csv")
    assert links_kept.check(config, tmp_path) == kept  # a copy gives the same links
    other = tmp_path / "other.csv"
    other.write_text("up,down\n" + "1001,1e5\n" * 10)
    config.links.file = str(other)
    with pytest.raises(CheckpointMismatchError, match="holds a run on other links than"):
        links_kept.check(config, tmp_path)


def test_times_afterwards_are_those_of_the_formula(whole):
    lines = whole[1]
    rounds = afterwards.rounds_of(lines, 10, 6)
    assert rounds.up.shape == (6, 6)
    radio = afterwards.links_of("radio10k", 10, 0, latency=0.1, compute=2.0)
    expected = np.cumsum((2.2 + (rounds.up + rounds.down) / 1e4).max(1))
    np.testing.assert_allclose(afterwards.clock(lines, radio, 10, 6), [0, *expected[1::2]], rtol=1e-6)
    times = np.array([0.0, 1.0, 2.0, 3.0])
    best = max(line["accuracy"] for line in lines)
    assert afterwards.seconds_to(best, lines, times) == [line["accuracy"] for line in lines].index(best)
    assert afterwards.seconds_to(1.01, lines, times) == np.inf
    older = [{k: v for k, v in line.items() if k != "messages"} for line in lines]
    with pytest.raises(ConfigError, match="round 2 in metrics.jsonl has no 'messages' with the bits 'up'"):
        afterwards.rounds_of(older, 10, 6)
    broken = json.loads(json.dumps(lines))
    broken[1]["messages"]["up"] = [[1, 2], [3, 4]]
    with pytest.raises(ConfigError, match="not those of 2 rounds with 6 of 10 clients"):
        afterwards.rounds_of(broken, 10, 6)
    with pytest.raises(ConfigError, match="--links is '2g'; it must be one of '?3g"):
        afterwards.links_of("2g", 10, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.0123 s"), (90.0, "1.5 min"), (7200.0, "2 h"), (1e6, "11.6 d")]
)
def test_durations_are_easy_to_read(seconds, text):
    assert afterwards.duration(seconds) == text


def test_the_largest_model_is_the_one_whose_rounds_take_that_long():
    """The closed form, against times of messages that are all alike."""
    d, rounds = 1000, 7
    lines = [{"round": 0}, {"round": rounds, "messages": {"up": 4 * d, "down": 2 * d}}]
    known = afterwards.links_of("radio100k", 3, 0, 0.0, 0.0)
    (_, seconds) = afterwards.clock(lines, known, 3, 0)
    rates = links.Links(1e5, 1e5)
    assert figure.largest_model(seconds, rounds, 4.0, 2.0, rates) == pytest.approx(d, rel=1e-6)
    assert figure.largest_model(seconds, rounds, 4.0, 0.0, rates) == pytest.approx(1.5 * d, rel=1e-6)
