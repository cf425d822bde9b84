"""Clients that lie: worst accuracy over attacks, of each rule, number of liars and gamma.

  python -m experiments.figures.byzantine --data=mnist --workdir=/tmp/byzantine

Federated averaging over 30 clients, some of which lie, with robust aggregators of decoded updates, in 32-bit
floats and through CEPAM's quantizer at several gammas. Every number is the worst over the attacks: the least
of their mean accuracies over seeds. The server checks norms; liars see all honest updates and choose what is
decoded of theirs. A combination of gamma and liars is *lost* where even the best rule loses more than --lost
points against the mean without liars in 32-bit floats.

With Dirichlet labels: --partition=dirichlet. Heterogeneous clients, and rules that know each client's noise
beside those that ignore it: --strong_gamma=3 gives a tenth of the clients that gamma instead.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require, require_choice
from cepam_jax.federated import ATTACKS
from cepam_jax.federated.aggregation import RULES
from experiments import cli, output
from experiments.output import Claim
from experiments.paired import bounds, in_points, spread, verdict
from experiments.runs import accuracies, config_of, define_training_flags, mean_of, settings_text, train_all
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
}


def settings_of(data, channel, gamma, rule, liars, attack):
    """One run's configuration."""
    f = flags.FLAGS
    noisy = channel != FLOATS
    changes = {
        "num_clients": f.clients,
        "partition.kind": f.partition,
        "aggregator": rule,
        "byzantine.check": True,
        "local.worker_momentum": f.worker_momentum,
    }
    if f.partition == "dirichlet":
        changes["partition.alpha"] = f.alpha
    if noisy:
        changes["mechanism.gamma"] = gamma
    else:
        changes |= {"mechanism.name": "identity"}
    if rule in RULES:
        changes |= {"byzantine.tolerated": liars, "byzantine.before": f.before if liars else "none"}
        # Where all have the same noise, this only adds it to the radius of centered clipping.
        known = rule == "centered_clipping" and not f.strong_gamma
        changes |= {"byzantine.noise": "known" if known else f.noise} if noisy else {}
    if liars:
        changes |= {"byzantine.attack": attack, "byzantine.clients": liars}
    config = config_of(data, "cepam_gaussian", **changes)
    if noisy and f.strong_gamma:
        strong = max(1, f.clients // 10)
        config.mechanism.per_client.gamma = (f.strong_gamma,) * strong + (gamma,) * (f.clients - strong)
    config.byzantine.radius = config.mechanism.clip_norm
    config.byzantine.smoothing = 0.1 * config.mechanism.clip_norm
    return config


def runs_of(data, channels, rules, liars, attacks):
    """{(channel, rule, liars, attack): configuration}."""
    return {
        (channel, rule, number, attack): settings_of(data, channel, gamma, rule, number, attack)
        for channel, gamma in channels.items()
        for rule in rules
        for number in liars
        for attack in (attacks if number else ["none"])
    }


def rows_of(data, results) -> list[dict]:
    """Of each channel, rule and number of liars: the worst attack, and what the server refused."""
    rows = []
    for channel, rule, liars in dict.fromkeys(key[:3] for key in results):
        tried = {key[3]: runs for key, runs in results.items() if key[:3] == (channel, rule, liars)}
        worst = min(tried, key=lambda attack: accuracies(tried[attack]).mean())
        rows.append(
            {
                "data": data,
                "channel": channel,
                "rule": rule,
                "liars": liars,
                "attack": worst,
                "accuracy": accuracies(tried[worst]).tolist(),
                "bits": mean_of(tried[worst], "bits_per_coordinate"),
                "refused": mean_of(tried[worst], "refused_lies_per_round") if liars else 0.0,
                "by attack": {attack: float(accuracies(runs).mean()) for attack, runs in tried.items()},
            }
        )
    return rows


def best_of(rows, channel, liars) -> dict:
    """The row of the rule with the highest worst accuracy."""
    mine = [row for row in rows if (row["channel"], row["liars"]) == (channel, liars)]
    return max(mine, key=lambda row: np.mean(row["accuracy"]))


def claims_of(data, rows, channels, liars) -> list[Claim]:
    """What is lost, combination by combination, with bounds that hold together; and what noise costs."""
    seeds, most = len(rows[0]["accuracy"]), flags.FLAGS.lost
    clean = next(
        row["accuracy"] for row in rows if (row["channel"], row["rule"], row["liars"]) == (FLOATS, "mean", 0)
    )
    asked = [(channel, number) for channel in channels for number in liars if number]
    kept, lost, open_ones = [], [], []
    for channel, number in asked:
        row = best_of(rows, channel, number)
        low, high = bounds(in_points(clean, row["accuracy"]), 2 * len(asked))
        name = f"{channel} with {number} liars ({row['rule']})"
        (kept if high < most else lost if low > most else open_ones).append(name)
    text = "; ".join(
        f"{title}: {', '.join(names)}"
        for title, names in (("kept", kept), ("lost", lost), ("not decided", open_ones))
        if names
    )
    state = False if lost else None if open_ones else True
    return [
        Claim(
            "this project",
            f"{data}: under the worst attack the best rule loses at most {most:g} points, whatever gamma and "
            "number of liars",
            f"{text}; {seeds} seeds",
            verdict(state, seeds, bool(kept)),
            f"{2 * len(asked)} bounds of paired t tests; the best rule is chosen by the same runs",
        )
    ]


def plot(by_data, channels, liars, rules):
    """A heat map for each data set: rules down, channels and liars across."""
    columns = [(channel, number) for channel in channels for number in liars]
    height = 1.6 + 0.42 * len(rules)
    figure = Figure(figsize=(1.5 + 0.62 * len(columns), height * len(by_data)), layout="constrained")
    panels = figure.subplots(len(by_data), 1, squeeze=False).ravel()
    for axes, (data, rows) in zip(panels, by_data.items(), strict=True):
        found = {(row["rule"], row["channel"], row["liars"]): np.mean(row["accuracy"]) for row in rows}
        values = np.array([[found[(rule, *column)] for column in columns] for rule in rules])
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            color = "w" if value < 0.6 else "k"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_yticks(range(len(rules)), rules)
        axes.set_xticks(range(len(columns)), [str(number) for _, number in columns])
        axes.set_xlabel(f"liars, {data}")
        for place, channel in enumerate(channels):
            middle = place * len(liars) + (len(liars) - 1) / 2
            axes.text(middle, -0.75, channel, ha="center", va="bottom", fontsize=9)
            if place:
                axes.axvline(place * len(liars) - 0.5, color="w", linewidth=2)
        figure.colorbar(image, ax=axes, label="worst accuracy over attacks")
    return figure


def define_flags():
    define_training_flags(("digits",))
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
        ["sign_flip", "label_flip", "little_is_enough", "mimic", "optimal_inner_product", "dither_abuse"],
        "Attacks.",
    )
    flags.DEFINE_string("before", "mixing", "What comes before a rule: none, mixing or bucketing.")
    flags.DEFINE_string("noise", "ignored", "Whether rules use the law of each client's noise: known.")
    flags.DEFINE_string("partition", "iid", "iid or dirichlet.")
    flags.DEFINE_float("alpha", 0.3, "Of a Dirichlet partition.")
    flags.DEFINE_float("worker_momentum", 0.0, "Momentum that clients keep from round to round.")
    flags.DEFINE_float("strong_gamma", 0.0, "Gamma of a tenth of the clients; 0: that of the others.")
    flags.DEFINE_float("lost", 5.0, "Points below the clean mean from which on a combination is lost.")


def main():
    f = flags.FLAGS
    for rule in f.rules:
        require_choice("--rules", rule, ("mean", *RULES))
    for attack in f.attacks:
        require_choice("--attacks", attack, tuple(ATTACKS))
    liars = [int(number) for number in cli.numbers("liars")]
    require(
        0 in liars and "mean" in f.rules, "--liars and --rules", (liars, f.rules), "with 0, and with mean"
    )
    channels = {FLOATS: 0.0, **{f"gamma {gamma:g}": gamma for gamma in cli.numbers("gammas")}}
    tables, by_data, claims = [], {}, []
    for data in f.data:
        configs = runs_of(data, channels, f.rules, liars, f.attacks)
        labels = {" ".join(map(str, key)): config for key, config in configs.items()}
        found = train_all(labels, f.seeds, f"{f.workdir}/runs/{data}", f.progress, keep_failures=True)
        rows = rows_of(data, dict(zip(configs, found.values(), strict=True)))
        by_data[data] = rows
        claims += claims_of(data, rows, channels, liars)
        tables += [
            [
                data,
                row["channel"],
                row["liars"],
                row["rule"],
                spread(row["accuracy"]),
                row["attack"] if row["liars"] else "",
                f"{row['bits']:.3f}",
                f"{row['refused']:.1f}" if row["liars"] else "",
            ]
            for row in rows
        ]
    header = ["data", "channel", "liars", "rule", "worst accuracy", "attack", "bits", "lies refused a round"]
    everything = [row for rows in by_data.values() for row in rows]
    figure = plot(by_data, channels, liars, f.rules)
    output.save(settings_text(f.data, f.seeds) + markdown(header, tables), everything, figure, claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
