"""Runs that share a program with other attacks and rules give what runs of their own give."""

import json

import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.data.examples import number_of
from cepam_jax.errors import ConfigError
from cepam_jax.federated import byzantine
from cepam_jax.run import training
from configs import digits
from experiments import byzantine_tables, lies

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

ROUNDS = 3


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(
        {
            "model": "linear",
            "rounds": ROUNDS,
            "eval_every": ROUNDS,
            "local.steps": 8,
            "local.learning_rate": 0.3,
            "mechanism.gamma": 30.0,
            "aggregator": "trimmed_mean",
            "byzantine.before": "mixing",
            "byzantine.check": True,
            "byzantine.pairs": True,
            **fields,
        }
    )
    return config


def lying(attack, tolerated, **fields):
    more = {"byzantine.tolerated": tolerated, "byzantine.attack": attack, "byzantine.clients": 2}
    return config_of(**more, **fields)


CONFIGS = {
    "labels": lying("label_flip", 1, **{"partition.kind": "dirichlet"}),
    "signs": lying("sign_flip", 3),
    "refused": lying("clip_abuse", 3, **{"mechanism.gamma": 10.0}),
    "nobody": config_of(**{"byzantine.tolerated": 1}),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    path = tmp_path_factory.mktemp("lies") / "runs.jsonl"
    return path, lies.train_all(CONFIGS, 1, path, progress=False)


@pytest.mark.parametrize("name", ["labels", "refused"])
def test_a_run_is_what_it_is_alone(name, together, tmp_path):
    """Attack, tolerated number, gamma and partition are chosen at run time; each alone is compiled in."""
    (found,) = together[1][name]
    last = training.train(CONFIGS[name], tmp_path / name, progress=False)[-1]
    assert found["rounds"] == last["round"] == ROUNDS
    assert found["accuracy"] == pytest.approx(last["accuracy"], abs=0.006)  # two of 360 test examples
    assert found["refused_lies"] == last["refused_lies_per_round"] == (2 if name == "refused" else 0)
    assert found["refused_honest"] == last["refused_honest_per_round"] == 0


def test_runs_of_one_program_are_not_each_others(together):
    results = {name: lines[0] for name, lines in together[1].items()}
    assert len({line["bits"] for line in results.values()}) == len(results)
    assert results["nobody"]["accuracy"] > results["labels"]["accuracy"] + 0.1
    assert results["refused"]["bits"] < results["signs"]["bits"]  # of another gamma


def test_results_are_kept_and_half_a_line_is_not(together, monkeypatch, tmp_path):
    path, results = together
    copy = tmp_path / "runs.jsonl"
    copy.write_text(path.read_text())
    monkeypatch.setattr(lies, "_trained", None)  # nothing is trained
    assert lies.train_all(CONFIGS, 1, copy, progress=False) == results
    copy.write_text(path.read_text()[:-10])
    asked = []
    monkeypatch.setattr(lies, "_trained", lambda configs, split_of, bar: asked.extend(configs) or ())
    with pytest.raises(KeyError):
        lies.train_all(CONFIGS, 1, copy, progress=False)
    assert len(asked) == 1
    assert len(json.loads(path.read_text().splitlines()[0])) == 2


def test_what_it_cannot_train_is_refused(tmp_path):
    for fields in ({"mechanism.error_feedback": True}, {"byzantine.clients": 3}):
        with pytest.raises(ConfigError):
            lies.train_all({"x": config_of(**fields)}, 1, tmp_path / "runs.jsonl", progress=False)


def test_liars_of_the_published_setting_hold_copies():
    """As in arXiv 2006.09365 the honest workers share out all examples."""
    config = config_of(**{"num_clients": 8, "byzantine.attack": "sign_flip", "byzantine.clients": 3})
    data = sources.load_examples("digits")
    split = byzantine_tables.over_honest(config, data)
    lies_there = byzantine.drawn(8, 3, config.seeds.partition)
    held = np.concatenate([split.client(k) for k in np.flatnonzero(~lies_there)])
    assert sorted(held.tolist()) == list(range(number_of(data.train)))
    owners = {frozenset(split.client(k).tolist()) for k in np.flatnonzero(~lies_there)}
    copies = [frozenset(split.client(k).tolist()) for k in np.flatnonzero(lies_there)]
    assert len(set(copies)) == 3 and owners.issuperset(copies)


def test_results_of_another_split_are_not_taken(together, tmp_path, monkeypatch):
    """A file of results tells runs apart by how examples were shared out too."""
    path, results = together
    copy = tmp_path / "runs.jsonl"
    copy.write_bytes(path.read_bytes())
    asked = []

    def trained(configs, split_of, bar):
        for config in configs:
            asked.append(split_of)
            yield lies._name(config, split_of), {"accuracy": 0.5}

    monkeypatch.setattr(lies, "_trained", trained)
    found = lies.train_all(CONFIGS, 1, copy, False, byzantine_tables.over_honest)
    assert asked == [byzantine_tables.over_honest] * len(CONFIGS)
    assert all(run == {"accuracy": 0.5} for (run,) in found.values())
    assert lies.train_all(CONFIGS, 1, copy, False) == results
