"""Scenario 3: heterogeneous data. How much does each method lose against itself on iid data?

  python -m experiments.figures.scenario3 --workdir=/tmp/scenario3

Paired over seeds: the loss of a method is its accuracy on iid data less that on the partition, and "more
than FedAvg" the difference of its loss and FedAvg's, with standard errors. The claim counts all
comparisons that this figure can make, whichever are asked for, and leaves out the seeds before
--claim_from: a question that some seeds raised is not answered by the same seeds.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, deviation, losses, spread, verdict, with_error
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, mean_of, settings_text, train_all
from experiments.tables import markdown

PARTITIONS = {
    "iid": {},
    "Dirichlet 100": {"partition__kind": "dirichlet", "partition__alpha": 100.0},
    "Dirichlet 1": {"partition__kind": "dirichlet", "partition__alpha": 1.0},
    "Dirichlet .3": {"partition__kind": "dirichlet", "partition__alpha": 0.3},
    "Dirichlet .1": {"partition__kind": "dirichlet", "partition__alpha": 0.1},
    "two labels": {"partition__kind": "shards", "partition__shards_per_client": 2},
    "quantity": {"partition__kind": "quantity"},
}
SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 5, "partitions": ["iid", "Dirichlet .3"]}


METHODS = ("FedAvg", "SDQ (2 bits)", "Gaussian noise", "noise + SDQ", "CEPAM")
BASELINES = ("Gaussian noise", "noise + SDQ")
COMPARISONS = (len(PARTITIONS) - 1) * len(BASELINES)


def methods(gamma: float) -> dict:
    """{method: (variant, changes)} of FedAvg and what --methods names."""
    same = {"mechanism__gamma": gamma}
    every = {
        "FedAvg": ("fedavg", {}),
        "SDQ (2 bits)": ("sdq", {"mechanism__bits": 2}),
        "Gaussian noise": ("noise_gaussian", same),
        "noise + SDQ": ("noise_gaussian_sdq", same | {"mechanism__step": 1.0 / gamma}),
        "CEPAM": ("cepam_gaussian", same),
    }
    return {name: every[name] for name in METHODS if name == "FedAvg" or name in flags.FLAGS.methods}


def claims_of(data: str, rows: list[dict], first: int = 0) -> list[Claim]:
    """Of all partitions of a data set: does CEPAM lose more than noise + SDQ and Gaussian noise do?

    Args:
      data: its name.
      rows: with each seed's loss, in points.
      first: seeds before this one are left out.
    """
    kinds = list(dict.fromkeys(row["partition"] for row in rows if row["partition"] != "iid"))
    loss = {(row["method"], row["partition"]): np.array(row["loss"])[first:] for row in rows}
    others = [name for name in BASELINES if (name, "iid") in loss]
    if ("CEPAM", "iid") not in loss or not (others and kinds):
        return []
    excess = {
        f"{kind}, against {other}": loss["CEPAM", kind] - loss[other, kind]
        for kind in kinds
        for other in others
    }
    seeds = len(loss["CEPAM", "iid"])
    found = losses(excess, MARGIN, COMPARISONS)
    return [
        Claim(
            "2501.12046",
            f"{data}: CEPAM degrades no more than the baselines on non-iid data",
            f"points lost to iid more than a baseline: {found.measured}; {seeds} seeds"
            + (f", from seed {first} on" if first else ""),
            verdict(found.state, seeds),
            found.why,
            SERVER_TRUSTED,
        )
    ]


def plot(by_data):
    figure = Figure(figsize=(9, 3.4 * len(by_data)), layout="constrained")
    panels = figure.subplots(len(by_data), 1, squeeze=False).ravel()
    for axes, (data, rows) in zip(panels, by_data.items(), strict=True):
        kinds = list(dict.fromkeys(row["partition"] for row in rows))
        names = list(dict.fromkeys(row["method"] for row in rows))
        for number, name in enumerate(names):
            mine = [row for row in rows if row["method"] == name]
            x = np.arange(len(kinds)) + (number - (len(names) - 1) / 2) * 0.14
            deviations = [deviation(row["accuracy"]) for row in mine]
            look = style(number) | {"linestyle": "none", "markersize": 5}
            axes.errorbar(
                x, [np.mean(row["accuracy"]) for row in mine], deviations, capsize=2, label=name, **look
            )
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set(ylabel=f"test accuracy, {data}")
        axes.grid(alpha=0.3, axis="y")
    panels[0].legend(fontsize=8, ncols=3)
    return figure


def define_flags():
    define_training_flags(("mnist", "fashion_mnist"))
    flags.DEFINE_list("partitions", list(PARTITIONS), "Partitions; iid must be one of them.")
    flags.DEFINE_list("methods", list(METHODS), "Methods; FedAvg always is one of them.")
    flags.DEFINE_float("gamma", 30.0, "Of every private method.")
    flags.DEFINE_integer("claim_from", 0, "The claim leaves out the seeds before this one.")


def main():
    f = flags.FLAGS
    cli.choices("partitions", PARTITIONS)
    cli.choices("methods", METHODS)
    require(0 <= f.claim_from < f.seeds, "--claim_from", f.claim_from, f"from 0 to {f.seeds - 1}")
    kinds = ["iid", *(kind for kind in f.partitions if kind != "iid")]
    by_data, claims = {}, []
    for data in f.data:
        configs = {}
        for kind in kinds:
            for name, (variant, changes) in methods(f.gamma).items():
                configs[f"{name}, {kind}"] = config_of(data, variant, **changes, **PARTITIONS[kind])
        results = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
        rows = []
        for kind in kinds:
            for name in methods(f.gamma):
                runs = results[f"{name}, {kind}"]
                loss = 100 * (accuracies(results[f"{name}, iid"]) - accuracies(runs))
                of_fedavg = 100 * (
                    accuracies(results["FedAvg, iid"]) - accuracies(results[f"FedAvg, {kind}"])
                )
                rows.append(
                    {
                        "data": data,
                        "partition": kind,
                        "method": name,
                        "accuracy": accuracies(runs).tolist(),
                        "loss": loss.tolist(),
                        "more": with_error(loss - of_fedavg),
                        "bits": mean_of(runs, "bits_per_coordinate"),
                    }
                )
        by_data[data] = rows
        claims += claims_of(data, rows, f.claim_from)
    rows = [row for mine in by_data.values() for row in mine]
    table = markdown(
        ["data", "partition", "method", "test accuracy", "points lost to iid", "more than FedAvg", "bits"],
        [
            [
                row["data"],
                row["partition"],
                row["method"],
                spread(row["accuracy"]),
                spread(row["loss"], 2),
                "" if row["method"] == "FedAvg" or row["partition"] == "iid" else row["more"],
                f"{row['bits']:.3f}",
            ]
            for row in rows
        ],
    )
    output.save(settings_text(f.data, f.seeds) + table, rows, plot(by_data), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
