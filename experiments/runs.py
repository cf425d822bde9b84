"""Runs that belong together: many settings, many seeds, one call."""

from pathlib import Path

from cepam_jax.federated import training


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
        keep_failures=keep_failures,
    )
    results = {label: [] for label in configs}
    for (label, _), lines in zip(pairs, found, strict=True):
        results[label].append(lines)
    return results
