"""Measurements that need a process each."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measured(command: list[str], core: int | None = None, environment: dict | None = None) -> dict:
    """Runs a command and returns its last line, a JSON object; {"error": text} if there is none.

    Args:
      command: program and arguments.
      core: the one CPU core that it may use (on Linux); None: all.
      environment: variables beside those of this process.
    """

    pinned = core is not None and hasattr(os, "sched_setaffinity")
    before = os.sched_getaffinity(0) if pinned else None
    if pinned:
        os.sched_setaffinity(0, {core})  # of this thread, and so of the process that it starts
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    except OSError as error:
        return {"error": str(error)}
    finally:
        if pinned:
            os.sched_setaffinity(0, before)


def ours(*flags: str, core: int | None = None, environment: dict | None = None) -> dict:
    """`experiments.benchmarks.one` with these flags."""
    return measured([sys.executable, "-m", "experiments.benchmarks.one", *flags], core, environment)
