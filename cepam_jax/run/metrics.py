"""Metrics as one JSON line per evaluation, in a file that survives a kill."""

import json
import os
from pathlib import Path

from cepam_jax.files import naming, set_aside, write


class MetricsFile:
    """metrics.jsonl of one run.

    A line is on the disk before the checkpoint of its round is, and every checkpoint holds the lines up to
    its round. After a kill the file may hold lines of rounds that will be run again, or half a line; it may
    also have been cut, edited or deleted: `resume` makes it what the checkpoint says.

    Attributes:
      text: what the file holds since `resume`.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self.text = ""

    def resume(self, text: str) -> str:
        """Makes the file hold exactly this text, the lines of the checkpoint.

        Returns:
          What was wrong and was mended, in words; "" if at most lines after the checkpoint were dropped.
        """
        found = _read(self._path)
        self.text = text
        if found == text or (found is None and not text):
            return ""
        said = ""
        if not (found or "").startswith(text):
            what = "lost" if found is None else "cut short or altered"
            said = f"{self._path.name} was {what}; it is written again from the checkpoint"
            if found and not text.startswith(found):  # it holds something that the checkpoint does not
                aside = set_aside(self._path, "metrics.damaged.jsonl")
                said += f" (kept as {aside.name})"
        write(self._path, text)
        return said

    def append(self, line: dict) -> None:
        """Adds one line and waits until it is on the disk."""
        text = json.dumps(line, allow_nan=False) + "\n"
        with naming(self._path), self._path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.text += text


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a metrics file up to the first that is none; none if there is no file."""
    return parse(_read(Path(path)) or "")


def parse(text: str) -> list[dict]:
    """The lines of a text up to the first that is no JSON object with an integer "round"."""
    lines = []
    for one in text.splitlines():
        try:
            line = json.loads(one)
        except (ValueError, RecursionError):
            break  # cut off by a kill while it was written
        if not isinstance(line, dict) or type(line.get("round")) is not int:
            break
        lines.append(line)
    return lines


def lines_up_to(text: str, last_round: int, eval_every: int) -> str | None:
    """The part of a metrics file from round 0 to the line of `last_round`; None if it is not complete.

    Args:
      text: of the file.
      last_round: of the last line wanted.
      eval_every: the most rounds between two lines.
    """
    kept, before = "", -1
    for one in text.splitlines():
        line = parse(one)
        following = range(before + 1, before + 1 + eval_every) if before >= 0 else (0,)
        if not line or line[0]["round"] not in following or line[0]["round"] > last_round:
            return None
        before = line[0]["round"]
        kept += one + "\n"
        if before == last_round:
            return kept
    return None


def _read(path):
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
