"""What a federation guarantees: one function for each adversary.

  released_model      sees the models alone
  colluding_clients   is all other clients together: they know their own randomness and subtract their noise
  decoded_updates     sees every decoded update, but not the shared randomness
  server              knows the shared randomness

Nobody is protected from an eavesdropper who reads the messages themselves: LRSUQ's integers without the
shared key are no noisy update (an integer other than zero betrays a sign), so links must be encrypted.

Every function returns a `Guarantee` for each client: descriptions of what was released, each of them a valid
upper bound (see `releases`), or the reason why there is none; it raises ConfigError for a federation that is
not valid. No guarantee is the default: what states nothing about itself, an aggregation rule for instance,
has none. The rules:

- The guarantee needs a bound on how far a client moves the result: an L2 clip for Gaussian noise
  (an L1 clip implies one), an L1 clip for Laplace noise.
- Add/remove: a client's update appears or is replaced by zero, moving the sum by w_k C_k at most. Replace:
  by another one, 2 w_k C_k. The noise stays: clients without an update still send noise. Numbers of examples
  stay as they are; they are taken for public.
- A client's own noise, fresh in every round and independent of all before it, always counts, with
  z_k = sigma_k / C_k. Whoever sees decoded updates sees an adaptive composition of Gaussian (Laplace)
  mechanisms, and every other outsider a function of that (post-processing), whatever the aggregation rule,
  as long as the rule reads nothing of the clients but decoded updates and public facts.
- Against the released model, under a weighted sum with public weights, Gaussian noises of all participants
  add up: sum_j w_j^2 sigma_j^2. This needs a mechanism that leaves the noise in the sum (rounding after the
  noise may remove it), and noise that is independent from round to round: where clients remember what was
  lost of an update, and with it minus its noise, only their own noise counts. Sums of Laplace noises are not
  Laplace; a client then counts on its own noise alone.
- Public weights may differ from round to round. Where they follow from a round's knobs, a round is counted
  with its own. Where earlier results set them, each round is counted with the least noise that any weights
  may leave a client (`Phase.least_ratios`): a bound given whatever was released before, which adaptive
  composition asks for (the same, theorem 3.2), and which the weights found in a ledger are not.
- A memory (what a client keeps of an update that was not sent whole, for the next round) is added before the
  clip, so a client without an update still sends what it remembers, clipped: as far as 2 C_k from what it
  sends with one, under either relation.
- Laplace noise on vectors with |x|_1 <= C is dominated by Laplace noise on one coordinate moved by C: for
  Laplace, the trade-off function of a move s1 + s2 is the composition of those of s1 and s2, and group
  privacy composes no worse than a product (Dong, Roth, Su: Gaussian Differential Privacy, arXiv 1905.02383).
- Where a random part of the clients takes part, a client is seen in n of T rounds only, n binomial. That
  holds against an adversary who sees all the draws, so against everybody (`releases.ObservedDraws`).
- Noise that earlier results set has a budget: sum f^2 <= B over the rounds, whatever is released, with all
  noises of the start divided by f. A client's rounds are then no more than one Gaussian mechanism of
  mu = sqrt(B) / z, z that of the start (Smith, Thakurta: Fully Adaptive Composition for Gaussian Differential
  Privacy, arXiv 2210.17520; docs/adaptive.md). It is counted as if it took part in all of them,
  or, if f^2 of a round has a limit as well, in those that it was drawn for (`releases.FilteredDraws`). For
  Laplace noise there is no such theorem here.
- Where each round publishes how many updates were within their clips, with Gaussian noise of the server, that
  is one coordinate more of what a client moves: 1/z^2 is the sum of both (docs/clipping.md). Clips and sigmas
  may follow from such counts, as long as no z does. Whoever sees what reaches the server from a single
  client sees its vote, which nothing hides: there is no guarantee against `decoded_updates` and `server`.
- Hidden draws amplify more (Wang, Balle, Kasiviswanathan: Subsampled Rényi Differential Privacy and
  Analytical Moments Accountant, arXiv 1808.00087, theorem 27), but that theorem replaces a client of the
  drawn subset by any other client, so it holds only where clients cannot be told apart: the same noise, the
  same weight, the same clip, the same public factors of the result, and the client itself as the unit of
  privacy (the updates of two clients differ by more than one example moves one of them). And it needs the
  noise of a drawn subset: under Poisson sampling, where only participants add noise, a round without others
  has the client's own alone, and a round without anybody has none, which betrays an absence.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import dp_accounting
import numpy as np

from cepam_jax.privacy import counts, missing, noise_sums
from cepam_jax.privacy.federation import Federation, Phase, bounds, reach
from cepam_jax.privacy.releases import (
    FilteredDraws,
    Multipliers,
    ObservedDraws,
    Release,
    composed,
    noise_scale,
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
    """

    releases: tuple[Release, ...]
    relation: str
    reason: str = ""
    bases: tuple[str, ...] = ("",)


def _none(reason: str, federation: Federation) -> list[Guarantee]:
    """No guarantee for any client, for one reason."""
    lost = Guarantee((dp_accounting.NonPrivateDpEvent(),), federation.relation, reason)
    return [lost] * len(federation.clip)


def _own_noise(
    federation: Federation, law: str | None, deviation_of: Callable[[Phase], np.ndarray], adversary: str
) -> list[Guarantee]:
    """Guarantees by each client's own noise alone: z_k = sigma_k / C_k.

    Args:
      federation: the facts that guarantees depend on.
      law: law of the noise against the adversary; None if there is none.
      deviation_of: phase -> f64[clients], standard deviation of that noise.
      adversary: the adversary in words.

    Returns:
      One guarantee for each client.
    """
    reason = missing.reason(law, federation, adversary)
    if law is None or reason:
        return _none(reason, federation)
    of_phase = []
    for phase in federation.phases:
        z = noise_scale(law, deviation_of(phase)) / bounds(federation, phase)
        of_phase.append((phase.rounds, counts.joined(federation, np.broadcast_to(z, federation.clip.shape))))
    return _guarantees(federation, law, of_phase, "each client's own noise" + counts.words(federation))


def decoded_updates(federation: Federation) -> list[Guarantee]:
    """Guarantees against whoever sees every decoded update, but not the shared randomness.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    adversary = "whoever sees decoded updates"
    if federation.counted is not None:
        return _none(counts.SEEN, federation)
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, adversary)


def colluding_clients(federation: Federation) -> list[Guarantee]:
    """Guarantees against all other clients together, who subtract their own updates and noise.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    adversary = "the other clients"
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, adversary)


def server(federation: Federation) -> list[Guarantee]:
    """Guarantees against a server that knows the shared randomness: private noise alone counts.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    if federation.counted is not None:
        return _none(counts.SEEN, federation)
    return _own_noise(federation, federation.server, lambda phase: phase.server, "the server")


def released_model(federation: Federation) -> list[Guarantee]:
    """Guarantees against those who see the models alone.

    Where the noise of all participants adds up, z_k = sqrt(sum_j w_j^2 sigma_j^2) / (w_k C_k): see
    `noise_sums`.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    law = federation.outsiders
    summed = federation.aggregation == "weighted_sum" and federation.fresh and federation.summable
    alone = federation.sampling == "poisson" or not federation.independent_coordinates
    if law != "gaussian" or not summed or alone:
        adversary = "whoever sees the model"
        return _own_noise(federation, law, lambda phase: phase.outsiders, adversary)
    reason = missing.reason(law, federation, "whoever sees the model")
    if reason:
        return _none(reason, federation)
    of_phase = [
        (phase.rounds, counts.joined(federation, noise_sums.multipliers(federation, phase)))
        for phase in federation.phases
    ]
    basis = "the noise of all participants" + counts.words(federation)
    if any(phase.least_ratios for phase in federation.phases):
        basis += ", whatever weights earlier results led to"
    hidden = federation.hidden and _exchangeable(federation) and federation.sampling == "fixed"
    return _guarantees(federation, law, of_phase, basis, hidden)


def _exchangeable(federation: Federation) -> bool:
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


def _guarantees(
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
        multipliers = tuple((rounds, float(z[k])) for rounds, z in of_phase)
        if multipliers not in built:
            built[multipliers] = _guarantee(federation, law, multipliers, basis, hidden)
        guarantees.append(built[multipliers])
    return guarantees


def _guarantee(
    federation: Federation, law: str, multipliers: Multipliers, basis: str, hidden: bool
) -> Guarantee:
    """The guarantee of a client with these noise multipliers; the arguments are those of `_guarantees`."""
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
    if hidden:
        # Stated for the replace relation, of which a client's update that becomes zero is one case.
        releases.append(sampled_without_replacement(clients, per_round, multipliers))
        bases.append(f"{basis}, and on nobody knowing who was drawn")
    return Guarantee(tuple(releases), relation, "", tuple(bases))


ADVERSARIES = {
    "released_model": released_model,
    "colluding_clients": colluding_clients,
    "decoded_updates": decoded_updates,
    "server": server,
}
