"""Accuracy and bits against epsilon, mechanism by mechanism, at equal accounting.

  python -m experiments.figures.privacy --config=configs/mnist.py --workdir=/tmp/privacy_mnist

CEPAM and server_sdq, whose server adds the noise, trust the server, which knows every update;
noise_gaussian_sdq and noise_gaussian hold against it, too. For each target the noise is calibrated to the
planned rounds (client level, against `config.privacy.adversary`). Runs that were finished are not repeated.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from cepam_jax.run import guarantees
from configs.common import VARIANTS, with_variant
from experiments import cli, output
from experiments.output import Claim
from experiments.paired import MARGIN, all_of, deviation, in_points, losses, verdict
from experiments.runs import train_all
from experiments.tables import markdown

METHODS = (
    "cepam_gaussian",
    "cepam_laplace",
    "noise_gaussian",
    "noise_laplace",
    "noise_gaussian_sdq",
    "server_sdq",
)
_STYLES = dict(zip(METHODS, ("k-o", "b-s", "k--^", "b--v", "r:D", "g-.P"), strict=True))
# Step over the noise's deviation: it adds a twelfth of its square to the variance.
_STEPS = {"noise_gaussian_sdq": 1.0, "noise_laplace_sdq": 1.0, "server_sdq": 2.0}
_L1_CLIP = 30.0  # of the update's L1 norm, for Laplace noise; about what updates have at the start


def config_for(base, method: str, target: float):
    """The configuration of one curve's point; fedavg has no target."""
    config = with_variant(base.copy_and_resolve_references(), method, flags.FLAGS.l1_clip, 1.0)
    config.privacy.target_epsilon = target
    config.eval_every = config.rounds
    if method in _STEPS:
        config.mechanism.rate = "step"
        gamma = guarantees.calibrated(config, np.ones(config.num_clients)).mechanism.gamma
        config.mechanism.step = _STEPS[method] * config.mechanism.clip_norm / gamma
    return config


def row(method: str, target: float, runs) -> dict:
    """Accuracy and bits over seeds; a run that diverged under so much noise is a result, not a mistake."""
    last = [lines[-1] for lines in runs if lines[-1]["round"] > 0]
    diverged = len(runs) - len(last)
    if not last:
        return {"method": method, "epsilon": target, "accuracy": None, "diverged": diverged}
    accuracy = np.array([line["accuracy"] for line in last])
    return {
        "method": method,
        "epsilon": target,
        "accuracy": accuracy.mean(),
        "accuracies": accuracy.tolist(),
        "deviation": deviation(accuracy),
        "diverged": diverged,
        "bits": float(np.mean([line["bits_per_coordinate"] for line in last])),
        "server": last[0]["epsilon"]["server"],
        "decoded_updates": last[0]["epsilon"]["decoded_updates"],
    }


# What CEPAM is held against: (method, what it claims, whom the two trust).
OPPONENTS = (
    (
        "noise_gaussian",
        "at equal epsilon at least as accurate as FedAvg + Gaussian noise at less traffic",
        "epsilon against {adversary}; CEPAM trusts the server, which sees every update; noise before float32 "
        "leaves an epsilon against it",
    ),
    (
        "server_sdq",
        "at equal epsilon, and equal trust in the server, at least as accurate as SDQ with noise by the "
        "server at less traffic",
        "epsilon against {adversary}; both trust the server; decoded updates have noise with CEPAM alone",
    ),
)


def claims_of(data: str, rows, seeds: int, adversary: str = "released_model") -> list[Claim]:
    """At each epsilon: CEPAM beside FedAvg + Gaussian noise, and beside the fair opponent."""
    by_point = {(row["method"], row["epsilon"]): row for row in rows}
    claims = []
    for opponent, claim, trust in OPPONENTS:
        lost, traffic, without = {}, [], []
        for (method, epsilon), mine in by_point.items():
            other = by_point.get((opponent, epsilon))
            if method != "cepam_gaussian" or not other:
                continue
            if mine["diverged"] or other["diverged"]:
                without.append(f"{epsilon:g}")
                continue
            lost[f"epsilon {epsilon:g}"] = in_points(other["accuracies"], mine["accuracies"])
            traffic.append(mine["bits"] / other["bits"])
        if not lost:
            continue
        found = losses(lost, MARGIN)
        claims.append(
            Claim(
                "2501.12046" if opponent == "noise_gaussian" else "this project",
                f"{data}: {claim}",
                f"points lost: {found.measured}; {min(traffic):.2%} to {max(traffic):.2%} of the traffic; "
                f"{seeds} seeds"
                + (f"; without epsilon {', '.join(without)}: runs diverged" if without else ""),
                verdict(all_of([found.state, max(traffic) < 1, None if without else True]), seeds),
                f"{found.why}; ideal bits",
                f"{trust.format(adversary=adversary.replace('_', ' '))}; uplink",
            )
        )
    return claims


def plot(rows, adversary):
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in dict.fromkeys(row["method"] for row in rows if row["epsilon"]):
        mine = [row for row in rows if row["method"] == method and row["accuracy"] is not None]
        x = [row["epsilon"] for row in mine]
        style = _STYLES.get(method, "-x")
        deviations = [row["deviation"] for row in mine]
        left.errorbar(
            x, [row["accuracy"] for row in mine], deviations, fmt=style, ms=5, capsize=2, label=method
        )
        right.plot(x, [row["bits"] for row in mine], style, ms=5, label=method)
    for row in rows:
        if not row["epsilon"]:
            left.axhline(row["accuracy"], color="0.5", lw=1, label=f"{row['method']}, no privacy")
    label = f"epsilon against {adversary.replace('_', ' ')}"
    left.set(xscale="log", xlabel=label, ylabel="test accuracy")
    right.set(xscale="log", yscale="log", xlabel=label, ylabel="bits per coordinate")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def table(rows) -> str:
    """The figures in Markdown."""

    def number(value):
        return "none" if value is None else f"{value:.4g}"

    def cells(row):
        if row["accuracy"] is None:
            return ["diverged", "", "", ""]
        note = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        return [
            f"{row['accuracy']:.4f} ± {row['deviation']:.4f}{note}",
            f"{row['bits']:.3f}",
            number(row["decoded_updates"]),
            number(row["server"]),
        ]

    return markdown(
        [
            "method",
            "epsilon",
            "test accuracy",
            "bits per coordinate",
            "epsilon, decoded updates",
            "epsilon, server",
        ],
        [[row["method"], f"{row['epsilon']:g}" if row["epsilon"] else "none", *cells(row)] for row in rows],
    )


def define_flags():
    cli.define_config("configs/mnist.py", "Its mechanism is replaced.")
    output.define_workdir()
    flags.DEFINE_list("epsilons", ["10", "100", "1000", "10000"], "Targets.")
    flags.DEFINE_list("methods", list(METHODS), "Variants of the configurations.")
    flags.DEFINE_integer("seeds", 5, "Runs of each setting.")
    flags.DEFINE_float("l1_clip", _L1_CLIP, "Clip of the L1 norm, for Laplace noise.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    cli.choices("methods", VARIANTS)
    base = f.config
    every = base.metrics.bits == "every_round"
    require(every, "config.metrics.bits", base.metrics.bits, "'every_round': the figure shows bits")
    points = [("fedavg", 0.0), *((method, e) for method in f.methods for e in cli.numbers("epsilons"))]
    configs = {f"{method} {target:g}": config_for(base, method, target) for method, target in points}
    results = train_all(configs, f.seeds, f.workdir, f.progress, keep_failures=True)
    rows = [row(method, target, results[f"{method} {target:g}"]) for method, target in points]
    adversary = base.privacy.adversary
    settings = (
        f"{base.data.name}, {base.model}, {base.num_clients} clients, {base.rounds} rounds; epsilon against "
        f"{adversary} at delta = {base.privacy.delta:g}, client level, {base.privacy.relation}; "
        f"{f.seeds} seeds\n\n"
    )
    output.save(
        settings + table(rows),
        rows,
        plot(rows, adversary),
        claims_of(base.data.name, rows, f.seeds, adversary),
    )


if __name__ == "__main__":
    small = {"config.data.name": "digits", "config.model": "linear", "config.rounds": 4}
    cli.run(main, define_flags, smoke={**small, "seeds": 1, "epsilons": ["1000"]})
