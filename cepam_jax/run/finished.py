"""What a work directory holds of a run, read back without training on or writing there."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from cepam_jax.data import sources
from cepam_jax.data.examples import Examples
from cepam_jax.data.partition import Partition
from cepam_jax.errors import require
from cepam_jax.run import build, origins
from cepam_jax.run.evaluation import Evaluation, make_evaluate
from cepam_jax.tasks.base import TASKS, Model, Task


class Finished(NamedTuple):
    """A run as its last checkpoint left it.

    Attributes:
      config: its configuration.
      data: its data set.
      split: who holds which training examples.
      task: what was learned.
      model: on the host.
      round: rounds done.
    """

    config: ml_collections.ConfigDict
    data: Examples
    split: Partition
    task: Task
    model: Model
    round: int


def load(workdir: str | Path) -> Finished:
    """The last intact checkpoint of a run.

    Args:
      workdir: of `run.training.train`.

    Raises:
      ConfigError: there is no run, or not one checkpoint.
      CheckpointDamagedError: no checkpoint is intact.
      DataNotPreparedError: its data set is not here.
    """
    left = origins.finished(workdir, "--run")
    config = left.config
    with jax.enable_x64(False):
        data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
        split = build.split_of(config, data)
        task = TASKS[config.task](config, data.specification)
    return Finished(config, data, split, task, left.model, left.round)


def evaluate(run: Finished) -> Evaluation:
    """Sums over all test examples and over those of each client.

    Raises:
      ConfigError: the run's clients are not the owners of examples, so that test examples have no clients.
      DatasetError: the data set does not say whose its test examples are.
    """
    kind = run.config.partition.kind
    require(
        kind == "natural", "config.partition.kind of the run", kind, "'natural': others have no test examples"
    )
    config = run.config.copy_and_resolve_references()
    config.evaluation.clients = "test"
    config.links.name = "none"  # nothing is trained, and their file need not be here
    with jax.enable_x64(False):
        judge: Any = jax.jit(make_evaluate(run.task, config.evaluation.batch_size, "test"))
        owners = build.test_owners(config, run.data, run.split)
        arrays = build.client_arrays(config, run.split)
        return jax.tree.map(np.asarray, judge(run.model, build.tested(run.data), arrays, owners))
