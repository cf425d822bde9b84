"""What a work directory holds of a run, read back without training on or writing there."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.data.examples import Examples
from cepam_jax.data.partition import Partition
from cepam_jax.errors import ConfigError, require
from cepam_jax.run import build
from cepam_jax.run.checkpoints import Checkpoints
from cepam_jax.run.config import defaults, plain, validate
from cepam_jax.run.evaluation import Evaluation, make_evaluate
from cepam_jax.tasks.base import Model, Task


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
    workdir = Path(workdir).expanduser()
    try:
        stored = plain(ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text())))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{workdir} holds no run: its config.json cannot be read ({error})") from error
    config = plain(defaults())  # fields that came after the run have their defaults
    with config.ignore_type():
        config.update(stored)
    validate(config)
    with jax.enable_x64(False):
        data = sources.load_examples(config.data.name, config.data.dir, config.data.fold)
        split = build.split_of(config, data)
        compiled = build.program(config, data.specification)
        template = compiled.initialize(jax.random.key(config.seeds.model), mechanisms.knobs_of(config))
        found = Checkpoints(workdir / "checkpoints").newest(jax.tree.map(np.asarray, template))
    if found is None:
        raise ConfigError(f"{workdir} holds no checkpoint: train there first")
    return Finished(config, data, split, compiled.task, found.state.model, found.round)


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
    with jax.enable_x64(False):
        judge: Any = jax.jit(make_evaluate(run.task, config.evaluation.batch_size, "test"))
        owners = build.test_owners(config, run.data, run.split)
        arrays = build.client_arrays(config, run.split)
        return jax.tree.map(np.asarray, judge(run.model, build.tested(run.data), arrays, owners))
