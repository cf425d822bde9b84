"""Runs that belong together: many settings, many seeds, one call."""

import importlib
from pathlib import Path

import jax
import numpy as np
from absl import flags

from cepam_jax.data import sources
from cepam_jax.errors import require_choice
from cepam_jax.run import build, training
from experiments import output

DATA = ("digits", "mnist", "fashion_mnist", "cifar10")


def define_training_flags(data: tuple[str, ...], seeds: int = 5) -> None:
    """Flags of a figure that trains on several data sets."""
    output.define_workdir()
    flags.DEFINE_list("data", list(data), f"Data sets, of {', '.join(DATA)}.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps data; by default as config.data.dir says.")
    flags.DEFINE_integer("seeds", seeds, "Runs of each setting.")
    flags.DEFINE_integer("rounds", 80, "Rounds of each run.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def coordinates_of(config) -> int:
    """d of an update of a configuration's model on its data."""
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    model = jax.eval_shape(build.task_of(config, data.specification).initialize, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves((model.params, model.statistics)))


def config_of(data: str, variant: str, **changes):
    """configs/<data>.py in a variant, with fields changed, and rounds and data_dir as the flags say.

    Only the last round is evaluated, unless eval_every is changed.

    Raises:
      ConfigError: there is no such data set.
    """
    require_choice("--data", data, DATA)
    config = importlib.import_module(f"configs.{data}").get_config(variant)
    config.data.dir = flags.FLAGS.data_dir
    config.rounds = config.eval_every = flags.FLAGS.rounds
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def accuracies(runs) -> np.ndarray:
    """Final test accuracy of each seed's run."""
    return np.array([lines[-1]["accuracy"] for lines in runs])


def finished(runs) -> np.ndarray:
    """bool[seeds], whether each run reached its last round; with `keep_failures` some may have diverged."""
    return np.array([lines[-1]["round"] == flags.FLAGS.rounds for lines in runs])


def mean_of(runs, field: str) -> float:
    """Mean of a field over all evaluations of all seeds after the first; NaN where it is never given."""
    values = [line[field] for lines in runs for line in lines[1:] if line.get(field) is not None]
    return float(np.mean(values)) if values else float("nan")


def settings_text(data, seeds: int) -> str:
    """What stands above a table of runs."""
    note = " The CIFAR-10 at hand may be a re-encoding: see docs/reproducing.md." if "cifar10" in data else ""
    return f"{flags.FLAGS.rounds} rounds, {seeds} seeds (mean ± standard deviation).{note}\n\n"


def seeded(config, offset):
    """A copy with every seed shifted by `offset`."""
    config = config.copy_and_resolve_references()
    for name in config.seeds:
        config.seeds[name] += offset
    return config


def train_all(
    configs: dict, seeds: int, workdir: str | Path, progress: bool = True, keep_failures: bool = False
) -> dict:
    """Trains every configuration with every seed; those that can share a compilation are one sweep.

    Args:
      configs: {label: configuration}.
      seeds: runs of each; run s uses each seed of its configuration plus s.
      workdir: run s of a label has the directory label/seed<s> under it (spaces as underscores).
      progress: show progress bars.
      keep_failures: whether a diverged run gives the lines up to there instead of an error.

    Returns:
      {label: [lines of metrics.jsonl of each seed]}.
    """
    pairs = [(label, seed) for label in configs for seed in range(seeds)]
    found = training.train_many(
        [seeded(configs[label], seed) for label, seed in pairs],
        [Path(workdir) / label.replace(" ", "_") / f"seed{seed}" for label, seed in pairs],
        progress,
        [f"{label} seed {seed}" for label, seed in pairs],
        keep_failures=keep_failures,
    )
    results = {label: [] for label in configs}
    for (label, _), lines in zip(pairs, found, strict=True):
        results[label].append(lines)
    return results
