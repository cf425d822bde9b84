"""Open questions of clipped uniform quantization: which threshold, for what, with which weights (2405.13365).

  python -m experiments.figures.thresholds --workdir=/tmp/thresholds
  python -m experiments.figures.thresholds --model=cnn2 --rules=mse,kl --seeds=3 --workdir=/tmp/th_cnn2

Bozorgasl and Chen leave open whether a threshold by Kullback-Leibler divergence is better than one by mean
squared error, and what it costs; whether a threshold for each channel is better than one for each tensor; and
whether weights by inverse error are better than FedNova's. Here runs answer, seed by seed, where clients are
alike, where they hold different labels (Dirichlet), and for the weights where they also hold different
numbers of examples and take as many steps. Last, what a threshold costs: seconds of one client's update, how
much of the mean squared error each rule leaves, and whether bisection finds what a search over a grid finds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from cepam_jax.mechanisms import Keys, Knobs, clipped
from cepam_jax.mechanisms.clip_thresholds import THRESHOLDS, kl_threshold_by_sections
from experiments import cli, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    any_of,
    deviation,
    differences,
    in_points,
    losses,
    spread,
    verdict,
    with_error,
)
from experiments.runs import accuracies, config_of, define_training_flags, mean_of, settings_text, train_all
from experiments.tables import markdown
from experiments.timing import interleaved

SMOKE = {
    "data": ["digits"],
    "model": "linear",
    "seeds": 2,
    "rounds": 3,
    "bits": ["2"],
    "rules": ["mse", "kl"],
    "partitions": ["iid"],
    "size": 3000,
    "repeats": 1,
}
OPEN = "left open by 2405.13365"
RULES = ["mse", "kl", "percentile", "max"]
PARTITIONS = {
    "iid": {"partition.kind": "iid"},
    "dirichlet": {"partition.kind": "dirichlet", "partition.alpha": 0.3},
}
# What FedNova is for: clients with more examples take more steps.
SIZES = {"partition.kind": "quantity", "local.steps_by_size": True}
WEIGHTS = {
    "examples": {"aggregator": "examples"},
    "inverse_error": {"aggregator": "inverse_error"},
    "fednova": {"aggregator": "examples", "local.normalize": True},
}


def settings() -> dict[tuple, dict]:
    """{(question, partition, bits, choice): changes of the configuration}."""
    found = {}
    for width in cli.numbers("bits", int):
        for partition in flags.FLAGS.partitions:
            split = PARTITIONS[partition]
            base = split | {"mechanism.bits": width, "aggregator": "examples"}
            for rule in flags.FLAGS.rules:
                # By divergence for each channel a round takes many times as long: one search for each.
                for granularity in ("tensor",) if rule == "kl" else ("tensor", "channel"):
                    found["range", partition, width, f"{rule}, {granularity}"] = base | {
                        "mechanism.threshold": rule,
                        "mechanism.granularity": granularity,
                    }
        for partition in (*flags.FLAGS.partitions, "quantity"):
            split = SIZES if partition == "quantity" else PARTITIONS[partition]
            for weights, changes in WEIGHTS.items():
                found["weights", partition, width, weights] = split | {"mechanism.bits": width} | changes
    return found


def trained(data: str) -> list[dict]:
    """One row for each setting."""
    f = flags.FLAGS
    configs = {}
    for key, changes in settings().items():
        configs[" ".join(map(str, key))] = config_of(data, "clipped", model=f.model, **changes)
    results = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
    return [
        {
            "data": data,
            **dict(zip(("question", "partition", "bits", "choice"), key, strict=True)),
            "accuracy": accuracies(results[name]).tolist(),
            "message bits": mean_of(results[name], "bits_per_coordinate"),
        }
        for key, name in zip(settings(), configs, strict=True)
    ]


def pairs(rows: list[dict], question: str, first: str, second: str, where: str = "") -> dict:
    """{partition and bits: points of the first choice more than the second}."""
    known = {
        (row["partition"], row["bits"], row["choice"]): row["accuracy"]
        for row in rows
        if row["question"] == question
    }
    return {
        f"{partition}, {bits} bits": in_points(accuracy, known[partition, bits, second])
        for (partition, bits, choice), accuracy in known.items()
        if choice == first and (not where or partition == where)
    }


def claims_of(data: str, rows: list[dict]) -> list[Claim]:
    """The open questions, answered as far as these seeds can."""
    seeds = len(rows[0]["accuracy"])
    data = data if flags.FLAGS.model == "mlp" else f"{data}, {flags.FLAGS.model}"
    same = differences(pairs(rows, "range", "kl, tensor", "mse, tensor"), MARGIN)
    found = [
        Claim(
            OPEN,
            f"{data}: thresholds by divergence and by mean squared error are equally accurate",
            f"points of divergence more: {same.measured}; {seeds} seeds",
            verdict(same.state, seeds),
            same.why,
            NO_PRIVACY,
        )
    ]
    gains = pairs(rows, "range", "mse, channel", "mse, tensor")
    states = [above(values, MARGIN, len(gains)) for values in gains.values()]
    said = "; ".join(f"{name} {with_error(values)}" for name, values in gains.items())
    found.append(
        Claim(
            OPEN,
            f"{data}: somewhere a range for each channel gains {MARGIN:g} points on one for each tensor",
            f"points gained: {said}; {seeds} seeds",
            verdict(any_of(states), seeds),
            f"{len(states)} bounds of paired t tests, {TOGETHER}",
            NO_PRIVACY,
        )
    )
    lost = losses(
        {k: -v for k, v in pairs(rows, "weights", "inverse_error", "fednova").items()},
        MARGIN,
    )
    found.append(
        Claim(
            OPEN,
            f"{data}: weights by inverse error are as accurate as FedNova's",
            f"points lost: {lost.measured}; {seeds} seeds",
            verdict(lost.state, seeds),
            lost.why,
            NO_PRIVACY,
        )
    )
    return found


def costs(size: int, repeats: int) -> list[dict]:
    """Seconds and error of each rule at 2 and 4 bits, on coordinates of Laplace's law."""
    x = jax.random.laplace(jax.random.key(0), (1, size))
    keys = Keys(jax.random.key(1), jax.random.key(2))
    rows = []
    for width in (2, 4):
        rules = {**THRESHOLDS, "kl, by sections": kl_threshold_by_sections}
        compiled = {
            name: jax.jit(functools.partial(rule, bits=width, rounding="stochastic"))
            for name, rule in rules.items()
        }
        calls = {name: functools.partial(rule, x) for name, rule in compiled.items()}
        seconds = interleaved(calls, repeats)
        for name in rules:
            cut = float(calls[name]()[0])
            rows.append({"bits": width, "rule": name, "seconds": seconds[name], "threshold": cut})
            if name in THRESHOLDS:
                mechanism = clipped("stochastic", name)
                knobs = Knobs(bits=jnp.float32(width))
                back = jax.jit(lambda v, m=mechanism, k=knobs: m.decode(keys.shared, m.encode(keys, v, k), k))
                rows[-1]["error"] = float(jnp.mean(jnp.square(back(x[0]) - x[0])) / jnp.mean(x**2))
    return rows


def bisected(sizes, draws: int = 40) -> list[dict]:
    """In how many of some draws of Laplace's law bisection finds the threshold that the grid finds."""
    both = [
        jax.jit(functools.partial(rule, rounding="stochastic"), static_argnames="bits")
        for rule in (THRESHOLDS["kl"], kl_threshold_by_sections)
    ]
    rows = []
    for size in sizes:
        x = jax.random.laplace(jax.random.key(size), (draws, size))
        for width in (2, 4, 8):
            grid, sections = (np.asarray(rule(x, bits=width)) for rule in both)
            rows.append({"size": size, "bits": width, "same": float(np.mean(grid == sections))})
    return rows


def plot(rows: list[dict]) -> Figure:
    """Accuracy of every choice, a panel for each data set and question."""
    keys = list(dict.fromkeys((row["data"], row["question"]) for row in rows))
    figure = Figure(figsize=(11, 3.6 * -(-len(keys) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(keys) // 2), 2, squeeze=False).ravel()
    for axes, key in zip(panels, keys, strict=False):
        mine = [row for row in rows if (row["data"], row["question"]) == key]
        choices = list(dict.fromkeys(row["choice"] for row in mine))
        conditions = list(dict.fromkeys((row["partition"], row["bits"]) for row in mine))
        for number, condition in enumerate(conditions):
            here = {row["choice"]: row for row in mine if (row["partition"], row["bits"]) == condition}
            offset = 0.8 * (number + 0.5) / len(conditions) - 0.4
            axes.errorbar(
                np.arange(len(choices)) + offset,
                [np.mean(here[choice]["accuracy"]) for choice in choices],
                [deviation(here[choice]["accuracy"]) for choice in choices],
                fmt="o",
                markersize=4,
                capsize=2,
                label=f"{condition[0]}, {condition[1]} bits",
            )
        axes.set_xticks(range(len(choices)), choices, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel(f"test accuracy, {key[0]}: {'thresholds' if key[1] == 'range' else 'weights'}")
        axes.grid(axis="y", alpha=0.3)
        # Above the panel: there are points everywhere in it.
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    return figure


def define_flags():
    define_training_flags(("mnist",))
    flags.DEFINE_string("model", "mlp", "Model.")
    flags.DEFINE_list("rules", RULES, "Thresholds; mse and kl must be among them.")
    flags.DEFINE_list("partitions", list(PARTITIONS), "Who holds which labels.")
    flags.DEFINE_list("bits", ["2", "4"], "Bits per coordinate.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates of an update whose threshold is timed.")
    flags.DEFINE_integer("repeats", 7, "Turns of the timing; the median counts.")


def main():
    f = flags.FLAGS
    cli.choices("rules", RULES)
    cli.choices("partitions", PARTITIONS)
    require({"mse", "kl"} <= set(f.rules), "--rules", f.rules, "a list with mse and kl in it")
    rows, claims = [], []
    for data in f.data:
        mine = trained(data)
        rows += mine
        claims += claims_of(data, mine)
    timed = costs(f.size, f.repeats)
    table = markdown(
        ["data", "question", "partition", "bits", "choice", "test accuracy", "bits of messages"],
        [
            [
                *(row[key] for key in ("data", "question", "partition", "bits", "choice")),
                spread(row["accuracy"]),
                f"{row['message bits']:.3f}",
            ]
            for row in rows
        ],
    )
    least = {row["bits"]: row["seconds"] for row in timed if row["rule"] == "mse"}
    prices = markdown(
        ["bits", "rule", "ms", "over mse", "threshold", "error over power"],
        [
            [
                row["bits"],
                row["rule"],
                f"{1e3 * row['seconds']:.1f}",
                f"{row['seconds'] / least[row['bits']]:.1f}",
                f"{row['threshold']:.3f}",
                f"{row['error']:.4f}" if "error" in row else "",
            ]
            for row in timed
        ],
    )
    found = bisected((300, 5000, 100_000))
    alike = markdown(
        ["coordinates", "bits", "bisection finds the grid's threshold"],
        [[f"{row['size']:,}", row["bits"], f"{row['same']:.0%}"] for row in found],
    )
    text = f"{settings_text(f.data, f.seeds)}{table}\n\n{f.size:,} coordinates of Laplace's law:\n\n{prices}"
    output.save(f"{text}\n\n{alike}", [*rows, *timed, *found], plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
