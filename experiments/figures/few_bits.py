"""Activations and gradients in few bits, on the client: what accuracy local training loses by them.

  python -m experiments.figures.few_bits --workdir=/tmp/few_bits

Bozorgasl and Chen (2405.13365) leave it for future work to quantize activations and gradients as well, and
not only what is sent. Here what goes into each layer, what comes back out of it, or both are rounded in local
training (cepam_jax/tasks/rounded_layers.py), seed by seed beside the same training in floats, with FedAvg and
with CEPAM. Updates are sent as before; the epsilon of CEPAM is the same in all rows, since rounding happens
before the clip. Nothing here is faster: products are computed in floats, and weights stay floats. Levels lie
on both sides of zero, so that behind a ReLU half of them are idle: two bits are then zero and the maximum.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from experiments import cli, output
from experiments.output import NO_PRIVACY, SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, deviation, differences, in_points, points, spread, verdict
from experiments.plots import style
from experiments.runs import (
    accuracies,
    config_of,
    define_training_flags,
    finished,
    mean_of,
    settings_text,
    train_all,
)
from experiments.tables import markdown

METHODS = {"FedAvg": ("fedavg", {}), "CEPAM": ("cepam_gaussian", {"mechanism.gamma": 30.0})}
WHERE = {"activations": (True, False), "gradients": (False, True), "both": (True, True)}
FLOATS = "nothing"  # is rounded
SMOKE = {"data": ["digits"], "seeds": 3, "rounds": 2, "bits": ["4"], "models": ["linear"]}


def measure(data: str, model: str) -> list[dict]:
    """A row for each method, place and number of bits; the first of a method is in floats."""
    f, configs = flags.FLAGS, {}
    for method, (variant, changes) in METHODS.items():
        base = {"model": model, **changes}
        configs[method, FLOATS, 0] = config_of(data, variant, **base)
        for where, (inputs, outputs) in WHERE.items():
            for bits in cli.numbers("bits", int):
                few = {"local.activation_bits": bits * inputs, "local.gradient_bits": bits * outputs}
                configs[method, where, bits] = config_of(data, variant, **base, **few)
    named = {" ".join(map(str, key)): config for key, config in configs.items()}
    where = f"{f.workdir}/runs/{data}_{model}"
    results = train_all(named, f.seeds, where, f.progress, keep_failures=True)
    return [
        {
            **{"data": data, "model": model, "method": key[0], "where": key[1], "bits": key[2]},
            "accuracy": accuracies(runs).tolist() if finished(runs).all() else None,
            "message bits": mean_of(runs, "bits_per_coordinate"),
            "epsilon": runs[0][-1].get("epsilon", {}).get("released_model"),
        }
        for key, runs in zip(configs, results.values(), strict=True)
    ]


def floats_of(rows: list[dict], method: str) -> dict:
    """The row of a method that trains in floats."""
    return next(row for row in rows if row["method"] == method and row["where"] == FLOATS)


def claims_of(data: str, model: str, rows: list[dict]) -> list[Claim]:
    """Whether training with both in few bits is as accurate as in floats, by the number of bits."""
    found = []
    for bits in sorted({row["bits"] for row in rows} - {0}, reverse=True):
        both = {row["method"]: row for row in rows if (row["where"], row["bits"]) == ("both", bits)}
        pairs = {name: (floats_of(rows, name)["accuracy"], row["accuracy"]) for name, row in both.items()}
        diverged = [name for name, pair in pairs.items() if None in pair]
        lost = {name: in_points(*pair) for name, pair in pairs.items() if name not in diverged}
        state, measured, why = None, f"diverged: {', '.join(diverged)}", "needs runs that end"
        if not diverged:
            same = differences(lost, MARGIN)
            state, measured, why = same.state, f"points lost: {same.measured}", same.why
        found.append(
            Claim(
                "left open by 2405.13365",
                f"{data}, {model}: with activations and gradients of {bits} bits local training is as "
                "accurate as in floats",
                f"{measured}; {flags.FLAGS.seeds} seeds",
                verdict(state, flags.FLAGS.seeds),
                why,
                f"FedAvg: {NO_PRIVACY}; CEPAM: {SERVER_TRUSTED}",
            )
        )
    return found


def plot(rows: list[dict]) -> Figure:
    """Points lost against bits, a panel for each data set and model."""
    keys = list(dict.fromkeys((row["data"], row["model"]) for row in rows))
    columns = min(2, len(keys))
    figure = Figure(figsize=(5 * columns, 3.6 * -(-len(keys) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(keys) // columns), columns, squeeze=False).ravel()
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(panels, keys, strict=False):
        mine = [row for row in rows if (row["data"], row["model"]) == key]
        lines = [(method, where) for method in METHODS for where in WHERE]
        for number, (method, where) in enumerate(lines):
            floats = floats_of(mine, method)["accuracy"]
            line = sorted(
                (
                    row
                    for row in mine
                    if (row["method"], row["where"]) == (method, where) and row["accuracy"] and floats
                ),
                key=lambda row: row["bits"],
            )
            lost = [in_points(floats, row["accuracy"]) for row in line]
            error = [deviation(values) / np.sqrt(len(values)) for values in lost]
            x = [row["bits"] * (1 + 0.012 * (number - 2.5)) for row in line]
            label = f"{method}, {where}"
            axes.errorbar(x, [np.mean(v) for v in lost], error, capsize=2, label=label, **style(number))
        axes.axhline(0, color="grey", linewidth=0.8)
        ticks = sorted({row["bits"] for row in mine} - {0})
        axes.set(xscale="log", xlabel="bits", ylabel="points lost to floats", title=f"{key[0]}, {key[1]}")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1, 2, 5, 10], ["-1", "-0.5", "0", "0.5", "1", "2", "5", "10"])
        axes.set_ylim(-1, max(10, axes.get_ylim()[1]))
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        mine = [other for other in rows if (other["data"], other["model"]) == (row["data"], row["model"])]
        floats, base = row["where"] == FLOATS, floats_of(mine, row["method"])["accuracy"]
        lost = "" if floats or not (base and row["accuracy"]) else points(base, row["accuracy"])
        lines.append(
            [
                *(row["data"], row["model"], row["method"], row["where"]),
                "" if floats else row["bits"],
                spread(row["accuracy"]) if row["accuracy"] else "diverged",
                lost,
                f"{row['message bits']:.3f}",
                "none" if row["epsilon"] is None else f"{row['epsilon']:.4g}",
            ]
        )
    heads = ["data", "model", "method", "rounded", "bits", "test accuracy", "points lost", "bits of messages"]
    return markdown([*heads, "epsilon, released model"], lines)


def define_flags():
    define_training_flags(("digits", "mnist"))
    flags.DEFINE_list("models", ["mlp"], "Models.")
    flags.DEFINE_list("bits", ["8", "6", "4", "3", "2"], "Of a rounded number.")


def main():
    f = flags.FLAGS
    bits = cli.numbers("bits", int)
    require(all(2 <= b <= 16 for b in bits), "--bits", f.bits, "numbers from 2 to 16")
    rows, claims = [], []
    for data in f.data:
        for model in f.models:
            mine = measure(data, model)
            rows += mine
            claims += claims_of(data, model, mine)
    output.save(settings_text(f.data, f.seeds) + table(rows), rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
