"""Labelled images of 8 bits a pixel: the task of the papers."""

import numpy as np

from cepam_jax import models, settings
from cepam_jax.data.augment import AUGMENTATIONS
from cepam_jax.errors import DatasetError
from cepam_jax.tasks.base import Task, register
from cepam_jax.tasks.classification import classification
from cepam_jax.tasks.networks import network

settings.declare(
    "local", {"augment": settings.choice("none", "How training images are varied.", AUGMENTATIONS)}
)


# Tasks of this project whose examples are no images.
_OTHERS = ("binary_outcome", "graph_classification", "next_character", "node_classification")


@settings.rule
def _rules(fields):
    task = fields["task"]
    yield (
        fields["local.augment"] == "none" or task not in _OTHERS,
        "local.augment",
        f"'none' where config.task is {task!r}: images are varied",
    )


def normalized(images, constants):
    """Pixels uint8[..., channels] as f32 of zero mean and unit variance over the training set."""
    return (images.astype(np.float32) / 255 - constants["mean"]) / constants["std"]


@register
def image_classification(config, specification) -> Task:
    """Which of `num_classes` labels an image has, by `config.model`.

    Args:
      config: settings; read are model and local.augment.
      specification: of examples "image" uint8[height, width, channels] and "label", with constants "mean" and
        "std" f32[channels] of pixels scaled to [0, 1] and the fact "num_classes".

    Raises:
      DatasetError: the examples are not labelled images.
    """
    facts, arrays, _ = specification
    shapes = {name: (dtype, shape) for name, dtype, shape in arrays}
    dtype, shape = shapes.get("image", ("", ()))
    if dtype != "uint8" or len(shape) != 3 or "label" not in shapes or "num_classes" not in dict(facts):
        raise DatasetError(
            f"config.task is 'image_classification', but the data set's examples are {sorted(shapes)}; it "
            f"needs image uint8[height, width, channels], label and the fact num_classes, as sources.dataset "
            f"makes them"
        )
    augment = AUGMENTATIONS.get_or_raise(config.local.augment)

    def prepare(images, constants, key):
        images = normalized(images, constants)
        return images if key is None else augment(key, images)

    classes = dict(facts)["num_classes"]
    net = network(models.build(config.model, classes), np.zeros(shape, np.float32))
    return classification(net, inputs="image", labels="label", prepare=prepare, num_classes=classes)
