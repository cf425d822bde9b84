"""The README's walk-through "Extend", followed literally on a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys

from conftest import ROOT

SECTION = (ROOT / "README.md").read_text().split("## Extend\n")[1].split("\n## ")[0]


def apply(block: str, project) -> None:
    """Does what the first line of a block says with the rest of it."""
    head, text = block.split("\n", 1)
    if match := re.fullmatch(r"# new file: (\S+)", head):
        path = project / match[1]
        assert not path.exists()
        path.write_text(text)
    elif match := re.fullmatch(r"# at the end of: (\S+)", head):
        with (project / match[1]).open("a") as file:
            file.write(text)
    elif match := re.fullmatch(r"# in (\S+), (after|before): (.*)", head):
        path, anchor = project / match[1], match[3] + "\n"
        before = path.read_text()
        assert before.count(anchor) == 1, anchor
        path.write_text(before.replace(anchor, anchor + text if match[2] == "after" else text + anchor))
    else:
        raise AssertionError(f"the walk-through does not say what to do with: {head}")


def test_the_walk_through(tmp_path):
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache")
    shutil.copytree(ROOT, project, ignore=ignored)
    blocks = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    assert len(blocks) == 7
    for block in blocks:
        apply(block, project)
    (commands,) = re.findall(r"```sh\n(.*?)```", SECTION, re.S)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for command in commands.splitlines():
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
