"""What a federation guarantees: one function for each adversary.

  released_model      sees the models alone
  colluding_clients   is all other clients together: they know their own randomness and subtract their noise
  decoded_updates     sees every decoded update, but not the shared randomness
  server              knows the shared randomness; under a secure sum it sees one sum of each round
  server_and_colluders  the same, with clients that tell it their noise; of a secure sum those that it states

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
- Under a secure sum the server, and everybody who sees less, faces the noise of the least number of messages
  whose sum is opened, but for the slack that `secure_sums` bounds (docs/secure_sums.md).
- Laplace noise on vectors with |x|_1 <= C is dominated by Laplace noise on one coordinate moved by C: for
  Laplace, the trade-off function of a move s1 + s2 is the composition of those of s1 and s2, and group
  privacy composes no worse than a product (Dong, Roth, Su: Gaussian Differential Privacy, arXiv 1905.02383).
- Where a random part of the clients takes part, a client is seen in n of T rounds only, n binomial. That
  holds against an adversary who sees all the draws, so against everybody (`releases.ObservedDraws`).
- Noise that the server adds to a sum with public weights hides a client from all who see the sum alone, the
  other clients together included: they know their updates and messages, and nothing of that noise. What
  clients remember is in their messages, and not in the noise. A Laplace variable of the server's is one, not
  a sum, so its whole variance counts. Decoded updates have no noise, and the server knows its own.
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
- Where the server fills up the noise under Poisson sampling, the sum has the same noise whoever comes, and
  each client comes by itself: given all other draws, the subsampled Gaussian mechanism under add/remove
  (Mironov, Talwar, Zhang: Rényi Differential Privacy of the Sampled Gaussian Mechanism, arXiv 1908.10530),
  against the other clients too. Neither equal weights nor equal noises are needed.
"""

import math
from collections.abc import Callable

import numpy as np

from cepam_jax.privacy import counts, noise_sums, secure_sums
from cepam_jax.privacy.federation import Federation, Phase, bounds
from cepam_jax.privacy.guarantee import Guarantee, exchangeable, guarantees, hides_draws, missing, none
from cepam_jax.privacy.releases import noise_scale

_BEFORE_THE_SUM = "whoever sees decoded updates: the server adds it to their sum"


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
    reason = missing(law, federation, adversary)
    if law is None or reason:
        return none(reason, federation)
    of_phase = []
    for phase in federation.phases:
        z = noise_scale(law, deviation_of(phase)) / bounds(federation, phase)
        of_phase.append((phase.rounds, counts.joined(federation, np.broadcast_to(z, federation.clip.shape))))
    return guarantees(federation, law, of_phase, "each client's own noise" + counts.words(federation))


def decoded_updates(federation: Federation) -> list[Guarantee]:
    """Guarantees against whoever sees every decoded update, but not the shared randomness.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    if federation.central:
        return _own_noise(federation, None, lambda phase: phase.outsiders, _BEFORE_THE_SUM)
    adversary = "whoever sees decoded updates"
    if federation.counted is not None:
        return none(counts.SEEN, federation)
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, adversary)


def colluding_clients(federation: Federation) -> list[Guarantee]:
    """Guarantees against all other clients together, who subtract their own updates and noise.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    adversary = "the other clients"
    if federation.central:
        # They know all draws but the client's; where their number is fixed, they know that one, too.
        hidden = federation.hidden and federation.sampling == "poisson"
        return _of_sum(federation, adversary, hidden)
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, adversary)


def server(federation: Federation) -> list[Guarantee]:
    """Guarantees against a server that knows the shared randomness: private noise alone counts.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    if federation.counted is not None:
        return none(counts.SEEN, federation)
    if secure_sums.covers(federation):
        return _of_secure_sum(federation, 0, "the server")
    adversary = "the server" + (", which adds it itself" if federation.central else "")
    return _own_noise(federation, federation.server, lambda phase: phase.server, adversary)


def server_and_colluders(federation: Federation) -> list[Guarantee]:
    """Guarantees against a server whom clients tell their noise: under a secure sum, as many as it states.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client that does not collude.
    """
    if federation.counted is not None or not secure_sums.covers(federation):
        return server(federation)
    assert federation.summed is not None
    return _of_secure_sum(federation, federation.summed.colluders, "the server and its colluders")


def _of_secure_sum(
    federation: Federation, colluders: int, adversary: str, hidden: bool = False
) -> list[Guarantee]:
    """Guarantees by the noise in a secure sum of the least number of messages, without the colluders'."""
    law = federation.server
    reason = missing(law, federation, adversary)
    if law is None or reason:
        return none(reason, federation)
    slack = secure_sums.slack(federation, colluders)
    if not math.isfinite(slack):
        return none("the step of the secure sum is too large beside the noise of so few clients", federation)
    of_phase = [
        (phase.rounds, counts.joined(federation, secure_sums.multipliers(federation, phase, colluders)))
        for phase in federation.phases
    ]
    senders = secure_sums.least(federation) - colluders
    basis = f"the noise of {senders} participants in a sum that alone is seen" + counts.words(federation)
    found = guarantees(federation, law, of_phase, basis, hidden)
    return [one._replace(slack=slack) for one in found]


def released_model(federation: Federation) -> list[Guarantee]:
    """Guarantees against those who see the models alone.

    Where the noise of all participants adds up, z_k = sqrt(sum_j w_j^2 sigma_j^2) / (w_k C_k): see
    `noise_sums`.

    Args:
      federation: the facts that guarantees depend on.

    Returns:
      One guarantee for each client.
    """
    if secure_sums.covers(federation):
        hidden = federation.hidden and exchangeable(federation) and federation.sampling == "fixed"
        hidden = hidden and secure_sums.all_arrive(federation)
        return _of_secure_sum(federation, 0, "whoever sees the model", hidden)
    law = federation.outsiders
    if federation.central:
        return _of_sum(federation, "whoever sees the model", federation.hidden)
    if by_own_noise(federation):
        adversary = "whoever sees the model"
        return _own_noise(federation, law, lambda phase: phase.outsiders, adversary)
    return _of_sum(federation, "whoever sees the model", federation.hidden)


def by_own_noise(federation: Federation) -> bool:
    """Whether a client counts on its own noise alone, not on that of a sum, against the released model."""
    summed = federation.aggregation == "weighted_sum" and federation.fresh and federation.summable
    alone = (federation.sampling == "poisson" and not federation.filled) or (
        not federation.independent_coordinates
    )
    return federation.outsiders != "gaussian" or not summed or alone


def _of_sum(federation: Federation, adversary: str, hidden: bool) -> list[Guarantee]:
    """Guarantees by all the noise of a weighted sum: z_k = sqrt(sum_j w_j^2 sigma_j^2) / (w_k C_k).

    Args:
      federation: the facts that guarantees depend on.
      adversary: who sees the sum alone, in words.
      hidden: whether who was drawn is hidden from them.

    Returns:
      One guarantee for each client.
    """
    law, reason = federation.outsiders, missing(federation.outsiders, federation, adversary)
    if not reason and federation.aggregation != "weighted_sum":
        reason = "the server adds noise to what is no sum with public weights"
    if law is None or reason:
        return none(reason, federation)
    of_phase = [
        (
            phase.rounds,
            counts.joined(federation, noise_scale(law, noise_sums.multipliers(federation, phase))),
        )
        for phase in federation.phases
    ]
    basis = "the noise that the server adds" if federation.central else "the noise of all participants"
    basis += counts.words(federation)
    if any(phase.least_ratios for phase in federation.phases):
        basis += ", whatever weights earlier results led to"
    if federation.filled and not federation.central:
        basis = "the noise of all participants, and of the server in place of those who might have come"
    return guarantees(federation, law, of_phase, basis, hidden and hides_draws(federation))


ADVERSARIES = {
    "released_model": released_model,
    "colluding_clients": colluding_clients,
    "decoded_updates": decoded_updates,
    "server": server,
    "server_and_colluders": server_and_colluders,
}
