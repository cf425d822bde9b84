"""What the rounds of a run applied: the knobs of all clients and who was drawn, as the rounds reported it.

The accountant reads this, never the configuration's text, so a rule that changes knobs is accounted for by
what it did. In a work directory it is ledger.jsonl: a line for each stretch of rounds with equal knobs.
"""

import json
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.federated import control
from cepam_jax.mechanisms import Knobs


class Entry(NamedTuple):
    """Consecutive rounds with the same knobs.

    Attributes:
      rounds: how many.
      knobs: of all clients, arrays [clients] or one number for all; None where a knob is not given.
      drawn: clients that took part, one tuple for each round; () where all did.
    """

    rounds: int
    knobs: Knobs
    drawn: tuple[tuple[int, ...], ...] = ()


class Ledger(NamedTuple):
    """Entries, in the order of the rounds."""

    entries: tuple[Entry, ...] = ()

    @property
    def rounds(self) -> int:
        """Rounds accounted for."""
        return sum(entry.rounds for entry in self.entries)

    def add(self, report, clients: int) -> "Ledger":
        """The ledger with the rounds of a block.

        Args:
          report: RoundReport on the host, leading axis rounds; those that did not run are left out.
          clients: of the federation.
        """
        entries = list(self.entries[-1:])  # the others stay as they are
        for number in np.flatnonzero(report.ran):
            knobs = jax.tree.map(lambda a, n=number: _shortened(np.asarray(a)[n]), report.knobs)
            drawn = tuple(map(int, report.participants.client[number]))
            entries.append(Entry(1, knobs, () if len(drawn) == clients else (drawn,)))
        return Ledger((*self.entries[:-1], *_merged(entries)))

    def text(self) -> str:
        """One JSON object per line."""
        lines = []
        for entry in self.entries:
            knobs = {
                name: _plain(value) for name, value in entry.knobs._asdict().items() if value is not None
            }
            drawn = {"drawn": list(map(list, entry.drawn))} if entry.drawn else {}
            lines.append(json.dumps({"rounds": entry.rounds, "knobs": knobs, **drawn}) + "\n")
        return "".join(lines)


def read(text: str) -> Ledger:
    """The ledger of `Ledger.text`, which a checkpoint keeps with a digest."""
    entries = []
    for line in text.splitlines():
        found = json.loads(line)
        knobs = Knobs(**{name: np.asarray(value, np.float32) for name, value in found["knobs"].items()})
        entries.append(Entry(found["rounds"], knobs, tuple(map(tuple, found.get("drawn", ())))))
    return Ledger(tuple(entries))


def planned(rule: control.Control, knobs: Knobs, rounds: int) -> Ledger:
    """What rounds will apply under a rule that reads no results; of one that does, what the first would."""
    # A million rounds of equal knobs are one entry, which need not be put together round by round.
    if rule.adaptive or rule.knobs is control.unchanged:
        return Ledger((Entry(rounds, jax.tree.map(lambda a: _shortened(np.asarray(a)), knobs)),))
    plan = [jax.tree.map(lambda a: _shortened(np.asarray(a)), k) for k in control.plan(rule, knobs, rounds)]
    return Ledger(tuple(_merged(Entry(1, one) for one in plan)))


def _shortened(array: np.ndarray) -> np.ndarray:
    """One number for all clients where they are equal."""
    array = np.asarray(array, np.float32)
    return array.reshape(-1)[0] if array.size and (array == array.reshape(-1)[0]).all() else array


def _plain(value) -> Any:
    return np.asarray(value).tolist()


def _merged(entries) -> list[Entry]:
    merged: list[Entry] = []
    for entry in entries:
        if merged and _equal(merged[-1].knobs, entry.knobs):
            last = merged[-1]
            merged[-1] = Entry(last.rounds + entry.rounds, last.knobs, last.drawn + entry.drawn)
        else:
            merged.append(entry)
    return merged


def _equal(a: Knobs, b: Knobs) -> bool:
    return all(
        (x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in zip(a, b, strict=True)
    )
