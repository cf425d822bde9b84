"""What a federation in Python released, step by step, whatever its user does with the states.

A step's randomness follows from the seeds and the number of rounds that its state has done. So a step that
is repeated from the same state releases the same again; one from another state with as many rounds done would
hide another update with the same noise, and the difference of the two lacks it. An `Account` counts every
step that was released, and remembers by checksums which states were used, so that neither is taken for less.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.federated.control import Control
from cepam_jax.federated.control.filters import Filtered, spent_of
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import provenance
from cepam_jax.run.ledger import Ledger, planned
from cepam_jax.run.provenance import Parts

Mark = tuple[int, int]


class Account:
    """The ledger of a federation, and which states its rounds began from.

    Attributes:
      ledger: what the rounds applied, each step counted as often as it was taken.
    """

    def __init__(self, ledger: Ledger, rule: Control, knobs: Knobs, parts: Parts, names: Sequence[str]):
        """Begins to count.

        Args:
          ledger: that of an earlier process, or an empty one.
          rule: that sets the knobs.
          knobs: of all clients at the start.
          parts: of the federation.
          names: knobs that the mechanism needs.

        Raises:
          ConfigError: the ledger is that of other parts.
        """
        provenance.check(ledger, parts)
        provenance.check_draws(ledger, parts)
        self.ledger = ledger._replace(refused=(), exposes=(), reached=None)
        self._before, self._parts, self._names = ledger, parts, tuple(names)
        # Rounds of earlier processes; the next that none has run.
        self._earlier = self._next = ledger.applied if ledger.reached is None else ledger.reached
        self._rule, self._knobs = rule, knobs
        self._rule_states = [rule.initialize(knobs) if rule.initialize else None]
        self._rounds: dict[int, Mark] = {}  # rounds done -> mark of the state that the next one began from
        self._results: dict[int, Mark] = {}  # rounds done -> mark of the state after the next one
        self._made: set[Mark] = set()
        self._reused: set[int] = set()
        self._steered: set[int] = set()
        self._missing = 0
        self._foreign = 0
        self._other = not rule.adaptive and not _planned_by(rule, knobs, ledger)

    @property
    def without_rounds(self) -> str:
        """What a privacy report says where no round was applied."""
        beside = [f"not covered: {item}" for item in self.exposes]
        first = "no round was applied" if beside else "no round was run: nothing is released"
        return "\n".join([first, *beside])

    def made(self, state) -> None:
        """Notes a state that the federation itself made."""
        self._made.add(mark(state))

    def released(self, state, after, report) -> None:
        """Counts a step that was applied.

        Args:
          state, after: States before and after the step.
          report: its RoundReport on the host.
        """
        number, before, result = int(state.round), mark(state), mark(after)
        self._used(number, before)
        beyond = number > self._next
        if self._results.setdefault(number, result) != result:
            self._reused.add(number)
        self._made.add(result)
        self._missing = max(self._missing, number - self._next)
        self._next = max(self._next, number + 1)
        if self._rule.adaptive:
            planned = self._as_filtered(state, before)
        else:  # beyond is refused for another reason, and the plan may be as long as the number is wrong
            planned = beyond or self._as_planned(number, report.knobs)
        if not planned:
            self._steered.add(number)
        self.ledger = self.ledger.add(_block(report), self._parts.clients, self._parts)

    def _as_planned(self, number: int, applied: Knobs) -> bool:
        """Whether a round applied what its rule plans, which it does unless its state was changed by hand."""
        while self._rule.advance and len(self._rule_states) <= number:
            self._rule_states.append(self._rule.advance(self._rule_states[-1]))
        state = self._rule_states[number if self._rule.advance else 0]
        with jax.enable_x64(False):
            expected = self._rule.knobs(state, self._knobs, jnp.int32(number))
        return _alike(expected, applied)

    def _as_filtered(self, state, before: Mark) -> bool:
        """Whether a budget is left as it must be after what the ledger holds, in a state from elsewhere."""
        if self._rule.budget is None or before in self._made:
            return True
        if not isinstance(state.control, Filtered):
            return False  # of a rule of one's own nothing tells
        spent = sum(
            entry.rounds * float(np.max(np.asarray(self._knobs.sigma) / entry.knobs.sigma)) ** 2
            for entry in self.ledger.entries
        )
        return spent <= spent_of(state.control, self._rule.budget) + 1e-4 * self._rule.budget

    def failed(self, state, report) -> None:
        """Counts a step that was not applied: its updates were sent, with its round's noise.

        Args:
          state: that it began from.
          report: its RoundReport on the host.
        """
        self._used(int(state.round), mark(state))
        clients, names = self._parts.clients, self._names
        self.ledger = self.ledger.add_failure(_block(report), clients, names, self._parts)

    @property
    def whole(self) -> Ledger:
        """The ledger with all that a federation in another process must know of it."""
        reached = max(self._next, *(number + 1 for number in self._rounds), 0)  # those that failed too
        return self.ledger._replace(refused=self.refused, exposes=self.exposes, reached=reached)

    def _used(self, number: int, before: Mark) -> None:
        """Notes from which state the noise of a round was used."""
        self._foreign += before not in self._made
        if self._rounds.setdefault(number, before) != before or number < self._earlier:
            self._reused.add(number)

    @property
    def refused(self) -> tuple[str, ...]:
        """Why the ledger does not cover what was released; empty if it does."""
        reasons = list(self._before.refused)
        unsigned = sum(entry.rounds for entry in self.ledger.entries if entry.made_by is None)
        if unsigned:
            reasons.append(
                f"{unsigned} rounds of the ledger do not say which parts made them, like those of earlier "
                "releases: what they released is not known"
            )
        if self._reused:
            reasons.append(
                f"round {_named(self._reused)} was run from different states with the same noise, which "
                "their difference lacks, or may have been in an earlier process: a ledger goes on where its "
                "rounds ended, and knows of no seeds"
            )
        if self._other and self._rounds:  # as long as it ran none, the ledger is that of the other
            reasons.append(
                "rounds of the ledger applied other knobs than this federation's rule plans: what set these, "
                "perhaps what was released before, no composition here covers"
            )
        if self._missing:
            reasons.append(
                f"a state came with {self._missing} rounds that are not in this federation's ledger; give it "
                "the ledger of the federation that ran them"
            )
        if self._steered:
            reasons.append(
                f"round {_named(self._steered)} applied other knobs than its rule plans, or began with more "
                "of a budget than is left: the state was changed by hand, perhaps by what was released "
                "before, which no composition here covers"
            )
        return tuple(reasons)

    @property
    def exposes(self) -> tuple[str, ...]:
        """What reached the rounds from outside, in words."""
        found = list(self._before.exposes)
        if self._foreign:
            found.append(
                f"{self._foreign} of the states that rounds began from were not made by this federation: "
                "what they hold beyond what its rounds released"
            )
        return tuple(found)


def _planned_by(rule: Control, knobs: Knobs, ledger: Ledger) -> bool:
    """Whether rounds of a ledger applied what a rule plans for one of so many."""
    if not ledger.entries:
        return True
    with jax.enable_x64(False):
        plan = planned(rule, knobs, max(ledger.rounds, ledger.reached or 0)).entries
    return all(any(_alike(entry.knobs, one.knobs) for one in plan) for entry in ledger.entries)


def _alike(knobs: Knobs, others: Knobs) -> bool:
    pairs = zip(knobs, others, strict=True)
    return all(
        (one is None) == (other is None) and (one is None or np.allclose(one, other, rtol=1e-4))
        for one, other in pairs
    )


def _block(report):
    """The report of a step as that of a block of one round."""
    return jax.tree.map(lambda a: np.asarray(a)[None], report)


def _named(numbers: set[int]) -> str:
    """Rounds, counted from 1."""
    return ", ".join(str(number + 1) for number in sorted(numbers))


def mark(state) -> Mark:
    """A checksum of all arrays of a tree, on the device: equal trees have equal ones."""
    return tuple(np.asarray(_mark(state)).tolist())


@jax.jit
def _mark(tree):
    total = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(leaf)
        place = jnp.arange(words.size, dtype=jnp.uint32) * np.uint32(0x9E3779B9) + np.uint32(number + 1)
        for i, salt in enumerate((0x85EBCA6B, 0xC2B2AE35)):
            mixed = (words ^ place) * np.uint32(salt)
            mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x2C1B3C6D)
            total = total.at[i].add(jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32))
    return total


def _words(leaf):
    """uint32[n] that tell one array from another."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    flat = jnp.asarray(leaf).reshape(-1)
    if jnp.issubdtype(flat.dtype, jnp.floating):
        flat = jax.lax.bitcast_convert_type(flat, f"uint{8 * flat.dtype.itemsize}")
    return flat.astype(jnp.uint32)
