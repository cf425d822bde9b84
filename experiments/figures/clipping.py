"""A clip that follows a private quantile of the updates' norms, against the best fixed clip.

  python -m experiments.figures.clipping --workdir=/tmp/clipping

All at the same total epsilon against the released model, that of the counts included. Fixed clips are tried
on a grid, and the best is chosen by its mean accuracy over the seeds, which flatters it; the rule has no
grid: it begins far below, near and far above. Runs of one seed are paired.
"""

from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.run import ledger
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    all_of,
    below,
    deviation,
    in_points,
    spread,
    verdict,
    with_error,
)
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

# The paper's rate, and five times that.
RULES = {"median": 0.2, "median, fast": 1.0}
SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 4, "clips": ["0.3", "1"], "starts": ["0.1", "1"]}


def configs_of(data: str) -> dict:
    """(method, clip at the start) -> configuration."""
    f = flags.FLAGS
    fields = {"privacy__target_epsilon": f.epsilon, "model": "mlp"}
    found = {}
    for clip in cli.numbers("clips"):
        found["fixed", clip] = config_of(data, "cepam_gaussian", mechanism__clip_norm=clip, **fields)
    for name, rate in RULES.items():
        for clip in cli.numbers("starts"):
            rule = {"control": "quantile_clip", "quantile_clip__rate": rate, "mechanism__clip_norm": clip}
            found[name, clip] = config_of(data, "cepam_gaussian", **fields, **rule)
    return found


def measure(data: str) -> list[dict]:
    """A row for each method and clip at the start."""
    f = flags.FLAGS
    made = {f"{name} {clip:g}": (name, clip, config) for (name, clip), config in configs_of(data).items()}
    where = Path(f.workdir) / "runs" / data
    configs = {label: config for label, (*_, config) in made.items()}
    results = train_all(configs, f.seeds, where, f.progress)
    rows = []
    for label, (name, clip, _) in made.items():
        each = [clips_of(where / label.replace(" ", "_") / f"seed{seed}") for seed in range(f.seeds)]
        rows.append(
            {
                "data": data,
                "method": name,
                "start": clip,
                "accuracy": accuracies(results[label]).tolist(),
                "clips": np.mean(each, axis=0).tolist(),
                "epsilon": results[label][0][-1]["epsilon"]["released_model"],
            }
        )
    return rows


def clips_of(workdir: Path) -> np.ndarray:
    """f64[rounds], the clip of each round of a run, the largest over clients."""
    book = ledger.read((workdir / "ledger.jsonl").read_text())
    return np.repeat([np.max(entry.knobs.clip) for entry in book.entries], [e.rounds for e in book.entries])


def best_fixed(rows: list[dict]) -> dict:
    """The fixed clip with the largest mean accuracy."""
    return max((row for row in rows if row["method"] == "fixed"), key=lambda row: np.mean(row["accuracy"]))


def claims_of(rows: list[dict]) -> list[Claim]:
    """Is the rule as good as the best fixed clip, wherever it begins? Of the rows of one data set."""
    best, found = best_fixed(rows), []
    for name, rate in RULES.items():
        mine = [row for row in rows if row["method"] == name]
        losses = {row["start"]: in_points(best["accuracy"], row["accuracy"]) for row in mine}
        states = [below(loss, MARGIN, len(losses)) for loss in losses.values()]
        measured = ", ".join(f"from {start:g} {with_error(loss)}" for start, loss in losses.items())
        seeds = len(best["accuracy"])
        found.append(
            Claim(
                "1905.03871",
                f"{rows[0]['data']}: the {name} (rate {rate:g}) is as good as the best fixed clip",
                f"points lost: {measured}; {seeds} seeds",
                verdict(all_of(states), seeds),
                f"best fixed clip: {best['start']:g}; at most {MARGIN:g} points from each start; "
                f"{len(states)} bounds of paired t tests, {TOGETHER}",
                f"{SERVER_TRUSTED}; epsilon against the released model",
            )
        )
    return found


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = []
    for row in rows:
        best = best_fixed([other for other in rows if other["data"] == row["data"]])
        lost = "" if row is best else with_error(in_points(row["accuracy"], best["accuracy"]))
        clip = f"{row['start']:g}" + ("" if row["method"] == "fixed" else f" to {row['clips'][-1]:.2g}")
        lines.append(
            [row["data"], row["method"], clip, spread(row["accuracy"]), lost, f"{row['epsilon']:.4g}"]
        )
    return markdown(["data", "clip", "C", "test accuracy", "points over best fixed clip", "epsilon"], lines)


def plot(rows: list[dict]) -> Figure:
    """Accuracy against the clip at the start, and the clips of the rule over the rounds."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(10, 3.8 * len(names)), layout="constrained")
    for (left, right), data in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        line = 0
        for number, method in enumerate(("fixed", *RULES)):
            mine = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            values = [row["accuracy"] for row in mine]
            x = [row["start"] for row in mine]
            each = [list(map(of, values)) for of in (np.mean, deviation)]
            left.errorbar(x, *each, capsize=2, label=method, **style(number))
            for row in mine if method != "fixed" else []:
                label = f"{method}, from {row['start']:g}"
                right.plot(
                    np.arange(1, len(row["clips"]) + 1), row["clips"], label=label, **style(line, False)
                )
                line += 1
        left.set(xscale="log", xlabel="clip at the start", ylabel="test accuracy", title=data)
        right.set(yscale="log", xlabel="round", ylabel="clip, mean over seeds", title=data)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    return figure


def define_flags():
    define_training_flags(("digits", "mnist"), seeds=10)
    flags.DEFINE_list("clips", ["0.1", "0.3", "0.6", "1", "1.7", "3"], "Fixed clips that are tried.")
    flags.DEFINE_list("starts", ["0.1", "1", "10"], "Clips that the rule begins with.")
    flags.DEFINE_float("epsilon", 100.0, "Of the whole run, against the released model.")


def main():
    f, rows, claims = flags.FLAGS, [], []
    for data in f.data:
        found = measure(data)
        rows += found
        claims += claims_of(found)
    output.save(settings_text(f.data, f.seeds) + table(rows), rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
