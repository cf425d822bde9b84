import os
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tfds_dir():
    """Prepared TFDS data sets: $CEPAM_TFDS_DIR, or shared/ beside the checkout."""
    path = Path(os.environ.get("CEPAM_TFDS_DIR", ROOT.parent / "shared/data/tfds"))
    if not path.is_dir():
        message = f"NO TFDS DATA under {path}: set CEPAM_TFDS_DIR to test MNIST and CIFAR-10"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return str(path)


@pytest.fixture(scope="session")
def root():
    return ROOT
