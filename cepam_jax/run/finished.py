"""What a work directory holds of a run, read back without training on or writing there."""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from cepam_jax import mechanisms, settings
from cepam_jax.data import sources
from cepam_jax.data.examples import Examples
from cepam_jax.errors import ConfigError, require
from cepam_jax.run import build, checkpoints, data_kept
from cepam_jax.run.evaluation import Evaluation, make_evaluate
from cepam_jax.tasks.base import TASKS, Model, Task


class Finished(NamedTuple):
    """A run as its last intact checkpoint left it.

    Attributes:
      config: its configuration; fields of later releases are at their defaults.
      data: its data set.
      task: what was learned, of whole models: what stayed frozen and what was trained are one.
      model: the whole Model, host arrays.
      round: rounds done.
    """

    config: ml_collections.ConfigDict
    data: Examples
    task: Task
    model: Model
    round: int


def load(workdir: str | Path, name: str = "--run") -> Finished:
    """What a run left in its work directory, up to its last intact checkpoint.

    Args:
      workdir: of `run.training.train`.
      name: what an error calls it.

    Raises:
      ConfigError: there is no run with a checkpoint, or it has settings that are not known here.
      CheckpointDamagedError: none of its checkpoints is intact, or the digest of its data is none.
      DataNotPreparedError: its data set is not here.
      CheckpointMismatchError: the data set has other examples now than the run had.
    """
    workdir = Path(workdir).expanduser()
    allowed = "the work directory of a run that has a checkpoint"
    path = workdir / "config.json"
    require(path.is_file(), name, str(workdir), allowed)
    config = _config(path, name)
    with jax.enable_x64(False):
        data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
        if not data_kept.check(data_kept.digest(data), workdir, name):
            data_kept.warn([workdir])
        compiled = build.program(config, data.specification)
        template = jax.eval_shape(compiled.initialize, jax.random.key(0), mechanisms.knobs_of(config))
        found = checkpoints.Checkpoints(workdir / "checkpoints").newest(template)
        if found is None:
            raise ConfigError(f"{name} is {str(workdir)!r}, a run without a checkpoint; it must be {allowed}")
        model = found.state.model
        whole = model if compiled.task.whole is None else jax.jit(compiled.task.whole)(model)
        task = TASKS[config.task](config, data.specification)
    return Finished(config, data, task, jax.tree.map(np.asarray, whole), found.round)


def _config(path: Path, name: str) -> ml_collections.ConfigDict:
    """The configuration in a file, which passed the rules of the release that ran it."""
    importlib.import_module("cepam_jax.run.config")  # declares what every part has; it imports this module
    try:
        fields = settings.flat(settings.plain(json.loads(path.read_text())))
        config = settings.defaults()
        config.update_from_flattened_dict(fields)
        settings.check_fields(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{name} is {str(path.parent)!r}, whose config.json is not one of here: {error}"
        ) from error
    return config


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
        split = build.split_of(config, run.data)
        owners = build.test_owners(config, run.data, split)
        arrays = build.client_arrays(config, split)
        return jax.tree.map(np.asarray, judge(run.model, build.tested(run.data), arrays, owners))
