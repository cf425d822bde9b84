"""The contract of a task: what is learned, from which examples, and how well it goes.

A task is a value of pure functions, safe under `jit`, `vmap` and `grad`. Examples are dictionaries of arrays
with a leading axis; a batch is such a dictionary for a few of them. Laws, each tested for every registered
task:

1. `loss` of a batch is the mean over its examples of something that depends on one example each (up to the
   noise of dropout, augmentation and rounding), so that clipping gradients example by example means what it
   says.
2. `evaluate` gives each example's own contribution to each sum: sums over a batch do not depend on how the
   examples were cut into batches, spread over devices, or filled up.
3. The parameters are float32: they are what is sent.

A task of a fork is one file that defines a builder and registers it:

  @register
  def next_word(settings, specification):
      ...
      return Task(...)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.registry import Registry

Batch = dict[str, jax.Array]
Sums = dict[str, np.ndarray]


class Model(NamedTuple):
    """What a task learns.

    Attributes:
      params: pytree of f32; gradients are taken of it, it is sent, and the server's optimizer steps in it.
      statistics: pytree of f32 that `loss` replaces instead of following a gradient, such as the running
        means of batch normalization; it is sent with the parameters and averaged. None: there is none.
      frozen: pytree that is neither trained nor sent, such as the weights below an adapter. None: there is
        none.
    """

    params: Any
    statistics: Any = None
    frozen: Any = None


class Task(NamedTuple):
    """What is learned: see the module's laws.

    Attributes:
      initialize: key -> Model.
      loss: (Model, Batch, constants, key) -> (mean loss f32[], new statistics or None). Training mode:
        dropout, augmentation.
      evaluate: (Model, Batch, constants) -> name -> f32[batch, ...], what each example adds to each sum.
      summarize: (name -> sum over examples, number of examples) -> name -> float, the metrics, on the host.
        One of them is called "loss".
      headline: the metric that results are compared by.
      higher_is_better: its direction.
      formats: metric -> how a number is shown, as in `format(value, ".3f")`.
      turned: examples (name -> array) -> the same with false labels, for attacks on the data; None: it has no
        labels.
      project: statistics -> statistics, brings back into their range what noise carried out of it; None: any
        number is in range.
      lower: metrics beside the headline of which less is better.
      undefined: metrics that some examples leave undefined, NaN, such as the area under the ROC curve where
        all outcomes are alike; of any other metric NaN means that the model diverged.
      whole: Model -> the Model of which this task trains a part: all that the network computes with stands in
        its parameters; None: all is trained, and the Model is whole.
      begin: (whole Model, key) -> Model, the part of it that is trained and what stays frozen, the inverse of
        `whole` at the beginning; None likewise.
      check: (examples, constants), on the host -> None; raises DatasetError for examples that it would learn
        something wrong from, such as labels that the model does not have. None: nothing is checked.
    """

    initialize: Callable[[jax.Array], Model]
    loss: Callable[[Model, Batch, Any, jax.Array], tuple[jax.Array, Any]]
    evaluate: Callable[[Model, Batch, Any], Batch]
    summarize: Callable[[Sums, float], dict[str, float]]
    headline: str = "loss"
    higher_is_better: bool = False
    formats: Mapping[str, str] = MappingProxyType({"loss": ".3f"})
    project: Callable[[Any], Any] | None = None
    lower: tuple[str, ...] = ("loss",)
    undefined: tuple[str, ...] = ()
    whole: Callable[[Model], Model] | None = None
    begin: Callable[[Model, jax.Array], Model] | None = None
    turned: Callable[[Batch], Batch] | None = None
    check: Callable[[Batch, Any], None] | None = None


# Name -> function (settings, specification of the examples) -> Task; `register` adds one by the function's
# name.
TASKS: Registry = Registry("task")
register = TASKS.function

settings.declare(
    "",
    {"task": settings.choice("image_classification", "What is learned.", TASKS)},
    "What is trained, how long.",
)


def check_examples(task: Task, examples: Any, constants: Any) -> None:
    """Raises DatasetError for examples that the task would learn something wrong from, by `Task.check`."""
    if task.check is not None:
        task.check(examples, constants)


def check_model(model: Any) -> None:
    """Checks what `initialize` returned.

    Args:
      model: Model of arrays, or of their shapes.

    Raises:
      ConfigError: it is no Model, or something that is sent is not float32.
    """
    if not isinstance(model, Model):
        raise ConfigError(
            f"the task's initialize returned a {type(model).__name__}; it must return a tasks.Model"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.params, model.statistics)):
        if leaf.dtype != np.float32:
            raise ConfigError(
                f"the model's parameter {jax.tree_util.keystr(path)} is {leaf.dtype}; what is sent must be "
                f"float32 (compute in {leaf.dtype} by the module's dtype, and keep param_dtype float32)"
            )
    if not jax.tree.leaves(model.params):
        raise ConfigError("the model has no parameters to train")
