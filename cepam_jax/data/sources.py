"""Data sets by name: labelled images (embedded digits, TFDS read without TensorFlow), and any other examples.

A data set is one function of the data directory, with `@register` before it. It returns a `Dataset` of images
or `examples.Examples` of any kind. Where it has settings, it names their section of the configuration as an
argument by keyword, `def my_plays(data_dir, *, text)`, and is given its fields as a dictionary: `data` for
one that can be split in several ways, by `data["fold"]`.
"""

import functools
import inspect
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cepam_jax import settings
from cepam_jax.data import examples
from cepam_jax.data.prepared import prepared
from cepam_jax.errors import DatasetError, is_whole, require, require_choice
from cepam_jax.extras import need
from cepam_jax.registry import Registry

TFDS_SETS = ("mnist", "fashion_mnist", "cifar10")

# Name -> function of the data directory. A data set joins by `register`.
SOURCES: Registry = Registry("data set")
register = SOURCES.function

settings.declare(
    "data",
    {
        "name": settings.choice("mnist", "Data set.", SOURCES, compiled=False),
        "dir": settings.text(
            "",
            "Where TFDS keeps data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
            "a path",
            compiled=False,
            resumable=True,
        ),
        "fold": settings.integer(
            0, "Which split, of a data set that can be split in several ways.", low=0, compiled=False
        ),
    },
    "What is learned from.",
)


class Dataset(NamedTuple):
    """Images and labels of a training and a test split.

    Attributes:
      train_images, test_images: uint8[examples, height, width, channels].
      train_labels, test_labels: int32[examples].
      num_classes: labels run from 0 to num_classes - 1.
      mean, std: f32[channels] of training pixels scaled to [0, 1]; models see (pixel/255 - mean)/std.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray

    def as_examples(self) -> examples.Examples:
        """The same images as examples of `tasks.images`."""
        return examples.Examples(
            {"image": self.train_images, "label": self.train_labels},
            {"image": self.test_images, "label": self.test_labels},
            {"mean": self.mean, "std": self.std},
            (("num_classes", self.num_classes),),
            self.train_labels,
        )


Options = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def sections_of(source: Any) -> tuple[str, ...]:
    """The sections of the configuration that a data set's function asks for."""
    parameters = inspect.signature(source).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)


def options_of(config: Any) -> Options:
    """What a configuration's data set depends on beside its name and directory, as a value that hashes.

    Args:
      config: a configuration (ConfigDict); its data.name is read, and the sections that the data set names.

    Raises:
      ConfigError: a fold is asked for, and the data set has one split.
    """
    sections, fold = sections_of(SOURCES.get_or_raise(config.data.name)), config.data.fold
    allowed = f"0: the data set {config.data.name!r} has one split"
    require("data" in sections or fold == 0, "config.data.fold", fold, allowed)
    return tuple((name, tuple(sorted(config[name].items()))) for name in sections)


def load_examples(name: str, data_dir: str = "", options: Options | None = None) -> examples.Examples:
    """As `load`, whatever the data set's function returned."""
    data = load(name, data_dir, options)
    return data.as_examples() if isinstance(data, Dataset) else data


def load(name: str, data_dir: str = "", options: Options | None = None) -> Dataset | examples.Examples:
    """Loads a data set whole; later calls in the same process return the same arrays.

    Args:
      name: "digits" (1,797 images of 8x8 from scikit-learn, no files needed), or "mnist",
        "fashion_mnist", "cifar10" from TFDS.
      data_dir: where TFDS keeps prepared data sets; by default $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      options: from `options_of`; by default every setting of the data set is at its default.

    Raises:
      ConfigError: unknown name; a fold that the data set does not have.
      DatasetError: its arrays are not as `Dataset` says.
      DataNotPreparedError: the data set is not under data_dir; the message says how to get it.
    """
    require_choice("data.name", name, SOURCES)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        data_dir = str(Path(data_dir).expanduser())
    except RuntimeError:
        pass  # no home: no data there either, and some data sets need none
    if options is None:
        options = tuple((section, _defaults(section)) for section in sections_of(SOURCES[name]))
    return _load(name, SOURCES[name], data_dir, options)


def _defaults(section: str) -> tuple[tuple[str, Any], ...]:
    """The fields of a section at their defaults."""
    names = (name for name in settings.FIELDS if name.rpartition(".")[0] == section)
    return tuple(sorted((name.rpartition(".")[2], settings.FIELDS[name].default) for name in names))


@functools.lru_cache(maxsize=4)
def _load(name, source, data_dir, options):
    try:
        return _checked(source(data_dir, **{section: dict(fields) for section, fields in options}))
    except DatasetError as error:
        raise DatasetError(f"data set {name!r}: {error}") from error


def _checked(data):
    """The data set in the types that the round expects.

    Raises:
      DatasetError: names what does not fit.
    """
    if isinstance(data, examples.Examples):
        return examples.check(data)
    if not isinstance(data, Dataset):
        raise DatasetError(
            f"its function returned a {type(data).__name__}; it must return a sources.Dataset or "
            f"examples.Examples"
        )
    whole = is_whole(data.num_classes)
    if not whole or not 1 <= data.num_classes <= _MOST_CLASSES:
        raise DatasetError(
            f"num_classes is {data.num_classes!r}; it must be a whole number from 1 to {_MOST_CLASSES:,}"
        )
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        _check_split(split, images, labels)
        if images.shape[1:] != data.train_images.shape[1:]:
            raise DatasetError(
                f"test_images are {images.shape[1:]} large, train_images {data.train_images.shape[1:]}; "
                f"they must be alike"
            )
        outside = np.flatnonzero((labels < 0) | (labels >= data.num_classes))
        if outside.size:
            raise DatasetError(
                f"{split}_labels[{outside[0]}] is {labels[outside[0]]}; labels must be from 0 to "
                f"num_classes - 1 = {data.num_classes - 1}"
            )
    channels = data.train_images.shape[3:]
    moments = {name: _per_channel(name, getattr(data, name), channels) for name in ("mean", "std")}
    if (moments["std"] < _LEAST_STD).any():
        raise DatasetError(
            f"std is {moments['std'].tolist()}; it must be at least {_LEAST_STD:g}: models see "
            f"(pixel/255 - mean)/std, and a channel whose pixels are all equal tells nothing"
        )
    return data._replace(
        train_labels=np.asarray(data.train_labels, np.int32),
        test_labels=np.asarray(data.test_labels, np.int32),
        num_classes=int(data.num_classes),
        **moments,
    )


_LEAST_STD = 1e-4  # of pixels from 0 to 1: a tenth of one level in a hundred pixels has .0004
_MOST_CLASSES = 1 << 20


def _per_channel(name, values, shape):
    """f32[channels]; DatasetError unless they are that many finite real numbers."""
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(values).astype(np.float32, casting="same_kind")
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape != shape or not np.isfinite(found).all():
        raise DatasetError(
            f"{name} is {values!r}; it must be one finite number per channel, {shape[0]} of them"
        )
    return found


def _check_split(split, images, labels):
    """DatasetError unless images and labels are arrays of the right types, shapes and equal length."""
    for name, array, kind, axes in (
        (f"{split}_images", images, np.uint8, "[examples, height, width, channels]"),
        (f"{split}_labels", labels, np.integer, "[examples]"),
    ):
        wanted = ("uint8" if kind is np.uint8 else "integers") + axes
        shape = f"{getattr(array, 'dtype', type(array).__name__)}{list(getattr(array, 'shape', ()))}"
        fits = type(array) is np.ndarray and np.issubdtype(array.dtype, kind)
        if not fits or array.ndim != axes.count(",") + 1:
            raise DatasetError(f"{name} are {shape}; they must be a NumPy array {wanted}")
        if not array.size:
            raise DatasetError(f"{name} are empty: {shape}")
    if len(images) != len(labels):
        raise DatasetError(f"there are {len(images)} {split}_images and {len(labels)} {split}_labels")


def dataset(train_images, train_labels, test_images, test_labels) -> Dataset:
    """A Dataset of images uint8[examples, height, width, channels] and integer labels.

    Raises:
      DatasetError: they are not of these types and shapes, or not as many.
    """
    _check_split("train", train_images, train_labels)
    _check_split("test", test_images, test_labels)
    scaled = train_images.reshape(-1, train_images.shape[-1])
    # Integer moments: exact, and no f64 copy of all pixels.
    counts = [np.bincount(channel, minlength=256) for channel in scaled.T]
    levels = np.arange(256) / 255
    mean = np.array([np.average(levels, weights=c) for c in counts])
    var = np.array([np.average((levels - m) ** 2, weights=c) for m, c in zip(mean, counts, strict=True)])
    return Dataset(
        train_images,
        train_labels.astype(np.int32),
        test_images,
        test_labels.astype(np.int32),
        int(train_labels.max()) + 1,
        mean.astype(np.float32),
        np.sqrt(var).astype(np.float32),
    )


@register
def digits(data_dir):
    """1,797 images of 8x8 pixels, embedded in scikit-learn."""
    del data_dir
    need("data set 'digits'", "data", "sklearn")
    from sklearn import datasets, model_selection  # noqa: PLC0415  half a second, rarely needed

    images, labels = datasets.load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    return dataset(images[train], labels[train], images[test], labels[test])


def _tfds(name, data_dir):
    arrays = []
    for split in prepared(name, data_dir, ("train", "test")):
        arrays += [
            np.stack([example["image"] for example in split]),
            np.array([example["label"] for example in split]),
        ]
    return dataset(*arrays)


SOURCES |= {name: functools.partial(_tfds, name) for name in TFDS_SETS}
