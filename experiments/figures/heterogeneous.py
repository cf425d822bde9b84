"""One federation, clients with different needs: a tenth at strong privacy, the rest weak.

  python -m experiments.figures.heterogeneous --config=configs/mnist.py --workdir=/tmp/heterogeneous

Every client turns its own epsilon against `decoded_updates` into its own gamma. Beside the mixed federation:
everybody strong, everybody weak, and the weak clients alone.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from cepam_jax import privacy
from cepam_jax.run import guarantees
from configs.common import with_variant
from experiments import cli, output
from experiments.paired import deviation
from experiments.plots import style
from experiments.runs import train_all
from experiments.tables import markdown


def gammas(config, strong: float, weak: float, share: float):
    """f64[clients] for the mixed federation, and the number of strong clients."""
    count = max(1, round(share * config.num_clients))
    targets = np.full(config.num_clients, weak)
    targets[:count] = strong
    sigma = privacy.sigmas_for(
        targets, config.mechanism.clip_norm, config.rounds, config.privacy.delta, "gaussian"
    )
    return config.mechanism.clip_norm / sigma, count


def row(config, name, lines):
    """What the table shows of one federation."""
    accuracy = np.array([line["accuracy"] for line in lines])
    reports = privacy.report(
        guarantees.federation_of(config, np.ones(config.num_clients)), config.privacy.delta
    )
    by_adversary = {r.adversary: r.epsilon for r in reports}
    return {
        "federation": name,
        "accuracy": accuracy.mean(),
        "deviation": deviation(accuracy),
        "bits": float(np.mean([line["bits_per_coordinate"] for line in lines])),
        **{
            f"{a} {which}": float(e[i])
            for a, e in by_adversary.items()
            for which, i in _ENDS
            if a != "server"
        },
    }


_ENDS = (("first", 0), ("last", -1))


def plot(rows):
    """Accuracy of every federation, and who is protected how well in it."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, x = [row["federation"].replace(":", ":\n") for row in rows], np.arange(len(rows))
    look = {"color": "black", "marker": "o", "linestyle": "none", "capsize": 3}
    left.errorbar(x, [row["accuracy"] for row in rows], [row["deviation"] for row in rows], **look)
    left.set(ylabel="test accuracy", ylim=(0, 1))
    for number, (adversary, shift) in enumerate((("decoded_updates", -0.1), ("released_model", 0.1))):
        for which, filled in (("first", "full"), ("last", "none")):
            values = [row[f"{adversary} {which}"] for row in rows]
            client = "first client" if which == "first" else "last client"
            look = style(number) | {"linestyle": "none", "markersize": 7, "fillstyle": filled}
            right.plot(x + shift, values, label=f"{adversary.replace('_', ' ')}, {client}", **look)
    right.set(ylabel="epsilon of the whole run", yscale="log")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xticks(x, names, fontsize=8)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.grid(alpha=0.3)
    return figure


def define_flags():
    config_flags.DEFINE_config_file("config", "configs/mnist.py", "Its mechanism is replaced.")
    output.define_workdir()
    flags.DEFINE_float("strong", 100.0, "Epsilon of a strong client against decoded_updates.")
    flags.DEFINE_float("weak", 100_000.0, "Epsilon of a weak client against decoded_updates.")
    flags.DEFINE_float("share", 0.1, "Part of the clients that is strong.")
    flags.DEFINE_integer("seeds", 5, "Runs of each federation.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    base = with_variant(f.config, "cepam_gaussian", 1.0, 1.0)
    base.eval_every = base.rounds
    mixed, count = gammas(base, f.strong, f.weak, f.share)
    federations = {
        f"mixed: {count} strong, {base.num_clients - count} weak": mixed,
        "all strong": np.full(base.num_clients, mixed[0]),
        "all weak": np.full(base.num_clients, mixed[-1]),
    }
    configs, ends = {}, {}
    for name, values in federations.items():
        config = base.copy_and_resolve_references()
        config.mechanism.per_client.gamma = tuple(float(v) for v in values)
        configs[name], ends[name] = config, (float(values[0]), float(values[-1]))
    alone = base.copy_and_resolve_references()
    alone.num_clients -= count
    alone.mechanism.gamma = float(mixed[-1])
    configs["weak clients alone"], ends["weak clients alone"] = alone, (float(mixed[-1]),) * 2
    places = {name.split(":")[0]: config for name, config in configs.items()}
    results = train_all(places, f.seeds, f.workdir, f.progress)
    rows = []
    for name, config in configs.items():
        last = [lines[-1] for lines in results[name.split(":")[0]]]
        first_gamma, last_gamma = ends[name]
        rows.append(row(config, name, last) | {"gamma first": first_gamma, "gamma last": last_gamma})

    def pair(line, name):
        first, last = line[f"{name} first"], line[f"{name} last"]
        return f"{first:.4g}" if np.isclose(first, last) else f"{first:.4g} / {last:.4g}"

    table = markdown(
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
    settings = (
        f"{base.data.name}, {base.model}, {base.rounds} rounds, {f.seeds} seeds; strong / weak clients; "
        f"delta = {base.privacy.delta:g}, client level, add/remove\n\n"
    )
    output.save(settings + table, rows, plot(rows))


if __name__ == "__main__":
    small = {"config.data.name": "digits", "config.model": "linear", "config.rounds": 4}
    cli.run(main, define_flags, smoke={**small, "seeds": 1})
