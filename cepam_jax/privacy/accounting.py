"""Epsilon of what was released, and the report that goes with it.

The library `dp_accounting` computes epsilon, but for draws that an adversary sees: see
`releases.ObservedDraws`.
"""

import functools
import math
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

from cepam_jax.errors import require
from cepam_jax.mechanisms.joint import Summed
from cepam_jax.privacy import filtered_draws, poisson_losses, releases
from cepam_jax.privacy.events import ADVERSARIES, Guarantee
from cepam_jax.privacy.federation import Federation
from cepam_jax.privacy.releases import ObservedDraws, Overflowing, Release

# Below this noise multiplier a privacy loss distribution takes minutes, and epsilon means nothing: RDP.
_LEAST_FOR_PLD = 0.5
_MOST_LOSS = 200.0
_SHARES = (1e-3, 0.03, 0.5)  # of delta that may pay for rounds that overflow
# Any set of orders gives a valid epsilon; the library's own go to 512, at a second for each kind of round.
_ORDERS = (*np.arange(1.25, 3.0, 0.25).tolist(), *range(3, 33), 40, 48, 64, 96, 128)
# Where a divergence has a formula, many cost nothing.
_FINE_ORDERS = tuple((1 + np.geomspace(1e-3, 1e4, 400)).tolist())


_WHOLE_ORDERS = tuple(order for order in _ORDERS if order == int(order))


def _kinds(event: Any) -> list[tuple[Any, int]]:
    """The different rounds of a composition, and how often each of them happens."""
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return [(kind, count * event.count) for kind, count in _kinds(event.event)]
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return [kind for part in event.events for kind in _kinds(part)]
    return [(event, 1)]


@functools.lru_cache(maxsize=4096)
def epsilon(release: Release, delta: float) -> float:
    """The least epsilon that the accountants can show for what was released.

    The events of `releases` state the replace relation by halved noise multipliers; so they are accounted for
    under add/remove, but for sampling without replacement, which is accounted for under replace.

    Args:
      release: an event or `ObservedDraws`, from `releases`.
      delta: above 0 and below 1.

    Returns:
      epsilon; infinity for a NonPrivateDpEvent.

    Raises:
      ConfigError: delta is out of range.
    """
    require(0 < delta < 1, "delta", delta, "above 0 and below 1")
    if isinstance(release, ObservedDraws):
        return _observed(release, delta)
    if isinstance(release, filtered_draws.FilteredDraws):
        divergence = filtered_draws.filtered_divergence(release, np.array(_FINE_ORDERS))
        return float(rdp.compute_epsilon(_FINE_ORDERS, divergence, delta)[0])
    if isinstance(release, Overflowing):
        return _overflowing(release, delta)
    return _of_event(release, delta)


def _of_event(release: dp_accounting.DpEvent, delta: float) -> float:
    """Epsilon of what dp_accounting has an accountant for."""
    if isinstance(release, dp_accounting.NonPrivateDpEvent):
        return math.inf
    if isinstance(release, dp_accounting.GaussianDpEvent):
        return float(dp_accounting.get_epsilon_gaussian(release.noise_multiplier, delta))
    kinds = _kinds(release)
    leaves = [(getattr(kind, "event", kind), count) for kind, count in kinds]  # sampled ones without that
    replace = "SampledWithoutReplacement" in repr(release)
    relations = dp_accounting.NeighboringRelation
    relation = relations.REPLACE_ONE if replace else relations.ADD_OR_REMOVE_ONE
    smallest, sampled = min(leaf.noise_multiplier for leaf, _ in leaves), "PoissonSampled" in repr(release)
    bounds, within = [], delta - _rounding(sum(count for _, count in kinds))
    if sampled and smallest >= _LEAST_FOR_PLD and within > 0:
        bounds.append(poisson_losses.epsilon(kinds, within))
        if within > 0.95 * delta and bounds[0] < math.inf:
            return bounds[0]  # exact, and the series of the others need not converge
    orders = _ORDERS if replace else _WHOLE_ORDERS if sampled else None
    bounds.append(
        rdp.RdpAccountant(orders, neighboring_relation=relation).compose(release).get_epsilon(delta)
    )
    pure = all(isinstance(leaf, dp_accounting.LaplaceDpEvent) for leaf, _ in leaves)
    loss = sum(count / leaf.noise_multiplier for leaf, count in leaves)
    if pure:
        bounds.append(loss)  # the Laplace mechanism is 1/b-DP, and pure guarantees add up
    exact = smallest >= _LEAST_FOR_PLD or (pure and loss < _MOST_LOSS)
    if exact and within > 0 and not (replace or sampled):
        bounds.append(pld.PLDAccountant(relation).compose(release).get_epsilon(within))
    return float(min(bounds))


def _rounding(rounds: int) -> float:
    """How much delta of composed rounds may be too small by the rounding of Fourier transforms.

    The transform of a law is at most 1, and its n-th power in f64 is wrong by some n pi 2^-53 of itself. Over
    a support of a few dozen deviations that is no more than 16 n 2^-52 in total variation.
    """
    return rounds * 2.0**-48


def _observed(draws: ObservedDraws, delta: float) -> float:
    """Epsilon of rounds whose draws the adversary sees.

    Gaussian noise has an exact formula. For Laplace noise, half of delta pays for the chance of more rounds
    than some number, and the other half for that number of rounds.
    """
    if draws.law == "gaussian":
        return releases.observed_gaussian_epsilon(draws, delta)
    rounds, tail = releases.fewer_rounds(draws, delta / 2)
    if not rounds:  # but for that chance the client takes no part at all
        return 0.0
    return epsilon(releases.composed(draws.law, rounds, draws.halving), delta - tail)


def _overflowing(release: Overflowing, delta: float) -> float:
    """Epsilon of rounds of which one may end without a release, with a probability p whatever the data.

    What is released differs from the event with probability p at most, on both sides of the definition of
    differential privacy: delta grows by (1 + e^epsilon) p. A part of delta pays for that.
    """
    if not release.chance:
        return epsilon(release.event, delta)
    for share in _SHARES:
        found = epsilon(release.event, (1 - share) * delta)
        if (1 + math.exp(min(found, _MOST_LOSS))) * release.chance <= share * delta:
            return found
    return math.inf


def guaranteed(guarantee: Guarantee, delta: float) -> float:
    """Epsilon of one client.

    Each release of the guarantee bounds it from above, so the least bound holds.

    Args:
      guarantee: the client's guarantee against one adversary, from `events`.
      delta: above 0 and below 1.

    Returns:
      epsilon; infinity if there is no guarantee.
    """
    return _least(guarantee, delta)[0]


def _least(guarantee: Guarantee, delta: float) -> tuple[float, str]:
    """The least epsilon of the guarantee's releases, and what that release counts on, in words."""
    pairs, slack = zip(guarantee.releases, guarantee.bases, strict=True), guarantee.slack
    within = delta * math.exp(-slack)
    return min((epsilon(release, within) + 2 * slack, basis) for release, basis in pairs)


_OTHERS = "who else takes part, the noise and the numbers of examples stay"
_KEPT = "who takes part, the noise and the numbers of examples stay"
_ABSENT = f"a client, or none in its place, so that it never takes part; {_OTHERS}"
_RELATION = {
    ("client", "add_remove"): f"add/remove: a client's update, or zero in its place; {_KEPT}",
    ("client", "replace"): f"replace: a client's update, or any other in its place; {_KEPT}",
    ("example", "replace"): f"replace: an example, or any other in its place; {_KEPT}",
    ("example", "add_remove"): f"add/remove: an example, or none in its place; {_KEPT}",
}


class Row(NamedTuple):
    """What holds against one adversary.

    Attributes:
      adversary: one of `events.ADVERSARIES`.
      epsilon: f64[clients], epsilon of each client.
      delta: the delta that goes with epsilon.
      relation: the neighbouring relation that epsilon refers to, as for `Federation`.
      unit: the unit of privacy, as for `Federation`.
      reason: why epsilon is infinite for a client, in words; empty if it is for none.
      basis: what epsilon counts on, in words.
    """

    adversary: str
    epsilon: np.ndarray
    delta: float
    relation: str
    unit: str
    reason: str
    basis: str = ""

    def text(self) -> str:
        """The row as one line of text."""
        lost = int(np.sum(np.isinf(self.epsilon)))
        if lost == len(self.epsilon):
            return f"{self.adversary}: no guarantee ({self.reason})"
        if lost:
            return f"{self.adversary}: no guarantee for {lost} of {len(self.epsilon)} clients ({self.reason})"
        low, high = float(np.min(self.epsilon)), float(np.max(self.epsilon))
        value = rounded_up(high)
        if low != high:
            value = f"{rounded_up(low)} to {value} over clients"
        relation = self.relation.replace("_", "/")
        basis = f"; counts on {self.basis}" if self.basis else ""
        return (
            f"{self.adversary}: epsilon = {value} at delta = {self.delta:g}, {self.unit} level, "
            f"{relation}{basis}"
        )


def rounded_up(value: float) -> str:
    """A positive number with four digits that is not below it, but for the noise of the last bits."""
    if value <= 0:
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value * (1 - 1e-9) / unit) * unit:.4g}"


def adversaries(summed: Summed | None) -> tuple[str, ...]:
    """Names of those that a report is about: colluders of the server only where a secure sum states any."""
    colluders = summed is not None and summed.colluders > 0
    return tuple(name for name in ADVERSARIES if colluders or name != "server_and_colluders")


def report(federation: Federation, delta: float) -> list[Row]:
    """Epsilon of every client against every adversary.

    Args:
      federation: the facts that guarantees depend on.
      delta: above 0 and below 1.

    Returns:
      One row for each of `adversaries`.

    Raises:
      ConfigError: the federation or delta is not valid.
    """
    rows = []
    for name in adversaries(federation.summed):
        guarantees_of = ADVERSARIES[name]
        guarantees = guarantees_of(federation)
        different = {id(guarantee): guarantee for guarantee in guarantees}  # equal ones are one object
        found = {number: _least(guarantee, delta) for number, guarantee in different.items()}
        bounds = [found[id(guarantee)] for guarantee in guarantees]
        values = np.array([value for value, _ in bounds])
        reason = next((g.reason for g in guarantees if g.reason), "")
        basis = "; or ".join(dict.fromkeys(basis for _, basis in bounds if basis))
        rows.append(Row(name, values, delta, guarantees[0].relation, federation.unit, reason, basis))
    return rows


def _relations(federation: Federation, rows: list[Row]) -> list[str]:
    """What is neighbouring to what, in a line, or in two where that differs between adversaries.

    Who is not drawn by Poisson sampling sends nothing, and the noise of a sum that the server fills up is
    the same with a client and without. A client's own noise goes with it: what counts on that compares with a
    client that comes as often, and whose update is zero.
    """
    kind = federation.unit, federation.relation
    named = [row.adversary for row in rows if math.isfinite(row.epsilon.min())]
    hidden = ("released_model", "colluding_clients") if federation.filled else ()
    absent = [name for name in named if name in hidden and kind == ("client", "add_remove")]
    present = [name for name in named if name not in absent]
    if not absent:
        return [_RELATION[kind]] if present else []
    if not present:
        return [f"add/remove: {_ABSENT}"]
    first, _, rest = _RELATION[kind].partition(": ")
    return [f"{first} of {', '.join(absent)}: {_ABSENT}", f"{first} of {', '.join(present)}: {rest}"]


def text(federation: Federation, delta: float) -> str:
    """The report as text: a line for each adversary, then what no epsilon covers.

    Args:
      federation: the facts that guarantees depend on.
      delta: above 0 and below 1.

    Returns:
      Lines of text.

    Raises:
      ConfigError: the federation or delta is not valid.
    """
    rows = report(federation, delta)
    lines = [row.text() for row in rows] + _relations(federation, rows)
    lines += [f"not covered: {item}" for item in federation.not_covered]
    largest = rows[0].epsilon.max()  # against the weakest adversary
    if math.isfinite(largest) and largest > 100:
        lines.append("an epsilon in the hundreds or more is no protection: such noise hides next to nothing")
    return "\n".join(lines)
