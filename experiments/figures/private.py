"""An epsilon that means something, at an accuracy that means something: one image a client, against DP-SGD.

  python -m experiments.figures.private --workdir=/tmp/private

60,000 clients with one image of MNIST each, sampled independently (configs/mnist_private.py); epsilon holds
against the released model, for clients and examples alike, under add/remove at delta 1e-5. Beside CEPAM, and
SDQ with noise by the server, the same model is trained by DP-SGD in one place (experiments/dpsgd.py), with
the same accountant. Everybody trusts the server.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import files
from cepam_jax.errors import ConfigError
from configs import mnist_private
from experiments import cli, dpsgd, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, bounds, differences, in_points, spread, verdict
from experiments.plots import style
from experiments.runs import accuracies, mean_of, train_all
from experiments.tables import markdown

REFERENCE = "DP-SGD, in one place"
# Name -> (variant, step over sigma of a client's share of the noise, or 0).
METHODS = {
    "CEPAM Z1": ("cepam_gaussian", 0.0),
    "CEPAM rotated E8": ("cepam_rotated", 0.0),
    "server noise + SDQ at sigma": ("server_sdq", 1.0),
    "server noise + SDQ at 2 sigma": ("server_sdq", 2.0),
}
DEFAULTS = ("CEPAM Z1", "server noise + SDQ at sigma")


def config_for(base, method: str, target: float):
    """The configuration of a method at a target epsilon: the variant's mechanism, all else of the base."""
    variant, times = METHODS[method]
    config = base.copy_and_resolve_references()
    config.mechanism.update(mnist_private.get_config(variant).mechanism)
    config.mechanism.clip_norm = base.mechanism.clip_norm
    return pointed(config, target, times)


def pointed(config, target: float, times: float = 0.0):
    """The same at a target, with the server's rate for it, and a step in units of the noise."""
    config.privacy.target_epsilon = target
    config.server.learning_rate = mnist_private.RATES.get(target, config.server.learning_rate)
    if times:
        mnist_private.with_step(config, np.ones(config.num_clients, int), times)
    return config


def reference(base, target: float, seeds: int, workdir: Path) -> list[float]:
    """Test accuracies of DP-SGD; seeds that were finished are not repeated.

    Raises:
      ConfigError: the folder has runs of another configuration.
    """
    found, folder = [], workdir / f"dpsgd_{target:g}"
    config = pointed(base.copy_and_resolve_references(), target)
    said, kept = config.to_json(indent=2, sort_keys=True) + "\n", folder / "config.json"
    if kept.exists() and kept.read_text() != said:
        raise ConfigError(f"{folder} has DP-SGD with another configuration; use another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    files.write(kept, said)
    for seed in range(seeds):
        path = folder / f"seed{seed}.jsonl"
        if not path.exists():
            files.write(path, "".join(json.dumps(line) + "\n" for line in dpsgd.train(config, 0, seed)))
        found.append(json.loads(path.read_text().splitlines()[-1])["accuracy"])
    return found


def rows_of(base, seeds: int, methods: list[str], targets: list[float], workdir: Path, progress: bool):
    """One row for each target and method."""
    configs = {f"{method} {t:g}": config_for(base, method, t) for t in targets for method in methods}
    results = train_all(configs, seeds, workdir / "runs", progress)
    rows = []
    for target in targets:
        accuracy = reference(base, target, seeds, workdir)
        rows.append({"epsilon": target, "method": REFERENCE, "accuracies": accuracy, "bits": None})
        for method in methods:
            runs = results[f"{method} {target:g}"]
            epsilon = runs[0][-1]["epsilon"]
            rows.append(
                {
                    "epsilon": target,
                    "method": method,
                    "accuracies": accuracies(runs).tolist(),
                    "bits": mean_of(runs, "bits_per_coordinate"),
                    **{name: epsilon[name] for name in ("released_model", "colluding_clients", "server")},
                }
            )
    return rows


def claims_of(data: str, rows: list[dict]) -> list[Claim]:
    """Is each method as accurate as DP-SGD at the same epsilon?"""
    accuracy = {(row["epsilon"], row["method"]): row["accuracies"] for row in rows}
    claims = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != REFERENCE):
        found = {
            f"epsilon {epsilon:g}": in_points(values, accuracy[epsilon, REFERENCE])
            for (epsilon, name), values in accuracy.items()
            if name == method
        }
        same, seeds = differences(found, MARGIN), len(next(iter(found.values())))
        each = "; ".join(
            f"{label} {low:+.2f} to {high:+.2f}"
            for label, (low, high) in ((label, bounds(v, 2 * len(found))) for label, v in found.items())
        )
        claims.append(
            Claim(
                "this project",
                f"{data}: one image a client, {method} is as accurate as DP-SGD in one place at one epsilon",
                f"points gained: {each}; {seeds} seeds",
                verdict(same.state, seeds),
                same.why,
                f"{SERVER_TRUSTED}; epsilon against the released model",
            )
        )
    return claims


def plot(rows):
    """Accuracy against epsilon, and bits."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == method]
        x = [row["epsilon"] for row in mine]
        left.plot(x, [np.mean(row["accuracies"]) for row in mine], label=method, **style(number))
        if mine[0]["bits"]:
            right.plot(x, [row["bits"] for row in mine], label=method, **style(number))
    label = "epsilon against the released model"
    left.set(xscale="log", xlabel=label, ylabel="test accuracy")
    right.set(xscale="log", xlabel=label, ylabel="bits per coordinate", ylim=(0, None))
    targets = sorted({row["epsilon"] for row in rows})
    for axes in (left, right):
        axes.set_xticks(targets, [f"{target:g}" for target in targets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def table(rows) -> str:
    """The figures in Markdown."""

    def number(value):
        return "none" if value is None else f"{value:.3g}"

    header = ["epsilon", "method", "test accuracy", "bits per coordinate", "epsilon, other clients", "server"]
    return markdown(
        header,
        [
            [
                f"{row['epsilon']:g}",
                row["method"],
                spread(row["accuracies"]),
                *(
                    ["", "", ""]
                    if row["method"] == REFERENCE
                    else [f"{row['bits']:.3f}", number(row["colluding_clients"]), number(row["server"])]
                ),
            ]
            for row in rows
        ],
    )


def define_flags():
    cli.define_config("configs/mnist_private.py", "Its mechanism is replaced.")
    output.define_workdir()
    flags.DEFINE_list("epsilons", ["1", "3", "8"], "Targets.")
    flags.DEFINE_list("methods", list(DEFAULTS), f"Methods beside DP-SGD, of {', '.join(METHODS)}.")
    flags.DEFINE_integer("seeds", 1, "Runs of each setting.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    cli.choices("methods", METHODS)
    rows = rows_of(f.config, f.seeds, f.methods, cli.numbers("epsilons"), Path(f.workdir), f.progress)
    c = f.config
    settings = (
        f"{c.data.name}, {c.model}, {c.num_clients:,} clients, {c.clients_per_round:,} a round in the mean, "
        f"{c.rounds} rounds; epsilon against the released model at delta = {c.privacy.delta:g}, "
        f"{c.privacy.relation}; {f.seeds} seeds\n\n"
    )
    output.save(settings + table(rows), rows, plot(rows), claims_of(c.data.name, rows))


SMOKE = {
    "config.data.name": "digits",
    "config.model": "linear",
    "config.num_clients": 1437,
    "config.clients_per_round": 100,
    "config.rounds": 5,
    "config.eval_every": 5,
    "config.clients_per_chunk": 25,
    "seeds": 1,
    "epsilons": ["8"],
}

if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
