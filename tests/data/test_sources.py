import time

import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, DataNotPreparedError


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
        ("mnist", (60000, 28, 28, 1), 0.1307),
        ("fashion_mnist", (60000, 28, 28, 1), 0.2860),
        ("cifar10", (50000, 32, 32, 3), 0.4733),
    ],
)
def test_tfds_sets(tfds_dir, name, shape, mean):
    data = sources.load(name, tfds_dir)
    assert data.train_images.shape == shape
    assert data.test_images.shape == (10000, *shape[1:])
    assert np.bincount(data.train_labels).min() > 5000 - 400
    assert data.mean.mean() == pytest.approx(mean, abs=1e-3)


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
