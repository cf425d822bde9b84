"""What every figure leaves in its work directory.

figure.png and figure.pdf, table.md, data.jsonl (one line per measurement), claims.json (what a paper
says, what was measured, and whether it holds) and run.json (the command, its time, versions and device).
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags

from experiments.tables import markdown

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "dp-accounting", "constriction")
_START = time.monotonic()
# Shown; a part of it shown and the rest refuted; its opposite shown; neither shown; too few runs to show
# anything. `experiments.paired` says what it takes to show something.
VERDICTS = ("holds", "holds in part", "does not hold", "not decided", "not tested")

# What the last column of a claim says, where it says what most of them do.
SERVER_TRUSTED = "the server is trusted; uplink"
NO_PRIVACY = "no claim about privacy; uplink"
CLAIM_HEADER = ("source", "claim", "measured", "verdict", "why", "trust")


class Claim(NamedTuple):
    """A sentence of a paper beside a measurement.

    Attributes:
      source: arXiv id.
      claim: what it says.
      measured: what came out, with its spread and the number of seeds.
      verdict: one of `VERDICTS`.
      why: what the verdict rests on.
      trust: whom the clients trust, and which direction of traffic was counted.
    """

    source: str
    claim: str
    measured: str
    verdict: str
    why: str
    trust: str


def define_workdir():
    flags.DEFINE_string("workdir", None, "Where figure, tables and data go.", required=True)
    flags.DEFINE_bool("smoke", False, "A small version, to see that everything works.")


def circumstances() -> dict:
    """The command of this process, its seconds so far, versions and hardware."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec else [sys.argv[0]]
    return {
        "figure": Path(sys.modules["__main__"].__file__).stem,
        "command": "python " + shlex.join([*program, *sys.argv[1:]]),
        "smoke": flags.FLAGS.smoke,
        "seconds": time.monotonic() - _START,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores",
    }


def save(text: str, rows: list[dict], figure=None, claims: list[Claim] = ()) -> None:
    """Writes the files and prints the text.

    Args:
      text: tables in Markdown.
      rows: one dictionary per measurement.
      figure: of matplotlib, or None.
      claims: of the papers that these measurements speak to.
    """
    workdir = Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if claims:
        text += "\n\n" + claims_table(claims)
    (workdir / "table.md").write_text(text + "\n")
    (workdir / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "claims.json").write_text(json.dumps([claim._asdict() for claim in claims], indent=2) + "\n")
    (workdir / "run.json").write_text(json.dumps(circumstances(), indent=2) + "\n")
    if figure is not None:
        figure.savefig(workdir / "figure.png", dpi=110)
        figure.savefig(workdir / "figure.pdf")
    print(text + f"\n\n{workdir / ('table.md' if figure is None else 'figure.png')}")


def claims_table(claims) -> str:
    """Claims in Markdown."""
    return markdown(list(CLAIM_HEADER), [list(claim) for claim in claims])
