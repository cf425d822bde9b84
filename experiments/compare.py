"""Trains several variants of one configuration side by side: a table and a picture.

  python -m experiments.compare --workdir=/tmp/cepam
  python -m experiments.compare --config=configs/mnist.py --gammas=100,30,10 --seeds=5 --workdir=/tmp/mnist

Runs that were finished are not repeated, and a run that was stopped is continued. Runs that differ in gamma
or seeds alone are compiled once and, where there are several devices (--cpu_devices=2 makes two of a CPU),
spread over them.
"""

import math
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from cepam_jax.errors import ConfigError
from cepam_jax.run.config import validate
from experiments import cli
from experiments.paired import spread
from experiments.runs import mean_of, train_all
from experiments.tables import markdown

_CONFIG = cli.define_config("configs/digits.py", "File, without a variant.")
_VARIANTS = flags.DEFINE_list("variants", ["fedavg", "cepam_gaussian"], "Variants of the file.")
_GAMMAS = flags.DEFINE_list("gammas", [], "Values of gamma for every variant but fedavg; none: its own.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs per variant; run s uses each seed of the file plus s.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of all runs.", required=True)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")

_STYLES = (("k", "-"), ("tab:blue", "--"), ("tab:orange", "-."), ("tab:green", ":"), ("tab:red", (0, (5, 1))))


def configurations(flag, variants, gammas):
    """[(label, config)]: each variant (and gamma) with the overrides of the command line."""
    path = config_flags.get_config_filename(flag)
    overrides = config_flags.get_override_values(flag)
    namespace = {}
    exec(compile(Path(path).read_text(), path, "exec"), namespace)  # as config_flags does
    chosen = []
    for variant in variants:
        for gamma in gammas if gammas and variant != "fedavg" else [None]:
            try:
                config = namespace["get_config"](variant)
                config.update_from_flattened_dict(overrides)
                if gamma is not None:
                    config.mechanism.gamma = float(gamma)
            except ValueError as error:
                raise ConfigError(f"variant {variant!r}, gamma {gamma!r}: {error}") from error
            validate(config)
            label = variant if variant == "fedavg" else f"{variant} gamma={config.mechanism.gamma:g}"
            chosen.append((label, config))
    return chosen


def _sent(line) -> float:
    """Uplink bits of a line; what was counted lets expect them where not all messages were."""
    if line["round"] == 0:
        return 0.0
    found = line.get("uplink_bits", line.get("uplink_bits_estimate"))
    return math.nan if found is None else found


def summarize(runs):
    """One row of the table from the metric lines of each seed's run."""
    accuracy = [lines[-1]["accuracy"] for lines in runs]
    if not any(lines[1:] for lines in runs):  # not one round: the privacy budget allowed none
        return [spread(accuracy), "", "", ""]
    bits = mean_of(runs, "bits_per_coordinate")
    seconds = np.median([line["seconds_per_round"] for lines in runs for line in lines[1:]])
    return [
        spread(accuracy),
        "" if math.isnan(bits) else f"{bits:.3f}",
        "" if math.isnan(bits) else f"{32 / bits:.0f}x",
        f"{seconds:.4f}",
    ]


def table(rows, seeds):
    """The summaries under their headings."""
    over = f" (mean ± standard deviation, {seeds} seeds)" if seeds > 1 else ""
    header = ["run", f"test accuracy{over}", "bits per coordinate", "against float32", "seconds per round"]
    return markdown(header, rows)


def plot(results, path):
    """Test accuracy by round and by data sent; a band spans one standard deviation over seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_round, by_data = figure.subplots(1, 2, sharey=True)
    for number, (label, runs) in enumerate(results):
        color, style = _STYLES[number % len(_STYLES)]
        accuracy = np.array([[line["accuracy"] for line in lines] for lines in runs])
        mean, std = accuracy.mean(0), accuracy.std(0, ddof=1 if len(runs) > 1 else 0)
        rounds = [line["round"] for line in runs[0]]
        sent = np.mean([[_sent(line) for line in lines] for lines in runs], axis=0)
        megabytes = np.cumsum(sent) / 8e6
        for axes, x in ((by_round, rounds), (by_data, megabytes)):
            if not np.isfinite(x).all():  # nobody counted what was sent
                continue
            # The untrained model of round 0 would only flatten the rest.
            axes.plot(x[1:], mean[1:], color=color, linestyle=style, label=label)
            axes.fill_between(x[1:], (mean - std)[1:], (mean + std)[1:], color=color, alpha=0.15)
    by_round.set(xlabel="round", ylabel="test accuracy")
    by_data.set(xlabel="sent by all clients so far (MB)", xscale="log")
    for axes in (by_round, by_data):
        axes.grid(alpha=0.3)
    by_round.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main():
    workdir = Path(_WORKDIR.value)
    if _SEEDS.value < 1:
        raise ConfigError(f"--seeds is {_SEEDS.value}; it must be at least 1")
    chosen = configurations(flags.FLAGS["config"], _VARIANTS.value, _GAMMAS.value)
    results = list(train_all(dict(chosen), _SEEDS.value, workdir, _PROGRESS.value).items())
    text = table([[label, *summarize(runs)] for label, runs in results], _SEEDS.value)
    (workdir / "table.md").write_text(text + "\n")
    plot(results, workdir / "accuracy.png")
    print(text)
    print(f"\n{workdir / 'accuracy.png'}: test accuracy by round and by data sent")


if __name__ == "__main__":
    cli.run(main)
