"""What the figures compute, on small settings; that their commands run is tested by tests/test_docs.py."""

import base64
import functools
import html.parser
import itertools
import json
import math
import types

import jax
import numpy as np
import pytest
from conftest import check_figure

from cepam_jax.mechanisms import Keys
from cepam_jax.mechanisms import lattices as lattice_table
from cepam_jax.run.config import validate
from cepam_jax.theory import rate as theory
from configs import authors
from experiments import output, paired, site, tables
from experiments import report as reports
from experiments.figures import (
    clipped,
    convergence,
    error_law,
    gamma,
    lattices,
    mean_estimation,
    privacy,
    rate,
    scenario1,
    scenario2,
    scenario3,
)

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "expected"), [("Z1", 0.521), ("Z2", 0.72), ("Z3", 0.68), ("D4", 0.52), ("E8", 0.36)]
)
def test_gap_at_high_resolution(name, expected):
    """The published figures, to their last digit."""
    digits = len(str(expected).split(".")[1])
    assert round(lattices.gap(lattice_table.LATTICES[name]), digits) == expected


@pytest.mark.parametrize("name", ["Z1", "A2", "D4"])
def test_measured_rate_meets_the_theory_at_high_resolution(name):
    row, _ = lattices.measure(name, 100_000)
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


@pytest.fixture
def run(called):
    return functools.partial(called, "experiments.figures")


def test_every_figure_is_listed_and_has_a_small_version(root, run):
    done = run("--list")
    files = sorted(path.stem for path in (root / "experiments/figures").glob("[a-z]*.py"))
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == files
    for name in files:
        text = (root / f"experiments/figures/{name}.py").read_text()
        assert "smoke=" in text or "SMOKE" in text, f"{name} has no --smoke"


def test_a_small_figure_leaves_its_files(tmp_path, run, name="gamma"):
    """The others are run with the commands of the pages."""
    done = run(f"--only={name}", "--smoke", f"--workdir={tmp_path}", "--noprogress")
    assert done.returncode == 0, done.stdout + done.stderr
    claims = check_figure(name, tmp_path / name)
    report = (tmp_path / "report.md").read_text()
    assert f"]({name}/figure.png)" in report and claims[0]["claim"] in report and "A small version" in report
    assert f"-m experiments.figures.{name} --workdir" in report
    assert (tmp_path / name / "table.md").read_text().strip() in report


def test_a_figure_that_fails_is_named_and_the_others_are_made(tmp_path, run):
    command = ["--only=error_law,inversion", f"--workdir={tmp_path}", "--noprogress"]
    done = run(*command, "--smoke", "--pass_on=--size=100")
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "**Failed**: ConfigError: --size is 100; it must be at least 1000" in report
    assert "](inversion/figure.png)" in report


PNG = b"\x89PNG not really"


def finished_figures(tmp_path):
    """Two folders of one figure, in two settings."""
    for folder, data in (("gamma", "mnist"), ("gamma_cifar10", "cifar10")):
        (tmp_path / folder).mkdir()
        claim = output.Claim(
            "2601.10701", f"{data}: large gamma loses nothing", "2 points", "does not hold", "", "nobody"
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
        (tmp_path / folder / "table.md").write_text(
            f"numbers of {data}\n\n| a | b |\n| --- | --- |\n| <b> | 2 |\n"
        )
        (tmp_path / folder / "figure.png").write_bytes(PNG)


def test_the_report_has_all_folders(tmp_path):
    """Figures made one by one, the same one in two settings among them."""
    finished_figures(tmp_path)
    reports.write(tmp_path, {}, {})
    text = (tmp_path / "report.md").read_text()
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
def test_mistakes_of_the_report_are_one_line(flags, message, run):
    done = run(*flags)
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
    assert paired.in_points([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]) == pytest.approx([10, 10, 10])
    assert paired.with_error([1.0]) == "+1.00"
    assert paired.points([0.52, 0.6], [0.5, 0.6]) == "+1.00 ± 1.00"


def shares(mean, spread, comparisons, draws=1000, seeds=5):
    """Shares of the verdicts on simulated losses [comparisons, seeds] in points; `mean` is of the first."""
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(draws):
        lost = random.normal(0, spread, (comparisons, seeds))
        lost[0] += mean
        state = paired.all_of(paired.below(one, 0.5, comparisons) for one in lost)
        verdicts.append(paired.verdict(state, seeds))
    assert state is paired.losses(dict(enumerate(lost)), 0.5).state
    assert set(verdicts) <= set(output.VERDICTS)
    return {name: verdicts.count(name) / draws for name in output.VERDICTS}


def test_verdicts_are_wrong_as_seldom_as_they_say():
    """At the margin "holds" and "does not hold" have 5 % each: within five deviations of 1000 draws."""
    allowed = 5 * np.sqrt(0.05 * 0.95 / 1000)
    found = shares(mean=0.5, spread=1.0, comparisons=1)
    assert abs(found["holds"] - 0.05) < allowed and abs(found["does not hold"] - 0.05) < allowed
    found = shares(mean=0.5, spread=0.05, comparisons=12)
    assert found["holds"] < 0.05 + allowed and found["does not hold"] < 0.05 + allowed


def test_a_claim_holds_with_power_and_is_not_decided_without():
    assert shares(mean=0.0, spread=0.1, comparisons=12, draws=100)["holds"] > 0.9
    assert shares(mean=0.0, spread=1.0, comparisons=12, draws=100)["not decided"] > 0.9
    assert shares(mean=2.0, spread=0.1, comparisons=12, draws=100)["does not hold"] > 0.9


def test_equivalence_needs_both_sides():
    random = np.random.default_rng(0)
    states = {
        mean: paired.differences({"one": random.normal(mean, 0.05, 5)}, 0.5).state for mean in (-2, 0, 2)
    }
    assert states == {-2: False, 0: True, 2: False}
    found = paired.differences({"one": np.array([0.2, 0.21, 0.19]), "other": np.array([-1.0, 2, 0])}, 0.5)
    assert found.state is None and "1 of 2 shown" in found.measured
    assert "beyond chance not zero: one: +0.20" in found.measured and "4 bounds" in found.why


@pytest.mark.parametrize(("distance", "seeds", "tests"), [(1.0, 5, 1), (2.0, 5, 6), (0.5, 20, 12)])
def test_power_meets_simulation(distance, seeds, tests):
    """Within five deviations of 4000 draws; a deviation one third wider must not fit."""
    lost = np.random.default_rng(0).normal(-distance, 1.0, (4000, seeds))
    shown = np.mean([paired.below(one, 0.0, tests) is True for one in lost])
    expected = paired.power(distance, 1.0, seeds, tests)
    allowed = 5 * np.sqrt(expected * (1 - expected) / 4000)
    assert abs(shown - expected) < allowed
    assert abs(shown - paired.power(distance, 4 / 3, seeds, tests)) > allowed
    needed = paired.detectable(1.0, seeds, tests)
    assert paired.power(needed, 1.0, seeds, tests) == pytest.approx(0.8, abs=1e-6)


def test_folds_are_not_independent():
    """Means over ten folds of one data set, by a method that is as good as its mean over training sets.

    A fold's score is what its own test examples add to something that all folds share, as their training sets
    do. Tests that take folds for independent call a method better that is not far more often than 5 %.
    """
    random = np.random.default_rng(0)
    wrong = {0.0: 0, paired.FOLDS: 0}
    for _ in range(2000):
        shared, own = random.normal(0, 0.3), random.normal(0, 1, 10)
        for share in wrong:
            wrong[share] += paired.above(shared + own, 0.0, share=share) is True
    assert wrong[0.0] > 0.09 * 2000 and wrong[paired.FOLDS] < 0.06 * 2000
    low, high = paired.bounds(np.arange(10), 2, paired.FOLDS)
    plain = paired.bounds(np.arange(10), 2)
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(math.sqrt(1 + 10 / 9))


def test_few_seeds_on_a_small_test_set_say_too_much():
    """What docs/terms.md warns of: a loss at the margin, seen in 360ths by three seeds."""
    random, wrong = np.random.default_rng(0), []
    for spread in (0.2, 0.3):
        lost = random.normal(0.5, spread, (4000, 3))
        seen = np.round(lost * 3.6) / 3.6
        wrong.append(np.mean([paired.below(one, 0.5, 12) is True for one in seen]))
    assert 0.015 < wrong[1] < wrong[0] < 0.035 and paired.FALSE_ALARMS / 12 < 0.0045


@pytest.mark.parametrize(("margin", "seeds", "tests"), [(1.0, 5, 2), (3.0, 3, 6), (0.7, 20, 6)])
def test_power_of_an_equivalence_meets_simulation(margin, seeds, tests):
    """Both bounds within the margin; the power of one of them alone is not that of both."""
    found = np.random.default_rng(1).normal(0, 1.0, (4000, seeds))
    ends = [paired.bounds(one, tests) for one in found]
    states = [-margin < low and high < margin for low, high in ends]
    expected = paired.power(margin, 1.0, seeds, tests, two_sided=True)
    allowed = 5 * np.sqrt(expected * (1 - expected) / 4000)
    assert abs(np.mean(states) - expected) < allowed
    assert paired.power(margin, 1.0, seeds, tests) - expected > 2 * allowed
    needed = paired.detectable(1.0, seeds, tests, two_sided=True)
    assert paired.power(needed, 1.0, seeds, tests, two_sided=True) == pytest.approx(0.8, abs=1e-6)


def test_a_loss_that_five_seeds_cannot_see_is_not_decided():
    """The authors' MLP with gradients: +0.08 points with a standard error of .42, one of six comparisons."""
    lost = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    lost = -0.08 + lost / lost.std(ddof=1) * 0.42 * np.sqrt(5)
    assert paired.power(1.0, paired.deviation(lost), 5, 6) == pytest.approx(0.22, abs=0.005)
    assert paired.verdict(paired.losses({"CEPAM": lost}, 1.0, 6).state, 5) == "not decided"


def test_few_runs_test_nothing_and_equal_runs_decide():
    one = paired.losses({"a": np.array([-0.8])}, 0.5)
    assert one.state is None and paired.verdict(one.state, 1) == "not tested"
    assert paired.verdict(True, 2) == paired.verdict(False, 2) == "not tested"
    assert paired.losses({"a": np.zeros(3)}, 0.5).state is True
    assert paired.losses({"a": np.full(3, 0.6)}, 0.5).state is False
    assert paired.losses({"a": np.array([0.0, np.nan, 0.0])}, 0.5).state is None


def test_conditions_with_three_states():
    assert paired.all_of([True, None]) is None and paired.all_of([False, None]) is False
    assert paired.any_of([True, None]) is True and paired.any_of([False, None]) is None
    assert paired.all_of([]) is True and paired.any_of([]) is False
    assert paired.verdict(False, 3, part=True) == "holds in part"
    assert paired.verdict(None, 3, part=True) == "not decided"


def gamma_rows(gammas, steep, cheap):
    """Losses 40 exp(-gamma / steep) of three seeds, and gamma / cheap of the traffic."""
    rows = [{"gamma": None}]
    for g in gammas:
        losses = [40 * math.exp(-g / steep) + noise for noise in (-0.1, 0.0, 0.1)]
        row = {"gamma": g, "losses": losses, "lost_mean": losses[1], "lost": "", "diverged": 0}
        rows.append(row | {"accuracy": [0.5] * 3, "traffic": g / cheap})
    return rows


@pytest.mark.parametrize(("steep", "cheap", "expected"), [(5, 100, "holds"), (5, 10_000, "does not hold")])
@pytest.mark.parametrize("start", [0.3, 3.0, 4.0])
@pytest.mark.parametrize("step", [1.2, 1.5])
def test_the_verdict_on_small_gammas_does_not_depend_on_the_grid(steep, cheap, expected, start, step):
    """At gamma 5 to 10 a twentieth to a tenth is sent, and 14.7 to 5.4 points are lost; or far less is."""
    gammas = start * step ** np.arange(1 + math.ceil(math.log(2000 / start, step)))
    claim = gamma.claims_of("made up", gamma_rows(gammas, steep, cheap), 3)[0]
    assert claim.verdict == expected
    if expected == "holds":
        assert "5 to 10 % of the traffic: gamma 5" in claim.measured


def test_the_curve_is_read_between_gammas():
    curve = gamma.curve_of(gamma_rows([1, 10, 100], 50, 1000))
    assert gamma.at_traffic(curve, 0.05).gamma == pytest.approx(50)
    assert gamma.at_traffic(curve, 0.2) is None and gamma.at_loss(curve, 39.99) is None
    middle = gamma.at_loss(curve, float(curve.lost[1].mean()))
    assert middle.gamma == pytest.approx(10) and middle.traffic == pytest.approx(0.01)
    high = gamma.claims_of("made up", gamma_rows([1, 10], 50, 1000), 3)
    assert high[0].verdict == "not decided" and "not on the curve" in high[0].measured


def test_scenario_3_counts_every_comparison_and_can_leave_out_the_seeds_that_asked():
    def rows(excess):
        found = []
        for kind, method in itertools.product(("iid", "quantity"), ("Gaussian noise", "CEPAM")):
            loss = np.array(excess) if (kind, method) == ("quantity", "CEPAM") else np.zeros(6)
            found.append({"partition": kind, "method": method, "loss": loss.tolist()})
        return found

    noisy = [2.0, 2.1, 1.9, 0.0, 0.1, -0.1]
    (every,) = scenario3.claims_of("made up", rows(noisy))
    (fresh,) = scenario3.claims_of("made up", rows(noisy), first=3)
    assert "12 bounds" in every.why and "6 seeds" in every.measured and every.verdict == "not decided"
    assert "+0.00 ± 0.06" in fresh.measured and "3 seeds, from seed 3 on" in fresh.measured


def made_up_gaps(exponents, over, seeds=8):
    """Rows of the convergence figure whose gaps follow powers of gamma + t, `over` times their bound."""
    random, rounds = np.random.default_rng(0), np.unique(np.geomspace(1, 1000, 30).round())
    rows = []
    for setting, exponent in zip(convergence.SETTINGS, exponents, strict=True):
        bound = (30 + rounds * setting.local_steps) ** exponent
        noise = np.exp(random.normal(0, 0.03, (seeds, len(rounds))))
        row = {"label": setting.label, "local_steps": setting.local_steps, "offset": 30.0}
        rows.append(
            row | {"round": rounds.tolist(), "bound": bound.tolist(), "measured": over * bound * noise}
        )
    sigmas = np.array([0.1, 0.2, 0.4])
    floor = sigmas[:, None] ** 2 * np.exp(random.normal(0, 0.01, (3, seeds)))
    return rows, {"sigma": sigmas, "measured": 0.5 * floor, "bound": sigmas**2}


@pytest.mark.parametrize(
    ("fall", "trap", "over", "expected"),
    [
        (-1.0, 1.0, 0.5, ["holds"] * 4),
        (-1.3, 1.0, 1.5, ["does not hold", "holds", "does not hold", "holds"]),
        (-1.0, -1.0, 0.5, ["holds", "holds", "holds", "does not hold"]),
    ],
)
def test_convergence_reads_the_exponents_and_the_bound(fall, trap, over, expected):
    exponents = [fall] * (len(convergence.SETTINGS) - 1) + [trap]
    claims = convergence.claims_of(*made_up_gaps(exponents, over))
    assert [claim.verdict for claim in claims] == expected


def test_runs_of_one_seed_are_not_counted_twice():
    """Two aggregators that give the same are no more evidence than one."""
    random = np.random.default_rng(0)
    found = {("float32", "", "examples", kind): random.normal(0.9, 0.01, 3) for kind in clipped.PARTITIONS}
    for kind, rounding in itertools.product(clipped.PARTITIONS, clipped.ROUNDINGS):
        runs = random.normal(0.9, 0.01, 3)
        found |= {("2 bits", rounding, weights, kind): runs for weights in clipped.AGGREGATORS}
    iid = [("2 bits", rounding, "examples", "iid") for rounding in clipped.ROUNDINGS]
    text = next(r[-1] for r in clipped.comparisons(found, [2]) if r[0].startswith("stochastic against"))
    assert text == paired.points(*(found[name] for name in iid))


def test_an_epsilon_at_which_runs_diverged_keeps_the_claim_open():
    def row(method, epsilon, accuracies, diverged):
        row = {"method": method, "epsilon": epsilon, "diverged": diverged, "accuracies": accuracies}
        return row | {"bits": 0.1 if method == "cepam_gaussian" else 32.0}

    rows = [row(name, 1, [0.9, 0.91, 0.92], 0) for name in ("cepam_gaussian", "noise_gaussian")]
    assert privacy.claims_of("made up", rows, 3)[0].verdict == "holds"
    rows += [row("cepam_gaussian", 8, [], 3), row("noise_gaussian", 8, [0.9, 0.91, 0.92], 0)]
    (claim,) = privacy.claims_of("made up", rows, 3)
    assert claim.verdict == "not decided" and "without epsilon 8: runs diverged" in claim.measured


def test_the_fair_opponent_has_a_claim_that_names_whom_both_trust():
    def verdicts(lost, bits, methods=("cepam_gaussian", "noise_gaussian", "server_sdq")):
        sizes = {"cepam_gaussian": 0.2, "noise_gaussian": 32.0, "server_sdq": bits}
        each = {name: np.array([0.9, 0.91, 0.92]) + lost * (name == "server_sdq") for name in methods}
        rows = [
            {"method": name, "epsilon": 1, "diverged": 0, "accuracies": each[name], "bits": sizes[name]}
            for name in methods
        ]
        return [(claim.verdict, claim.trust) for claim in privacy.claims_of("made up", rows, 3, "server")]

    both = verdicts(0.0, 0.3)
    assert [state for state, _ in both] == ["holds", "holds"]
    assert "both trust the server" in both[1][1] and "CEPAM trusts the server" in both[0][1]
    assert all("epsilon against server" in trust for _, trust in both)
    assert verdicts(0.02, 0.3)[1][0] == verdicts(0.0, 0.1)[1][0] == "does not hold"
    assert len(verdicts(0.0, 0.3, ("cepam_gaussian", "noise_gaussian"))) == 1


@pytest.mark.parametrize(("lost", "bits", "expected"), [(0, 0.3, "holds"), (0.02, 0.3, "does not hold")])
def test_scenario_2_names_whom_both_trust(lost, bits, expected):
    each = {"CEPAM Z1": (0.2, 0.0), "server noise + SDQ": (bits, lost), "Gaussian noise": (32.0, 0.0)}
    rows = [
        {"method": name, "accuracy": [0.9 + more, 0.91 + more, 0.92 + more], "bits": size}
        for name, (size, more) in each.items()
    ]
    claims = scenario2.claims_of("made up", "weights", 0.01, rows, 1)
    assert [claim.verdict for claim in claims] == ["holds", expected]
    assert "both trust the server" in claims[1].why
    rows[1]["accuracy"] = None
    assert scenario2.claims_of("made up", "weights", 0.01, rows, 1)[1].verdict == "not decided"


def test_clipped_claims_ask_for_bounds():
    def verdicts(near, better, spread):
        base = np.array([-1.0, 0, 1]) * spread
        found = {("float32", "", "examples", "iid"): np.full(3, 0.9)}
        found["2 bits", "stochastic", "examples", "iid"] = 0.9 + (near + base) / 100
        found["2 bits", "deterministic", "examples", "iid"] = np.full(3, 0.9 + (near - better) / 100)
        return [claim.verdict for claim in clipped.claims("made up", found, [2], 3)]

    assert verdicts(0, 3, 0.1) == ["holds", "holds"]
    assert verdicts(0, 0, 0.1) == ["holds", "does not hold"]
    assert verdicts(0, 3, 2.0) == ["not decided", "not decided"]


def test_scenario_1_asks_each_seed():
    def verdicts(spread, seeds=5):
        each = np.linspace(-1, 1, seeds) * spread
        row = {"method": "gamma 30", "losses": 0.2 + each, "lost_mean": 0.2, "lost": "", "bits": 0.2}
        row |= {"saved": 0.99, "beyond": 0.3 + each, "rounds_to_target": 11, "rounds_of_fedavg": 10}
        return scenario1.claims_of("made up", [{"method": "fedavg"}, row], seeds)[0].verdict

    assert (verdicts(0.05), verdicts(1.0), verdicts(0.05, 2)) == ("holds", "not decided", "not tested")


@pytest.mark.parametrize(
    ("clip", "noise", "expected"),
    [
        (3.0, 0.0, ["holds", "holds"]),
        (3.0, 3.0, ["holds", "does not hold"]),
        (-1.0, 0.0, ["does not hold", "holds"]),
    ],
)
def test_scenario_1_tells_the_clip_from_the_noise(clip, noise, expected):
    each = 0.001 * np.linspace(-1, 1, 5)
    lossless = 0.9 + np.linspace(-0.01, 0.01, 5)
    rows = [{"method": "fedavg", "accuracy": lossless}]
    for name, lost in ((scenario1.CLIPPED, clip), ("gamma 30", clip + noise)):
        accuracy = lossless - lost / 100 + each * (1 if name == "gamma 30" else -1)
        losses = paired.in_points(lossless, accuracy)
        rows.append({"method": name, "accuracy": accuracy, "losses": losses, "lost": ""})
    assert [claim.verdict for claim in scenario1.cause_of("made up", rows, 5)] == expected
    assert scenario1.cause_of("made up", [rows[0], rows[2]], 5) == []


def test_mean_estimation_claims_ask_for_bounds():
    row = {"measured": 0.9, "standard_error": 0.01, "bound": 1.0}
    assert mean_estimation.within_bounds([row], 100)[0] is True
    assert mean_estimation.within_bounds([row, row | {"standard_error": 0.1}], 100)[0] is None
    assert mean_estimation.within_bounds([row, row | {"measured": 1.1}], 100)[0] is False
    users = np.arange(1000)
    states = [mean_estimation.half_settled(users, by, 1) for by in (400, 500, 600)]
    assert states == [False, None, True]


def test_an_error_law_is_not_shown_by_a_test_that_rejects_nothing():
    row = {"p_value": 0.5, "p_values": [0.5] * 3, "distances": [0.001] * 3, "correlation": 0.0}
    assert error_law.claim_of([row], 1_000_000).verdict == "holds"
    assert error_law.claim_of([row], 10_000).verdict == "not decided"
    assert error_law.claim_of([row | {"p_values": [0.5, 1e-6, 0.5]}], 1_000_000).verdict == "does not hold"


def test_sdq_with_the_servers_noise_costs_what_theory_says():
    """h(x) less the step's logarithm at high resolution; at a low one 2.5 and 1.25 times CEPAM's limit."""
    keys, x = Keys(jax.random.key(1), jax.random.key(2)), jax.random.normal(jax.random.key(0), (200_000,))
    fine, coarse = (rate.server_noise(keys, ratio * x) for ratio in (10.0, 0.1))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 100)
    limit = theory.layered_limit(0.1)
    for name, step in rate.SERVER_NOISE.items():
        assert fine[name] == pytest.approx(entropy - math.log2(step), abs=0.02)
        assert coarse[name] / limit == pytest.approx(2.5 / step, rel=0.05)


def test_the_page_of_claims_gives_verdicts_that_there_are(root):
    lines = (root / "docs/reproducing.md").read_text().splitlines()
    start = lines.index("| arXiv | claim | measured | verdict | why |") + 2
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    verdicts = [row.split("|")[4].strip().strip("*") for row in rows]
    assert len(rows) > 20 and set(verdicts) <= set(output.VERDICTS)
    assert all("2 seeds" not in row or "**not tested**" in row for row in rows)


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


class Page(html.parser.HTMLParser):
    """Checks that elements are closed, and collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_no_other_file_and_interprets_nothing(tmp_path):
    finished_figures(tmp_path)
    claims = tmp_path / "gamma" / "claims.json"
    given = json.loads(claims.read_text())
    given[0]["measured"] = "<script>alert(1)</script>"
    del given[0]["trust"]  # as of the first release
    claims.write_text(json.dumps(given))
    reports.write(tmp_path, {"rate": ["-m", "experiments.figures.rate"]}, {"rate": "no <space> left"})
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert page.open == []
    for name, value in page.attributes:
        if name == "src":
            assert value == "data:image/png;base64," + base64.b64encode(PNG).decode()
        elif name == "href":
            assert value.startswith(("#", "https://arxiv.org/abs/2601.10701"))
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href" and value[0] == "#"} == anchors
    assert len(anchors) == 2 and sum(name == "src" for name, _ in page.attributes) == 2
    for text in (
        "<script>alert(1)",
        "not said",
        "nobody",
        "2 claims: 2 does not hold",
        "no <space> left",
        "<b>",
    ):
        assert text in page.text


@pytest.mark.parametrize("broken", ["{", "[]", '{"figure": "gamma"}', '"versions"'])
def test_what_is_no_finished_figure_is_named(tmp_path, broken):
    """The others are in the report all the same."""
    finished_figures(tmp_path)
    place = tmp_path / "gamma" / "run.json"
    if broken == '"versions"':
        broken = json.dumps(json.loads(place.read_text()) | {"versions": []})
    place.write_text(broken)
    reports.write(tmp_path, {}, {})
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "gamma is no finished figure" in text and "numbers of cifar10" in text


def test_the_site_publishes_the_report_that_it_is_told_of(tmp_path, monkeypatch):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=site.PAGE))
    monkeypatch.delenv(site.VARIABLE, raising=False)
    site.on_post_build({"site_dir": str(tmp_path)})
    assert site.on_page_content("text", page) == "text" and not list(tmp_path.iterdir())
    monkeypatch.setenv(site.VARIABLE, str(tmp_path / "figures"))
    with pytest.raises(FileNotFoundError, match="no report.html"):
        site.on_post_build({"site_dir": str(tmp_path)})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/report.html").write_text("all figures")
    site.on_post_build({"site_dir": str(tmp_path)})
    assert (tmp_path / "report.html").read_text() == "all figures"
    assert 'href="../report.html"' in site.on_page_content("text", page)
    page.file.src_uri = "index.md"
    assert site.on_page_content("text", page) == "text"
