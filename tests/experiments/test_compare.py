import json

import pytest

from cepam_jax.run.metrics import read_lines

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def test_table_and_picture(tmp_path, called):
    command = ["experiments.compare", f"--workdir={tmp_path}", "--config.rounds=4", "--config.eval_every=2"]
    command += ["--gammas=100,10", "--seeds=2", "--config.model=linear"]
    done = called(*command)
    assert done.returncode == 0, done.stderr
    # The progress bars: two runs of fedavg, and four of CEPAM that differ in gamma and seeds alone.
    assert "fedavg seed 0 to fedavg seed 1 (2 runs)" in done.stderr and "round 8 of 8" in done.stderr
    assert "gamma=10 seed 1 (4 runs)" in done.stderr and "round 16 of 16" in done.stderr
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout
    for label in ("fedavg", "cepam_gaussian gamma=100", "cepam_gaussian gamma=10"):
        row = next(line for line in table.splitlines() if line.startswith(f"| {label} "))
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        runs = [read_lines(tmp_path / label.replace(" ", "_") / f"seed{s}" / "metrics.jsonl") for s in (0, 1)]
        assert cells[1].startswith(f"{sum(r[-1]['accuracy'] for r in runs) / 2:.4f} ±")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    again = called(*command)
    assert table in again.stdout  # read back, not trained again


def test_mistakes_are_one_line(tmp_path, called):
    for flag, message in (
        ("--variants=fedavg,cepam", "variant 'cepam', gamma None: variant is 'cepam'"),
        ("--gammas=10,x", "gamma 'x'"),
        ("--gammas=-1", "config.mechanism.gamma is -1.0"),
        ("--seeds=0", "--seeds is 0"),
    ):
        done = called("experiments.compare", f"--workdir={tmp_path}", flag)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr


def test_quantizer_benchmark(tmp_path, called):
    output = tmp_path / "speed.json"
    names = "lrsuq_gaussian_z1,lrsuq_gaussian_z3"
    done = called(
        "experiments.benchmarks.quantizer",
        *("--sizes=1000", "--repeats=2", f"--mechanisms={names}", f"--output={output}"),
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(output.read_text())["records"]
    assert {r["name"] for r in records} >= {"x + normal", "lrsuq_gaussian_z1", "lrsuq_gaussian_z3"}
    assert all(record["name"] in done.stdout for record in records)
