import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


WITHOUT_PICTURE = ("server", "updates")
WITH_CLAIMS = ("error_law", "scenario1", "scenario3", "gamma")


def check_figure(name, folder):
    """What every figure leaves; its claims."""
    from experiments.output import VERDICTS  # noqa: PLC0415  imports jax, which reads the variables set below

    assert (folder / "table.md").read_text().strip()
    assert (folder / "data.jsonl").read_text().splitlines()
    assert json.loads((folder / "run.json").read_text())["figure"] == name
    claims = json.loads((folder / "claims.json").read_text())
    assert claims or name not in WITH_CLAIMS
    assert all(claim["verdict"] in VERDICTS for claim in claims)
    if name not in WITHOUT_PICTURE:
        assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figure.pdf").exists()
    return claims


def pytest_configure(config):
    """What one test or subprocess compiled, the others read: a cache for this test run alone."""
    if not hasattr(config, "workerinput"):
        config.compilation_cache = tempfile.mkdtemp(prefix="cepam_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compilation_cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure(config):
    if hasattr(config, "compilation_cache"):
        shutil.rmtree(config.compilation_cache, ignore_errors=True)


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
