"""What the rounds of a run applied: knobs and weights of all clients, who was drawn, as rounds reported it.

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
    """Consecutive rounds with the same knobs and weights.

    Attributes:
      rounds: how many.
      knobs: of all clients, arrays [clients] or one number for all; None where a knob is not given.
      drawn: clients that took part, one tuple for each round; () where all did.
      weights: of all clients up to a common factor, for aggregators that weigh them before the round: an
        array [clients] or one number for all; None for others.
    """

    rounds: int
    knobs: Knobs
    drawn: tuple[tuple[int, ...], ...] = ()
    weights: Any = None


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
            weights = None if report.weights is None else _shortened(np.asarray(report.weights)[number])
            entries.append(Entry(1, knobs, () if len(drawn) == clients else (drawn,), weights))
        return Ledger((*self.entries[:-1], *_merged(entries)))

    def text(self) -> str:
        """One JSON object per line."""
        lines = []
        for entry in self.entries:
            knobs = {
                name: _plain(value) for name, value in entry.knobs._asdict().items() if value is not None
            }
            drawn = {"drawn": list(map(list, entry.drawn))} if entry.drawn else {}
            weights = {} if entry.weights is None else {"weights": _plain(entry.weights)}
            lines.append(json.dumps({"rounds": entry.rounds, "knobs": knobs, **weights, **drawn}) + "\n")
        return "".join(lines)


def read(text: str) -> Ledger:
    """The ledger of `Ledger.text`, which a checkpoint keeps with a digest."""
    entries = []
    for line in text.splitlines():
        found = json.loads(line)
        knobs = Knobs(**{name: np.asarray(value, np.float32) for name, value in found["knobs"].items()})
        weights = np.asarray(found["weights"], np.float32) if "weights" in found else None
        entries.append(Entry(found["rounds"], knobs, tuple(map(tuple, found.get("drawn", ()))), weights))
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
        if merged and _equal((*merged[-1].knobs, merged[-1].weights), (*entry.knobs, entry.weights)):
            last = merged[-1]
            merged[-1] = last._replace(rounds=last.rounds + entry.rounds, drawn=last.drawn + entry.drawn)
        else:
            merged.append(entry)
    return merged


def _equal(a: tuple, b: tuple) -> bool:
    return all(
        (x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in zip(a, b, strict=True)
    )
