"""What the rounds of a run applied: knobs and weights of all clients, who was drawn, as rounds reported it.

The accountant reads this, never the configuration's text, so a rule that changes knobs is accounted for by
what it did. In a work directory it is ledger.jsonl: a line for each stretch of rounds with equal knobs, and
one before them for the parts that made them.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.federated import control
from cepam_jax.mechanisms import Knobs
from cepam_jax.mechanisms.knobs import check
from cepam_jax.run.provenance import Parts, parts_from


class Entry(NamedTuple):
    """Consecutive rounds with the same knobs and weights.

    Attributes:
      rounds: how many.
      knobs: of all clients, arrays [clients] or one number for all; None where a knob is not given.
      drawn: clients that took part, one tuple for each round; () where all did.
      made_by: the parts; None for rounds that are planned, and in ledgers of earlier releases.
      failed: whether they were not applied: clients sent their updates, and something was not finite.
      weights: of all clients up to a common factor, for aggregators that weigh them before the round: an
        array [clients] or one number for all; None for others.
      arrived: how many messages of a secure sum arrived, one number for each round; () without one.
    """

    rounds: int
    knobs: Knobs
    drawn: tuple[tuple[int, ...], ...] = ()
    made_by: Parts | None = None
    failed: bool = False
    weights: Any = None
    arrived: tuple[int, ...] = ()


class Ledger(NamedTuple):
    """What was released.

    Attributes:
      entries: in the order of the rounds.
      refused: why they have no guarantee, whatever the knobs; empty if they may have one.
      exposes: what reached these rounds from outside, in words.
      reached: rounds that the furthest state has done, where steps were repeated; None: `applied`.
    """

    entries: tuple[Entry, ...] = ()
    refused: tuple[str, ...] = ()
    exposes: tuple[str, ...] = ()
    reached: int | None = None

    @property
    def rounds(self) -> int:
        """Rounds accounted for, those that failed too."""
        return sum(entry.rounds for entry in self.entries)

    @property
    def applied(self) -> int:
        """Rounds that were applied."""
        return self.rounds - self.failures

    @property
    def failures(self) -> int:
        """Rounds that failed: what clients sent in them is released, and counts."""
        return sum(entry.rounds for entry in self.entries if entry.failed)

    def add(self, report, clients: int, made_by: Parts | None = None) -> "Ledger":
        """The ledger with the rounds of a block.

        Args:
          report: RoundReport on the host, leading axis rounds; those that did not run are left out.
          clients: of the federation.
          made_by: its parts.
        """
        found = []
        for number in np.flatnonzero(report.ran):
            knobs, drawn, weights = _applied(report, number, clients, made_by)
            arrived = _arrived(report, number)
            found.append(Entry(1, knobs, drawn, made_by, weights=weights, arrived=arrived))
        return self.joined(found)

    def add_failure(self, report, clients: int, names: Sequence[str], made_by: Parts | None) -> "Ledger":
        """The ledger with the round of a block that failed, behind those that were applied.

        What clients with valid knobs sent in it is released like any other update. With a knob that is not
        allowed nothing decodes to a number, whatever the data; weights that such a knob had part in, or that
        are no numbers, are left out, and those count that the rule gives for the knobs that are noted.

        Args:
          report, clients, made_by: as for `add`.
          names: knobs that the mechanism needs.
        """
        number = int(np.sum(report.ran))
        knobs, drawn, weights = _applied(report, number, clients, made_by)
        known = _valid(knobs, [name for name in names if name != "scale"], clients)
        if known is None:
            return self
        whole = weights is not None and _same(knobs, known) and np.all(np.isfinite(weights))
        arrived = _arrived(report, number)
        return self.joined([Entry(1, known, drawn, made_by, True, weights if whole else None, arrived)])

    def joined(self, entries: Iterable[Entry]) -> "Ledger":
        """The ledger with more entries; equal neighbours are one."""
        return self._replace(entries=(*self.entries[:-1], *_merged((*self.entries[-1:], *entries))))

    def text(self) -> str:
        """One JSON object per line."""
        ends = [{"refused": reason} for reason in self.refused] + [{"exposes": item} for item in self.exposes]
        if self.reached is not None:
            ends.append({"reached": self.reached})
        return lines(self.entries, None) + "".join(json.dumps(end) + "\n" for end in ends)


def lines(entries: Iterable[Entry], known: Parts | None) -> str:
    """Entries as lines of JSON, with a line for the parts where they are others than before.

    Args:
      entries: in the order of the rounds.
      known: parts of the entry before the first.
    """
    found = []
    for entry in entries:
        if entry.made_by is not None and entry.made_by != known:
            known = entry.made_by
            found.append({"parts": known._asdict()})
        knobs = {name: _plain(value) for name, value in entry.knobs._asdict().items() if value is not None}
        drawn = {"drawn": list(map(list, entry.drawn))} if entry.drawn else {}
        failed = {"failed": True} if entry.failed else {}
        weights = {} if entry.weights is None else {"weights": _plain(entry.weights)}
        arrived = {"arrived": list(entry.arrived)} if entry.arrived else {}
        found.append({"rounds": entry.rounds, "knobs": knobs, **weights, **drawn, **arrived, **failed})
    return "".join(json.dumps(line) + "\n" for line in found)


def read(text: str) -> Ledger:
    """The ledger of `Ledger.text`.

    Raises:
      ConfigError: a line is no entry of a ledger: it was altered, or cut off.
    """
    entries, parts, ends = [], None, {"refused": (), "exposes": ()}
    reached = None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
            if "parts" in found:
                parts = parts_from(found["parts"])
            elif "rounds" in found:
                entries.append(_entry(found, parts))
            elif "reached" in found:
                reached = int(found["reached"])
            elif "tried" not in found:
                ((kind, what),) = found.items()
                ends[kind] = (*ends[kind], what)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"line {number} of the ledger was altered or cut off") from error
    return Ledger(tuple(_merged(entries)), **ends, reached=reached)


def _entry(found: dict[str, Any], parts: Parts | None) -> Entry:
    knobs = Knobs(**{name: np.asarray(value, np.float32) for name, value in found["knobs"].items()})
    drawn = tuple(map(tuple, found.get("drawn", ())))
    weights = np.asarray(found["weights"], np.float32) if "weights" in found else None
    failed, arrived = bool(found.get("failed", False)), tuple(map(int, found.get("arrived", ())))
    return Entry(int(found["rounds"]), knobs, drawn, parts, failed, weights, arrived)


def planned(rule: control.Control, knobs: Knobs, rounds: int) -> Ledger:
    """What rounds will apply under a rule that reads no results; of one that does, what the first would."""
    if rule.adaptive and rule.budget is not None and rule.budget < rounds:  # spent evenly
        thinner = np.float32((rounds / rule.budget) ** 0.5 * (1 + 2.0**-15))
        knobs = knobs._replace(sigma=None if knobs.sigma is None else knobs.sigma * thinner)
    # A million rounds of equal knobs are one entry, which need not be put together round by round.
    if rule.adaptive or rule.knobs is control.unchanged:
        return Ledger((Entry(rounds, jax.tree.map(lambda a: _shortened(np.asarray(a)), knobs)),))
    plan = [jax.tree.map(lambda a: _shortened(np.asarray(a)), k) for k in control.plan(rule, knobs, rounds)]
    return Ledger(tuple(_merged(Entry(1, one) for one in plan)))


def _applied(
    report, number: int, clients: int, made_by: Parts | None
) -> tuple[Knobs, tuple[tuple[int, ...], ...], Any]:
    """Knobs of a round, who was drawn, and the weights of all clients."""
    knobs = jax.tree.map(lambda a: _shortened(np.asarray(a)[number]), report.knobs)
    drawn = tuple(int(client) for client in report.participants.client[number] if client < clients)
    weights = None if report.weights is None else _shortened(np.asarray(report.weights)[number])
    everybody = len(drawn) == clients and not (made_by and made_by.poisson)
    return knobs, () if everybody else (drawn,), weights


def _arrived(report, number: int) -> tuple[int, ...]:
    """How many messages of a secure sum arrived in a round; () without one."""
    if report.opened is None:
        return ()
    return (int(np.sum(report.participants.weight[number])),)


def _valid(knobs: Knobs, names: list[str], clients: int) -> Knobs | None:
    """Knobs with those of a valid client in place of those that are not allowed; None where all are wrong."""
    each = jax.tree.map(lambda a: np.broadcast_to(a, (clients,)), knobs)
    right = [k for k in range(clients) if _allowed(jax.tree.map(lambda a, k=k: a[k], each), names)]
    if not right:
        return None
    source = np.full(clients, right[0])
    source[right] = right
    return jax.tree.map(lambda a: _shortened(a[source]), each)


def _allowed(knobs: Knobs, names: list[str]) -> bool:
    try:
        check(knobs, names)
    except ConfigError:
        return False
    return True


def _shortened(array: np.ndarray) -> np.ndarray:
    """One number for all clients where they are equal."""
    array = np.asarray(array, np.float32)
    return array.reshape(-1)[0] if array.size and (array == array.reshape(-1)[0]).all() else array


def _plain(value) -> Any:
    return np.asarray(value).tolist()


def _merged(entries: Iterable[Entry]) -> list[Entry]:
    groups: list[list[Entry]] = []
    for entry in entries:
        if groups and _alike(groups[-1][0], entry):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return [
        group[0]._replace(
            rounds=sum(entry.rounds for entry in group),
            drawn=tuple(itertools.chain.from_iterable(entry.drawn for entry in group)),
            arrived=tuple(itertools.chain.from_iterable(entry.arrived for entry in group)),
        )
        for group in groups
    ]


def _alike(a: Entry, b: Entry) -> bool:
    """Whether entries are one stretch of rounds."""
    same = _same((*a.knobs, a.weights), (*b.knobs, b.weights))
    return same and a.failed == b.failed and (a.made_by is b.made_by or a.made_by == b.made_by)


def _same(a: Iterable, b: Iterable) -> bool:
    """Whether arrays, some of them None, are equal."""
    pairs: Iterator = zip(a, b, strict=True)
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in pairs)
