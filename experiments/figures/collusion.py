"""What liars who agree gain from the noise, with and without the server's check of pairs.

  python -m experiments.figures.collusion --workdir=/tmp/collusion

The runs of `figures.byzantine`, with the server checking norms alone, or pairs of updates as well: two
honest noises are never near each other (`federated.pairs`). Liars know the check: they cover what they send
with noise that they have agreed upon, or copy honest updates, which are then refused with them, or half of
them do the one and half the other. Every number is the best rule's under its worst attack; points are lost
against the mean without liars in 32-bit floats.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from cepam_jax.federated import pairs
from experiments import byzantine_tables, cli, lies, output
from experiments.figures import byzantine
from experiments.figures.byzantine import FLOATS
from experiments.output import Claim
from experiments.paired import above, all_of, bounds, deviation, in_points, spread, verdict
from experiments.plots import style
from experiments.runs import coordinates_of, settings_text
from experiments.tables import markdown

CHECKS = {"norms": False, "norms and pairs": True}
SMOKE = {
    "data": ["digits"],
    "seeds": 2,
    "rounds": 2,
    "clients": 10,
    "liars": ["2"],
    "gammas": ["30"],
    "rules": ["trimmed_mean"],
    "attacks": ["dither_abuse"],
    "partitions": ["iid"],
}


def configs_of(data, partition, gammas, liars) -> dict:
    """{(partition, gamma, rule, liars, attack, check): configuration}, and the mean without liars."""
    f = flags.FLAGS
    clean = byzantine.settings_of(data, partition, 0.0, "mean", 0, "none")
    found = {(partition, 0.0, "mean", 0, "none", FLOATS): clean}
    for gamma in gammas:
        for check, paired in CHECKS.items():
            for rule in f.rules:
                for number in liars:
                    for attack in f.attacks:
                        config = byzantine.settings_of(data, partition, gamma, rule, number, attack)
                        config.byzantine.pairs = paired
                        found[partition, gamma, rule, number, attack, check] = config
    return found


def rows_of(data, partition, gammas, liars, configs, results) -> list[dict]:
    """Of each gamma, number of liars and check: the best rule under its worst attack."""
    f, rows = flags.FLAGS, []
    clean = byzantine.accuracies(results[partition, 0.0, "mean", 0, "none", FLOATS])
    for gamma in gammas:
        for number in liars:
            for check in CHECKS:
                worst = {}
                for rule in f.rules:
                    tried = {a: results[partition, gamma, rule, number, a, check] for a in f.attacks}
                    name = min(tried, key=lambda a: byzantine.accuracies(tried[a]).mean())
                    worst[rule] = (name, tried[name])
                rule = max(worst, key=lambda name: byzantine.accuracies(worst[name][1]).mean())
                attack, runs = worst[rule]
                accuracy = byzantine.accuracies(runs)
                config = configs[partition, gamma, rule, number, attack, check]
                rows.append(
                    {
                        "data": data,
                        "partition": partition,
                        "gamma": gamma,
                        "liars": number,
                        "check": check,
                        "rule": rule,
                        "attack": attack,
                        "accuracy": accuracy.tolist(),
                        "lost": in_points(clean, accuracy).tolist(),
                        "longest": longest_of(config),
                        "refused lies": byzantine.mean_of(runs, "refused_lies"),
                        "refused honest": byzantine.mean_of(runs, "refused_honest"),
                    }
                )
    return rows


def longest_of(config) -> float:
    """How long, in clips, what all liars have in common may be."""
    most, lies = byzantine_tables.longest_of(config), config.byzantine.clients
    if not config.byzantine.pairs:
        return most
    d = coordinates_of(config)
    part = pairs.least(d, config.num_clients, config.byzantine.false_alarm / 2)
    return pairs.longest_mean(most, d / config.mechanism.gamma**2, part, lies)


def gains_of(rows) -> dict:
    """{(partition, gamma, liars): points that the check of pairs saves, of each seed}."""
    lost = {(r["partition"], r["gamma"], r["liars"], r["check"]): np.array(r["lost"]) for r in rows}
    alone, both = CHECKS
    return {key[:3]: lost[*key[:3], alone] - lost[*key[:3], both] for key in lost if key[3] == alone}


def claim_of(data, rows, seeds) -> Claim:
    """Whether the check of pairs saves points, with bounds that hold together."""
    gains = gains_of(rows)
    states = {key: above(gain, 0.0, 2 * len(gains)) for key, gain in gains.items()}
    shown = sum(state is True for state in states.values())
    least = min(gains, key=lambda key: gains[key].mean())
    partition, gamma, number = least
    return Claim(
        "this project",
        f"{data}: where the server also checks pairs, the best rule loses less to its worst attack",
        f"shown for {shown} of {len(gains)} combinations of gamma, liars and partition; least: gamma "
        f"{gamma:g}, {number} liars, {partition}: {gains[least].mean():+.1f} points; {seeds} seeds",
        verdict(all_of(states.values()), seeds, shown > 0),
        f"{2 * len(gains)} bounds of paired t tests; rules and attacks are chosen by the same runs",
        "uplink; the server is trusted, clients are not",
    )


def table_of(rows) -> str:
    """Both checks beside each other."""
    alone, both = CHECKS
    found = {(r["data"], r["partition"], r["gamma"], r["liars"], r["check"]): r for r in rows}
    lines = []
    for key in dict.fromkeys(key[:4] for key in found):
        first, second = found[*key, alone], found[*key, both]
        gain = np.array(first["lost"]) - np.array(second["lost"])
        low, high = bounds(gain, 2 * len({other[1:4] for other in found if other[0] == key[0]}))
        lines.append(
            [
                *(f"{part:g}" if isinstance(part, float) else part for part in key),
                *(f"{np.mean(row['lost']):.1f} ({row['rule']}, {row['attack']})" for row in (first, second)),
                f"{first['longest']:.2f}, {second['longest']:.2f}",
                f"{gain.mean():+.1f} ({low:+.1f} to {high:+.1f})",
                f"{second['refused lies']:.2f}, {second['refused honest']:.2f}",
                spread(second["accuracy"], 3),
            ]
        )
    names = ["data", "partition", "gamma", "liars"]
    names += [f"points lost, {check} checked" for check in CHECKS]
    names += [
        "longest common lie, clips: norms, both",
        "points saved",
        "refused a round: lies, honest",
        "accuracy with both",
    ]
    return markdown(names, lines)


def plot(rows):
    """Points lost over the number of liars, a line for each gamma and check."""
    panels_of = list(dict.fromkeys((r["data"], r["partition"]) for r in rows))
    figure = Figure(figsize=(4.6 * len(panels_of), 4.0), layout="constrained")
    panels = figure.subplots(1, len(panels_of), squeeze=False, sharey=True).ravel()
    for axes, (data, partition) in zip(panels, panels_of, strict=True):
        mine = [r for r in rows if (r["data"], r["partition"]) == (data, partition)]
        for number, gamma in enumerate(dict.fromkeys(r["gamma"] for r in mine)):
            color = style(number)["color"]
            for check, paired in CHECKS.items():
                line = [r for r in mine if (r["gamma"], r["check"]) == (gamma, check)]
                axes.errorbar(
                    [r["liars"] for r in line],
                    [np.mean(r["lost"]) for r in line],
                    [deviation(r["lost"]) / np.sqrt(len(r["lost"])) for r in line],  # standard errors
                    color=color,
                    linestyle="-" if paired else "--",
                    marker="o" if paired else "s",
                    fillstyle="full" if paired else "none",
                    capsize=2,
                    label=f"gamma {gamma:g}, {check}",
                )
        axes.set(xlabel="liars", title=f"{data}, {partition}")
        axes.set_xticks(sorted({r["liars"] for r in mine}))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("points lost, best rule under its worst attack")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def define_flags():
    byzantine.define_flags()
    for name, value in {
        "liars": ["3", "6", "9"],
        "rules": ["trimmed_mean", "geometric_median", "centered_clipping"],
        "attacks": ["directed_little", "directed_inner_product", "optimal_evicting", "dither_abuse", "evict"],
        "gammas": ["30", "10"],
    }.items():
        flags.FLAGS[name].default = flags.FLAGS[name].value = value


def main():
    f = flags.FLAGS
    byzantine.check_choices()
    gammas = cli.numbers("gammas")
    for number in cli.numbers("liars"):
        require(number >= 1 and number == int(number), "--liars", number, "whole numbers of at least 1")
    liars = [int(number) for number in cli.numbers("liars")]
    rows, claims = [], []
    for data in f.data:
        configs = {}
        for partition in f.partitions:
            configs |= configs_of(data, partition, gammas, liars)
        found = lies.train_all(configs, f.seeds, f"{f.workdir}/runs.jsonl", f.progress)
        mine = [row for p in f.partitions for row in rows_of(data, p, gammas, liars, configs, found)]
        claims.append(claim_of(data, mine, f.seeds))
        rows += mine
    output.save(settings_text(f.data, f.seeds) + table_of(rows), rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
