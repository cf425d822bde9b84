"""All figures and tables: list them, or make them and one report.

  python -m experiments.figures --list
  python -m experiments.figures --all --smoke --workdir=/tmp/report
  python -m experiments.figures --only=gamma,scenario1 --workdir=/tmp/report --pass_on="--seeds=2"

Every figure is a file of this folder, and a program of its own. A figure that was interrupted continues;
one that fails is named in the report, and the others are made.
"""

import ast
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from cepam_jax.errors import ConfigError, require_choice
from experiments import cli
from experiments.output import Claim, claims_table
from experiments.tables import markdown

_HERE = Path(__file__).parent
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "dp-accounting", "constriction")


def names() -> list[str]:
    """All figures."""
    return sorted(path.stem for path in _HERE.glob("*.py") if not path.stem.startswith("_"))


def title(name: str) -> str:
    """The first line of a figure's documentation."""
    return ast.get_docstring(ast.parse((_HERE / f"{name}.py").read_text())).splitlines()[0]


def command(name: str) -> list[str]:
    """Arguments of Python that make one figure."""
    f = flags.FLAGS
    given = shlex.split(f.pass_on)
    if given:  # not every figure has every flag
        given.append("--undefok=" + ",".join(flag.lstrip("-").split("=")[0] for flag in given))
    smoke = ["--smoke"] if f.smoke else []
    return ["-m", f"experiments.figures.{name}", f"--workdir={Path(f.workdir) / name}", *smoke, *given]


def make(name: str) -> dict:
    """Runs one figure; its name, command, seconds and the end of its messages if it failed."""
    arguments = command(name)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=_HERE.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=None if flags.FLAGS.progress else subprocess.PIPE,
        text=True,
        check=False,
    )
    error = None
    if done.returncode:
        error = ((done.stderr or "").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    seconds = time.monotonic() - start
    return {"name": name, "command": "python " + shlex.join(arguments), "seconds": seconds, "error": error}


def report(workdir: Path, made: list[dict]) -> str:
    """One page in Markdown: claims, then every figure with its table."""
    claims, smoke = [], flags.FLAGS.smoke
    for line in made:
        file = workdir / line["name"] / "claims.json"
        if file.exists() and not line["error"]:
            claims += [Claim(**claim) for claim in json.loads(file.read_text())]
    versions = [[package, importlib.metadata.version(package)] for package in _PACKAGES]
    parts = [
        "# Report",
        f"Python {platform.python_version()}, {platform.machine()}, {time.strftime('%Y-%m-%d')}."
        + (" Small versions (--smoke), which show that everything works and nothing else." if smoke else ""),
        markdown(["package", "version"], versions),
        "## Claims of the papers",
        claims_table(claims) if claims else "None of these figures speaks to a claim.",
    ]
    for line in made:
        folder = workdir / line["name"]
        parts += [
            f"## {title(line['name'])}",
            f"```\n{line['command']}\n```",
            f"{line['seconds']:.0f} seconds.",
        ]
        if line["error"]:
            parts.append(f"**Failed**: {line['error']}")
            continue
        if (folder / "figure.png").exists():
            parts.append(f"![{line['name']}]({line['name']}/figure.png)")
        parts.append((folder / "table.md").read_text().strip())
    return "\n\n".join(parts) + "\n"


def define_flags():
    flags.DEFINE_bool("list", False, "Show names and titles, and do nothing else.")
    flags.DEFINE_bool("all", False, "Make all of them.")
    flags.DEFINE_list("only", [], "Make these.")
    flags.DEFINE_string("workdir", "", "Each figure has a folder under it; report.md lies beside them.")
    flags.DEFINE_bool("smoke", False, "Small versions, to see that everything works.")
    flags.DEFINE_string("pass_on", "", 'Flags for every figure that has them, such as "--seeds=2".')
    flags.DEFINE_bool("progress", True, "Show the figures' progress.")


def main():
    f = flags.FLAGS
    if f.list:
        print(markdown(["figure", "shows"], [[name, title(name)] for name in names()]))
        return
    for name in f.only:
        require_choice("--only", name, names())
    chosen = f.only or (names() if f.all else [])
    if not chosen:
        raise ConfigError("nothing to do: give --list, --all or --only=...")
    if not f.workdir:
        raise ConfigError("--workdir is empty; it must be a directory")
    workdir = Path(f.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    made = []
    for name in chosen:
        made.append(make(name))
        (workdir / "report.md").write_text(report(workdir, made))
        state = f"FAILED: {made[-1]['error']}" if made[-1]["error"] else "done"
        print(f"{name}: {state} in {made[-1]['seconds']:.0f} s", flush=True)
    print(workdir / "report.md")
    if any(line["error"] for line in made):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
