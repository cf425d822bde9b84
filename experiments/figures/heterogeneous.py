"""One federation, clients with different needs: some at strong privacy, the rest weak.

  python -m experiments.figures.heterogeneous --config=configs/mnist.py --workdir=/tmp/heterogeneous

Every client states its own epsilon against `decoded_updates` (and with --bits a link), from which its gamma
follows. The mixed federation is trained with equal weights and weighed by precision; beside it: the strong
clients left out with their data, everybody strong, everybody weak, and the weak clients alone, who then share
all the data. A hundred clients whose epsilons lie evenly on a logarithmic scale:

  python -m experiments.figures.heterogeneous --config=configs/mnist.py --config.num_clients=100 --needs=log_uniform --share=0.5 --strong=10 --workdir=/tmp/log_uniform

And a federation that needs its strong clients, because they hold most examples of a label:

  python -m experiments.figures.heterogeneous --config=configs/mnist.py --config.partition.kind=dirichlet --config.partition.alpha=0.3 --private_label=0 --workdir=/tmp/private_label
"""  # noqa: E501 - commands that can be copied

import textwrap
from typing import NamedTuple

import ml_collections
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import privacy
from cepam_jax.data import sources
from cepam_jax.run import allowed, build, guarantees
from configs.common import with_variant
from experiments import cli, output
from experiments.paired import deviation
from experiments.plots import style
from experiments.runs import seeded, train_all
from experiments.tables import markdown

NEEDS = ("two", "log_uniform")
# What a left-out client's gamma is multiplied by: all but nothing is left of its weight.
LEFT_OUT = 1e-8


class Compared(NamedTuple):
    """One row.

    Attributes:
      name: of the federation, in the table.
      configs: of each seed.
    """

    name: str
    configs: list[ml_collections.ConfigDict]


def gammas(config, needs: str, strong: float, weak: float, share: float, bits: float = 0.0):
    """f64[clients] of the mixed federation, the strongest privacy first, and the number of strong clients.

    Args:
      config: whose clip, rounds, participants and delta count.
      needs: "two" kinds of clients, or "log_uniform": from `strong` to `weak`, evenly on a logarithmic scale.
      strong, weak: epsilons against `decoded_updates`.
      share: part of the clients that are called strong: those with the least epsilons.
      bits: the most that a message of any client may have; 0: any number.
    """
    count = min(max(1, round(share * config.num_clients)), config.num_clients - 1)
    if needs == "two":
        targets = np.where(np.arange(config.num_clients) < count, strong, weak)
    else:
        targets = np.geomspace(strong, weak, config.num_clients)
    config = config.copy_and_resolve_references()
    config.needs.adversary, config.needs.epsilon = "decoded_updates", tuple(map(float, targets))
    config.needs.bits = (bits,) * config.num_clients
    data = sources.load_examples(config.data.name, config.data.dir)
    counts = build.split_of(config, data).counts
    _, found = allowed.planned(config, counts, build.program(config, data.specification))
    return found.gamma, count


def order(config, label: int) -> np.ndarray:
    """int[clients], who is strong first: those with the most examples of a label; -1: just in order."""
    if label < 0:
        return np.arange(config.num_clients)
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    split = build.split_of(config, data)
    held = [np.sum(data.labels[split.client(k)] == label) for k in range(config.num_clients)]
    return np.argsort(-np.array(held), kind="stable")


def federations(
    base, mixed: np.ndarray, count: int, label: int, seeds: int, taus: list[float]
) -> dict[str, Compared]:
    """All rows, by the names of their directories.

    Args:
      base: configuration of all of them.
      mixed: gammas, from `gammas`.
      count: of strong clients.
      label: whose holders are strong; -1: any.
      seeds: runs of each.
      taus: spreads between clients' updates that precision is also computed with, beside the estimate.
    """
    left_out = np.where(np.arange(len(mixed)) < count, LEFT_OUT * mixed, mixed)
    nothing = {"aggregator": "precision", "precision.tau": 1e-9}  # but for the noise, nothing counts
    kinds = {
        "mixed": ("equal weights", mixed, {}),
        "precision": ("by precision", mixed, {"aggregator": "precision"}),
        **{
            f"tau_{tau:g}": (
                f"by precision, tau {tau:g}",
                mixed,
                {"aggregator": "precision", "precision.tau": tau},
            )
            for tau in taus
        },
        "left_out": (f"{count} strong left out with their data", left_out, nothing),
        "all strong": ("all strong", np.full(len(mixed), mixed[0]), {}),
        "all weak": ("all weak", np.full(len(mixed), mixed[-1]), {}),
        "weak clients alone": ("weak clients alone", mixed[count:], {"num_clients": len(mixed) - count}),
    }
    found = {}
    for place, (name, values, changes) in kinds.items():
        configs = []
        for seed in range(seeds):
            config = seeded(base, seed)
            config.update_from_flattened_dict(changes)
            each = np.empty(len(values))
            each[order(config, label)] = values
            config.mechanism.per_client.gamma = tuple(float(v) for v in each)
            configs.append(config)
        found[place] = Compared(name, configs)
    return found


def row(config, name, lines):
    """What the table shows of one federation: of its client with the strongest privacy and of the weakest."""
    accuracy = np.array([line["accuracy"] for line in lines])
    reports = privacy.report(
        guarantees.federation_of(config, np.ones(config.num_clients)), config.privacy.delta
    )
    each = np.array(config.mechanism.per_client.gamma)
    ends = {"first": int(np.argmin(each)), "last": int(np.argmax(each))}
    return {
        "federation": name,
        "accuracy": accuracy.mean(),
        "deviation": deviation(accuracy),
        "bits": float(np.mean([line["bits_per_coordinate"] for line in lines])),
        **{
            f"{report.adversary} {which}": float(report.epsilon[i])
            for report in reports
            for which, i in ends.items()
            if report.adversary != "server"
        },
        **{f"gamma {which}": float(each[i]) for which, i in ends.items()},
    }


def plot(rows):
    """Accuracy of every federation, and who is protected how well in it."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, x = [textwrap.fill(row["federation"], 10) for row in rows], np.arange(len(rows))
    look = {"color": "black", "marker": "o", "linestyle": "none", "capsize": 3}
    left.errorbar(x, [row["accuracy"] for row in rows], [row["deviation"] for row in rows], **look)
    left.set(ylabel="test accuracy", ylim=(0, 1))
    for number, (adversary, shift) in enumerate((("decoded_updates", -0.1), ("released_model", 0.1))):
        for which, filled in (("first", "full"), ("last", "none")):
            values = [row[f"{adversary} {which}"] for row in rows]
            client = "strongest client" if which == "first" else "weakest client"
            look = style(number) | {"linestyle": "none", "markersize": 7, "fillstyle": filled}
            right.plot(x + shift, values, label=f"{adversary.replace('_', ' ')}, {client}", **look)
    right.set(ylabel="epsilon of the whole run", yscale="log")
    right.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axes in (left, right):
        axes.set_xticks(x, names, fontsize=8)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.grid(alpha=0.3)
    return figure


def define_flags():
    cli.define_config("configs/mnist.py", "Its mechanism is replaced.")
    output.define_workdir()
    flags.DEFINE_enum("needs", "two", NEEDS, "Two kinds of clients, or epsilons from strong to weak.")
    flags.DEFINE_float("strong", 100.0, "Epsilon of a strong client against decoded_updates.")
    flags.DEFINE_float("weak", 100_000.0, "Epsilon of a weak client against decoded_updates.")
    flags.DEFINE_float(
        "bits", 0.0, "The most that a message of any client may have; 0: any number.", lower_bound=0
    )
    flags.DEFINE_float("share", 0.1, "Part of the clients that is strong.")
    flags.DEFINE_integer(
        "private_label", -1, "Its holders are the strong clients; -1: the first clients are."
    )
    flags.DEFINE_list("taus", [], "Known spreads that precision is also computed with, such as 0.1,0.3.")
    flags.DEFINE_integer("seeds", 5, "Runs of each federation.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    base = with_variant(f.config, "cepam_gaussian", 1.0, 1.0)
    base.eval_every = base.rounds
    mixed, count = gammas(base, f.needs, f.strong, f.weak, f.share, f.bits)
    compared = federations(base, mixed, count, f.private_label, f.seeds, [float(tau) for tau in f.taus])
    runs = {
        f"{place}/{seed}": config for place, of in compared.items() for seed, config in enumerate(of.configs)
    }
    results = train_all(runs, 1, f.workdir, f.progress)
    rows = []
    for place, of in compared.items():
        last = [results[f"{place}/{seed}"][0][-1] for seed in range(f.seeds)]
        rows.append(row(of.configs[0], of.name, last))
    settings = (
        f"{base.data.name}, {base.model}, {base.num_clients} clients, {base.rounds} rounds, {f.seeds} seeds; "
        f"strongest / weakest client; delta = {base.privacy.delta:g}, client level, add/remove\n\n"
    )
    output.save(settings + table(rows), rows, plot(rows))


def pair(line, name):
    """A value of the strongest client and of the weakest, as text."""
    first, last = line[f"{name} first"], line[f"{name} last"]
    return f"{first:.4g}" if np.isclose(first, last) else f"{first:.4g} / {last:.4g}"


def table(rows):
    """The rows in Markdown."""
    return markdown(
        [
            "federation",
            "gamma",
            "epsilon, decoded updates",
            "epsilon, released model",
            "bits per coordinate",
            "test accuracy",
        ],
        [
            [
                line["federation"],
                pair(line, "gamma"),
                pair(line, "decoded_updates"),
                pair(line, "released_model"),
                f"{line['bits']:.3f}",
                f"{line['accuracy']:.4f} ± {line['deviation']:.4f}",
            ]
            for line in rows
        ],
    )


if __name__ == "__main__":
    small = {"config.data.name": "digits", "config.model": "linear", "config.rounds": 4}
    cli.run(main, define_flags, smoke={**small, "seeds": 1})
