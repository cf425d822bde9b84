"""Needs of bits: what is planned before training, and what real messages take.

  python -m experiments.figures.needs --workdir=/tmp/needs

For each budget (bits of a message per coordinate of the update) the largest gamma is computed before
training, as for every run with `config.needs`. Shown are the mean of the messages over the budget, the share
of messages within it, and the accuracy. The clip norms are such that updates are clipped most of the time
("tight"), which is where messages are longest, or seldom.
"""

import re
from pathlib import Path

from matplotlib.figure import Figure

from cepam_jax.errors import require_choice
from experiments import cli, output
from experiments.plots import style
from experiments.runs import (
    accuracies,
    config_of,
    coordinates_of,
    define_training_flags,
    mean_of,
    settings_text,
    train_all,
)
from experiments.tables import markdown

MODELS = {"digits": "linear", "mnist": "mlp"}
CLIPS = {"tight": 0.3, "wide": 3.0}


def configs_of(data: str, budgets: list[float]):
    """{label: configuration}."""
    found = {}
    for name, clip in CLIPS.items():
        for budget in budgets:
            config = config_of(data, "cepam_gaussian", model=MODELS[data], mechanism__clip_norm=clip)
            config.needs.bits = (budget * coordinates_of(config),) * config.num_clients
            config.eval_every = max(1, config.rounds // 4)
            found[f"{data} {name} {budget:g}"] = config
    return found


def row(label: str, runs, workdir: Path) -> dict:
    """What the table shows of the runs of one budget."""
    data, clip, budget = label.split()
    each = [line["needs"]["within_bits"] for lines in runs for line in lines[1:]]  # blocks of equal length
    text = (workdir / label.replace(" ", "_") / "seed0/needs.txt").read_text()
    return {
        "data": data,
        "clip": clip,
        "budget": float(budget),
        "gamma": float(re.search(r"gamma = ([\d.e+-]+)", text)[1].rstrip(".,")),
        "used": mean_of(runs, "bits_per_coordinate") / float(budget),
        "within": sum(each) / len(each),
        "accuracy": accuracies(runs).mean(),
    }


def plot(rows):
    """Bits that were used over those that were allowed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, kind in enumerate(dict.fromkeys((row["data"], row["clip"]) for row in rows)):
        mine = [row for row in rows if (row["data"], row["clip"]) == kind]
        label = f"{MODELS[kind[0]]} on {kind[0]}, {kind[1]} clip"
        axes.plot(
            [row["budget"] for row in mine], [row["used"] for row in mine], label=label, **style(number)
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xlabel="budget, bits per coordinate", ylabel="mean of messages / budget", ylim=(0, 1.1), xscale="log"
    )
    budgets = sorted({row["budget"] for row in rows})
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets], minor=False)
    axes.minorticks_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2, fontsize="small")
    return figure


def main():
    f = cli.flags.FLAGS
    workdir = Path(f.workdir)
    budgets = [float(budget) for budget in f.budgets]
    for data in f.data:
        require_choice("--data", data, MODELS)
    configs = {name: config for data in f.data for name, config in configs_of(data, budgets).items()}
    results = train_all(configs, f.seeds, workdir / "runs", f.progress)
    rows = [row(label, runs, workdir / "runs") for label, runs in results.items()]
    table = markdown(
        ["data", "clip", "budget, bits per coordinate", "gamma", "mean / budget", "within", "test accuracy"],
        [
            [
                line["data"],
                line["clip"],
                f"{line['budget']:g}",
                f"{line['gamma']:.4g}",
                f"{line['used']:.3f}",
                f"{100 * line['within']:.2f} %",
                f"{line['accuracy']:.4f}",
            ]
            for line in rows
        ],
    )
    output.save(settings_text(f.data, f.seeds) + table, rows, plot(rows))


def define_flags():
    define_training_flags(("digits", "mnist"), seeds=2)
    cli.flags.DEFINE_list("budgets", ["0.2", "0.5", "1", "3"], "Bits of a message per coordinate.")


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"data": ["digits"], "seeds": 1, "rounds": 4, "budgets": ["0.5", "2"]})
