"""Rotated cells in training: the accuracy of scalar LRSUQ at about half the bits.

  python -m experiments.figures.rotated --workdir=/tmp/rotated

Federated averaging of the papers' MLP on MNIST over 30 clients, with the same Gaussian error by three
quantizers: LRSUQ on Z1, LRSUQ on E8, and rotated cells of E8. Bits are those of the bytes that were sent
from the clients to the server, headers and scales included. The error has the same law with all of them, so
accuracies must agree: they are compared seed by seed.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import cli, output
from experiments.output import Claim
from experiments.paired import MARGIN, below, deviation, differences, points, spread, verdict
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

QUANTIZERS = {
    "LRSUQ Z1": {"mechanism__lattice": "Z1"},
    "LRSUQ E8": {"mechanism__lattice": "E8"},
    "rotated E8": {"mechanism__name": "rotated", "mechanism__lattice": "E8"},
}
SAVING = 0.35  # least part of the bits of Z1 that rotated cells are to save
SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 3, "gammas": ["30"]}


def bits_of(runs, coordinates: float) -> np.ndarray:
    """Bits per coordinate that each seed's run has sent, from its bytes."""
    return np.array(
        [
            np.mean([8 * line["uplink_bytes"] / coordinates for line in lines if line.get("uplink_bytes")])
            for lines in runs
        ]
    )


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
    fewer = None if None in state else all(state)
    return [
        Claim(
            "this project",
            f"{data}: rotated E8 cells train like scalar LRSUQ",
            f"points gained: {same.measured}; {seeds} seeds",
            verdict(same.state, seeds),
            same.why,
        ),
        Claim(
            "this project",
            f"{data}: rotated E8 cells save at least {100 * SAVING:.0f} % of the uplink bytes of scalar LRSUQ",
            f"saved: {', '.join(saved)}; {seeds} seeds",
            verdict(fewer, seeds),
            f"{len(gammas)} bounds of paired t tests",
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
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def define_flags():
    define_training_flags(("mnist",))
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")


def main():
    f, by_data, claims = flags.FLAGS, {}, []
    gammas = cli.numbers("gammas")
    for data in f.data:
        every = {"wire": True, "eval_every": f.rounds}
        configs = {"FedAvg": config_of(data, "fedavg", **every)}
        for name, changes in QUANTIZERS.items():
            for gamma in gammas:
                configs[f"{name}, gamma {gamma:g}"] = config_of(
                    data, "cepam_gaussian", **every, mechanism__gamma=gamma, **changes
                )
        results = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
        rows = []
        for label, runs in results.items():
            name, _, gamma = label.partition(", gamma ")
            lines = runs[0]
            coordinates = lines[-1]["coordinates_sent"] if "coordinates_sent" in lines[-1] else None
            bits = bits_of(runs, coordinates) if coordinates else np.full(len(runs), np.nan)
            rows.append(
                {
                    "data": data,
                    "quantizer": name,
                    "gamma": float(gamma) if gamma else None,
                    "accuracy": accuracies(runs).tolist(),
                    "bits": bits.tolist(),
                }
            )
        by_data[data] = rows
        claims += claims_of(data, rows)
    return by_data, claims


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
