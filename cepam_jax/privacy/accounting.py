"""Epsilon of an event, and the report that goes with it. All accounting is `dp_accounting`'s."""

import functools
import math
from typing import NamedTuple

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

from cepam_jax.errors import require
from cepam_jax.privacy.events import ADVERSARIES, Federation

# Below this noise multiplier a privacy loss distribution takes minutes, and epsilon means nothing: RDP.
_LEAST_FOR_PLD = 0.5
_MOST_LOSS = 200.0


def _leaves(event):
    """(innermost event, how often) of a composition."""
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return [(leaf, count * event.count) for leaf, count in _leaves(event.event)]
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return [leaf for part in event.events for leaf in _leaves(part)]
    return [(getattr(event, "event", event), 1)]  # what is sampled, or the event itself


@functools.lru_cache(maxsize=4096)
def epsilon(event: dp_accounting.DpEvent, delta: float) -> float:
    """The least epsilon that the accountants can show for an event.

    The events of `events` state the replace relation by halved noise multipliers; so they are accounted for
    under add/remove, but for sampling without replacement, which is accounted for under replace.

    Args:
      event: from `events`.
      delta: above 0 and below 1.

    Returns:
      epsilon; infinity for a NonPrivateDpEvent.
    """
    require(0 < delta < 1, "delta", delta, "above 0 and below 1")
    if isinstance(event, dp_accounting.NonPrivateDpEvent):
        return math.inf
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return float(dp_accounting.get_epsilon_gaussian(event.noise_multiplier, delta))
    leaves = _leaves(event)
    replace = "SampledWithoutReplacement" in repr(event)
    relations = dp_accounting.NeighboringRelation
    relation = relations.REPLACE_ONE if replace else relations.ADD_OR_REMOVE_ONE
    found = [rdp.RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta)]
    pure = all(isinstance(leaf, dp_accounting.LaplaceDpEvent) for leaf, _ in leaves)
    loss = sum(count / leaf.noise_multiplier for leaf, count in leaves)
    if pure:
        found.append(loss)  # the Laplace mechanism is 1/b-DP, and pure guarantees add up
    smallest = min(leaf.noise_multiplier for leaf, _ in leaves)
    if not replace and (smallest >= _LEAST_FOR_PLD or (pure and loss < _MOST_LOSS)):
        found.append(pld.PLDAccountant(relation).compose(event).get_epsilon(delta))
    return float(min(found))


class Row(NamedTuple):
    """Against one adversary.

    Attributes:
      adversary: of `events.ADVERSARIES`.
      epsilon: f64[clients].
      delta, relation, unit: what epsilon refers to.
      reason: why it is infinite, if it is.
    """

    adversary: str
    epsilon: np.ndarray
    delta: float
    relation: str
    unit: str
    reason: str

    def text(self) -> str:
        """One line for people."""
        low, high = float(np.min(self.epsilon)), float(np.max(self.epsilon))
        if math.isinf(low):
            return f"{self.adversary}: no guarantee ({self.reason})"
        value = f"{high:.4g}" if low == high else f"{low:.4g} to {high:.4g} over clients"
        relation = self.relation.replace("_", "/")
        return f"{self.adversary}: epsilon = {value} at delta = {self.delta:g}, {self.unit} level, {relation}"


def report(federation: Federation, delta: float) -> list[Row]:
    """Epsilon of every client against every adversary."""
    rows = []
    for name, events_of in ADVERSARIES.items():
        guarantees = events_of(federation)
        values = np.array([epsilon(g.event, delta) for g in guarantees])
        reason = next((g.reason for g in guarantees if g.reason), "")
        rows.append(Row(name, values, delta, guarantees[0].relation, federation.unit, reason))
    return rows


def text(federation: Federation, delta: float) -> str:
    """The report for people: each adversary, then what no epsilon covers."""
    rows = report(federation, delta)
    lines = [row.text() for row in rows]
    lines += [f"not covered: {item}" for item in federation.not_covered]
    largest = rows[0].epsilon.max()  # against the weakest adversary
    if math.isfinite(largest) and largest > 100:
        lines.append("an epsilon in the hundreds or more is no protection: such noise hides next to nothing")
    return "\n".join(lines)
