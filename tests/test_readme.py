"""The README's code runs as printed; its commands run on the embedded data, cut short."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, check_figure

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line[line.index("-m experiments.") :]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if "-m experiments." in line and "--distributed" not in line  # two of them together: test_devices
]
SHORT = {
    "experiments.train": ["--config.data.name=digits", "--config.model=linear"],
    "experiments.compare": ["--config.data.name=digits", "--config.model=linear", "--seeds=1"],
    "experiments.figures.lattices": ["--size=2000", "--repeats=1"],
    "experiments.figures.mean_estimation": ["--repeats=2", "--draws=20"],
    "experiments.figures.clipped": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--seeds=1",
        "--bits=2",
    ],
    "experiments.figures.rate": ["--size=2000", "--seeds=1", "--ratios=1"],
    "experiments.figures.updates": ["--settings=digits mlp", "--gammas=30"],
    "experiments.figures.inversion": ["--data=digits", "--gammas=10"],
    "experiments.figures.privacy": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--config.num_clients=10",
        "--seeds=1",
        "--epsilons=100",
        "--methods=cepam_gaussian",
    ],
    "experiments.figures.heterogeneous": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--seeds=1",
    ],
    "experiments.figures.server": ["--size=2000", "--repeats=1"],
    "experiments.radius_law": ["--laws=gaussian:1"],
    "experiments.audit": ["--size=20000", "--trials=2000"],
    "experiments.benchmarks.wire": [
        "--size=2000",
        "--repeats=1",
        "--ratios=1",
        "--mechanisms=lrsuq_gaussian_z1",
    ],
    "experiments.benchmarks.round": [
        "--models=mlp",
        "--convolutions=cnn2",
        "--clients=2",
        "--steps=1",
        "--repeats=1",
    ],
    "experiments.figures": ["--only=inversion"],
    "experiments.figures.error_law": ["--size=2000"],
    "experiments.figures.scenario1": ["--smoke", "--data=digits", "--rounds=4", "--seeds=1", "--gammas=30"],
    "experiments.figures.scenario2": [
        "--smoke",
        "--rounds=2",
        "--methods=fedavg,Gaussian noise,CEPAM Z1,Laplace noise",
    ],
    "experiments.figures.scenario3": [
        "--smoke",
        "--data=digits",
        "--rounds=2",
        "--partitions=iid,quantity",
        "--seeds=1",
    ],
    "experiments.figures.gamma": ["--smoke", "--rounds=2", "--gammas=1,100"],
    "experiments.figures.lattice_dimension": ["--smoke", "--rounds=1", "--lattices=Z1,Z2"],
    "experiments.benchmarks.rejection": ["--size=20000", "--repeats=1"],
    "experiments.benchmarks.peers": ["--models=mlp", "--clients=2", "--rounds=1", "--turns=1"],
    "experiments.benchmarks.scale": ["--clients=2", "--models=mlp", "--mechanisms=fedavg", "--chunks=2"],
    "experiments.benchmarks.sweeps": ["--runs=2", "--rounds=1", "--repeats=1", "--model=linear"],
    "experiments.benchmarks.startup": ["--models=mlp", "--mechanisms=fedavg", "--repeats=1"],
    "experiments.benchmarks.profile": ["--clients=2", "--rounds=1"],
    "experiments.benchmarks.quantizer": ["--sizes=1000", "--repeats=1", "--mechanisms=lrsuq_gaussian_z1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, root):
    arguments = shlex.split(command)
    arguments += SHORT[arguments[1]]
    if "--workdir" in command:
        arguments.append(f"--workdir={tmp_path}")
    if "--config=" in command or "compare" in command:
        arguments += ["--config.rounds=1", "--config.eval_every=1"]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if arguments[1].startswith("experiments.figures."):
        check_figure(arguments[1].rpartition(".")[2], tmp_path)


def test_python_blocks():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert blocks
    for block in blocks:
        if block.startswith("# "):  # a step of "Extend": test_extend
            continue
        exec(compile(block, "README.md", "exec"), {})


def test_commands_are_found_and_ci_runs_the_test_command():
    assert len(COMMANDS) == 43
    found = re.findall(r"^python3 -m venv .* -m pytest$", TEXT, re.M)
    assert len(found) == 1
    assert r"^python3 -m venv .* -m pytest$" in (ROOT / ".ci/run").read_text()
