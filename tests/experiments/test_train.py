"""Runs of the real binaries on the embedded data set."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.errors import CheckpointMismatchError, NonFiniteUpdateError
from cepam_jax.run import build, training
from cepam_jax.run.metrics import read_lines
from configs import common, digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TIMES = ("seconds", "seconds_per_round")
MLP = ("fedavg", "cepam_gaussian", "cepam_rotated")  # variants that train it here; the others a linear model


def small(variant="cepam_gaussian", **changes):
    config = digits.get_config(variant)
    config.update_from_flattened_dict({"model": "linear", "rounds": 6, "eval_every": 2, **changes})
    return config


def timeless(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("variant", common.VARIANTS)
def test_every_variant_learns(variant, tmp_path):
    model = "mlp" if variant in MLP else "linear"
    lines = training.train(small(variant, model=model, rounds=20, eval_every=10), tmp_path, progress=False)
    assert [line["round"] for line in lines] == [0, 10, 20]
    assert lines[0]["accuracy"] < 0.3 and lines[-1]["accuracy"] > 0.9
    assert lines == read_lines(tmp_path / "metrics.jsonl")
    last = lines[-1]
    assert last["clipped_norm"] <= last["update_norm"] * 1.0001
    if variant == "fedavg":
        assert last["bits_per_coordinate"] == 32 and last["snr"] is None
    else:
        assert 0 < last["bits_per_coordinate"] <= 32 and 0 < last["snr"] < 1000
    assert (tmp_path / "partition.png").exists()
    assert "10 clients, 1,437 examples" in (tmp_path / "partition.txt").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mlp", "local.update_kind": "gradient", "server.learning_rate": 0.3, "rounds": 40},
        {"clients_per_round": 4, "local.sampling": "shuffle", "aggregator": "examples"},
        {"partition.kind": "quantity", "clients_per_chunk": 3, "mechanism.lattice": "Z2"},
        {"partition.kind": "shards", "server.optimizer": "adam", "server.learning_rate": 0.01},
        {
            "partition.kind": "dirichlet",
            "model": "linear",
            "mechanism.lattice": "Z3",
            "local.augment": "crop_flip",
        },
    ],
)
def test_other_settings_train(changes, tmp_path):
    lines = training.train(small(**changes), tmp_path, progress=False)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_gamma_per_client_and_shared_compilation(tmp_path):
    """Gammas, clip norms and seeds are arrays: one compilation serves them all."""
    build._program.cache_clear()
    gammas = tuple(float(g) for g in np.geomspace(10, 1000, 10))
    runs = [
        small(),
        small(**{"mechanism.gamma": 7.0}),
        small(**{"mechanism.per_client.gamma": gammas}),
        small(**{"seeds.partition": 3, "seeds.shared": 5, "mechanism.clip_norm": 2.0}),
    ]
    results = [training.train(config, tmp_path / str(i), progress=False) for i, config in enumerate(runs)]
    assert len({lines[-1]["loss"] for lines in results}) == len(runs)
    assert build._program.cache_info().currsize == 1
    specification = sources.load_examples("digits").specification
    assert build.program(runs[0], specification).block._cache_size() == 1


def test_a_model_seed_moves_no_example(tmp_path):
    for seed in (0, 1):
        training.train(small(**{"seeds.model": seed}), tmp_path / str(seed), progress=False)
    assert (tmp_path / "0/partition.txt").read_text() == (tmp_path / "1/partition.txt").read_text()


def start(workdir, root, rounds=120):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.train", "--config=configs/digits.py"),
            *(f"--workdir={workdir}", f"--config.rounds={rounds}", "--config.eval_every=2", "--noprogress"),
            *("--config.server.momentum=0.5", "--config.clients_per_round=7", "--config.model=linear"),
        ],
        cwd=root,
        stdout=subprocess.DEVNULL,
    )


def test_a_killed_run_continues_to_the_bit(tmp_path, root):
    """kill -9 of the real process at random moments; only the times may differ."""
    whole = start(tmp_path / "whole", root)
    random.seed(1)
    metrics = tmp_path / "killed/metrics.jsonl"
    for wanted in (2, 30):
        process = start(tmp_path / "killed", root)
        deadline = time.monotonic() + 120
        while len(read_lines(metrics)) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert start(tmp_path / "killed", root).wait() == 0
    assert whole.wait() == 0
    lines = read_lines(tmp_path / "whole/metrics.jsonl")
    assert [line["round"] for line in lines] == list(range(0, 121, 2))
    assert timeless(read_lines(metrics)) == timeless(lines)


def test_a_finished_run_is_not_repeated_and_may_be_extended(tmp_path):
    first = training.train(small(), tmp_path / "a", progress=False)
    assert training.train(small(), tmp_path / "a", progress=False) == first
    longer = training.train(small(rounds=10), tmp_path / "a", progress=False)
    direct = training.train(small(rounds=10), tmp_path / "b", progress=False)
    assert longer[: len(first)] == first
    assert timeless(longer) == timeless(direct)


def test_a_scheduled_run_cannot_be_extended(tmp_path):
    changes = {"schedule.knob": "gamma", "schedule.end": 0.5}
    training.train(small(**changes), tmp_path, progress=False)
    with pytest.raises(CheckpointMismatchError, match="config.rounds = 6, this one has 8"):
        training.train(small(rounds=8, **changes), tmp_path, progress=False)


def test_another_configuration_is_refused(tmp_path):
    training.train(small(), tmp_path, progress=False)
    with pytest.raises(CheckpointMismatchError, match="config.mechanism.gamma = 100.0, this one has 50.0"):
        training.train(small(**{"mechanism.gamma": 50.0}), tmp_path, progress=False)


def test_nan_updates_stop_the_run_and_keep_the_checkpoint(tmp_path, monkeypatch):
    training.train(small(rounds=4), tmp_path, progress=False)
    before = (tmp_path / "metrics.jsonl").read_text()
    compiled = build.program(small(), sources.load_examples("digits").specification)

    def failing(state, arrays, test, owners, stop):
        state, report, evaluation = compiled.block(state, arrays, test, owners, stop)
        # As a round that fails leaves it: its own report is there, and it is not one of those that ran.
        report = report._replace(ran=np.asarray(report.ran) & (np.arange(len(report.ran)) == 0))
        failed = state._replace(invalid_client=np.int32(3))
        return (failed if int(stop) > int(state.round) - 2 else state), report, evaluation

    monkeypatch.setattr(build, "program", lambda *_: compiled._replace(block=failing))
    with pytest.raises(NonFiniteUpdateError, match="client 3 sent a NaN or infinite update in round"):
        training.train(small(), tmp_path, progress=False)
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert training.train(small(), tmp_path, progress=False)[-1]["round"] == 6


def test_a_diverging_client_is_named(tmp_path):
    config = small("fedavg", **{"model": "mlp", "local.learning_rate": 1e30})
    with pytest.raises(NonFiniteUpdateError, match=r"client 0 sent .* in round 1: .*local.learning_rate"):
        training.train(config, tmp_path, progress=False)
