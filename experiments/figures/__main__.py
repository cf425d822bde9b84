"""All figures and tables: list them, or make them and one report.

  python -m experiments.figures --list
  python -m experiments.figures --all --smoke --workdir=/tmp/report
  python -m experiments.figures --only=gamma,scenario1 --workdir=/tmp/report --pass_on="--seeds=2"
  python -m experiments.figures --report --workdir=/tmp/report

The report is a page, report.html, and the same in Markdown, report.md. It has every folder under --workdir,
so that figures made one by one, or in several settings, join it. Every figure is a file of this folder, and a
program of its own. A figure that was interrupted continues; one that fails is named in the report, and the
others are made.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from cepam_jax.errors import ConfigError, require_choice
from experiments import cli, report
from experiments.tables import markdown

_HERE = Path(__file__).parent


def names() -> list[str]:
    """All figures."""
    return sorted(path.stem for path in _HERE.glob("*.py") if not path.stem.startswith("_"))


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


def write_report(workdir: Path, failed: dict[str, str]) -> None:
    """Of all figures under a directory, and those that failed."""
    report.write(workdir, {name: command(name) for name in failed}, failed)


def define_flags():
    flags.DEFINE_bool("list", False, "Show names and titles, and do nothing else.")
    flags.DEFINE_bool("all", False, "Make all of them.")
    flags.DEFINE_list("only", [], "Make these.")
    flags.DEFINE_bool("report", False, "Only write the report of the figures that lie under --workdir.")
    flags.DEFINE_string("workdir", "", "Each figure has a folder under it; report.html lies beside them.")
    flags.DEFINE_bool("smoke", False, "Small versions, to see that everything works.")
    flags.DEFINE_string("pass_on", "", 'Flags for every figure that has them, such as "--seeds=2".')
    flags.DEFINE_bool("progress", True, "Show the figures' progress.")


def main():
    f = flags.FLAGS
    if f.list:
        print(markdown(["figure", "shows"], [[name, report.title(name)] for name in names()]))
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
        write_report(workdir, failed)
        state = f"FAILED: {error}" if error else "done"
        print(f"{name}: {state} in {time.monotonic() - start:.0f} s", flush=True)
    if not chosen:
        write_report(workdir, failed)
    print(workdir / "report.html")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
