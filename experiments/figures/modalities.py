"""Text, graphs, tables and images: what CEPAM loses to FedAvg, and at how many bits.

  python -m experiments.figures.modalities --data=motifs,hospitals,digits --workdir=/tmp/modalities

Each kind of data is trained by FedAvg, by CEPAM with Gaussian noise at several gammas, with the same noise on
floats (at the middle gamma, which shows what quantization adds to noise: nothing, if the error has the law
that it promises), and by clipped uniform quantization of 4 bits, which has no noise. Methods are compared
seed by seed; a graph's seed is its fold as well. The goals of this project: text within .02 nats of FedAvg at
50 times fewer bits, graphs, tables and images within a point at 30 times.

Bits are those of everything that clients sent, headers included: one run of each kind is made again for a few
rounds with real bytes, and the ratio of the bytes to the ideal bits multiplies those of all seeds.

Text trains by steps of a third of the size that configs/shakespeare.py has, and half as many of them, so that
the clip, which FedAvg does not have, cuts off little; FedAvg trains in the same way. `--text=as_configured`
keeps the settings of the file.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from cepam_jax.run import training
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import FOLDS, all_of, any_of, below, bounds, deviation, of_folds, spread, verdict
from experiments.plots import style
from experiments.runs import mean_of, seeded
from experiments.tables import markdown


class Kind(NamedTuple):
    """One kind of data and how it is trained.

    Attributes:
      config: file of configs/, and what stands before the variant in its name.
      metric: the field of metrics.jsonl that is compared.
      unit: in which losses are counted: points (hundredths of a share, more is better) or nats (less is
        better).
      allowed: what CEPAM may lose to FedAvg, in that unit.
      fewer: how many times fewer bits are asked for.
      folds: whether a seed is a fold of the data, too.
    """

    config: tuple[str, str]
    metric: str = "accuracy"
    unit: str = "points"
    allowed: float = 1.0
    fewer: float = 30.0
    folds: bool = False


KINDS = {
    "shakespeare": Kind(("shakespeare", ""), "loss", "nats", 0.02, 50.0),
    "motifs": Kind(("graphs", "motifs-"), folds=True),
    "mutag": Kind(("graphs", "mutag-"), folds=True),
    "proteins": Kind(("graphs", "proteins-"), folds=True),
    "hospitals": Kind(("hospitals", "")),
    "digits": Kind(("digits", "")),
    "mnist": Kind(("mnist", "")),
}
SLOWER = {"local.learning_rate": 1e-3, "local.steps": 10, "mechanism.clip_norm": 1.0}
TEXTS = {"slower": SLOWER, "as_configured": {}}
ROUNDS_WITH_BYTES = 5
SMOKE = {"data": ["motifs", "hospitals"], "seeds": 2, "graph_seeds": 2, "rounds": 2, "gammas": ["30"]}


def config_of(data: str, variant: str, seed: int, changes: dict):
    """The configuration of one run, evaluated after its last round."""
    kind = KINDS[data]
    file, before = kind.config
    config = importlib.import_module(f"configs.{file}").get_config(before + variant)
    config.data.dir = flags.FLAGS.data_dir
    if kind.folds:
        config.data.fold = seed
    if data == "shakespeare":
        config.update_from_flattened_dict(TEXTS[flags.FLAGS.text])
    config.rounds = flags.FLAGS.rounds or config.rounds
    config.eval_every = config.rounds
    if variant in ("fedavg", "clipped"):
        changes = {name: value for name, value in changes.items() if name != "mechanism.gamma"}
    config.update_from_flattened_dict(changes)
    return seeded(config, seed)


def methods(gammas: list[float]) -> dict[str, tuple[str, dict]]:
    """What is compared: {method: (variant, changes of fields)}."""
    middle = sorted(gammas)[len(gammas) // 2]
    found = {"FedAvg": ("fedavg", {})}
    for gamma in gammas:
        found[f"CEPAM, gamma {gamma:g}"] = ("cepam_gaussian", {"mechanism.gamma": gamma})
    found[f"Gaussian noise, gamma {middle:g}"] = ("noise_gaussian", {"mechanism.gamma": middle})
    found["clipped, 4 bits"] = ("clipped", {"mechanism.bits": 4})
    return found


def seeds_of(data: str) -> int:
    """How many runs each method has on these data."""
    return flags.FLAGS.graph_seeds if KINDS[data].folds else flags.FLAGS.seeds


def measure(data: str, gammas: list[float]) -> list[dict]:
    """One row for each method: the metric of each seed, and what was sent."""
    f, rows = flags.FLAGS, []
    for method, (variant, changes) in methods(gammas).items():
        mine = [config_of(data, variant, seed, changes) for seed in range(seeds_of(data))]
        name = f"{data}, {method}"
        where = Path(f.workdir, "runs", data, method.replace(" ", "_").replace(",", ""))
        folders = [where / f"seed{seed}" for seed in range(len(mine))]
        runs = training.train_many(
            mine, folders, f.progress, [f"{name}, {folder.name}" for folder in folders]
        )
        row = {"data": data, "method": method, "metric": [lines[-1][KINDS[data].metric] for lines in runs]}
        ideal, over = 32.0, 1.0
        if variant not in ("fedavg", "noise_gaussian"):  # they send floats
            ideal = mean_of(runs, "bits_per_coordinate")
            over = bytes_over_bits(mine[0], where / "bytes")
        sent = mean_of(runs, "uplink_bits") / mean_of(runs, "bits_per_coordinate") * ideal * over
        rows.append(row | {"bits": ideal * over, "bytes_over_bits": over, "megabytes": sent / 8e6})
    return rows


def bytes_over_bits(config, folder: Path) -> float:
    """Bits of the bytes that a run sends over their ideal number, in its first rounds."""
    config = config.copy_and_resolve_references()
    config.wire, config.rounds = True, min(ROUNDS_WITH_BYTES, config.rounds)
    config.eval_every = config.rounds
    line = training.train(config, folder, flags.FLAGS.progress, "with bytes")[-1]
    return 8 * line["uplink_bytes"] / line["uplink_bits"]


def lost(data: str, fedavg: dict, row: dict) -> np.ndarray:
    """What each seed's run loses to FedAvg, in the unit of the data; negative where it gains."""
    difference = np.array(fedavg["metric"]) - np.array(row["metric"])
    return 100 * difference if KINDS[data].unit == "points" else -difference


def share_of(data: str) -> float:
    """Of `bounds`: folds share training graphs."""
    return FOLDS if KINDS[data].folds else 0.0


def interval(data: str, values: np.ndarray, tests: int) -> str:
    """The mean loss with its confidence bounds, as text."""
    digits = 2 if KINDS[data].unit == "points" else 3
    low, high = bounds(values, tests, share_of(data))
    around = f" ({low:+.{digits}f} to {high:+.{digits}f})" if np.isfinite(high) else ""
    return f"{np.mean(values):+.{digits}f}{around}"


def claim_of(data: str, rows: list[dict]) -> Claim:
    """Does some gamma keep to the goal of these data?"""
    kind, fedavg = KINDS[data], rows[0]
    ours = [row for row in rows if row["method"].startswith("CEPAM")]
    states, said = [], []
    for row in ours:
        values, fewer = lost(data, fedavg, row), 32 / row["bits"]
        enough = bool(fewer >= kind.fewer)
        states.append(all_of([below(values, kind.allowed, len(ours), share_of(data)), enough]))
        digits = 2 if kind.unit == "points" else 3
        most = bounds(values, len(ours), share_of(data))[1]
        text = f"{np.mean(values):+.{digits}f} (at most {most:+.{digits}f})"
        said.append(
            f"{row['method'].split(', ')[1]}: {text} {kind.unit} lost at {fewer:.0f} times fewer bits"
        )
    seeds, unit = len(fedavg["metric"]), "point" if kind.allowed == 1 else kind.unit
    return Claim(
        "this project",
        f"{data}: some gamma loses less than {kind.allowed:g} {unit} to FedAvg at {kind.fewer:g} times "
        "fewer bits",
        f"{'; '.join(said)}; {seeds} seeds",
        verdict(any_of(states), seeds),
        f"{len(ours)} bounds of paired t tests{of_folds(share_of(data))}, together at 5 %; bytes counted",
        SERVER_TRUSTED,
    )


def noise_claim(data: str, rows: list[dict]) -> Claim:
    """Does CEPAM train as the same noise on floats does?"""
    kind = KINDS[data]
    noise = next(row for row in rows if row["method"].startswith("Gaussian noise"))
    gamma = noise["method"].split(", ")[1]
    ours = next(row for row in rows if row["method"] == f"CEPAM, {gamma}")
    values = lost(data, noise, ours)
    share = share_of(data)
    state = all_of([below(values, kind.allowed, 2, share), below(-values, kind.allowed, 2, share)])
    return Claim(
        "2501.12046",
        f"{data}, {gamma}: CEPAM trains like the same Gaussian noise on floats, within {kind.allowed:g} "
        f"{kind.unit}",
        f"{interval(data, values, 2)} {kind.unit} lost; {len(values)} seeds",
        verdict(state, len(values)),
        f"two one-sided paired t tests{of_folds(share_of(data))}, together at 5 %",
        SERVER_TRUSTED,
    )


def table_of(by_data: dict[str, list[dict]]) -> str:
    """Markdown; losses are against FedAvg, seed by seed, with bounds that hold one by one at 95 %."""
    lines = []
    for data, rows in by_data.items():
        kind = KINDS[data]
        for row in rows:
            first = row is rows[0]
            over = "" if row["bytes_over_bits"] == 1 else f"{100 * (row['bytes_over_bits'] - 1):+.1f} %"
            lines.append(
                [
                    data,
                    row["method"],
                    f"{kind.metric} {spread(row['metric'])}",
                    "" if first else f"{interval(data, lost(data, rows[0], row), 2)} {kind.unit}",
                    f"{row['bits']:.4f}",
                    over,
                    f"{row['megabytes']:.3g}",
                    "" if first else f"{32 / row['bits']:.0f}",
                ]
            )
    heads = [
        "data",
        "method",
        "test metric",
        "lost to FedAvg (95 %)",
        "bits per coordinate",
        "bytes over ideal",
    ]
    return markdown([*heads, "megabytes sent", "times fewer bits"], lines)


def plot(by_data: dict[str, list[dict]]) -> Figure:
    """What is lost against bits sent, one panel for each kind of data; the goal is a shaded corner."""
    columns = min(2, len(by_data))
    height = -(-len(by_data) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * height), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for axes in panels[len(by_data) :]:
        axes.set_axis_off()
    for axes, (data, rows) in zip(panels, by_data.items(), strict=False):
        kind = KINDS[data]
        for number, row in enumerate(rows):
            values = lost(data, rows[0], row)
            error = deviation(values) / np.sqrt(len(values))
            axes.errorbar(
                row["bits"], np.mean(values), error, capsize=2, label=row["method"], **style(number)
            )
        low, high = axes.get_ylim()
        edge = 0.8 * min(row["bits"] for row in rows)
        low = min(low, -kind.allowed)
        axes.fill_between(
            [edge, 32 / kind.fewer], low, kind.allowed, color="tab:green", alpha=0.1, linewidth=0
        )
        axes.set(
            xscale="log", xlabel="bits per coordinate, in bytes sent", ylabel=f"{kind.unit} lost to FedAvg"
        )
        axes.set(title=data, xlim=(edge, 45), ylim=(low, max(high, 1.5 * kind.allowed)))
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns + 1, fontsize=8)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("data", ["motifs", "hospitals", "digits", "shakespeare"], f"Of {', '.join(KINDS)}.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")
    flags.DEFINE_integer("seeds", 5, "Runs of each method.")
    flags.DEFINE_integer("graph_seeds", 10, "The same of graphs, each on a fold of its own; at most 10.")
    flags.DEFINE_integer("rounds", 0, "Rounds of each run; 0: as the configuration says.")
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")
    flags.DEFINE_string("text", "slower", f"Local training on text, of {', '.join(TEXTS)}.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    cli.choices("data", KINDS)
    cli.choice("text", TEXTS)
    require(f.seeds >= 1, "--seeds", f.seeds, "at least 1")
    require(1 <= f.graph_seeds <= 10, "--graph_seeds", f.graph_seeds, "from 1 to 10, the folds")
    gammas = cli.numbers("gammas")
    by_data = {data: measure(data, gammas) for data in f.data}
    every = [row for rows in by_data.values() for row in rows]
    claims = [claim_of(data, rows) for data, rows in by_data.items()]
    claims += [noise_claim(data, rows) for data, rows in by_data.items()]
    output.save(table_of(by_data), every, plot(by_data), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
