"""Rotated cells in training: the accuracy of scalar LRSUQ at about half the bits.

  python -m experiments.figures.rotated --workdir=/tmp/rotated

Federated averaging of the papers' MLP on MNIST over 30 clients, with the same Gaussian error by three
quantizers: LRSUQ on Z1, LRSUQ on E8, and rotated cells of E8. The error has the same law with all of them, so
accuracies must agree: they are compared seed by seed. Bits are what the clients sent to the server, headers
and scales included. The first --wire_seeds runs of each kind are made again with real bytes, which do not
change the course of a run; their ratio to the ideal bits (a column of its own) multiplies those of
all seeds.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from cepam_jax.errors import require
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, all_of, below, deviation, differences, points, spread, verdict
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, mean_of, settings_text, train_all
from experiments.tables import markdown

QUANTIZERS = {
    "LRSUQ Z1": {"mechanism__lattice": "Z1"},
    "LRSUQ E8": {"mechanism__lattice": "E8"},
    "rotated E8": {"mechanism__name": "rotated", "mechanism__lattice": "E8"},
}
SAVING = 0.35  # least part of the bits of Z1 that rotated cells are to save
SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 3, "gammas": ["30"]}


def bits_of(runs) -> np.ndarray:
    """Ideal bits per coordinate that each seed's run has sent, f64[seeds]."""
    return np.array([mean_of([lines], "bits_per_coordinate") for lines in runs])


def bytes_over_bits(runs) -> float:
    """Bits of the bytes that runs have sent, over their ideal number."""
    sent = [line for lines in runs for line in lines if line.get("uplink_bytes")]
    return 8 * sum(line["uplink_bytes"] for line in sent) / sum(line["uplink_bits"] for line in sent)


def claims_of(data: str, rows: list[dict]) -> list[Claim]:
    """Is accuracy the same, and are the bits fewer, at every gamma?"""
    found = {(row["quantizer"], row["gamma"]): row for row in rows}
    gammas = sorted({gamma for _, gamma in found if gamma}, reverse=True)
    accuracy, saved, state = {}, [], []
    for gamma in gammas:
        ours, scalar = (found[name, gamma] for name in ("rotated E8", "LRSUQ Z1"))
        accuracy[f"gamma {gamma:g}"] = 100 * (np.array(ours["accuracy"]) - np.array(scalar["accuracy"]))
        ratio = np.array(ours["bits"]) / np.array(scalar["bits"])
        saved.append(f"gamma {gamma:g}: {100 * (1 - ratio.mean()):.1f} %")
        state.append(below(ratio, 1 - SAVING, len(gammas)))
    seeds = len(rows[0]["accuracy"])
    same = differences(accuracy, MARGIN)
    fewer = all_of(state)
    return [
        Claim(
            "this project",
            f"{data}: rotated E8 cells train like scalar LRSUQ",
            f"points gained: {same.measured}; {seeds} seeds",
            verdict(same.state, seeds),
            same.why,
            SERVER_TRUSTED,
        ),
        Claim(
            "this project",
            f"{data}: rotated E8 cells save at least {100 * SAVING:.0f} % of scalar LRSUQ's uplink bytes",
            f"saved: {', '.join(saved)}; {seeds} seeds",
            verdict(fewer, seeds),
            f"{len(gammas)} bounds of paired t tests",
            SERVER_TRUSTED,
        ),
    ]


def plot(by_data):
    figure = Figure(figsize=(5.5, 3.6 * len(by_data)), layout="constrained")
    panels = figure.subplots(len(by_data), 1, squeeze=False).ravel()
    for axes, (data, rows) in zip(panels, by_data.items(), strict=True):
        for number, name in enumerate(QUANTIZERS):
            mine = [row for row in rows if row["quantizer"] == name]
            axes.errorbar(
                [np.mean(row["bits"]) for row in mine],
                [np.mean(row["accuracy"]) for row in mine],
                [deviation(row["accuracy"]) for row in mine],
                capsize=2,
                label=name,
                **style(number),
            )
        axes.set(xscale="log", xlabel="bits per coordinate sent to the server", ylabel=f"accuracy, {data}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda bits, place: f"{bits:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def define_flags():
    define_training_flags(("mnist",))
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")
    flags.DEFINE_integer("wire_seeds", 1, "Runs that are made again with real bytes.")


def main():
    f, by_data, claims = flags.FLAGS, {}, []
    require(1 <= f.wire_seeds <= f.seeds, "--wire_seeds", f.wire_seeds, f"from 1 to {f.seeds}")
    gammas = cli.numbers("gammas")
    for data in f.data:
        configs = {"FedAvg": config_of(data, "fedavg")}
        for name, changes in QUANTIZERS.items():
            for gamma in gammas:
                configs[f"{name}, gamma {gamma:g}"] = config_of(
                    data, "cepam_gaussian", mechanism__gamma=gamma, **changes
                )
        results = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
        # With bytes a run takes the same course: one seed is enough to know their ratio to the ideal bits.
        packed = {label: config.copy_and_resolve_references() for label, config in configs.items()}
        for config in packed.values():
            config.wire = True
        sent = train_all(packed, f.wire_seeds, f"{f.workdir}/bytes/{data}", f.progress)
        rows = []
        for label, runs in results.items():
            name, _, gamma = label.partition(", gamma ")
            rows.append(
                {
                    "data": data,
                    "quantizer": name,
                    "gamma": float(gamma) if gamma else None,
                    "accuracy": accuracies(runs).tolist(),
                    "bits": (bits_of(runs) * bytes_over_bits(sent[label])).tolist(),
                    "bytes_over_bits": bytes_over_bits(sent[label]),
                    "same_course": bool((accuracies(sent[label]) == accuracies(runs)[: f.wire_seeds]).all()),
                }
            )
        by_data[data] = rows
        claims += claims_of(data, rows)
    every = [row for rows in by_data.values() for row in rows]
    scalar = {(row["data"], row["gamma"]): row for row in every if row["quantizer"] == "LRSUQ Z1"}
    table = markdown(
        [
            "data",
            "gamma",
            "quantizer",
            "test accuracy",
            "points over Z1",
            "bits sent",
            "saved",
            "bytes over ideal",
        ],
        [_cells(row, scalar.get((row["data"], row["gamma"]))) for row in every],
    )
    output.save(settings_text(f.data, f.seeds) + table, every, plot(by_data), claims)


def _cells(row: dict, scalar: dict | None) -> list[str]:
    """A row of the table; `scalar` is that of LRSUQ on Z1 with the same gamma, None for FedAvg."""
    cells = [row["data"], "" if row["gamma"] is None else f"{row['gamma']:g}", row["quantizer"]]
    bits, over = f"{np.mean(row['bits']):.4f}", f"{100 * (row['bytes_over_bits'] - 1):+.1f} %"
    if scalar is None or scalar is row:
        return [*cells, spread(row["accuracy"]), "", bits, "", over]
    saved = 1 - np.array(row["bits"]) / np.array(scalar["bits"])
    gained = points(row["accuracy"], scalar["accuracy"])
    return [*cells, spread(row["accuracy"]), gained, bits, f"{100 * saved.mean():.1f} %", over]


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
