"""Trains one federation.

  python -m experiments.train --config=configs/mnist.py:cepam_gaussian \\
      --config.mechanism.gamma=100 --workdir=/tmp/mnist_gamma100

The same command continues a run that was stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from cepam_jax.federated import training
from experiments import cli

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "File and variant.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run.", required=True)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")


def main():
    last = training.train(_CONFIG.value, _WORKDIR.value, _PROGRESS.value)[-1]
    print(f"round {last['round']}: test accuracy {last['accuracy']:.4f}; see {_WORKDIR.value}/metrics.jsonl")
    print((Path(_WORKDIR.value) / "privacy.txt").read_text(), end="")


if __name__ == "__main__":
    cli.run(main)
