"""Several runs as one compiled sweep: each is what it would have been alone."""

import numpy as np
import pytest

from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.run import training
from cepam_jax.run.metrics import read_lines
from configs import digits

pytestmark = [pytest.mark.compiled_fast(mlir=True), pytest.mark.slow]  # sweeps are their runs to the bit

TIMES = ("seconds", "seconds_per_round")


def config_of(variant="cepam_gaussian", **changes):
    config = digits.get_config(variant)
    config.update_from_flattened_dict({"model": "linear", "rounds": 6, "eval_every": 2, **changes})
    return config


def timeless(runs):
    return [[{k: v for k, v in line.items() if k not in TIMES} for line in lines] for lines in runs]


def places(root, runs):
    return [root / str(number) for number in range(len(runs))]


def test_a_sweep_is_its_runs_one_by_one_to_the_bit(tmp_path):
    configs = [
        config_of(model="mlp"),
        config_of(**{"model": "mlp", "mechanism.gamma": 10.0}),
        config_of("fedavg"),  # another program
        config_of(**{"model": "mlp", "seeds.partition": 4, "seeds.model": 5, "rounds": 3}),
        # Rows of examples of other lengths than the others', and clients of their own gamma.
        config_of(
            **{"model": "mlp", "partition.kind": "quantity", "mechanism.per_client.gamma": (7.0,) * 10}
        ),
    ]
    together = training.train_many(configs, places(tmp_path / "many", configs), progress=False)
    alone = [
        training.train(config, place, progress=False)
        for config, place in zip(configs, places(tmp_path / "alone", configs), strict=True)
    ]
    assert timeless(together) == timeless(alone)
    for place, lines in zip(places(tmp_path / "many", configs), together, strict=True):
        assert read_lines(place / "metrics.jsonl") == lines
    assert len({lines[-1]["loss"] for lines in together}) == len(configs)


def test_a_sweep_continues_what_was_stopped_at_different_rounds(tmp_path):
    configs = [config_of(**{"mechanism.gamma": gamma}) for gamma in (10.0, 30.0, 100.0)]
    stopped = places(tmp_path / "stopped", configs)
    training.train(config_of(**{"mechanism.gamma": 10.0, "rounds": 4}), stopped[0], progress=False)
    training.train(configs[2], stopped[2], progress=False)
    found = training.train_many(configs, stopped, progress=False)
    whole = training.train_many(configs, places(tmp_path / "whole", configs), progress=False)
    assert timeless(found) == timeless(whole)
    again = training.train_many(configs, stopped, progress=False)
    assert again == found  # times too: nothing was repeated


def test_runs_under_one_vmap_give_the_same_up_to_rounding(tmp_path):
    configs = [config_of(**{"seeds.training": seed}) for seed in range(3)]
    in_turn = training.train_many(configs, places(tmp_path / "turn", configs), progress=False)
    at_once = training.train_many(configs, places(tmp_path / "once", configs), progress=False, together=2)
    for a, b in zip(in_turn, at_once, strict=True):
        np.testing.assert_allclose(
            [line["loss"] for line in a], [line["loss"] for line in b], rtol=1e-3, atol=1e-3
        )


def test_one_diverging_run_does_not_stop_the_others(tmp_path):
    configs = [config_of("fedavg", **{"local.steps": 4, "seeds.training": seed}) for seed in range(3)]
    configs[1].mechanism.clip_norm = 2.0  # not used by fedavg: the same program
    for config in configs:
        config.server.learning_rate = 1.0
    gammas = (100.0, 1e-29, 50.0)
    broken = [config_of("noise_gaussian", **{"model": "mlp", "mechanism.gamma": g}) for g in gammas]
    with pytest.raises(NonFiniteUpdateError, match="in round"):
        training.train_many(broken, places(tmp_path, broken), progress=False)
    lines = [read_lines(place / "metrics.jsonl")[-1]["round"] for place in places(tmp_path, broken)]
    assert lines == [6, 0, 6]
    kept = training.train_many(broken, places(tmp_path, broken), progress=False, keep_failures=True)
    assert [run[-1]["round"] for run in kept] == [6, 0, 6]


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ConfigError, match="number of workdirs is 0; it must be 1, one per run"):
        training.train_many([config_of()], [])
    with pytest.raises(ConfigError, match="number of different workdirs is 1; it must be 2, one per run"):
        training.train_many([config_of(), config_of()], [tmp_path, tmp_path])
    with pytest.raises(ConfigError, match="config.devices is 99; it must be at most"):
        training.train(config_of(devices=99), tmp_path, progress=False)
