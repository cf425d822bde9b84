"""Clipped uniform quantization: accuracy against bits, rounding, weights and data split (2405.13365).

  python -m experiments.figures.clipped --config=configs/mnist.py:clipped --workdir=/tmp/clipped_mnist
  python -m experiments.figures.clipped --config=configs/cifar10.py:clipped --config.model=mlp \\
      --config.rounds=40 --config.local.augment=none --seeds=2 --bits=2,4 --workdir=/tmp/clipped_cifar10

One row per bit width, rounding and aggregator; iid and Dirichlet(.3) columns; mean and standard deviation
over seeds. Then the paper's claims, with what was measured. Finished runs are not repeated.
"""

from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import ConfigError
from experiments import cli, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import TOGETHER, above, all_of, any_of, bounds, in_points, points, spread, verdict
from experiments.runs import train_all
from experiments.tables import markdown

PARTITIONS = ("iid", "dirichlet")
ROUNDINGS = ("stochastic", "deterministic")
AGGREGATORS = ("examples", "inverse_error")


def settings(bits):
    """[(label, overrides)] of every run, float32 first."""
    found = []
    for kind in PARTITIONS:
        split = {"partition.kind": kind, "partition.alpha": 0.3}
        plain = {"mechanism.name": "identity", "aggregator": "examples"}
        found.append((("float32", "", "examples", kind), {**split, **plain}))
        for width in bits:
            for rounding in ROUNDINGS:
                for aggregator in AGGREGATORS:
                    changes = {
                        "mechanism.bits": width,
                        "mechanism.rounding": rounding,
                        "aggregator": aggregator,
                    }
                    found.append(((f"{width} bits", rounding, aggregator, kind), {**split, **changes}))
    return found


def run(bits, seeds):
    """{(width, rounding, aggregator, partition): accuracies of the seeds}."""
    configs, labels = {}, {}
    for label, changes in settings(bits):
        config = flags.FLAGS.config.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        name = "_".join(part for part in label if part).replace(" ", "")
        configs[name], labels[name] = config, label
    results = train_all(configs, seeds, Path(flags.FLAGS.workdir, "runs"), flags.FLAGS.progress)
    return {labels[name]: [lines[-1]["accuracy"] for lines in runs] for name, runs in results.items()}


def comparisons(found, bits):
    """Rows: claim, partition, measured difference in points."""
    rows = []
    for kind in PARTITIONS:
        full = found["float32", "", "examples", kind]
        for width in bits:
            get = lambda rounding, weights, width=width, kind=kind: found[  # noqa: E731
                f"{width} bits", rounding, weights, kind
            ]
            both = np.array(
                [[get(r, a) for a in AGGREGATORS] for r in ROUNDINGS]
            )  # [rounding, weights, seed]
            # A seed's runs belong together: they are averaged, not counted as runs of their own.
            pairs = {
                "stochastic, examples, against float32": (get("stochastic", "examples"), full),
                "stochastic against deterministic": tuple(both.mean(1)),
                "inverse error against examples": tuple(both.mean(0)[::-1]),
            }
            rows += [[name, f"{width} bits", kind, points(a, b)] for name, (a, b) in pairs.items()]
    return sorted(rows, key=lambda row: row[0])


def claims(data: str, found, bits, seeds: int) -> list[Claim]:
    """What 2405.13365 says, on iid data."""
    full = found["float32", "", "examples", "iid"]
    few = [width for width in bits if 2 <= width <= 4]
    if not few:  # nothing that the claims are about
        return []

    def runs(width, rounding):
        return found[f"{width} bits", rounding, "examples", "iid"]

    near = {width: (runs(width, "stochastic"), full) for width in few}
    gain = {width: (runs(width, "stochastic"), runs(width, "deterministic")) for width in few}
    close = [above(in_points(*pair), -1, len(few)) for pair in near.values()]
    better = [above(in_points(*pair), 2, len(few)) for pair in gain.values()]

    def text(pair, side):
        end = bounds(in_points(*pair), len(few))[side == "at most"]
        return f"{points(*pair)} points ({side} {end:+.2f})"

    rule = f"{len(few)} bounds of paired t tests, {TOGETHER}"
    return [
        Claim(
            "2405.13365",
            f"{data}: 2 to 4 bits are near full precision",
            "; ".join(f"{width} bits {text(pair, 'at least')}" for width, pair in near.items())
            + f"; {seeds} seeds",
            verdict(all_of(close), seeds, any_of(close)),
            f"near: at most one point below float32; {rule}",
            NO_PRIVACY,
        ),
        Claim(
            "2405.13365",
            f"{data}: stochastic rounding is 2-4 points better than deterministic",
            "; ".join(f"{width} bits {text(pair, 'at most')}" for width, pair in gain.items())
            + f"; {seeds} seeds",
            verdict(all_of(better), seeds, any_of(better)),
            f"at least two points; {rule}",
            NO_PRIVACY,
        ),
    ]


def plot(found, bits):
    figure = Figure(figsize=(9, 4), layout="constrained")
    styles = {
        ("stochastic", "examples"): ("o", "-", "k"),
        ("stochastic", "inverse_error"): ("s", "--", "tab:blue"),
        ("deterministic", "examples"): ("^", ":", "tab:orange"),
        ("deterministic", "inverse_error"): ("v", "-.", "tab:green"),
    }
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), PARTITIONS, strict=True):
        full = found["float32", "", "examples", kind]
        axes.axhline(np.mean(full), color="0.6", label="float32, examples")
        for (rounding, weights), (marker, line, color) in styles.items():
            values = np.array([found[f"{width} bits", rounding, weights, kind] for width in bits])
            axes.errorbar(
                bits,
                values.mean(1),
                values.std(1, ddof=1 if values.shape[1] > 1 else 0),
                color=color,
                marker=marker,
                linestyle=line,
                capsize=3,
                fillstyle="none",
                label=f"{rounding}, {weights.replace('_', ' ')}",
            )
        axes.set(xlabel="bits per coordinate", title=kind, xticks=bits)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[0].legend(fontsize="small")
    return figure


def define_flags():
    cli.define_config("configs/mnist.py:clipped", "Base configuration.")
    output.define_workdir()
    flags.DEFINE_list("bits", ["2", "3", "4", "8"], "Bit widths.")
    flags.DEFINE_integer("seeds", 3, "Runs per setting.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    try:
        bits = [int(width) for width in flags.FLAGS.bits]
    except ValueError as error:
        raise ConfigError(f"--bits is {flags.FLAGS.bits}; it must be whole numbers from 1 to 8") from error
    if flags.FLAGS.seeds < 1:
        raise ConfigError(f"--seeds is {flags.FLAGS.seeds}; it must be at least 1")
    found = run(bits, flags.FLAGS.seeds)
    labels = list(dict.fromkeys(label[:3] for label in found))
    table = markdown(
        ["sent", "rounding", "weights", *PARTITIONS],
        [[*label, *(spread(found[(*label, kind)]) for kind in PARTITIONS)] for label in labels],
    )
    verdicts = markdown(
        ["comparison", "sent", "partition", "points of accuracy (± standard error)"], comparisons(found, bits)
    )
    rows = [{"setting": label, "accuracy": values} for label, values in found.items()]
    text = f"Test accuracy, mean ± standard deviation over {flags.FLAGS.seeds} seeds\n\n{table}\n\n{verdicts}"
    said = claims(flags.FLAGS.config.data.name, found, bits, flags.FLAGS.seeds)
    output.save(text, rows, plot(found, bits), said)


if __name__ == "__main__":
    small = {
        "config.data.name": "digits",
        "config.model": "linear",
        "config.rounds": 4,
        "config.eval_every": 4,
    }
    cli.run(main, define_flags, smoke={**small, "seeds": 1, "bits": ["2"]})
