import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, DataNotPreparedError, DatasetError
from configs import digits


def test_digits_are_embedded():
    data = sources.load("digits")
    assert data.train_images.shape == (1437, 8, 8, 1) and data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.uint8 and data.train_images.max() == 255
    assert data.num_classes == 10
    scaled = data.train_images / 255
    np.testing.assert_allclose([data.mean[0], data.std[0]], [scaled.mean(), scaled.std()], rtol=1e-5)
    assert sources.load("digits") is data


@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [
        pytest.param("mnist", (60000, 28, 28, 1), 0.1307, marks=pytest.mark.slow),
        pytest.param("fashion_mnist", (60000, 28, 28, 1), 0.2860, marks=pytest.mark.slow),
        pytest.param("cifar10", (50000, 32, 32, 3), 0.4733, marks=pytest.mark.slow),
    ],
)
def test_tfds_sets(tfds_dir, name, shape, mean):
    data = sources.load(name, tfds_dir)
    assert data.train_images.shape == shape
    assert data.test_images.shape == (10000, *shape[1:])
    assert np.bincount(data.train_labels).min() > 5000 - 400
    assert data.mean.mean() == pytest.approx(mean, abs=1e-3)


def test_another_version_of_a_data_set_is_not_downloaded(tfds_dir, tmp_path):
    folder = tmp_path / "with blanks"
    found = next(Path(tfds_dir, "tiny_shakespeare").glob("*/dataset_info.json")).parent
    shutil.copytree(found, folder / "tiny_shakespeare/0.9.0")
    start = time.monotonic()
    with pytest.raises(DataNotPreparedError) as error:
        sources.load("tiny_shakespeare", str(folder))
    assert time.monotonic() - start < 30
    assert "versions 0.9.0, cannot be read" in str(error.value)
    there = folder / "tiny_shakespeare"
    assert f"mv '{there}' '{there}.unread'; pip install tensorflow" in str(error.value)
    assert [path.name for path in folder.iterdir()] == ["tiny_shakespeare"]  # nothing was begun


def test_missing_data_fails_fast_with_the_remedy(tmp_path):
    start = time.monotonic()
    with pytest.raises(DataNotPreparedError) as error:
        sources.load("mnist", str(tmp_path))
    assert time.monotonic() - start < 30  # TFDS alone retries for minutes
    assert "pip install tensorflow" in str(error.value)
    assert f"tfds.builder('mnist', data_dir='{tmp_path}')" in str(error.value)
    assert "--config.data.dir" in str(error.value)


def test_unreadable_data_is_named(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataNotPreparedError, match="cannot be read"):
        sources.load("mnist", str(tmp_path))


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"data.name is 'imagenet'; it must be one of 'cifar10'"):
        sources.load("imagenet")


GOOD = {
    "train_images": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1),
    "train_labels": np.array([0, 1, 2, 0, 1, 2]),
    "test_images": np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2, 1),
    "test_labels": np.array([2, 1]),
}

WRONG = {
    "masked images": (
        {"train_images": np.ma.masked_array(GOOD["train_images"])},
        "train_images are uint8[6, 2, 2, 1]; they must be a NumPy array",
    ),
    "fewer labels": (
        {"train_labels": GOOD["train_labels"][:5]},
        "there are 6 train_images and 5 train_labels",
    ),
    "more labels": ({"test_labels": np.arange(3)}, "there are 2 test_images and 3 test_labels"),
    "one-hot labels": (
        {"train_labels": np.eye(6, 3, dtype=int)},
        "train_labels are int64[6, 3]; they must be",
    ),
    "negative labels": ({"test_labels": np.array([0, -1])}, "test_labels[1] is -1; labels must be from 0 to"),
    "unknown labels": (
        {"test_labels": np.array([0, 3])},
        "test_labels[1] is 3; labels must be from 0 to num_",
    ),
    "float labels": (
        {"train_labels": np.ones(6)},
        "train_labels are float64[6]; they must be a NumPy array int",
    ),
    "labels in a list": (
        {"test_labels": [0, 1]},
        "test_labels are list[]; they must be a NumPy array integers",
    ),
    "float images": (
        {"train_images": np.ones((6, 2, 2, 1))},
        "train_images are float64[6, 2, 2, 1]; they must",
    ),
    "NaN": (
        {"test_images": np.full((2, 2, 2, 1), np.nan)},
        "test_images are float64[2, 2, 2, 1]; they must be",
    ),
    "no channels": (
        {"train_images": GOOD["train_images"][..., 0]},
        "must be a NumPy array uint8[examples, hei",
    ),
    "an empty split": (
        {"test_images": GOOD["test_images"][:0], "test_labels": np.arange(0)},
        "are empty: uint8",
    ),
    "no pixels": (
        {"train_images": np.ones((6, 0, 2, 1), np.uint8)},
        "train_images are empty: uint8[6, 0, 2, 1]",
    ),
    "other sizes": (
        {"test_images": np.ones((2, 3, 2, 1), np.uint8)},
        "test_images are (3, 2, 1) large, train_im",
    ),
    "constant pixels": (
        {"train_images": np.ones((6, 2, 2, 1), np.uint8)},
        "std is [0.0]; it must be at least",
    ),
}


def registered(monkeypatch, load, name="of_a_fork"):
    monkeypatch.setitem(sources.SOURCES, name, load)
    return name


@pytest.mark.parametrize("case", WRONG)
def test_a_registered_data_set_is_checked(case, monkeypatch):
    changes, message = WRONG[case]
    name = registered(monkeypatch, lambda directory: sources.dataset(**{**GOOD, **changes}))
    with pytest.raises(DatasetError) as error:
        sources.load(name)
    assert str(error.value).startswith("data set 'of_a_fork': ") and message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": "10"}, "num_classes is '10'; it must be a whole number"),
        ({"num_classes": 10.5}, "num_classes is 10.5"),
        ({"num_classes": 2**33}, "num_classes is 8589934592"),
        ({"mean": np.array([None])}, "it must be one finite number per channel"),
        ({"mean": np.array([1j])}, "it must be one finite number per channel"),
        ({"mean": np.array([1e300])}, "it must be one finite number per channel"),
        ({"std": np.array([1e-38])}, "it must be at least 0.0001"),
        ({"mean": np.array([np.nan])}, "mean is array([nan]); it must be one finite number per channel"),
        ({"std": np.ones(3)}, "it must be one finite number per channel"),
        ({"num_classes": 2}, "train_labels[2] is 2; labels must be from 0 to num_classes - 1 = 1"),
        ({"train_labels": np.arange(5)}, "there are 6 train_images and 5 train_labels"),
    ],
)
def test_a_data_set_put_together_by_hand_is_checked_too(changes, message, monkeypatch):
    name = registered(monkeypatch, lambda directory: sources.dataset(**GOOD)._replace(**changes))
    with pytest.raises(DatasetError) as error:
        sources.load(name)
    assert message in str(error.value)
    nothing = registered(monkeypatch, lambda directory: None, "nothing")
    with pytest.raises(DatasetError, match="'nothing': its function returned a NoneType; it must return"):
        sources.load(nothing)


def test_a_good_one_passes_in_the_types_that_the_round_expects(monkeypatch):
    name = registered(monkeypatch, lambda directory: sources.dataset(**GOOD)._replace(mean=np.zeros(1)))
    data = sources.load(name)
    assert [array.dtype for array in data[:4]] == [np.uint8, np.int32] * 2
    assert data.mean.dtype == data.std.dtype == np.float32 and data.num_classes == 3


def test_a_data_set_registered_anew_is_loaded_anew(monkeypatch):
    name = registered(monkeypatch, lambda directory: sources.dataset(**GOOD))
    before = sources.load(name)
    assert sources.load(name) is before
    shorter = {**GOOD, "test_images": GOOD["test_images"][:1], "test_labels": np.array([1])}
    registered(monkeypatch, lambda directory: sources.dataset(**shorter))
    assert len(sources.load(name).test_labels) == 1


def test_a_fold_is_for_data_sets_that_have_several():
    config = digits.get_config()
    config.data.fold = 3
    with pytest.raises(
        ConfigError, match="config.data.fold is 3; it must be 0: the data set 'digits' has one split"
    ):
        sources.options_of(config)
