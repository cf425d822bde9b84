"""Trains one federation.

  python -m experiments.train --config=configs/mnist.py:cepam_gaussian \\
      --config.mechanism.gamma=100 --workdir=/tmp/mnist_gamma100

The same command continues a run that was stopped. The clients of a round are spread over all devices; on
several machines start it once on each, with --distributed (and, where no cluster manager says who is who,
--coordinator=host:port --num_processes=N --process_id=0, 1, ...).
"""

import itertools
import math
from pathlib import Path

from absl import flags

from cepam_jax.run import devices, training
from experiments import cli

_CONFIG = cli.define_config(
    "configs/digits.py", "File and variant; a field by --config.name=value.\n" + cli.fields_help()
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run.", required=True)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")


def main():
    lines = training.train(_CONFIG.value, _WORKDIR.value, _PROGRESS.value)
    if not devices.is_main():
        return
    last = lines[-1]
    # The task's own metrics stand between the number of the round and what is said of clients and training.
    names = itertools.takewhile(lambda name: name not in ("clients", "train_loss"), list(last)[1:])
    judged = ", ".join(f"{name} {math.nan if last[name] is None else last[name]:.4f}" for name in names)
    print(f"round {last['round']}: test {judged}; see {_WORKDIR.value}/metrics.jsonl")
    print((Path(_WORKDIR.value) / "privacy.txt").read_text(), end="")


if __name__ == "__main__":
    cli.run(main)
