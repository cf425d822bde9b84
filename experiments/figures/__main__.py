"""All figures and tables: list them, or make them and one report.

  python -m experiments.figures --list
  python -m experiments.figures --all --smoke --workdir=/tmp/report
  python -m experiments.figures --only=gamma,scenario1 --workdir=/tmp/report --pass_on="--seeds=2"
  python -m experiments.figures --report --workdir=/tmp/report

The report has every folder under --workdir, so that figures made one by one, or in several settings, join
it. Every figure is a file of this folder, and a program of its own. A figure that was interrupted
continues; one that fails is named in the report, and the others are made.
"""

import ast
import json
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


def make(name: str) -> str | None:
    """Runs one figure; the end of its messages if it failed."""
    done = subprocess.run(
        [sys.executable, *command(name)],
        cwd=_HERE.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=None if flags.FLAGS.progress else subprocess.PIPE,
        text=True,
        check=False,
    )
    if not done.returncode:
        return None
    return ((done.stderr or "").strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def section(folder: Path) -> list[str]:
    """One figure, as the files in its folder say."""
    run = json.loads((folder / "run.json").read_text())
    other = "" if run["figure"] == folder.name else f" ({folder.name})"
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    small = " A small version, which shows that everything works and nothing else." if run["smoke"] else ""
    parts = [
        f"## {title(run['figure'])}{other}",
        f"```\n{run['command']}\n```",
        f"{run['seconds']:.0f} seconds (earlier, interrupted calls not counted) on {run['device']}; "
        f"{run['date']}, Python {run['python']}, {versions}.{small}",
    ]
    if (folder / "figure.png").exists():
        parts.append(f"![{folder.name}]({folder.name}/figure.png)")
    return [*parts, (folder / "table.md").read_text().strip()]


def report(workdir: Path, failed: dict[str, str]) -> str:
    """One page in Markdown of all figures under a directory: claims, then every figure with its table."""
    folders = sorted(path.parent for path in workdir.glob("*/run.json") if path.parent.name not in failed)
    claims = [Claim(**c) for folder in folders for c in json.loads((folder / "claims.json").read_text())]
    parts = ["# Report", "## Claims of the papers"]
    parts.append(claims_table(claims) if claims else "None of these figures speaks to a claim.")
    for folder in folders:
        parts += section(folder)
    for name, error in failed.items():
        parts += [
            f"## {title(name)}",
            f"```\npython {shlex.join(command(name))}\n```",
            f"**Failed**: {error}",
        ]
    return "\n\n".join(parts) + "\n"


def define_flags():
    flags.DEFINE_bool("list", False, "Show names and titles, and do nothing else.")
    flags.DEFINE_bool("all", False, "Make all of them.")
    flags.DEFINE_list("only", [], "Make these.")
    flags.DEFINE_bool("report", False, "Only write the report of the figures that lie under --workdir.")
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
    if not (chosen or f.report):
        raise ConfigError("nothing to do: give --list, --all, --only=... or --report")
    if not f.workdir:
        raise ConfigError("--workdir is empty; it must be a directory")
    workdir = Path(f.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    failed = {}
    for name in chosen:
        start = time.monotonic()
        error = make(name)
        if error:
            failed[name] = error
        (workdir / "report.md").write_text(report(workdir, failed))
        state = f"FAILED: {error}" if error else "done"
        print(f"{name}: {state} in {time.monotonic() - start:.0f} s", flush=True)
    if not chosen:
        (workdir / "report.md").write_text(report(workdir, failed))
    print(workdir / "report.md")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
