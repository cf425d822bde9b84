"""Bits that adapt to the training loss (DAdaQuant, AdaQuantFL) against static bits of clipped quantization.

  python -m experiments.figures.adaptive_bits --workdir=/tmp/adaptive_bits

Accuracy and all bits of the uplink, for data spread evenly ("iid") and over clients of unequal sizes
("quantity", weighed by their examples), where DAdaQuant also gives larger clients more levels. The rules
begin with one bit; their cap is the static width that they are held against. They read training losses, so
nothing is guaranteed.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments import cli, output
from experiments.output import Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    all_of,
    any_of,
    below,
    bounds,
    in_points,
    spread,
    verdict,
)
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

STATIC = (1, 2, 3, 4, 8)
CAP = 4  # bits of the static quantization that DAdaQuant is held against
SPLITS = {
    "iid": {"partition.kind": "iid"},
    "quantity": {"partition.kind": "quantity", "aggregator": "examples"},
}
RULES = {
    "DAdaQuant, time": {"control": "dadaquant"},
    "DAdaQuant, time and clients": {"control": "dadaquant", "adaptive_levels.by_client": True},
    "AdaQuantFL": {"control": "adaquantfl"},
}
# Of the paper's three data sets, the least and the largest factor by which fewer bits are sent.
GAINS = (1.19, 2.81)


def configs_of(data: str) -> dict:
    """{"data split method": configuration}."""
    found = {}
    for split, changes in SPLITS.items():
        methods = {"float32": {"mechanism.name": "identity"}}
        methods |= {f"{bits} bits": {"mechanism.bits": bits} for bits in STATIC}
        methods |= {
            name: {**rule, "mechanism.bits": 1, "adaptive_levels.most": CAP} for name, rule in RULES.items()
        }
        for name, of in methods.items():
            config = config_of(data, "clipped")
            config.update_from_flattened_dict({**changes, **of})
            config.eval_every = max(1, config.rounds // 8)
            found[f"{data} {split} {name}"] = config
    return found


def sent(runs) -> np.ndarray:
    """Bits per coordinate of all messages of a run, f64[seeds]; the blocks are equally long."""
    return np.array([np.mean([line["bits_per_coordinate"] for line in lines[1:]]) for lines in runs])


def claims(data: str, results: dict) -> list[Claim]:
    """What 2111.00465 says, of each split."""
    found = []
    for split in SPLITS:
        static = results[f"{data} {split} {CAP} bits"]
        for name in ("DAdaQuant, time", "DAdaQuant, time and clients"):
            rule = results[f"{data} {split} {name}"]
            loss = in_points(accuracies(static), accuracies(rule))
            gain = sent(static) / sent(rule)
            fewer, same = above(gain, GAINS[0], 2), below(loss, MARGIN, 2)
            (low, high), (_, most) = bounds(gain, 2), bounds(loss, 2)
            what = f"{data}, {split}, {name}: {GAINS[0]} to {GAINS[1]} times fewer bits than static levels"
            measured = f"{np.mean(gain):.2f} times ({low:.2f} to {high:.2f})"
            lost = f"{np.mean(loss):+.2f} points lost (at most {most:+.2f})"
            rule_of = f"at least {GAINS[0]} times and at most {MARGIN} points; 2 bounds of paired t tests"
            found.append(
                Claim(
                    "2111.00465",
                    f"{what}, at the same accuracy",
                    f"{measured}; {lost}; {len(loss)} seeds",
                    verdict(all_of([fewer, same]), len(loss), any_of([fewer, same])),
                    f"against {CAP} bits; {rule_of}, {TOGETHER}",
                )
            )
    return found


def plot(results: dict, names: list[str]):
    """Accuracy against bits, a panel for each data set and split."""
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        static = [results[f"{name} {bits} bits"] for bits in STATIC]
        x, y = ([np.mean(of(runs)) for runs in static] for of in (sent, accuracies))
        axes.plot(x, y, label="static bits", **style(0))
        for number, rule in enumerate(RULES, 1):
            runs = results[f"{name} {rule}"]
            look = style(number) | {"linestyle": "none", "markersize": 8}
            axes.plot(np.mean(sent(runs)), np.mean(accuracies(runs)), label=rule, **look)
        axes.axhline(np.mean(accuracies(results[f"{name} float32"])), color="0.6", label="float32")
        axes.set(xscale="log", xlabel="bits per coordinate, mean over the run", title=name.replace(" ", ", "))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[0].legend(fontsize="small")
    return figure


def main():
    f = cli.flags.FLAGS
    configs = {name: config for data in f.data for name, config in configs_of(data).items()}
    results = train_all(configs, f.seeds, f"{f.workdir}/runs", f.progress)
    rows = [
        {"setting": name, "accuracy": accuracies(runs).tolist(), "bits": sent(runs).tolist()}
        for name, runs in results.items()
    ]
    table = markdown(
        ["data", "split", "method", "bits per coordinate", "test accuracy"],
        [[*row["setting"].split(" ", 2), spread(row["bits"], 3), spread(row["accuracy"])] for row in rows],
    )
    said = [claim for data in f.data for claim in claims(data, results)]
    names = [f"{data} {split}" for data in f.data for split in SPLITS]
    output.save(settings_text(f.data, f.seeds) + table, rows, plot(results, names), said)


if __name__ == "__main__":
    cli.run(
        main,
        lambda: define_training_flags(("digits", "mnist")),
        {"data": ["digits"], "seeds": 1, "rounds": 8},
    )
