"""The wheel where only the quantizer's dependencies are installed: it quantizes, and says what is missing."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

# The core dependencies and theirs, which jax asks for.
PRESENT = ("constriction", "jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy")

QUANTIZES = """
import jax, jax.numpy as jnp, numpy as np
import cepam_jax as cepam
from cepam_jax import mechanisms, wire
mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian", "Z2"))
keys = mechanisms.Keys(shared=jax.random.key(1), private=jax.random.key(2))
knobs = mechanisms.Knobs(sigma=0.01, clip=1.0)
x = jnp.linspace(-0.02, 0.02, 1000)
message = mechanism.encode(keys, x, knobs)
packed = wire.pack(message, mechanism, keys.shared, knobs)
unpacked = wire.unpack(packed, mechanism, keys.shared, knobs, x.size)
x_hat = mechanism.decode(keys.shared, unpacked, knobs)
assert np.array_equal(x_hat, mechanism.decode(keys.shared, message, knobs))
assert abs(float((x_hat - x).std()) / 0.01 - 1) < 0.1
assert "Federation" in dir(cepam)
print(cepam.__file__)
"""

# Statement -> what the message says.
MISSING = {
    "cepam_jax.Federation": "cepam_jax.Federation needs dp_accounting, flax, matplotlib|[train]",
    "cepam_jax.train": 'pip install "cepam_jax[train]"',
    "cepam_jax.privacy": 'cepam_jax.privacy needs dp_accounting, which is not|pip install "cepam_jax[train]"',
    "cepam_jax.defaults": 'pip install "cepam_jax[train]"',
    "from cepam_jax.federated import rounds": 'needs flax, optax, which are not|"cepam_jax[train]"',
    "from cepam_jax.data import sources; sources.load('digits')": 'sklearn|pip install "cepam_jax[data]"',
}


def run(*command, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, without a network: by the setuptools that is here."""
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is too old to build the wheel; requirements.txt asks for 77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cepam_jax", folder / "cepam_jax", ignore=ignored)
    build = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q")
    run(*build, "-w", str(folder / "dist"), str(folder), PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that sees the wheel and the quantizer's own dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    here = Path(sysconfig.get_path("platlib"))
    for name in PRESENT:
        for found in (*here.glob(name), *here.glob(f"{name}-*.dist-info"), *here.glob(f"{name}.libs")):
            (packages / found.name).symlink_to(found)
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target")
    run(*install, str(packages), str(wheel))
    return folder / "bin/python"


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tables = {
        f"cepam_jax/mechanisms/{name}.npz" for name in ("acceptance", "cell_scales", "rotation_components")
    }
    files = {"cepam_jax/data/romeo_and_juliet.txt", "cepam_jax/py.typed", "cepam_jax/simulation.py"}
    assert files | tables <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cepam_jax"}


@pytest.mark.slow
def test_it_quantizes_where_nothing_for_training_is_installed(python, tmp_path):
    where = run(python, "-I", "-c", QUANTIZES, JAX_PLATFORMS="cpu")
    assert Path(where.strip()).is_relative_to(python.parents[1])


@pytest.mark.slow
@pytest.mark.parametrize("statement", MISSING)
def test_what_is_missing_is_one_clear_message(python, statement):
    code = (
        f"import cepam_jax\ntry:\n    {statement}\nexcept ImportError as e:\n    print(type(e).__name__, e)\n"
    )
    text = run(python, "-I", "-c", code, JAX_PLATFORMS="cpu")
    assert text.startswith("MissingExtraError"), text
    for part in MISSING[statement].split("|"):
        assert part in text
