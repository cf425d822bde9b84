"""Tests that belong together run in one process, whatever versions of pytest and pytest-xdist are here."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

CONFTEST = """
import os
import pytest
from scheduling import pytest_collection_modifyitems, pytest_xdist_make_scheduler

@pytest.fixture(autouse=True)
def note(request):
    yield
    with open("ran", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " " + request.node.name + chr(10))
"""
GROUPED = """
import time
import pytest

GROUPS = [pytest.param(k, marks=pytest.mark.xdist_group(f"group {k % 2}")) for k in range(8)]

@pytest.mark.parametrize("k", GROUPS)
def test_{name}(k):
    time.sleep(.02)
"""
PLAIN = """
import time
import pytest

pytestmark = pytest.mark.{mark}

@pytest.mark.parametrize("k", range(8))
def test_{name}(k):
    time.sleep(.02)
"""
FILES = {
    "test_a_fast.py": PLAIN.format(mark="compiled_fast", name="fast"),
    "test_b_first.py": GROUPED.replace("{name}", "first"),
    "test_c_second.py": GROUPED.replace("{name}", "second"),
    "test_d_whole.py": PLAIN.format(mark="other", name="whole"),
    "test_e_spread.py": PLAIN.format(mark="spread", name="spread"),
}


def test_groups_and_files_are_run_by_one_process_each(tmp_path):
    for name, text in FILES.items() | {("conftest.py", CONFTEST)}:
        (tmp_path / name).write_text(text)
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "CEPAM_JAX_TEST_SCOPES": str(tmp_path / "scopes.json"),
    }
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        variables.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-n2", "--dist=loadscope", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.split(" ", 1) for line in (tmp_path / "ran").read_text().splitlines()]
    assert len(ran) == 40

    def processes(*tests):
        return {process for process, name in ran if name in tests or name.partition("[")[0] in tests}

    for group in (0, 1):
        tests = [f"test_{name}[{k}]" for name in ("first", "second") for k in range(group, 8, 2)]
        assert len(processes(*tests)) == 1
    assert len(processes("test_whole")) == len(processes("test_fast")) == 1
    assert len(processes("test_spread")) == 2
    place = {"test_fast": 1, "test_spread": 2}  # what is spread comes last, and before it what is fast
    for process in processes("test_spread"):
        places = [place.get(name.partition("[")[0], 0) for other, name in ran if other == process]
        assert places == sorted(places)
