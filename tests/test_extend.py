"""The steps of docs/extending.md, followed literally on a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/extending.md").read_text()


def apply(block: str, project) -> str:
    """Does what the first line of a block says with the rest of it; says what kind of step it was."""
    head, text = block.split("\n", 1)
    if match := re.fullmatch(r"# new file: (\S+)", head):
        path = project / match[1]
        assert not path.exists()
        path.write_text(text)
        return "new file"
    if match := re.fullmatch(r"# at the end of: (\S+)", head):
        with (project / match[1]).open("a") as file:
            file.write(text)
        return "at the end of"
    if match := re.fullmatch(r"# in (\S+), (after|before): (.*)", head):
        path, anchor = project / match[1], match[3] + "\n"
        before = path.read_text()
        assert before.count(anchor) == 1, anchor
        path.write_text(before.replace(anchor, anchor + text if match[2] == "after" else text + anchor))
        return "in"
    raise AssertionError(f"the walk-through does not say what to do with: {head}")


def test_the_walk_through(tmp_path):
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache")
    shutil.copytree(ROOT, project, ignore=ignored)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    kinds = {apply(block, project) for block in blocks}
    assert kinds == {"new file", "at the end of"}
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert commands
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for command in commands:
        arguments = [sys.executable, *shlex.split(command)[1:]]
        if "pytest" in arguments:
            arguments += ["-p", "no:cacheprovider", "-n", "0"]
        done = subprocess.run(
            arguments, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "failed" not in done.stdout
    assert (project / "extended/report/signs/figure.png").exists()
    assert "scaled_sign" in (project / "extended/report/report.md").read_text()
