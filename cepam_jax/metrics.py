"""Metrics as one JSON line per evaluation, in a file that survives a kill."""

import json
import os
from pathlib import Path


class MetricsFile:
    """metrics.jsonl of one run.

    A line is on the disk before the checkpoint of its round is. After a kill the file may
    hold lines of rounds that will be run again, or half a line: `resume` drops them.
    """

    def __init__(self, path: Path):
        self._path = Path(path)

    def read(self) -> list[dict]:
        """All complete lines."""
        return read_lines(self._path)

    def resume(self, last_round: int) -> list[dict]:
        """Keeps the lines up to `last_round` and returns them."""
        kept = [line for line in self.read() if line["round"] <= last_round]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(map(_text, kept)))
        os.replace(temporary, self._path)
        return kept

    def append(self, line: dict) -> None:
        """Adds one line and waits until it is on the disk."""
        with self._path.open("a") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a JSON-lines file; none if there is no file."""
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # cut off by a kill while it was written
    return lines


def _text(line: dict) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
