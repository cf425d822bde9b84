"""ledger.jsonl of a work directory, to which lines are added and never changed.

A block's lines are on the disk before its checkpoint is, which says how many lines there are up to it and
what their digest is. After a kill there may be more of them, or half a line: rounds that are run again.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from cepam_jax.errors import CheckpointMismatchError
from cepam_jax.files import naming, set_aside, write
from cepam_jax.run import ledger
from cepam_jax.run.ledger import Entry, Ledger


class Mark(NamedTuple):
    """How far a ledger goes.

    Attributes:
      lines: whole ones.
      sha256: of their bytes.
      refused: why they have no guarantee, which must not be lost with them.
    """

    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    refused: tuple[str, ...] = ()


class LedgerFile:
    """The file; nothing is written before `resume`.

    Attributes:
      damaged: whether it does not hold what a checkpoint says.
      tried: rounds done before the round that failed in what was run beyond the checkpoint; None: none did.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self._digest, self._lines, self._parts = hashlib.sha256(), 0, None
        self._refused: tuple[str, ...] = ()
        self.damaged = False
        self.tried: int | None = None

    @property
    def mark(self) -> Mark:
        """How far the file goes now."""
        return Mark(self._lines, self._digest.hexdigest(), self._refused)

    def up_to(self, mark: Mark) -> str | None:
        """The lines up to a mark; None if they are not those."""
        data = self._path.read_bytes() if self._path.exists() else b""
        kept = b"".join(data.splitlines(keepends=True)[: mark.lines])
        whole = kept.count(b"\n") == mark.lines and hashlib.sha256(kept).hexdigest() == mark.sha256
        return kept.decode() if whole else None

    def check_length(self, text: str, last: int) -> None:
        """Checks that a run goes on behind these lines as far as it has failed before.

        The updates of a round that failed, and of those before it that no checkpoint has, were sent: they
        are counted when they are run again, and would be forgotten by a run that ends before.

        Raises:
          CheckpointMismatchError: it ends after `last` rounds, and a later one failed.
        """
        tried = self._failed_behind(text)
        if tried is not None and tried >= last:
            raise CheckpointMismatchError(
                f"{self._path.parent} holds a run of which round {tried + 1} failed after its updates were "
                f"sent, and this one ends after {last}. Ask for at least {tried + 1}, or use another "
                "--workdir; nothing was changed."
            )

    def _failed_behind(self, text: str) -> int | None:
        """Rounds done before the round that failed behind these lines, if they begin the file; else None."""
        found, kept = self._path.read_bytes() if self._path.exists() else b"", text.encode()
        behind = found.startswith(kept) and not self.damaged
        return _failure(text, found[len(kept) :]) if behind else None

    def resume(self, text: str) -> str:
        """Makes the file hold these lines, and that a round behind them failed, if the file says so.

        Returns:
          What was wrong and was mended, in words; "" if at most lines behind them were dropped.

        Raises:
          OSError: it cannot be written.
        """
        found = self._path.read_bytes() if self._path.exists() else b""
        kept, said = text.encode(), ""
        if self.damaged:
            said = f"{self._path.name} was {'altered' if found else 'lost'}; it is written again as planned"
            if found:
                said += f" (kept as {set_aside(self._path, 'ledger.damaged.jsonl').name})"
        if self.damaged or not found.startswith(kept):
            write(self._path, text)
        else:
            self.tried = _failure(text, found[len(kept) :])
            with naming(self._path), self._path.open("ab") as file:
                file.truncate(len(kept))
        self._count(text)
        book = ledger.read(text)
        self._parts = book.entries[-1].made_by if book.entries else None
        self._refused = book.refused
        if self.tried is not None:
            self._append(json.dumps({"tried": self.tried}) + "\n")
        return said

    def append(self, entries: tuple[Entry, ...], refused: tuple[str, ...] = ()) -> None:
        """Adds the entries of a block, and why nothing is guaranteed; waits until they are on the disk.

        Raises:
          OSError: they could not be written.
        """
        self._append(ledger.lines(entries, self._parts) + Ledger(refused=refused).text())
        self._refused += refused
        self._parts = entries[-1].made_by if entries else self._parts

    def _append(self, text: str) -> None:
        with naming(self._path), self._path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._count(text)

    def _count(self, text: str) -> None:
        self._digest.update(text.encode())
        self._lines += text.count("\n")


def _failure(before: str, beyond: bytes) -> int | None:
    """Rounds done before the round that failed in lines beyond a checkpoint, whose last may be cut off."""
    done = ledger.read(before).applied
    for line in beyond.splitlines():
        try:
            found = json.loads(line)
            if "tried" in found:
                return int(found["tried"])
            if found.get("failed"):
                return done
            done += int(found.get("rounds", 0))
        except (ValueError, AttributeError, TypeError):
            return None  # cut off by a kill while it was written
    return None
