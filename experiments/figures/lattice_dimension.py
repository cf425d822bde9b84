"""Lattice dimension at equal noise: accuracy, bits and seconds for Z1, Z2, Z3, D4 and E8.

  python -m experiments.figures.lattice_dimension --workdir=/tmp/lattice_dimension

The law of the error is the same on every lattice, so accuracy should differ by chance alone, and the claim
says how large a difference these runs exclude; what differs are bits and time.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, deviation, differences, in_points, spread, verdict
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, mean_of, settings_text, train_all
from experiments.tables import markdown

LATTICES = {"Z1": 1, "Z2": 2, "Z3": 3, "D4": 4, "E8": 8}
SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 5, "gammas": ["30"]}


def claims_of(data: str, rows: list[dict], seeds: int) -> list[Claim]:
    found = {}
    for gamma in dict.fromkeys(row["gamma"] for row in rows):
        first, *others = [row for row in rows if row["gamma"] == gamma]
        for row in others:
            found[f"{row['lattice']} at gamma {gamma:g}"] = in_points(row["accuracy"], first["accuracy"])
    compared = differences(found, MARGIN)
    return [
        Claim(
            "2501.12046",
            f"{data}: at equal noise accuracy does not depend on the lattice",
            f"points more than {rows[0]['lattice']}: {compared.measured}; {seeds} seeds",
            verdict(compared.state, seeds),
            compared.why,
            SERVER_TRUSTED,
        )
    ]


def plot(rows):
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    groups = list(dict.fromkeys((row["data"], row["gamma"]) for row in rows))
    for number, (data, gamma) in enumerate(groups):
        mine = [row for row in rows if (row["data"], row["gamma"]) == (data, gamma)]
        x, label = [row["dimension"] for row in mine], f"{data}, gamma {gamma:g}"
        deviations = [deviation(row["accuracy"]) for row in mine]
        panels[0].errorbar(
            x, [np.mean(row["accuracy"]) for row in mine], deviations, capsize=2, label=label, **style(number)
        )
        panels[1].plot(x, [row["bits"] for row in mine], label=label, **style(number))
        panels[2].plot(x, [row["seconds"] for row in mine], label=label, **style(number))
    names = ("test accuracy", "bits per coordinate", "seconds per round")
    for axes, name in zip(panels, names, strict=True):
        axes.set(xscale="log", xlabel="lattice dimension", ylabel=name)
        axes.set_xticks(list(LATTICES.values()), [f"{n}" for n in LATTICES.values()])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    panels[2].set_ylim(bottom=0)
    return figure


def define_flags():
    define_training_flags(("mnist",))
    flags.DEFINE_list("gammas", ["100", "10"], "Values of gamma.")
    flags.DEFINE_list("lattices", list(LATTICES), "Lattices; the others are compared with the first.")


def main():
    f = flags.FLAGS
    cli.choices("lattices", LATTICES)
    require(len(f.lattices) > 1, "--lattices", f.lattices, "at least two")
    rows, claims = [], []
    for data in f.data:
        configs = {}
        for gamma in cli.numbers("gammas"):
            for lattice in f.lattices:
                changes = {"mechanism__gamma": gamma, "mechanism__lattice": lattice}
                configs[f"{lattice} {gamma:g}"] = config_of(data, "cepam_gaussian", **changes)
        results = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
        mine = [
            {
                "data": data,
                "gamma": config.mechanism.gamma,
                "lattice": config.mechanism.lattice,
                "dimension": LATTICES[config.mechanism.lattice],
                "accuracy": accuracies(results[name]).tolist(),
                "bits": mean_of(results[name], "bits_per_coordinate"),
                "seconds": float(np.median([lines[-1]["seconds_per_round"] for lines in results[name]])),
            }
            for name, config in configs.items()
        ]
        rows += mine
        claims += claims_of(data, mine, f.seeds)
    table = markdown(
        ["data", "gamma", "lattice", "test accuracy", "bits", "s per round"],
        [
            [
                row["data"],
                f"{row['gamma']:g}",
                row["lattice"],
                spread(row["accuracy"]),
                f"{row['bits']:.4f}",
                f"{row['seconds']:.3f}",
            ]
            for row in rows
        ],
    )
    output.save(settings_text(f.data, f.seeds) + table, rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
