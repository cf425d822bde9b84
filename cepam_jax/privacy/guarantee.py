"""What is guaranteed to each client, put together from noise multipliers; the rules are those of `events`."""

import math
from typing import NamedTuple

import dp_accounting
import numpy as np

from cepam_jax.privacy.federation import Federation, bounds, check, reach
from cepam_jax.privacy.releases import (
    FilteredDraws,
    Multipliers,
    ObservedDraws,
    Release,
    composed,
    poisson_sampled,
    sampled_without_replacement,
)


class Guarantee(NamedTuple):
    """What is guaranteed to one client against one adversary.

    Attributes:
      releases: descriptions of what was released; each bounds epsilon from above, so the least one holds.
        It is a single NonPrivateDpEvent if there is no guarantee.
      relation: neighbouring relation under which all of them hold.
      reason: why there is no guarantee; empty if there is one.
      bases: what each release counts on, in words.
      slack: eta: what was seen has, whatever was released, at most e^eta and at least e^-eta times the
        probability that it has under the releases. Then epsilon is that at delta e^-eta, plus 2 eta.
    """

    releases: tuple[Release, ...]
    relation: str
    reason: str = ""
    bases: tuple[str, ...] = ("",)
    slack: float = 0.0


def none(reason: str, federation: Federation) -> list[Guarantee]:
    """No guarantee for any client, for one reason."""
    lost = Guarantee((dp_accounting.NonPrivateDpEvent(),), federation.relation, reason)
    return [lost] * len(federation.clip)


def missing(law: str | None, federation: Federation, adversary: str) -> str:
    """Why there is no guarantee, in words, or ""; raises ConfigError for a federation that is not valid.

    Args:
      law: law of the noise against the adversary; None if there is none.
      federation: the facts that guarantees depend on.
      adversary: the adversary in words.
    """
    check(federation)
    if law is None:
        return f"no noise hides the update from {adversary}"
    if federation.refused:
        return "; ".join(federation.refused)
    if federation.norm is None:
        return "updates are not clipped: one client may move the result without bound"
    if federation.aggregation == "unstated":
        return "the aggregator states nothing about privacy"
    return _missing_for_laplace(federation) if law == "laplace" else ""


def _missing_for_laplace(federation: Federation) -> str:
    """The same, of Laplace noise alone."""
    if federation.norm != "l1":
        return "Laplace noise needs an L1 clip, and the clip is L2"
    if federation.budget is not None:
        return "earlier results set the noise, and the filter for that is one of Gaussian noise"
    if federation.counted is not None:
        return "the noise on the count of updates within their clips is Gaussian, and the updates' is not"
    return ""


def hides_draws(federation: Federation) -> bool:
    """Whether a theorem on hidden draws applies to a sum with Gaussian noise."""
    # With memories a message depends on the draws before, which no such theorem hides.
    if federation.outsiders != "gaussian" or not federation.fresh or federation.unit != "client":
        return False
    if federation.sampling == "poisson":
        return federation.filled > 0 and federation.relation == "add_remove"
    return federation.sampling == "fixed" and exchangeable(federation)


def exchangeable(federation: Federation) -> bool:
    """Whether the theorem on hidden draws applies: nothing but its update tells one client from another."""

    def alike(values: np.ndarray) -> bool:
        """Whether all clients have the same value."""
        return np.ptp(np.asarray(values, np.float64)) == 0

    same_rounds = all(
        alike(phase.outsiders)
        and alike(bounds(federation, phase))
        and (phase.weights is None or alike(phase.weights))
        for phase in federation.phases
    )
    same = alike(federation.clip) and alike(federation.weights) and same_rounds
    return bool(federation.unit == "client" and same)


def guarantees(
    federation: Federation,
    law: str,
    of_phase: list[tuple[int, np.ndarray]],
    basis: str,
    hidden: bool = False,
) -> list[Guarantee]:
    """One Guarantee for each client; equal ones are built once.

    Args:
      federation: the facts that guarantees depend on.
      law: law of the noise, "gaussian" or "laplace".
      of_phase: (rounds, z f64[clients]) of each phase, with z the noise over how far one unit moves the
        result, given that the client takes part.
      basis: what the noise counts on, in words.
      hidden: whether the draws are hidden and the clients exchangeable.

    Returns:
      The guarantees, in the order of the clients.
    """
    built: dict[tuple, Guarantee] = {}
    guarantees = []
    for k in range(len(federation.clip)):
        multipliers = tuple((int(rounds), float(z[k])) for rounds, z in of_phase)
        if multipliers not in built:
            built[multipliers] = _guarantee(federation, law, multipliers, basis, hidden)
        guarantees.append(built[multipliers])
    return guarantees


def _guarantee(
    federation: Federation, law: str, multipliers: Multipliers, basis: str, hidden: bool
) -> Guarantee:
    """The guarantee of a client with these noise multipliers; the arguments are those of `guarantees`."""
    relation = federation.relation
    if not all(z > 0 for _, z in multipliers):
        return Guarantee((dp_accounting.NonPrivateDpEvent(),), relation, "the noise is zero")
    clients, per_round = len(federation.clip), federation.per_round
    halve = reach(federation)
    if not federation.fresh:
        basis += ", and on nothing that memories hold"
    if federation.budget is not None:
        ((_, z),) = multipliers
        budget: Multipliers = ((1, z / math.sqrt(federation.budget)),)
        basis += ", and on a budget fixed beforehand that holds whatever earlier results led to"
        found: list[Release] = [composed(law, budget, halve)]
        if federation.sampling == "all" or federation.most is None:
            return Guarantee(tuple(found), relation, "", (basis,))
        chance, total, most = per_round / clients, federation.budget, federation.most
        found.append(FilteredDraws(chance, total, most, z, halve))
        drawn = f"{basis}, on a limit to each round, and on the rounds without the client"
        return Guarantee(tuple(found), relation, "", (basis, drawn))
    releases: list[Release] = [composed(law, multipliers, halve)]
    bases = [basis]
    if federation.sampling != "all":
        releases.append(ObservedDraws(law, per_round / clients, multipliers, halve))
        bases.append(f"{basis}, and on the rounds without the client")
    if hidden and federation.sampling == "poisson":
        chance = per_round / clients
        releases.append(poisson_sampled(chance, multipliers, federation.overflow))
        bases.append(f"{basis}, and on nobody knowing who was drawn")
    elif hidden:
        # Stated for the replace relation, of which a client's update that becomes zero is one case.
        releases.append(sampled_without_replacement(clients, per_round, multipliers))
        bases.append(f"{basis}, and on nobody knowing who was drawn")
    return Guarantee(tuple(releases), relation, "", tuple(bases))
