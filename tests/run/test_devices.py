"""Clients and runs spread over devices and processes: the same results as on one device."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from run import spread_digits

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError
from cepam_jax.run import build, runtime, training
from cepam_jax.run.checkpoints import Checkpoints
from cepam_jax.run.metrics import read_lines
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]  # and so what its processes compile
TIMES = ("seconds", "seconds_per_round")


def run(*command, root, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    try:
        for process in processes:
            text = process.communicate(timeout=600)[0]  # not how fast they are, but that they end
            assert process.returncode == 0, text
    finally:
        for process in processes:
            process.kill()


def last_params(workdir, case):
    config = spread_digits.config_of(case)
    compiled = build.program(config, sources.load_examples("digits").specification)
    state = jax.tree.map(np.asarray, compiled.initialize(jax.random.key(0), mechanisms.knobs_of(config)))
    store = Checkpoints(workdir / case / "checkpoints")
    return store.newest(state).state.params


def check_clients(places, case):
    one, eight = (read_lines(places[n] / case / "metrics.jsonl") for n in (1, 8))
    assert [line["round"] for line in one] == [line["round"] for line in eight] == [0, 2, 4]
    for a, b in zip(one[1:], eight[1:], strict=True):
        for name in ("loss", "train_loss", "bits_per_coordinate", "update_norm", "snr"):
            np.testing.assert_allclose(a[name], b[name], err_msg=f"{case}: {name}", rtol=2e-3)
        assert a.get("uplink_bytes", 0) == pytest.approx(b.get("uplink_bytes", 0), rel=1e-3)
    # Eight clients on eight devices are added up in the order in which one device adds them.
    tolerance = {"rtol": 0, "atol": 0} if case == "one_each" else {"rtol": 2e-4, "atol": 2e-4}
    found = [last_params(places[n], case) for n in (1, 8)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, err_msg=case, **tolerance), *found)


def check_runs(places, number):
    """Runs do not exchange anything: equal to the bit."""
    runs = [read_lines(places[n] / f"sweep{number}" / "metrics.jsonl") for n in (1, 8)]
    runs = [[{k: v for k, v in line.items() if k not in TIMES} for line in lines] for lines in runs]
    assert runs[0] == runs[1]


def test_clients_and_runs_over_eight_devices(tmp_path, root):
    places = {n: tmp_path / str(n) for n in (1, 8)}
    finish(*(run("tests/run/spread_digits.py", n, place, root=root) for n, place in places.items()))
    for case in spread_digits.CASES:
        check_clients(places, case)
    for number in range(3):
        check_runs(places, number)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def two_processes(workdir, root, *flags):
    port = free_port()
    command = [
        *("-m", "experiments.train", "--config=configs/digits.py", f"--workdir={workdir}", "--noprogress"),
        *("--config.eval_every=2", "--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"),
        *flags,
    ]
    return [run(*command, f"--process_id={n}", root=root, JAX_PLATFORMS="cpu") for n in range(2)]


def test_two_processes_train_one_federation_and_resume(tmp_path, root):
    finish(*two_processes(tmp_path / "two", root, "--config.rounds=2"))
    finish(*two_processes(tmp_path / "two", root, "--config.rounds=4"))
    alone = run(
        *("-m", "experiments.train", "--config=configs/digits.py", f"--workdir={tmp_path / 'one'}"),
        *("--noprogress", "--config.eval_every=2", "--config.rounds=4"),
        root=root,
    )
    finish(alone)
    two, one = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [line["round"] for line in two] == [0, 2, 4]  # process 0 alone wrote
    for a, b in zip(two, one, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-3)
    assert json.loads((tmp_path / "two/config.json").read_text())["rounds"] == 4


RESUMED = """
import json, sys
from cepam_jax.run import runtime, training
from configs import digits
workdir, port, number = sys.argv[1:]
runtime.start(distributed=True, coordinator="127.0.0.1:" + port, num_processes=2, process_id=int(number))
config = digits.get_config("cepam_gaussian")
config.update_from_flattened_dict({"model": "linear", "rounds": 4, "eval_every": 2, "clients_per_round": 7})
line = training.train(config, workdir, progress=False)[-1]
print("FOUND", json.dumps([line["round"], line["epsilon"]]))
"""


def test_both_processes_count_the_rounds_before_they_resumed(tmp_path, root):
    """All but process 0 counted the rounds since then alone."""
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(
        {"model": "linear", "rounds": 2, "eval_every": 2, "clients_per_round": 7}
    )
    training.train(config, tmp_path, progress=False)
    port = free_port()
    both = [run("-c", RESUMED, tmp_path, port, n, root=root, JAX_PLATFORMS="cpu") for n in range(2)]
    try:
        texts = [process.communicate(timeout=200)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    found = [re.search("FOUND (.*)", text) for text in texts]
    assert all(found), texts
    first, second = (json.loads(match[1]) for match in found)
    assert first == second and first[0] == 4
    assert first[1] == read_lines(tmp_path / "metrics.jsonl")[-1]["epsilon"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=2"], "--process_id is 2; it must be a number from 0 to 1"),
        (["--num_processes=0"], "--num_processes is 0; it must be at least 1 with --coordinator"),
        (["--cpu_devices=-1"], "--cpu_devices is -1; it must be a number of at least 0"),
    ],
)
def test_bad_numbers_of_processes_are_named(tmp_path, called, flags, message):
    done = called(
        *("experiments.train", f"--workdir={tmp_path}", "--distributed", "--coordinator=127.0.0.1:1"),
        *("--num_processes=2", "--process_id=0", *flags),
    )
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize(
    ("given", "flag"),
    [(("127.0.0.1:1", 0, -1), "coordinator"), (("", 2, -1), "num_processes"), (("", 0, 0), "process_id")],
)
def test_numbers_of_processes_alone_are_not_ignored(given, flag):
    with pytest.raises(ConfigError, match=f"--{flag} is 'given'; it must be left out without --distributed"):
        runtime.start(0, False, *given)
