"""Clients that lie: worst accuracy over attacks, of each rule, number of liars, gamma and partition.

  python -m experiments.figures.byzantine --workdir=/tmp/byzantine

Federated averaging over 30 clients, some of which lie, with robust aggregators of decoded updates, in 32-bit
floats and through CEPAM's quantizer at several gammas. Every number is the worst over the attacks: the least
of their mean accuracies over seeds. The server checks norms; liars see all honest updates and choose what is
decoded of theirs. A combination of gamma and liars is *lost* where even the best rule loses more than --lost
points against the mean without liars in 32-bit floats. Runs are short, and those of one rule share a program
(`experiments.lies`); results are kept in runs.jsonl of the work directory.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import privacy
from cepam_jax.errors import require, require_choice
from cepam_jax.federated import ATTACKS
from cepam_jax.federated.aggregation import RULES
from cepam_jax.federated.aggregation.robust_rules import MEANS
from cepam_jax.run import guarantees
from experiments import cli, lies, output
from experiments.output import Claim
from experiments.paired import TOGETHER, above, below, in_points, spread, verdict
from experiments.runs import config_of, define_training_flags, settings_text
from experiments.tables import markdown

FLOATS = "float32"
SMOKE = {
    "data": ["digits"],
    "seeds": 2,
    "rounds": 2,
    "clients": 10,
    "liars": ["0", "2"],
    "gammas": ["30"],
    "rules": ["mean", "trimmed_mean"],
    "attacks": ["sign_flip", "label_flip"],
    "partitions": ["iid", "dirichlet"],
}


def settings_of(data, partition, gamma, rule, liars, attack):
    """One run's configuration; gamma 0: 32-bit floats."""
    f = flags.FLAGS
    if not liars and rule in MEANS:  # then it is the mean
        rule = "mean"
    changes = {
        "num_clients": f.clients,
        "partition.kind": partition,
        "partition.alpha": f.alpha,
        "aggregator": rule,
        "byzantine.check": True,
        "local.worker_momentum": f.worker_momentum,
        "local.steps": f.steps,
        "local.batch_size": f.batch_size,
        "local.learning_rate": f.learning_rate,
    }
    changes |= {"mechanism.gamma": gamma} if gamma else {"mechanism.name": "identity"}
    if rule in RULES:
        changes |= {"byzantine.tolerated": liars, "byzantine.before": f.before if liars else "none"}
        # Where all have the same noise, knowing it only adds it to the radius of centered clipping.
        if gamma and rule == "centered_clipping":
            changes |= {"byzantine.noise": "known"}
    if liars:
        changes |= {"byzantine.attack": attack, "byzantine.clients": liars}
        changes |= {"byzantine.strength": f.strength}
    config = config_of(data, "cepam_gaussian", **changes)
    config.byzantine.radius = config.mechanism.clip_norm
    config.byzantine.smoothing = 0.1 * config.mechanism.clip_norm
    return config


def runs_of(data, partition, channels, rules, liars, attacks):
    """{(partition, channel, rule, liars, attack): configuration}."""
    return {
        (partition, channel, rule, number, attack): settings_of(data, partition, gamma, rule, number, attack)
        for channel, gamma in channels.items()
        for rule in rules
        for number in liars
        for attack in (attacks if number else ["none"])
    }


def accuracies(runs) -> np.ndarray:
    """Final test accuracy of each seed's run."""
    return np.array([line["accuracy"] for line in runs])


def mean_of(runs, field: str) -> float:
    """Mean of a field over seeds."""
    return float(np.mean([line[field] for line in runs]))


def rows_of(data, results) -> list[dict]:
    """Of each partition, channel, rule and number of liars: the worst attack, and what was refused."""
    rows = []
    for partition, channel, rule, liars in dict.fromkeys(key[:4] for key in results):
        tried = {
            key[4]: runs for key, runs in results.items() if key[:4] == (partition, channel, rule, liars)
        }
        worst = min(tried, key=lambda attack: accuracies(tried[attack]).mean())
        rows.append(
            {
                "data": data,
                "partition": partition,
                "channel": channel,
                "rule": rule,
                "liars": liars,
                "attack": worst,
                "accuracy": accuracies(tried[worst]).tolist(),
                "bits": mean_of(tried[worst], "bits"),
                "refused": mean_of(tried[worst], "refused_lies") if liars else 0.0,
                "by attack": {attack: accuracies(runs).tolist() for attack, runs in tried.items()},
            }
        )
    return rows


def best_of(rows, channel, liars) -> dict:
    """The row of the rule with the highest worst accuracy."""
    mine = [row for row in rows if (row["channel"], row["liars"]) == (channel, liars)]
    return max(mine, key=lambda row: np.mean(row["accuracy"]))


def trade_of(rows, configs, channels, liars) -> list[dict]:
    """Of each gamma and number of liars in a partition: bits, epsilon, what is lost, and if that is much.

    The bounds of all combinations hold together. A client's epsilon is that of its own noise.
    """
    clean = best_clean(rows)
    asked = [(channel, number) for channel in channels for number in liars if number]
    found = []
    for channel, number in [(channel, number) for channel in channels for number in liars]:
        row = best_of(rows, channel, number)
        points = in_points(clean, row["accuracy"])
        state = state_of(rows, clean, channel, number, len(asked)) if number else ""
        found.append(
            {
                "channel": channel,
                "liars": number,
                "rule": row["rule"],
                "attack": row["attack"],
                "accuracy": row["accuracy"],
                "points": points.tolist(),
                "bits": row["bits"],
                "epsilon": epsilon_of(configs[row["partition"], channel, row["rule"], number, row["attack"]]),
                "state": state,
            }
        )
    return found


def state_of(rows, clean, channel, liars, combinations: int) -> str:
    """Whether a combination is "kept", "lost" or "not decided", whichever rule is best and attack is worst.

    Kept: some rule is shown to lose no more than the limit under every attack, so a bound for each rule.
    Lost: every rule is shown to lose more under some attack, so a bound for each attack. Where both were
    chosen by the runs that judge them, one bound for a combination would be wrong more often than it says.
    """
    most, tried = flags.FLAGS.lost, {}
    for row in rows:
        if (row["channel"], row["liars"]) == (channel, liars):
            tried[row["rule"]] = [in_points(clean, found) for found in row["by attack"].values()]
    attacks = max(map(len, tried.values()))
    kept, lost = 2 * combinations * len(tried), 2 * combinations * attacks
    if any(all(below(loss, most, kept) for loss in losses) for losses in tried.values()):
        return "kept"
    if all(any(above(loss, most, lost) for loss in losses) for losses in tried.values()):
        return "lost"
    return "not decided"


def best_clean(rows):
    """Accuracies of the mean without liars in 32-bit floats."""
    key = (FLOATS, "mean", 0)
    return next(row["accuracy"] for row in rows if (row["channel"], row["rule"], row["liars"]) == key)


def epsilon_of(config) -> float:
    """Epsilon of a client against whoever sees decoded updates, by its own noise; infinite for floats."""
    counts = np.full(config.num_clients, 100)  # only weights by examples would ask
    found = privacy.report(guarantees.federation_of(config, counts), config.privacy.delta)
    return next(float(np.max(row.epsilon)) for row in found if row.adversary == "decoded_updates")


def claim_of(data, partition, trade, seeds) -> Claim:
    """What is kept and what is lost in one partition."""
    rules, attacks = len(flags.FLAGS.rules), len(flags.FLAGS.attacks)
    named = {state: [] for state in ("kept", "lost", "not decided")}
    for line in trade:
        if line["liars"]:
            name = f"{line['channel']} with {line['liars']} liars ({line['rule']})"
            named[line["state"]].append(name)
    strength = f" of strength {flags.FLAGS.strength:g}" if flags.FLAGS.strength else ""
    text = "; ".join(f"{title}: {', '.join(names)}" for title, names in named.items() if names)
    state = False if named["lost"] else None if named["not decided"] else True
    return Claim(
        "this project",
        f"{data}, {partition}: under the worst attack{strength} the best rule loses at most "
        f"{flags.FLAGS.lost:g} points, whatever gamma and number of liars",
        f"{text}; {seeds} seeds",
        verdict(state, seeds, bool(named["kept"])),
        f"paired t tests, {TOGETHER} over {sum(map(len, named.values()))} combinations and {rules} rules "
        f"(kept) or {attacks} attacks (lost); the rule that is named is the best by the mean of these runs",
        "uplink; the server is trusted, clients are not",
    )


def plot(by_panel, channels, liars, rules):
    """A heat map for each data set and partition: rules down, channels and liars across."""
    columns = [(channel, number) for channel in channels for number in liars]
    height = 1.6 + 0.42 * len(rules)
    figure = Figure(figsize=(1.5 + 0.62 * len(columns), height * len(by_panel)), layout="constrained")
    panels = figure.subplots(len(by_panel), 1, squeeze=False).ravel()
    for axes, (title, (rows, trade)) in zip(panels, by_panel.items(), strict=True):
        found = {(row["rule"], row["channel"], row["liars"]): np.mean(row["accuracy"]) for row in rows}
        values = np.array([[found[(rule, *column)] for column in columns] for rule in rules])
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            color = "w" if value < 0.6 else "k"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_yticks(range(len(rules)), rules)
        axes.set_xticks(range(len(columns)), [str(number) for _, number in columns])
        axes.set_xlabel(f"liars; {title}")
        for place, channel in enumerate(channels):
            middle = place * len(liars) + (len(liars) - 1) / 2
            first = next(line for line in trade if line["channel"] == channel)
            text = f"{channel}\n{first['bits']:.2g} bits"
            if np.isfinite(first["epsilon"]):
                text += f", epsilon {first['epsilon']:.3g}"
            axes.text(middle, -0.65, text, ha="center", va="bottom", fontsize=8)
            if place:
                axes.axvline(place * len(liars) - 0.5, color="w", linewidth=2)
        figure.colorbar(image, ax=axes, label="worst accuracy over attacks")
    return figure


def define_flags():
    define_training_flags(("digits",), seeds=3)
    flags.FLAGS["rounds"].default = flags.FLAGS["rounds"].value = 15
    flags.DEFINE_integer("clients", 30, "Clients of the federation.")
    flags.DEFINE_list("liars", ["0", "3", "6", "9"], "Numbers of clients that lie.")
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")
    flags.DEFINE_list(
        "rules",
        ["mean", "median", "trimmed_mean", "multi_krum", "geometric_median", "centered_clipping"],
        "Aggregators.",
    )
    flags.DEFINE_list(
        "attacks",
        ["label_flip", "mimic", "dither_abuse", "directed_little", "directed_inner_product"],
        "Attacks.",
    )
    flags.DEFINE_float("strength", 0.0, "Of all attacks; 0: the usual one of each.")
    flags.DEFINE_string("before", "mixing", "What comes before a rule: none, mixing or bucketing.")
    flags.DEFINE_list("partitions", ["iid", "dirichlet"], "Who holds which example.")
    flags.DEFINE_float("alpha", 0.3, "Of a Dirichlet partition.")
    flags.DEFINE_float("worker_momentum", 0.0, "Momentum that clients keep from round to round.")
    flags.DEFINE_integer("steps", 5, "Local steps of a round.")
    flags.DEFINE_integer("batch_size", 16, "Examples of a local step.")
    flags.DEFINE_float("learning_rate", 0.2, "Of the local steps.")
    flags.DEFINE_float("lost", 5.0, "Points below the clean mean from which on a combination is lost.")


def tables_of(by_panel) -> str:
    """Everything in one table, and what is kept or lost in another."""
    header = [
        "data",
        "partition",
        "channel",
        "liars",
        "rule",
        "worst accuracy",
        "attack",
        "lies refused a round",
    ]
    all_rows = [row for rows, _ in by_panel.values() for row in rows]
    whole = [
        [
            *(row[name] for name in ("data", "partition", "channel", "liars", "rule")),
            spread(row["accuracy"]),
            row["attack"] if row["liars"] else "",
            f"{row['refused']:.1f}" if row["liars"] else "",
        ]
        for row in all_rows
    ]
    short = [
        [
            title,
            line["channel"],
            f"{line['bits']:.2f}",
            f"{line['epsilon']:.4g}",
            line["liars"],
            line["rule"],
            line["attack"] if line["liars"] else "",
            spread(line["accuracy"], 3),
            f"{np.mean(line['points']):+.1f}",
            line["state"],
        ]
        for title, (_, trade) in by_panel.items()
        for line in trade
    ]
    names = [
        "data",
        "channel",
        "bits",
        "epsilon",
        "liars",
        "best rule",
        "worst attack",
        "accuracy",
        "points lost",
        "",
    ]
    return markdown(header, whole) + "\n\n" + markdown(names, short)


def check_choices():
    """Checks names of rules and attacks."""
    for rule in flags.FLAGS.rules:
        require_choice("--rules", rule, ("mean", *RULES))
    for attack in flags.FLAGS.attacks:
        require_choice("--attacks", attack, tuple(ATTACKS))


def main():
    f = flags.FLAGS
    check_choices()
    liars = [int(number) for number in cli.numbers("liars")]
    require(
        0 in liars and "mean" in f.rules, "--liars and --rules", (liars, f.rules), "with 0, and with mean"
    )
    require(any(liars), "--liars", f.liars, "with a number above 0, too: who lies is the question")
    channels = {FLOATS: 0.0, **{f"gamma {gamma:g}": gamma for gamma in cli.numbers("gammas")}}
    by_panel, claims = {}, []
    for data in f.data:
        configs = {}
        for partition in f.partitions:
            configs |= runs_of(data, partition, channels, f.rules, liars, f.attacks)
        found = lies.train_all(configs, f.seeds, f"{f.workdir}/runs.jsonl", f.progress)
        everything = rows_of(data, found)
        for partition in f.partitions:
            rows = [row for row in everything if row["partition"] == partition]
            trade = trade_of(rows, configs, channels, liars)
            by_panel[f"{data}, {partition}"] = rows, trade
            claims.append(claim_of(data, partition, trade, f.seeds))
    figure = plot(by_panel, channels, liars, f.rules)
    rows = [row for rows, _ in by_panel.values() for row in rows]
    text = settings_text(f.data, f.seeds)
    text += f"Attacks of strength {f.strength:g}.\n\n" if f.strength else ""
    output.save(text + tables_of(by_panel), rows, figure, claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
