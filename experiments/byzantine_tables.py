"""Four questions about clients that lie, each with a table.

  python -m experiments.byzantine_tables --tables=price,noise,single --workdir=/tmp/byzantine_tables
  python -m experiments.byzantine_tables --tables=workers --data_dir=DIR --workdir=/tmp/byzantine_workers

price: what robust rules cost where nobody lies, in accuracy. noise: whether rules that know each client's
noise do better where gammas differ. single: what one liar does to the mean, with and without the server's
check of norms, by gamma. workers: the setting of Karimireddy, He, Jaggi: Byzantine-Robust Learning on
Heterogeneous Datasets via Bucketing (arXiv 2006.09365), experiment 3 of its code, on MNIST: 25 workers of
which 5 lie, one gradient of 32 examples an iteration, worker momentum .9, rate .01; the 20 honest workers
share the digits out among them, sorted by label. What differs here: the model is `--model`, not their
convolutional network of 1.2 million parameters; liars hold copies of what honest workers hold; sign flips and
mimics are those of this project (theirs flips its own gradient, without momentum, and mimics whom it chooses
by variance). Where nobody lies, all 25 share the digits out, and the rules bear 5 all the same.
"""

from pathlib import Path

import numpy as np
from absl import flags

from cepam_jax.data.partition import Partition
from cepam_jax.federated import ATTACKS, admission, byzantine
from cepam_jax.mechanisms import knobs_of
from cepam_jax.run import build
from experiments import cli, lies, output
from experiments.output import Claim
from experiments.paired import above, all_of, bounds, in_points, points, spread, verdict
from experiments.runs import config_of, coordinates_of, define_training_flags
from experiments.tables import markdown

RULES = ("median", "trimmed_mean", "multi_krum", "geometric_median", "centered_clipping")
# Final test accuracies in percent without and with buckets of two, means of three seeds in the raw outputs
# that the paper's authors keep with their code (epfml/byzantine-robust-noniid-optimizer, outputs/exp3).
PUBLISHED_ATTACKS = ("sign_flip", "label_flip", "mimic", "inner_product", "little_is_enough")
PUBLISHED = {
    ("krum", "none"): (9.9, 1.1, 37, 10, 11.4),
    ("krum", "bucketing"): (27, 43.8, 64.6, 41.6, 10.2),
    ("median", "none"): (44.6, 46.7, 54.6, 32.1, 9.9),
    ("median", "bucketing"): (60.3, 71.5, 82.7, 59.9, 39.2),
    ("geometric_median", "none"): (84.2, 96.2, 86.4, 11.3, 11.4),
    ("geometric_median", "bucketing"): (97.0, 97.6, 97.3, 96.2, 68.8),
    ("centered_clipping", "none"): (97.8, 97.8, 97.9, 97.8, 98.2),
    ("centered_clipping", "bucketing"): (97.9, 97.9, 97.9, 97.9, 98.1),
}
# The strengths in that code: inner products by .1; deviations by the quantile for 5 liars among 25, .253.
_STRENGTHS = {"inner_product": 0.1, "little_is_enough": 0.253}
# Its momentum is a sum of gradients, ten times the running mean that clients send here at .9. So here the
# server's rate is ten times its .01, and lengths are a tenth: the radius of 10 and the smoothing of .1.
_SUM_OVER_MEAN = 10.0
SMOKE = {
    "data": ["digits"],
    "seeds": 2,
    "rounds": 2,
    "clients": 10,
    "liars": 2,
    "rules": ["trimmed_mean"],
    "attacks": ["sign_flip"],
    "single_gammas": ["30"],
    "iterations": 2,
    "worker_seeds": 1,
    "worker_rules": ["median"],
}


def base(data, gamma, **changes):
    """A configuration of the short runs of `figures.byzantine`; gamma 0: 32-bit floats."""
    f = flags.FLAGS
    channel = {"mechanism.gamma": gamma} if gamma else {"mechanism.name": "identity"}
    short = {"local.steps": 5, "local.batch_size": 16, "local.learning_rate": 0.2, "num_clients": f.clients}
    config = config_of(data, "cepam_gaussian", **{**short, **channel, **changes})
    config.byzantine.radius = config.mechanism.clip_norm
    config.byzantine.smoothing = 0.1 * config.mechanism.clip_norm
    return config


def robustly(rule, tolerated, before="mixing") -> dict:
    """The fields of a rule."""
    if rule == "mean":
        return {"aggregator": "mean"}
    return {"aggregator": rule, "byzantine.tolerated": tolerated, "byzantine.before": before}


def lying(attack, liars, **more) -> dict:
    """The fields of an attack; of "none", none."""
    return {} if attack == "none" else {"byzantine.attack": attack, "byzantine.clients": liars, **more}


def accuracies(runs) -> np.ndarray:
    return np.array([run["accuracy"] for run in runs])


def trained(name, configs, seeds=None, split_of=build.split_of):
    """{label: results of each seed}, kept in a file of the table."""
    f = flags.FLAGS
    return lies.train_all(configs, seeds or f.seeds, Path(f.workdir) / f"{name}.jsonl", f.progress, split_of)


def over_honest(config, data) -> Partition:
    """All examples shared out over the honest workers; each liar holds a copy of what one of them holds."""
    liars = byzantine.drawn(config.num_clients, config.byzantine.clients, config.seeds.partition)
    honest = config.num_clients - int(liars.sum())
    smaller = config.copy_and_resolve_references()
    smaller.num_clients = honest
    split = build.split_of(smaller, data)
    holds = np.zeros(config.num_clients, int)
    holds[~liars] = np.arange(honest)
    holds[liars] = np.arange(config.num_clients - honest) % honest
    return Partition(split.indices[holds], split.counts[holds])


def price(data):
    """(text, rows, claims): accuracy of each rule without liars, beside the mean's, paired by seed."""
    f, configs, rows, lines = flags.FLAGS, {}, [], []
    tolerated = f.clients // 10
    for partition in ("iid", "dirichlet"):
        for rule in ("mean", *f.rules):
            fields = {"partition.kind": partition, "partition.alpha": 0.3, **robustly(rule, tolerated)}
            configs[partition, rule] = base(data, f.gamma, **fields)
    found = trained("price", configs)
    for (partition, rule), runs in found.items():
        mine, mean = accuracies(runs), accuracies(found[partition, "mean"])
        rows.append([partition, rule, spread(mine), "" if rule == "mean" else points(mine, mean)])
        lines.append({"partition": partition, "rule": rule, "accuracy": mine.tolist()})
    text = f"{data}, gamma {f.gamma:g}, nobody lies; rules bear {tolerated} of {f.clients} after mixing\n\n"
    text += markdown(["partition", "rule", "accuracy", "points against the mean"], rows)
    return text, lines, []


def noise(data):
    """Rules that know each client's noise against rules that do not, where half of the clients have more."""
    f, configs = flags.FLAGS, {}
    half = f.clients // 2
    for rule in f.rules:
        for known in ("ignored", "known"):
            for attack in ("none", *f.attacks):
                fields = {
                    "byzantine.check": True,
                    "byzantine.noise": known,
                    **robustly(rule, f.liars, f.before),
                }
                config = base(data, f.gamma, **fields, **lying(attack, f.liars))
                strong = (f.strong_gamma,) * half + (f.gamma,) * (f.clients - half)
                config.mechanism.per_client.gamma = strong
                configs[rule, known, attack] = config
    found = trained("noise", configs)
    rows, gains, tests = [], {}, 2 * len(f.rules)
    for rule in f.rules:
        by_attack = {
            attack: [accuracies(found[rule, known, attack]) for known in ("ignored", "known")]
            for attack in ("none", *f.attacks)
        }
        for attack, (ignored, known) in by_attack.items():
            rows.append([rule, attack, spread(ignored), spread(known), points(known, ignored)])
        # Of each seed, the mean over all attacks and none.
        gains[rule] = np.mean([in_points(known, ignored) for ignored, known in by_attack.values()], axis=0)
        low, high = bounds(gains[rule], tests)
        rows.append([rule, "mean of these", "", "", f"{gains[rule].mean():+.2f} ({low:+.2f} to {high:+.2f})"])
    states = {rule: above(gain, 0.0, tests) for rule, gain in gains.items()}
    claim = Claim(
        "this project",
        f"{data}: where half of the clients have gamma {f.strong_gamma:g} and the others {f.gamma:g}, rules "
        "that know the noise are more accurate than rules that ignore it",
        "; ".join(f"{rule}: {points(gain / 100, 0 * gain)}" for rule, gain in gains.items()),
        verdict(all_of(states.values()), f.seeds, True in states.values()),
        f"before the rule: {f.before}; mean over {len(f.attacks)} attacks of {f.liars} liars and none; "
        f"{tests} bounds of paired t tests",
        "uplink; the server is trusted, clients are not",
    )
    text = f"{data}, before the rule: {f.before}\n\n"
    text += markdown(["rule", "attack", "noise ignored", "noise known", "points gained"], rows)
    return text, [{"rule": rule, "gain": gain.tolist()} for rule, gain in gains.items()], [claim]


def single(data):
    """One liar against the mean, by gamma: clip abuse of some lengths, with and without the check."""
    f, configs = flags.FLAGS, {}
    gammas = [0.0, *cli.numbers("single_gammas")]
    lengths = [float(length) for length in f.lengths]
    for gamma in gammas:
        for check in (False, True):
            fields = {"byzantine.check": check}
            configs[gamma, check, "none"] = base(data, gamma, **fields)
            for length in lengths:
                lie = lying("clip_abuse", 1, **{"byzantine.strength": length})
                configs[gamma, check, length] = base(data, gamma, **fields, **lie)
            if check:
                farthest = base(data, gamma, **fields, **lying("dither_abuse", 1))
                configs[gamma, check, "dither_abuse"] = farthest
    found = trained("single", configs)
    rows = []
    for gamma in gammas:
        longest = longest_of(configs[gamma, True, "none"])
        cells = ["float32" if not gamma else f"{gamma:g}", f"{longest:.2f}"]
        cells.append(spread(accuracies(found[gamma, False, "none"]), 3))
        for length in lengths:
            without, checked = found[gamma, False, length], found[gamma, True, length]
            refused = np.mean([run["refused_lies"] for run in checked])
            cells += [
                f"{accuracies(without).mean():.3f}",
                f"{accuracies(checked).mean():.3f} ({refused:.0%})",
            ]
        cells.append(spread(accuracies(found[gamma, True, "dither_abuse"]), 3))
        rows.append(cells)
    header = ["gamma", "longest that passes, in clips", "nobody lies"]
    for length in lengths:
        header += [f"{length:g} times, no check", f"{length:g} times, check (refused)"]
    text = (
        f"{data}, {f.clients} clients, one lies, mean; lies are so many times the longest honest decoded norm"
    )
    text += "\n\n" + markdown([*header, "dither abuse, check"], rows)
    return text, [dict(zip([*header, "dither"], row, strict=True)) for row in rows], []


def longest_of(config) -> float:
    """The longest norm that the server takes, in units of the clip."""
    alarm = config.byzantine.false_alarm / (2 if config.byzantine.pairs else 1)  # norms and pairs share it
    limits = admission.limits(build.about_of(config), knobs_of(config), coordinates_of(config), alarm)
    return float(np.max(np.asarray(limits.most))) / config.mechanism.clip_norm


def workers(data):
    """The published setting, without and with buckets of two."""
    f, configs = flags.FLAGS, {}
    number, liars = (10, 1) if f.smoke else (25, 5)
    asked = [(rule, before) for rule, before in PUBLISHED if rule in f.worker_rules]
    for rule, before in asked:
        for attack in ("none", *PUBLISHED_ATTACKS):
            fields = {
                **robustly(rule, liars, before),
                "num_clients": number,
                "model": f.model,
                "partition.kind": "shards",
                "partition.shards_per_client": 1,
                "mechanism.clip": "none",
                "local.update_kind": "gradient",
                "local.steps": 1,
                "local.batch_size": 32,
                "local.worker_momentum": 0.9,
                "server.learning_rate": 0.01 * _SUM_OVER_MEAN,
            }
            more = {"byzantine.strength": _STRENGTHS.get(attack, 0.0)}
            config = base(data, 0.0, **fields, **lying(attack, liars, **more))
            config.rounds = config.eval_every = f.iterations
            config.byzantine.radius = 10.0 / _SUM_OVER_MEAN
            config.byzantine.smoothing = 0.1 / _SUM_OVER_MEAN
            config.byzantine.iterations = 8 if rule == "geometric_median" else 3
            configs[rule, before, attack] = config
    found = trained("workers", configs, f.worker_seeds, over_honest)
    rows, kept = [], []
    for rule, before in asked:
        published = PUBLISHED[rule, before]
        alone, *ours = (
            100 * accuracies(found[rule, before, attack]).mean() for attack in ("none", *PUBLISHED_ATTACKS)
        )
        theirs = [f"{value:g}" for value in published]
        name = rule if before == "none" else f"{rule}, buckets of two"
        rows.append([name, f"{alone:.1f}", *(f"{o:.1f} / {t}" for o, t in zip(ours, theirs, strict=True))])
        kept.append({"rule": rule, "before": before, "nobody lies": alone, "accuracy": ours})
    text = (
        f"{data}, {f.model}, {number} workers of which {liars} lie, {f.iterations} iterations, "
        f"{f.worker_seeds} seeds; percent, here / published\n\n"
    )
    text += markdown(["rule", "nobody lies", *PUBLISHED_ATTACKS], rows)
    return text, kept, []


TABLES = {"price": price, "noise": noise, "single": single, "workers": workers}


def define_flags():
    define_training_flags(("digits",))
    flags.FLAGS["rounds"].default = flags.FLAGS["rounds"].value = 15
    flags.DEFINE_list("tables", list(TABLES), f"Of {', '.join(TABLES)}.")
    flags.DEFINE_list("rules", list(RULES), "Robust rules of price and noise.")
    flags.DEFINE_list("attacks", ["label_flip", "little_is_enough", "dither_abuse"], "Attacks of noise.")
    flags.DEFINE_integer("clients", 30, "Clients, but for workers.")
    flags.DEFINE_integer("liars", 6, "Liars of noise.")
    flags.DEFINE_string("before", "mixing", "What comes before a rule in noise: none, mixing or bucketing.")
    flags.DEFINE_float("gamma", 30.0, "Clip norm over sigma, of price and noise.")
    flags.DEFINE_float("strong_gamma", 3.0, "That of half of the clients, in noise.")
    flags.DEFINE_list("single_gammas", ["1000", "100", "30", "10", "3"], "Gammas of single.")
    flags.DEFINE_list("lengths", ["3", "10", "100"], "Of the single liar's lies, in longest honest norms.")
    flags.DEFINE_string("model", "linear", "Of workers.")
    flags.DEFINE_list("worker_rules", list(dict.fromkeys(rule for rule, _ in PUBLISHED)), "Of workers.")
    flags.DEFINE_integer("iterations", 600, "Of workers.")
    flags.DEFINE_integer("worker_seeds", 2, "Runs of each setting of workers.")


def main():
    f = flags.FLAGS
    cli.choices("tables", TABLES)
    cli.choices("rules", RULES)
    cli.choices("worker_rules", [rule for rule, _ in PUBLISHED])
    cli.choices("attacks", ATTACKS)
    texts, rows, claims = [], [], []
    for data in f.data:
        for name in f.tables:
            text, lines, found = TABLES[name](data)
            texts.append(f"{text}\n\n{f.rounds if name != 'workers' else f.iterations} rounds")
            rows += [{"table": name, "data": data, **line} for line in lines]
            claims += found
    output.save("\n\n".join(texts), rows, None, claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
