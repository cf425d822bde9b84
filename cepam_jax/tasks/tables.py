"""Rows of a table and a yes or no for each: whether a tumour is malignant, from its features."""

import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax import models
from cepam_jax.data import hospitals  # noqa: F401  the data set of this task
from cepam_jax.errors import DatasetError
from cepam_jax.tasks import scores
from cepam_jax.tasks.base import Sums, Task, register
from cepam_jax.tasks.networks import network

SPECIFICITY = 0.9  # at which sensitivity is given


@register
def binary_outcome(config, specification) -> Task:
    """Log odds of the outcome by `config.model`, a model for tables with one output.

    Metrics: loss (nats), accuracy, auc (`auc_error`: the most that it is wrong by, because it comes from a
    histogram), sensitivity at a specificity of 90 %, and calibration, the expected calibration error. Those
    of an outcome that never came are NaN.

    Args:
      config: settings; read is model.
      specification: of examples "x" f32[features] and "label" (0 or 1), with constants "mean" and "std"
      f32[features].

    Raises:
      DatasetError: the examples are not rows of a table.
      ConfigError: the model is for other inputs.
    """
    _, arrays, constants = specification
    shapes = {name: (dtype, shape) for name, dtype, shape in arrays}
    dtype, shape = shapes.get("x", ("", ()))
    wanted = {name: shape for name, _, shape in constants}
    fits = dtype == "float32" and len(shape) == 1 and shapes.get("label", ("", None))[1] == ()
    if not fits or any(wanted.get(name) != shape for name in ("mean", "std")):
        raise DatasetError(
            f"config.task is 'binary_outcome', but the data set's examples are {sorted(shapes)}; it needs x "
            f"f32[features], label, and constants mean and std f32[features]"
        )
    net = network(models.build(config.model, 1, "table"), np.zeros(shape, np.float32))

    def score(model, batch, constants, key):
        x = (batch["x"] - constants["mean"]) / constants["std"]
        outputs, statistics = net.apply(model, x, key)
        return outputs[:, 0].astype(jnp.float32), statistics

    def losses(score, batch):
        return optax.sigmoid_binary_cross_entropy(score, batch["label"])

    def loss(model, batch, constants, key):
        found, statistics = score(model, batch, constants, key)
        return losses(found, batch).mean(), statistics

    def evaluate(model, batch, constants):
        found, _ = score(model, batch, constants, None)
        right = (found > 0) == (batch["label"] > 0)
        return {
            "loss": losses(found, batch),
            "accuracy": right.astype(jnp.float32),
            "scores": scores.histogram_of(found, batch["label"]),
            "calibration": scores.calibration_of(found, batch["label"]),
        }

    return Task(
        net.initialize,
        loss,
        evaluate,
        summarize,
        "accuracy",
        higher_is_better=True,
        formats={"loss": ".3f", "accuracy": ".3f", "auc": ".4f"},
        project=net.project,
        lower=("loss", "auc_error", "calibration"),
        undefined=("auc", "auc_error", "sensitivity"),
        check=_check,
    )


def _check(examples, constants) -> None:
    """Raises DatasetError unless every outcome is 0 or 1, and every feature varies.

    Of other outcomes the loss has no least value; a feature is divided by its deviation.
    """
    flat = np.flatnonzero(~(np.asarray(constants["std"]) > 0))
    if flat.size:
        raise DatasetError(
            f"std[{flat[0]}] is {float(constants['std'][flat[0]]):g}; every feature is divided by its "
            "deviation: leave out features that never vary"
        )
    found = np.asarray(examples["label"])
    if not np.isin(found, (0, 1)).all():
        raise DatasetError(f"'label' has {np.unique(found)[:5].tolist()}; each outcome must be 0 or 1")


def summarize(sums: Sums, count: float) -> dict[str, float]:
    """The metrics from sums over `count` examples."""
    return {
        "loss": float(sums["loss"]) / count,
        "accuracy": float(sums["accuracy"]) / count,
        "auc": scores.area(sums["scores"]),
        "auc_error": scores.area_error(sums["scores"]),
        "sensitivity": scores.sensitivity_at(sums["scores"], SPECIFICITY),
        "calibration": scores.calibration_error(sums["calibration"], count),
    }
