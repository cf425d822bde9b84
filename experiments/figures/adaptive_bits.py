"""Bits that adapt to the training loss (DAdaQuant, AdaQuantFL) against static bits.

  python -m experiments.figures.adaptive_bits --workdir=/tmp/adaptive_bits

Accuracy and all bits of the uplink, for data spread evenly ("iid") and over clients of unequal sizes
("quantity", weighed by their examples). The quantizer is the papers': uniform, its range the largest
magnitude of a tensor. DAdaQuant over time begins with one bit; over clients it spreads the variance of four
bits; together they do both. The static width that they are held against is the paper's: the fewest bits that
lose no accuracy, and for the rule over clients alone its own four bits. Rules read training losses, so
nothing is guaranteed.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments import cli, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    all_of,
    below,
    bounds,
    in_points,
    spread,
    verdict,
)
from experiments.plots import style
from experiments.runs import accuracies, config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

STATIC = (1, 2, 3, 4, 6)
START = 4  # bits whose variance is spread over clients
SPLITS = {
    "iid": {"partition.kind": "iid"},
    "quantity": {"partition.kind": "quantity", "aggregator": "examples"},
}
TIME = {"control": "dadaquant", "mechanism.bits": 1}
# The rule over clients alone never doubles: its patience is as long as any run.
CLIENTS = {
    "control": "dadaquant",
    "mechanism.bits": START,
    "adaptive_levels.by_client": True,
    "adaptive_levels.patience": 10**6,
}
RULES = {
    "DAdaQuant, time": TIME,
    "DAdaQuant, clients": CLIENTS,
    "DAdaQuant": {**TIME, "adaptive_levels.by_client": True},
    "AdaQuantFL": {"control": "adaquantfl", "mechanism.bits": 1},
}
# Of the paper's three data sets, the least and the largest factor by which fewer bits are sent.
GAINS = (1.19, 2.81)


def configs_of(data: str) -> dict:
    """{"data split method": configuration}."""
    found = {}
    for split, changes in SPLITS.items():
        methods = {"float32": {"mechanism.name": "identity"}}
        methods |= {f"{bits} bits": {"mechanism.bits": bits} for bits in STATIC}
        methods |= RULES
        for name, of in methods.items():
            config = config_of(data, "clipped", mechanism__threshold="max")
            config.update_from_flattened_dict({**changes, **of})
            config.eval_every = max(1, config.rounds // 8)
            found[f"{data} {split} {name}"] = config
    return found


def sent(runs) -> np.ndarray:
    """Bits per coordinate of all messages of a run, f64[seeds]; the blocks are equally long."""
    return np.array([np.mean([line["bits_per_coordinate"] for line in lines[1:]]) for lines in runs])


def fewest(results: dict, name: str) -> int:
    """The fewest static bits that lose less than the margin in the mean, of a data set and split."""
    full = results[f"{name} float32"]
    losses = {
        bits: in_points(accuracies(full), accuracies(results[f"{name} {bits} bits"])).mean()
        for bits in STATIC
    }
    return next((bits for bits, loss in losses.items() if loss < MARGIN), STATIC[-1])


def claims(data: str, results: dict) -> list[Claim]:
    """What 2111.00465 says, of each split."""
    found = []
    for split in SPLITS:
        name = f"{data} {split}"
        for rule in ("DAdaQuant, time", "DAdaQuant, clients", "DAdaQuant"):
            width = START if rule == "DAdaQuant, clients" else fewest(results, name)
            static, adapted = results[f"{name} {width} bits"], results[f"{name} {rule}"]
            loss = in_points(accuracies(static), accuracies(adapted))
            gain = sent(static) / sent(adapted)
            fewer, same = above(gain, GAINS[0], 3), below(loss, MARGIN, 3)
            part = all_of([above(gain, 1, 3), same])  # fewer bits, if not so much
            (low, high), (_, most) = bounds(gain, 3), bounds(loss, 3)
            what = f"{data}, {split}, {rule}: {GAINS[0]} to {GAINS[1]} times fewer bits than static levels"
            measured = f"{np.mean(gain):.2f} times ({low:.2f} to {high:.2f}) against {width} bits"
            lost = f"{np.mean(loss):+.2f} points lost (at most {most:+.2f})"
            found.append(
                Claim(
                    "2111.00465",
                    f"{what}, at the same accuracy",
                    f"{measured}; {lost}; {len(loss)} seeds",
                    verdict(all_of([fewer, same]), len(loss), part),
                    f"at least {GAINS[0]} times and at most {MARGIN} points; 3 bounds of paired t tests, "
                    + TOGETHER,
                    NO_PRIVACY,
                )
            )
    return found


def plot(results: dict, names: list[str]):
    """Accuracy against bits, a panel for each data set and split."""
    figure = Figure(figsize=(4.2 * len(names), 4.4), layout="constrained")
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
        axes.set_xticks(STATIC, [str(bits) for bits in STATIC])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize="small")
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
        smoke={"data": ["digits"], "seeds": 1, "rounds": 8},
    )
