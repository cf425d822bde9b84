"""What the figures compute, on small settings; that their commands run is tested with the README."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import check_figure

from cepam_jax.config import validate
from cepam_jax.mechanisms import lattices as lattice_table
from configs import authors
from experiments import output, paired, tables
from experiments.figures import __main__ as reports
from experiments.figures import gamma, lattices, mean_estimation, scenario1


@pytest.mark.parametrize(
    ("name", "expected"), [("Z1", 0.521), ("Z2", 0.72), ("Z3", 0.68), ("D4", 0.52), ("E8", 0.36)]
)
def test_gap_at_high_resolution(name, expected):
    """The published figures, to their last digit."""
    digits = len(str(expected).split(".")[1])
    assert round(lattices.gap(lattice_table.LATTICES[name]), digits) == expected


@pytest.mark.parametrize("name", ["Z1", "A2", "D4"])
def test_measured_rate_meets_the_theory_at_high_resolution(name):
    row = lattices.measure(name, 100_000, 1)
    assert row["bits"][10.0] - 0.5 * math.log2(101) == pytest.approx(row["gap"], abs=0.02)
    assert row["measured_tries"] == pytest.approx(row["tries"], rel=0.02)
    assert row["p_value"] > 1e-6


@pytest.mark.parametrize(("kind", "levels", "mechanism"), mean_estimation.QUANTIZERS)
def test_mean_estimation_matches_the_formula_and_respects_the_bound(kind, levels, mechanism):
    error, deviation, exact = mean_estimation.measure(mechanism, levels, 10, 64, repeats=100)
    assert error < mean_estimation.bound(kind, levels, 10, 64)
    if exact is not None:
        assert error == pytest.approx(exact, abs=5.5 * deviation)


def test_the_demonstration_settles():
    values, reports = (np.asarray(a) for a in mean_estimation.demonstration())
    np.testing.assert_allclose(np.unique(np.round(reports, 5)), [values.min(), values.max()], atol=1e-4)
    assert reports.mean() == pytest.approx(values.mean(), abs=0.15)


def test_when_running_means_settle():
    values = np.zeros((3, 4))
    reports = np.array([[1.0, -1, 0, 0], [1.0, 1, -1, -1], [0, 0, 0, 0]])  # means 1 0 0 0; 1 1 .33 0; 0
    assert mean_estimation.settled(values, reports, 0.1).tolist() == [1, 3, 0]
    assert mean_estimation.settled(values, reports, 0.5).tolist() == [1, 2, 0]


def test_markdown():
    assert tables.markdown(["a", "b"], [[1, "long cell"]]).splitlines() == [
        "| a   | b         |",
        "| --- | ---       |",
        "| 1   | long cell |",
    ]


def test_every_figure_is_listed_and_has_a_small_version(root):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.figures", "--list"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    files = sorted(path.stem for path in (root / "experiments/figures").glob("[a-z]*.py"))
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == files
    for name in files:
        text = (root / f"experiments/figures/{name}.py").read_text()
        assert "smoke=" in text or "SMOKE" in text, f"{name} has no --smoke"


def test_a_small_figure_leaves_its_files(tmp_path, root, name="gamma"):
    """The others are run with the README's commands."""
    command = ["experiments.figures", f"--only={name}", "--smoke", f"--workdir={tmp_path}", "--noprogress"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    claims = check_figure(name, tmp_path / name)
    report = (tmp_path / "report.md").read_text()
    assert f"]({name}/figure.png)" in report and claims[0]["claim"] in report and "A small version" in report
    assert f"-m experiments.figures.{name} --workdir" in report
    assert (tmp_path / name / "table.md").read_text().strip() in report


def test_a_figure_that_fails_is_named_and_the_others_are_made(tmp_path, root):
    command = ["experiments.figures", "--only=error_law,inversion", f"--workdir={tmp_path}", "--noprogress"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--smoke", "--pass_on=--size=100"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "**Failed**: ConfigError: --size is 100; it must be at least 1000" in report
    assert "](inversion/figure.png)" in report


def test_the_report_has_all_folders(tmp_path):
    """Figures made one by one, the same one in two settings among them."""
    for folder, data in (("gamma", "mnist"), ("gamma_cifar10", "cifar10")):
        (tmp_path / folder).mkdir()
        claim = output.Claim(
            "2601.10701", f"{data}: large gamma loses nothing", "2 points", "does not hold", ""
        )
        run = {
            "figure": "gamma",
            "command": f"python -m experiments.figures.gamma --data={data}",
            "smoke": False,
            "seconds": 61.2,
            "date": "2026-01-02",
            "python": "3.11",
            "versions": {"jax": "0.10"},
            "device": "1 x cpu",
        }
        (tmp_path / folder / "claims.json").write_text(json.dumps([claim._asdict()]))
        (tmp_path / folder / "run.json").write_text(json.dumps(run))
        (tmp_path / folder / "table.md").write_text(f"numbers of {data}\n")
    text = reports.report(tmp_path, {})
    assert text.count("## The gamma curve") == 2 and "(gamma_cifar10)" in text
    assert "61 seconds" in text and "2026-01-02, Python 3.11, jax 0.10." in text
    for data in ("mnist", "cifar10"):
        assert f"| {data}: large gamma loses nothing | 2 points | does not hold |" in " ".join(text.split())
        assert f"figures.gamma --data={data}\n" in text and f"numbers of {data}" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to do: give --list, --all, --only=... or --report"),
        (["--all"], "--workdir is empty"),
        (["--only=gama", "--workdir=x"], "--only is 'gama'; it must be one of"),
    ],
)
def test_mistakes_of_the_report_are_one_line(flags, message, root):
    command = [sys.executable, "-m", "experiments.figures", *flags]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_rounds_to_a_target():
    runs = [[{"round": r, "accuracy": r / 100} for r in range(0, 41, 2)] for _ in range(2)]
    assert scenario1.smoothed(runs)[0] == pytest.approx(0.02)
    assert scenario1.smoothed(runs)[10] == pytest.approx((14 + 16 + 18 + 20 + 22) / 500)
    assert scenario1.rounds_to(runs, 0.18) == 22
    assert scenario1.rounds_to(runs, 0.9) is None


def test_the_golden_mean_is_the_smallest_gamma_within_a_point():
    rows = [
        {"gamma": g, "lost_mean": lost} for g, lost in ((None, 0), (1, 80), (30, 0.9), (100, 0.1), (10, 3))
    ]
    assert gamma.golden(rows)["gamma"] == 30
    assert gamma.golden(rows[:2]) is None


def test_paired_differences():
    mean, error = paired.difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert mean == pytest.approx(10) and error == pytest.approx(0, abs=1e-9)
    assert paired.points([0.52, 0.6], [0.5, 0.6]) == "+1.00 ± 1.00"


def test_a_claim_is_rejected_when_it_is_false_and_seldom_when_it_is_true():
    """Twelve comparisons of five seeds: false alarms within five deviations of 5 %, real losses found."""
    random = np.random.default_rng(0)

    def rejected(loss):
        runs = random.normal(0.9, 0.01, (2, 12, 5))
        runs[0, 0] -= loss
        chances = [paired.p_value(a, b) for a, b in zip(*runs, strict=True)]
        return paired.verdict(chances) == "does not hold"

    alarms = sum(rejected(0.0) for _ in range(1000))
    assert abs(alarms - 50) < 5 * np.sqrt(1000 * 0.05 * 0.95)
    assert sum(rejected(0.1) for _ in range(100)) > 90


def test_single_runs_and_equal_runs_decide_as_they_should():
    assert paired.verdict([paired.p_value([0.9], [0.1])]) == "not comparable"
    assert paired.p_value([0.5, 0.6], [0.5, 0.6]) == 1
    assert paired.p_value([0.4, 0.4], [0.5, 0.5]) == 0 and paired.p_value([0.6, 0.6], [0.5, 0.5]) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist-mlp", "must be data-model-updates-variant"),
        ("mnist-resnet-weights-fedavg", "'resnet' must be one of linear"),
    ],
)
def test_names_of_the_authors_settings(name, message):
    with pytest.raises(ValueError, match=message):
        authors.get_config(name)
    config = authors.get_config("cifar10-cnn3-gradient-noise_laplace")
    assert (config.local.update_kind, config.server.learning_rate, config.mechanism.clip) == (
        "gradient",
        0.3,
        "l1",
    )
    validate(config)
