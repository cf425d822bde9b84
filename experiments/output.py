"""What every figure leaves in its work directory: figure.png, figure.pdf, table.md, data.jsonl."""

import json
from pathlib import Path

from absl import flags


def define_workdir():
    flags.DEFINE_string("workdir", None, "Where figure, tables and data go.", required=True)


def save(text: str, rows: list[dict], figure=None) -> None:
    """Writes the files and prints the text.

    Args:
      text: tables in Markdown.
      rows: one dictionary per measurement.
      figure: of matplotlib, or None.
    """
    workdir = Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "table.md").write_text(text + "\n")
    (workdir / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if figure is not None:
        figure.savefig(workdir / "figure.png", dpi=150)
        figure.savefig(workdir / "figure.pdf")
    print(text + f"\n\n{workdir / ('table.md' if figure is None else 'figure.png')}")
