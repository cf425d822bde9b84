"""The gap to the optimum against its bound: 1/T, the floor of a constant step, and noise that does not fade.

  python -m experiments.figures.convergence --workdir=/tmp/convergence

Ridge and logistic regression on the embedded digits over ten clients, whose every constant is computed
(`experiments.convex`), through the quantizers themselves; docs/convergence.md has the theorem. Top left: the
gap and its bound, one local step. Top right: the floor of a constant step against sigma. Bottom left: five
local steps with a falling step, noise on the difference of weights or on the difference over the step. Bottom
right: the bound over what was measured. Finished runs are not repeated.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import mechanisms
from cepam_jax.errors import require
from cepam_jax.privacy import accounting, releases
from cepam_jax.theory import convergence as theory
from experiments import cli, convex, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import TOGETHER, all_of, below, bounds, verdict
from experiments.plots import style
from experiments.tables import markdown

STRENGTH = 0.05  # lambda of the regularizer
BATCH = 16
SOURCE = "1907.02189, 2601.10701"
QUANTIZERS = {"LRSUQ Z1": mechanisms.lrsuq("gaussian"), "rotated E8": mechanisms.rotated("E8")}
WITHIN = 0.1  # of an exponent, that counts as equal to it
DELTA = 1e-5
SMOKE = {"rounds": 30, "seeds": 3, "sigmas": ["0.05", "0.1"], "quantizers": ["LRSUQ Z1"]}


class Setting(NamedTuple):
    """One run with a falling step; fields as `convex.bounded` and `theory.Problem` have them."""

    loss: str
    split: str
    quantizer: str = "LRSUQ Z1"
    local_steps: int = 1
    participants: int = 0
    release: str = "gradient_sum"
    sigma: float = 0.3

    @property
    def label(self) -> str:
        """In words, for tables and legends."""
        more = f", {self.local_steps} local steps" if self.local_steps > 1 else ""
        more += f", {self.participants} of 10 clients" if self.participants else ""
        more += ", noise on differences" if self.release == "difference" else ""
        return f"{self.loss}, {self.split}, {self.quantizer}{more}"


SETTINGS = (
    Setting("ridge", "iid"),
    Setting("ridge", "by label"),
    Setting("ridge", "by label", "rotated E8"),
    Setting("logistic", "by label", "rotated E8", sigma=1.0),
    Setting("ridge", "by label", participants=4),
    Setting("bumpy", "by label"),
    Setting("logistic", "by label", local_steps=5, sigma=0.03),
    Setting("logistic", "by label", local_steps=5, release="difference", sigma=0.03),
)


def measure(setting: Setting, rounds: int, seeds: int) -> dict:
    """Gaps of all seeds at some rounds, and their bounds there (of `bumpy`: mean squared gradients)."""
    s = setting
    clients = convex.digits(s.loss, s.split, STRENGTH)
    found = convex.bounded(clients, s.local_steps, BATCH, s.participants)
    convex_loss = found.best is not None
    if convex_loss:
        steps = theory.decreasing_steps(found.problem, rounds)
    else:
        steps = found.first_step / np.sqrt(1 + np.arange(rounds))[:, None]
    # At the first round both kinds of release carry the same noise.
    sigma = s.sigma * (steps[0, 0] if s.release == "difference" else 1.0)
    problem = convex.with_noise(found, sigma, steps, s.release)
    mechanism = mechanisms.chain(mechanisms.clip("l2"), QUANTIZERS[s.quantizer])
    models = convex.descend(found, problem, mechanism, steps, BATCH, seeds)
    row = setting._asdict() | {"label": s.label, "closed": None, "constants": constants(problem)}
    if not convex_loss:
        slopes = convex.squared_slopes(found, models[:, :-1])
        weighted = np.cumsum(slopes * steps[:, 0], 1) / np.cumsum(steps[:, 0])
        start = float(convex.value(clients, models[0, 0]).mean())
        bound = theory.squared_gradients(problem, steps, start - found.least)
        at = np.unique(np.geomspace(1, rounds, 25).round().astype(int))
        return row | {
            "round": at.tolist(),
            "measured": weighted[:, at - 1].tolist(),
            "bound": bound[at - 1].tolist(),
        }
    at = np.unique(np.r_[0, np.geomspace(1, rounds, 40).round().astype(int)])
    row |= {"round": at.tolist(), "measured": convex.excess(found, models[:, at]).tolist()}
    row |= {"bound": theory.gaps(problem, steps)[at].tolist(), "offset": problem.offset}
    if s.release == "gradient_sum":
        row["closed"] = theory.closed_form(problem, steps)[at].tolist()
    return row


def constants(problem: theory.Problem) -> dict:
    """What a bound was computed from."""
    return {
        "L": problem.smoothness,
        "mu": problem.strong_convexity,
        "G": problem.gradient_bound,
        "s": max(problem.gradient_noise),
        "Gamma": problem.heterogeneity,
        "distance": problem.distance,
        "sigma": problem.sigmas[0],
        "clip": problem.clip,
    }


def floors(sigmas: list[float], rounds: int, seeds: int) -> dict:
    """Ridge by label, all examples, a constant step: mean gaps of the last third, and their bound."""
    found = convex.bounded(convex.digits("ridge", "by label", STRENGTH))
    steps = np.full((rounds, 1), found.first_step)
    problem = convex.with_noise(found, 0.0, steps, "gradient_sum")
    mechanism = mechanisms.chain(mechanisms.clip("l2"), QUANTIZERS["LRSUQ Z1"])
    models = convex.descend(found, problem, mechanism, steps, 0, seeds, tuple(sigmas))
    gaps = convex.excess(found, models[:, :, -(rounds // 3) :: 10]).mean(-1)
    bound = [
        theory.floor(convex.with_noise(found, sigma, steps, "gradient_sum"), found.first_step)
        for sigma in sigmas
    ]
    return {"label": "floor", "sigma": sigmas, "measured": gaps.tolist(), "bound": bound}


def slopes(x, values) -> np.ndarray:
    """Least-squares slope of log values [runs, points] against log x [points], for each run."""
    return np.polyfit(np.log(x), np.log(np.asarray(values)).T, 1)[0]


def late(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """(gamma + t, gaps [seeds, points]) of the last part of a run, from a fifth of its rounds on."""
    at = np.array(row["round"])
    chosen = at >= at[-1] / 5
    return row["offset"] + row["local_steps"] * at[chosen], np.array(row["measured"])[:, chosen]


def privacy_of(row: dict, rounds: int) -> list[list]:
    """What the clip must be, and the epsilon of one client's messages, under four ways to noise the same run.

    Args:
      row: of a run with several local steps, on sums of gradients.
      rounds: of it.
    """
    found = convex.bounded(
        convex.digits(row["loss"], row["split"], STRENGTH), row["local_steps"], BATCH, row["participants"]
    )
    steps = theory.decreasing_steps(found.problem, rounds)
    first, clip = steps[:, 0], row["constants"]["clip"]
    fixed = float(convex.with_noise(found, 0.0, steps, "difference").clip)
    one = np.ones(rounds)
    sigma = row["sigma"]
    ways = (
        ("sum of gradients; clip and sigma fixed", clip * one, sigma * one),
        ("difference; clip and sigma fixed", fixed * one, sigma * first[0] * one),
        ("difference; sigma falls with the step", fixed * one, sigma * first),
        ("difference; clip and sigma fall with the step", clip * first, sigma * first),
    )
    cells = []
    for name, clips, noise in ways:
        event = releases.composed("gaussian", tuple((1, float(z)) for z in noise / clips), 1.0)
        ends = [
            f"{a[0]:.3g} to {a[-1]:.3g}" if a[-1] < 0.99 * a[0] or a[-1] > 1.01 * a[0] else f"{a[0]:.3g}"
            for a in (clips, noise, clips / noise)
        ]
        cells.append([name, *ends, f"{accounting.epsilon(event, DELTA):.3g}"])
    return cells


def claims_of(rows: list[dict], floor: dict) -> list[Claim]:
    """Below the bound, the two exponents, and the trap."""
    seeds = len(rows[0]["measured"])
    pairs = [
        (np.array(r["measured"])[:, n], r["bound"][n])
        for r in rows
        for n in range(len(r["round"]))
        if r["round"][n]
    ]
    pairs += list(zip(map(np.array, floor["measured"]), floor["bound"], strict=True))
    state = all_of(below(values, limit, len(pairs)) for values, limit in pairs)
    highest = max(values.mean() / limit for values, limit in pairs)
    found = [
        Claim(
            SOURCE,
            "the gap (without convexity: the mean squared gradient) is below the bound at every round",
            f"largest mean over its bound: {highest:.2g}; {seeds} seeds",
            verdict(state, seeds),
            f"{len(pairs)} rounds of {len(rows)} runs, and floors; bounds of t tests {TOGETHER}",
            NO_PRIVACY,
        )
    ]
    by_seed = slopes(floor["sigma"], np.array(floor["measured"]).T)
    found.append(_exponent("the floor of a constant step is proportional to sigma^2", by_seed, 2.0))
    plain = next(r for r in rows if r["label"] == SETTINGS[1].label)
    found.append(_exponent("ridge, by label: the gap falls as 1 / (gamma + t)", slopes(*late(plain)), -1.0))
    sums, trap = (next(r for r in rows if r["label"] == s.label) for s in SETTINGS[-2:])
    growth = [slopes(*late(r)) for r in (sums, trap)]
    limits = [bounds(g, 2) for g in growth]
    states = [limits[0][1] < 0, limits[1][0] > 0]
    opposite = limits[0][0] > 0 or limits[1][1] < 0
    found.append(
        Claim(
            "this project",
            "with a falling step the gap falls if sums of gradients are noised, and grows if differences are",
            f"exponents of gamma + t: {growth[0].mean():+.2f} and {growth[1].mean():+.2f}; {seeds} seeds",
            verdict(True if all(states) else False if opposite else None, seeds),
            f"from a fifth of the rounds on; two bounds of t tests, {TOGETHER}",
            NO_PRIVACY,
        )
    )
    return found


def _exponent(claim: str, by_seed: np.ndarray, expected: float) -> Claim:
    low, high = bounds(by_seed, 2)
    inside = expected - WITHIN < low and high < expected + WITHIN
    outside = high < expected - WITHIN or low > expected + WITHIN
    return Claim(
        SOURCE,
        claim,
        f"exponent {by_seed.mean():+.3f} ({low:+.3f} to {high:+.3f}); {len(by_seed)} seeds",
        verdict(True if inside else False if outside else None, len(by_seed)),
        f"within {WITHIN:g} of {expected:+g}; two bounds of t tests over seeds, {TOGETHER}",
        NO_PRIVACY,
    )


def plot(rows: list[dict], floor: dict):
    figure = Figure(figsize=(11, 8), layout="constrained")
    (gaps, right), (trap, loose) = figure.subplots(2, 2)
    for axes, chosen in ((gaps, SETTINGS[1:4]), (trap, SETTINGS[-2:])):
        labels = [setting.label for setting in chosen]
        for number, row in enumerate(r for r in rows if r["label"] in labels):
            mine = style(number, marker=False)
            axes.plot(row["round"][1:], np.mean(row["measured"], 0)[1:], label=row["label"], **mine)
            axes.plot(row["round"][1:], row["bound"][1:], alpha=0.45, linewidth=3, **mine)
        axes.plot([], [], color="grey", alpha=0.45, linewidth=3, label="their bounds")
        axes.set(xscale="log", yscale="log", xlabel="round", ylabel="F(w) - F*")
    right.plot(floor["sigma"], np.mean(floor["measured"], 1), label="measured", **style(0))
    right.plot(floor["sigma"], floor["bound"], label="bound", **style(1))
    right.set(xscale="log", yscale="log", xlabel="sigma", ylabel="floor of F(w) - F*, constant step")
    for number, row in enumerate(rows):
        ratio = np.array(row["bound"]) / np.mean(row["measured"], 0)
        start = row["round"].index(1)
        loose.plot(row["round"][start:], ratio[start:], label=row["label"], **style(number, marker=False))
    loose.set(xscale="log", yscale="log", xlabel="round", ylabel="bound over measured")
    loose.set_ylim(top=1e5 * loose.get_ylim()[1])  # room for the legends
    trap.set_ylim(bottom=trap.get_ylim()[0] / 1e3)
    for axes in (gaps, right, trap, loose):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def kept(name: str, make: Callable[[], dict]) -> dict:
    """What `make` gives, or gave in an earlier call: it is kept under the work directory by this name."""
    path = Path(flags.FLAGS.workdir, "runs", f"{name}.json")
    if not path.exists():
        row = json.dumps(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(row)
        path.with_suffix(".part").replace(path)
    return json.loads(path.read_text())


def define_flags():
    output.define_workdir()
    flags.DEFINE_integer("rounds", 1000, "Of each run.")
    flags.DEFINE_integer("seeds", 64, "Runs of each kind.")
    flags.DEFINE_list("quantizers", list(QUANTIZERS), "The runs with these; LRSUQ Z1 is always one of them.")
    flags.DEFINE_list("sigmas", ["0.01", "0.02", "0.05", "0.1", "0.2"], "Of the floor.")


def main():
    f = flags.FLAGS
    sigmas = cli.numbers("sigmas")
    cli.choices("quantizers", QUANTIZERS)
    require("LRSUQ Z1" in f.quantizers, "--quantizers", f.quantizers, "a list with 'LRSUQ Z1'")
    require(f.rounds >= 10, "--rounds", f.rounds, "at least 10")
    require(f.seeds >= 1, "--seeds", f.seeds, "at least 1")
    require(len(sigmas) > 1 and min(sigmas) > 0, "--sigmas", sigmas, "two positive numbers or more")
    size = f"{f.rounds} rounds, {f.seeds} seeds"
    rows = []
    for setting in (s for s in SETTINGS if s.quantizer in f.quantizers):
        name = f"{setting.label}, sigma {setting.sigma:g}, {size}"
        rows.append(kept(name, lambda setting=setting: measure(setting, f.rounds, f.seeds)))
    floor = kept(f"floor, sigma {','.join(f.sigmas)}, {size}", lambda: floors(sigmas, f.rounds, f.seeds))
    header = [
        "run",
        "L",
        "mu",
        "G",
        "s",
        "Gamma",
        "sigma",
        "clip",
        "measured",
        "bound",
        "closed form",
        "loose",
    ]
    cells = []
    for row in rows:
        c, last = row["constants"], float(np.mean(row["measured"], 0)[-1])
        cells.append(
            [
                row["label"],
                *(f"{c[n]:.3g}" for n in ("L", "mu", "G", "s", "Gamma", "sigma", "clip")),
                f"{last:.2e}",
                f"{row['bound'][-1]:.2e}",
                "" if row["closed"] is None else f"{row['closed'][-1]:.2e}",
                f"{row['bound'][-1] / last:.2g}",
            ]
        )
    means = np.mean(floor["measured"], 1)
    text = f"After {f.rounds} rounds, mean over {f.seeds} seeds ('bumpy': mean squared gradient)\n\n"
    text += markdown(header, cells) + "\n\nFloor of a constant step, ridge by label\n\n"
    text += markdown(
        ["sigma", "measured", "bound", "loose"],
        [
            [f"{s:g}", f"{m:.2e}", f"{b:.2e}", f"{b / m:.2g}"]
            for s, m, b in zip(sigmas, means, floor["bound"], strict=True)
        ],
    )
    text += f"\n\n{SETTINGS[-2].label}: what one client's messages reveal (delta {DELTA:g})\n\n"
    text += markdown(
        ["noise on", "clip", "sigma", "clip over sigma", "epsilon"], privacy_of(rows[-2], f.rounds)
    )
    output.save(text, [*rows, floor], plot(rows, floor), claims_of(rows, floor))


if __name__ == "__main__":
    cli.run(main, define_flags, smoke=SMOKE)
