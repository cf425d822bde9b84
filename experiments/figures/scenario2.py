"""Scenario 2: the authors' own settings, every method at the same noise.

  python -m experiments.figures.scenario2 --workdir=/tmp/scenario2

Models and both kinds of updates of 2501.12046 (configs/authors.py). Within one of them all Gaussian methods
have the same clip norm and the same deviation of the error, so their epsilons against the same adversary
are equal (noise + SDQ adds the quantization error to it, JoPEQ shapes it approximately); FedAvg and SDQ
alone protect nothing. Bits are to be compared among those who trust the same ones: CEPAM and "server noise +
SDQ" (a step of two deviations; the server adds the noise to the sum) trust the server, which sees every
update; noise + SDQ and JoPEQ hold against it. Against decoded updates server noise protects nobody. Laplace
noise has b = 10 sigma, as in the papers. Its epsilon needs a clip of the L1 norm; the papers clip the L2
norm, and so do two of the methods here, without an epsilon.
"""

import math

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from configs import authors
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, all_of, deviation, in_points, losses, spread, verdict
from experiments.plots import style
from experiments.runs import accuracies, define_training_flags, finished, mean_of, settings_text, train_all
from experiments.tables import markdown

METHODS = {
    "fedavg": ("fedavg", {}),
    "SDQ": ("sdq", {"mechanism.rate": "step"}),
    "Gaussian noise": ("noise_gaussian", {}),
    "noise + SDQ": ("noise_gaussian_sdq", {}),
    "JoPEQ": ("jopeq", {}),
    "server noise + SDQ": ("server_sdq", {"mechanism.rate": "step"}),
    "CEPAM Z1": ("cepam_gaussian", {}),
    "CEPAM Z2": ("cepam_gaussian", {"mechanism.lattice": "Z2"}),
    "CEPAM Z3": ("cepam_gaussian", {"mechanism.lattice": "Z3"}),
}
LAPLACE = {
    "Laplace noise": ("noise_laplace", {}),
    "Laplace noise + SDQ": ("noise_laplace_sdq", {}),
    "CEPAM-Laplace Z1": ("cepam_laplace", {}),
    "Laplace noise (L2 clip)": ("noise_laplace", {"mechanism.clip": "l2"}),
    "CEPAM-Laplace Z1 (L2 clip)": ("cepam_laplace", {"mechanism.clip": "l2"}),
}
SMOKE = {"settings": ["digits-linear"], "updates": ["weights"], "seeds": 2, "rounds": 5}


def configs_of(setting: str, update: str, sigma: float) -> dict:
    """{method: configuration}."""
    configs = {}
    for name in flags.FLAGS.methods:
        variant, changes = (METHODS | LAPLACE)[name]
        config = authors.get_config(f"{setting}-{update}-{variant}")
        config.data.dir = flags.FLAGS.data_dir
        config.rounds = config.eval_every = flags.FLAGS.rounds
        clip = config.mechanism.clip_norm
        config.mechanism.gamma = clip / (10 * sigma if config.mechanism.target == "laplace" else sigma)
        config.update_from_flattened_dict(changes)
        if config.server.noise:
            config.mechanism.step = 2 * sigma
        configs[name] = config
    return configs


def rows_of(setting: str, update: str, sigma: float, results: dict) -> list[dict]:
    rows = []
    for name, runs in results.items():
        epsilon = runs[0][-1].get("epsilon", {})
        rows.append(
            {
                "setting": setting,
                "updates": update,
                "sigma": sigma,
                "method": name,
                "accuracy": accuracies(runs).tolist() if finished(runs).all() else None,
                "bits": mean_of(runs, "bits_per_coordinate"),
                "snr": mean_of(runs, "snr"),
                "released_model": epsilon.get("released_model"),
                "decoded_updates": epsilon.get("decoded_updates"),
                "server": epsilon.get("server"),
            }
        )
    return rows


TRUST = f"{SERVER_TRUSTED}; epsilon against the released model"
OPPONENTS = {
    "Gaussian noise": (
        "2501.12046",
        "as accurate as FedAvg + Gaussian noise, at less traffic",
        "equal law of the error, so equal accounting but for the server, whom CEPAM trusts: it sees every "
        "update, and noise before float32 leaves an epsilon against it",
    ),
    "server noise + SDQ": (
        "this project",
        "and equal trust in the server as accurate as SDQ with noise by the server, at less traffic",
        "equal accounting against the released model; both trust the server; SDQ's error comes on top",
    ),
}


def claims_of(setting: str, update: str, sigma: float, rows: list[dict], tests: int) -> list[Claim]:
    """CEPAM Z1 beside Gaussian noise, and beside the fair opponent."""
    by_method, claims = {row["method"]: row for row in rows}, []
    ours = by_method.get("CEPAM Z1")
    for name, (source, words, why) in OPPONENTS.items():
        other = by_method.get(name)
        if not (ours and other):
            continue
        claim = f"{setting}, {update}: at equal epsilon {words}"
        if not (ours["accuracy"] and other["accuracy"]):
            claims.append(Claim(source, claim, "runs diverged", "not decided", "needs runs that end", TRUST))
            continue
        lost = losses({"points lost": in_points(other["accuracy"], ours["accuracy"])}, MARGIN, tests)
        seeds = len(ours["accuracy"])
        claims.append(
            Claim(
                source,
                claim,
                f"{lost.measured}, at {ours['bits']:.3f} against {other['bits']:.3g} bits uplink "
                f"(sigma {sigma:g}); {seeds} seeds",
                verdict(all_of([lost.state, ours["bits"] < other["bits"]]), seeds),
                f"{lost.why}; {why}; bits by ideal code length",
                TRUST,
            )
        )
    return claims


def plot(rows):
    """Accuracy and bits; methods far below the others, with Laplace noise, are written out."""
    groups = list(dict.fromkeys((row["setting"], row["updates"], row["sigma"]) for row in rows))
    figure = Figure(figsize=(9, 2.9 * ((len(groups) + 1) // 2) + 0.8), layout="constrained")
    panels = figure.subplots((len(groups) + 1) // 2, min(2, len(groups)), squeeze=False).ravel()
    methods = list(METHODS | LAPLACE)
    for axes, group in zip(panels, groups, strict=False):
        mine = [row for row in rows if (row["setting"], row["updates"], row["sigma"]) == group]
        mine = [row for row in mine if row["accuracy"]]
        gaussian = [row for row in mine if row["method"] in METHODS] or mine
        bottom = min((np.mean(row["accuracy"]) for row in gaussian), default=0) - 0.1
        low, ends = [], []
        for row in mine:
            number, mean = methods.index(row["method"]), np.mean(row["accuracy"])
            if mean < bottom:
                low.append(f"{row['method']}: {mean:.2f} at {row['bits']:.2g} bits")
                continue
            look = style(number) | {"linestyle": "none", "capsize": 2, "elinewidth": 0.8}
            look["fillstyle"] = "full" if row["method"] in METHODS else "none"
            look["markersize"] = 8 if number < 4 else 5  # those with equal bits lie on each other
            half = deviation(row["accuracy"])
            ends += [mean - half, mean + half]
            axes.errorbar([row["bits"]], [mean], [half], label=row["method"], **look)
        if low:
            text = "below:\n" + "\n".join(low)
            axes.text(0.02, 0.04, text, transform=axes.transAxes, fontsize=7, va="bottom")
        setting, update, sigma = group
        axes.set(title=f"{setting}, {update}, sigma {sigma:g}", xscale="log", ylabel="test accuracy")
        axes.set_xlabel("bits per coordinate")
        if ends:
            height = max(ends) - min(ends) + 0.005
            axes.set_ylim(min(ends) - (0.7 if low else 0.1) * height, max(ends) + 0.1 * height)
        axes.grid(alpha=0.3)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    labelled = {}
    for axes in panels[: len(groups)]:
        labelled |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def define_flags():
    define_training_flags(())
    flags.DEFINE_list("settings", ["mnist-linear", "mnist-mlp", "mnist-cnn2"], "Data and model.")
    flags.DEFINE_list("updates", list(authors.UPDATES), "Kinds of updates.")
    flags.DEFINE_list("methods", list(METHODS | LAPLACE), "Methods that are compared.")
    flags.DEFINE_list("sigmas", ["0.01"], "Deviations of the error; the clip norm is 1.")


def main():
    f = flags.FLAGS
    cli.choices("methods", METHODS | LAPLACE)
    rows, claims = [], []
    tests = len(f.settings) * len(f.updates) * len(f.sigmas)
    for setting in f.settings:
        for update in f.updates:
            for sigma in cli.numbers("sigmas"):
                place = f"{f.workdir}/runs/{setting}-{update}-{sigma:g}"
                configs = configs_of(setting, update, sigma)
                results = train_all(configs, f.seeds, place, f.progress, keep_failures=True)
                mine = rows_of(setting, update, sigma, results)
                rows += mine
                claims += claims_of(setting, update, sigma, mine, tests)

    def number(value):
        return "none" if value is None else f"{value:.3g}"

    table = markdown(
        [
            "setting",
            "updates",
            "sigma",
            "method",
            "test accuracy",
            "bits",
            "SNR",
            "epsilon, model",
            "decoded",
            "server",
        ],
        [
            [
                row["setting"],
                row["updates"],
                f"{row['sigma']:g}",
                row["method"],
                spread(row["accuracy"]) if row["accuracy"] else "diverged",
                f"{row['bits']:.3f}",
                "" if math.isnan(row["snr"]) else f"{row['snr']:.3g}",
                *(number(row[who]) for who in ("released_model", "decoded_updates", "server")),
            ]
            for row in rows
        ],
    )
    output.save(settings_text(f.settings, f.seeds) + table, rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
