"""What the figure on liars concludes from runs that are made up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits
from experiments import lies
from experiments.figures import byzantine
from experiments.runs import coordinates_of

CHANNEL, LIARS = "gamma 30", 3
CLEAN = np.full(5, 0.9)


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    """--lost=5, as in the figure."""
    monkeypatch.setattr(byzantine, "flags", SimpleNamespace(FLAGS=SimpleNamespace(lost=5.0)))


def row(rule, **lost_by_attack):
    """Accuracies of five seeds under each attack that loses so many points, with a spread of .1."""
    each = 0.001 * np.array([-1, -0.5, 0, 0.5, 1])
    tried = {attack: (CLEAN - points / 100 + each).tolist() for attack, points in lost_by_attack.items()}
    return {"rule": rule, "channel": CHANNEL, "liars": LIARS, "by attack": tried}


def state(*rows, combinations=1):
    return byzantine.state_of(list(rows), CLEAN, CHANNEL, LIARS, combinations)


def test_a_rule_must_bear_every_attack_and_one_rule_is_enough():
    assert state(row("median", a=1, b=2), row("mean", a=1, b=60)) == "kept"
    assert state(row("median", a=1, b=60), row("mean", a=60, b=1)) == "lost"
    assert state(row("median", a=1, b=5), row("mean", a=1, b=60)) == "not decided"
    assert state(row("median", a=1, b=5), row("mean", a=5, b=5)) == "not decided"


def test_an_attack_that_scatters_keeps_a_rule_undecided():
    """Its mean is less than the other's, so it was not looked at."""
    loud = row("median", a=3.0)
    loud["by attack"]["b"] = (CLEAN - np.array([-6.9, 2.9, 12.7, -2.0, 8.0]) / 100).tolist()
    assert np.mean(loud["by attack"]["b"]) > np.mean(loud["by attack"]["a"])
    assert state(loud) == "not decided" and state(row("median", a=3.0)) == "kept"


def test_the_worst_of_many_attacks_is_not_taken_for_one_that_was_named():
    """All five lose five points: whichever looks worst, "lost" is said in less than 5 % of all draws."""
    random, lost, one = np.random.default_rng(0), 0, 0
    for _ in range(1500):
        tried = {attack: (CLEAN - random.normal(0.05, 0.02, 5)).tolist() for attack in "abcde"}
        lost += state({"rule": "mean", "channel": CHANNEL, "liars": LIARS, "by attack": tried}) == "lost"
        worst = min(tried.values(), key=np.mean)
        alone = {"rule": "mean", "channel": CHANNEL, "liars": LIARS, "by attack": {"x": worst}}
        one += state(alone) == "lost"
    assert lost < 0.05 * 1500 < 0.09 * 1500 < one


def test_results_behind_a_line_that_was_cut_off_are_kept(tmp_path):
    path = tmp_path / "runs.jsonl"
    lies._add(path, "a", {"accuracy": 0.5})
    path.write_text(path.read_text() + '["b", {"accu')
    lies._add(path, "b", {"accuracy": 0.6})
    lies._add(path, "c", {"accuracy": 0.7})
    assert {name: line["accuracy"] for name, line in lies._read(path).items()} == {
        "a": 0.5,
        "b": 0.6,
        "c": 0.7,
    }
    assert json.loads(path.read_text().splitlines()[-1])[0] == "c"


def test_sizes_of_models_are_those_that_are_trained():
    """A figure had 4,810 for this network, and found a closed form wrong."""
    config = digits.get_config("fedavg")
    assert coordinates_of(config) == 2778
    config.model = "linear"
    assert coordinates_of(config) == 650
