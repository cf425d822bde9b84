"""From a federation to differential privacy: one function per adversary.

  released_model      sees the models alone
  colluding_clients   all other clients together: they know their own randomness and subtract their noise
  decoded_updates     sees every decoded update, but not the shared randomness
  server              knows the shared randomness

Nobody is protected from an eavesdropper who reads the messages themselves: LRSUQ's integers without the
shared key are no noisy update (an integer other than zero betrays a sign); links must be encrypted.

Every function returns, for each client, a `dp_accounting` event, or a reason why there is none. The rules:

- The guarantee needs a bound on how far a client moves the result: an L2 clip for Gaussian noise
  (an L1 clip implies one), an L1 clip for Laplace noise.
- Add/remove: a client's update appears or is replaced by zero, moving the sum by w_k C_k at most. Replace:
  by another one, 2 w_k C_k. The noise stays: clients without an update still send noise.
- Against the released model, Gaussian noises of all participants add up: sum_j w_j^2 sigma_j^2. Sums of
  Laplace noises are not Laplace; a client then counts on its own noise alone, which is a valid bound.
- Laplace noise on vectors with |x|_1 <= C is dominated by Laplace noise on one coordinate moved by C: for
  Laplace, the trade-off function of a move s1 + s2 is the composition of those of s1 and s2, and group
  privacy composes no worse than a product (Dong, Roth, Su: Gaussian differential privacy, 1905.02383).
- Sampling clients amplifies privacy only against an adversary who cannot see who took part: the
  released model's. Fixed-size sampling is accounted for under the replace relation.
"""

from collections.abc import Callable
from typing import NamedTuple

import dp_accounting
import numpy as np

RELATIONS = ("add_remove", "replace")
SAMPLINGS = ("all", "fixed", "poisson")


class Phase(NamedTuple):
    """Rounds with the same noise.

    Attributes:
      rounds: how many.
      outsiders: f64[clients], standard deviation of the noise against those without the shared key.
      server: f64[clients], of the private noise alone.
    """

    rounds: int
    outsiders: np.ndarray
    server: np.ndarray


class Federation(NamedTuple):
    """What the guarantee depends on.

    Attributes:
      outsiders, server: law of the noise, "gaussian", "laplace" or None.
      norm: the norm that is bounded, "l2", "l1" or None.
      clip: f64[clients], its bound; at example level how far one example moves the update.
      phases: the noise over the rounds.
      weights: f64[clients], of the aggregation, up to a common factor.
      relation: "add_remove" or "replace".
      sampling: "all" clients every round, "fixed" (per_round drawn without replacement) or "poisson" (each
        with probability per_round / clients).
      per_round: participants (expected number under "poisson").
      independent_coordinates: whether everybody sends all coordinates. With random masks a client can
        count on its own noise alone.
      not_covered: what else reaches the adversary or shapes the result, in words.
      unit: "client" or "example".
    """

    outsiders: str | None
    server: str | None
    norm: str | None
    clip: np.ndarray
    phases: tuple[Phase, ...]
    weights: np.ndarray
    relation: str = "add_remove"
    sampling: str = "all"
    per_round: int = 0
    independent_coordinates: bool = True
    not_covered: tuple[str, ...] = ()
    unit: str = "client"


class Guarantee(NamedTuple):
    """Of one client: an event, or NonPrivateDpEvent and why; and the relation that it holds under."""

    event: dp_accounting.DpEvent
    relation: str
    reason: str = ""


def _none(reason: str, federation: Federation) -> list[Guarantee]:
    lost = Guarantee(dp_accounting.NonPrivateDpEvent(), federation.relation, reason)
    return [lost] * len(federation.clip)


def _missing(law: str | None, norm: str | None, who: str) -> str:
    """Why there is no guarantee, or nothing."""
    if law is None:
        return f"no noise hides the update from {who}"
    if norm is None:
        return "updates are not clipped: one client may move the result without bound"
    if law == "laplace" and norm != "l1":
        return "Laplace noise needs an L1 clip, and the clip is L2"
    return ""


def _composed(law: str, multipliers, relation: str) -> dp_accounting.DpEvent:
    """Rounds without sampling. `multipliers`: (rounds, noise over how far one unit moves the result)."""
    halve = 2.0 if relation == "replace" else 1.0
    if law == "gaussian":  # a composition of Gaussian mechanisms is one Gaussian mechanism
        inverse = sum(count * (halve / z) ** 2 for count, z in multipliers)
        return dp_accounting.GaussianDpEvent(float(inverse**-0.5))
    events = [
        dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(float(z / halve)), count)
        for count, z in multipliers
    ]
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def _scale(law: str, deviation):
    """The noise in units of its own sensitivity: sigma, or b of a Laplace law with that deviation."""
    return deviation if law == "gaussian" else deviation / np.sqrt(2)


def _own_noise(federation: Federation, law, deviation_of: Callable, who: str) -> list[Guarantee]:
    reason = _missing(law, federation.norm, who)
    if reason:
        return _none(reason, federation)
    multipliers = [
        (phase.rounds, _scale(law, np.asarray(deviation_of(phase), np.float64)) / federation.clip)
        for phase in federation.phases
    ]
    return _per_client(federation, lambda k: [(n, z[k]) for n, z in multipliers], law)


def _per_client(federation, multipliers_of, law, build=None, relation=None) -> list[Guarantee]:
    """Builds each distinct event once."""
    built, found = {}, []
    relation = relation or federation.relation
    build = build or (lambda multipliers: _composed(law, multipliers, relation))
    for k in range(len(federation.clip)):
        key = tuple((n, float(z)) for n, z in multipliers_of(k))
        if key not in built:
            usable = all(z > 0 for _, z in key)
            event = build(list(key)) if usable else dp_accounting.NonPrivateDpEvent()
            built[key] = Guarantee(event, relation, "" if usable else "the noise is zero")
        found.append(built[key])
    return found


def decoded_updates(federation: Federation) -> list[Guarantee]:
    """Against whoever sees every decoded update, but not the shared randomness: z_k = sigma_k / C_k."""
    who = "whoever sees decoded updates"
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, who)


def colluding_clients(federation: Federation) -> list[Guarantee]:
    """Against all other clients together, who subtract their own updates and noise: z_k = sigma_k / C_k."""
    who = "the other clients"
    return _own_noise(federation, federation.outsiders, lambda phase: phase.outsiders, who)


def server(federation: Federation) -> list[Guarantee]:
    """Against a server that knows the shared randomness: private noise alone counts."""
    return _own_noise(federation, federation.server, lambda phase: phase.server, "the server")


def released_model(federation: Federation) -> list[Guarantee]:
    """Against those who see the models alone: z_k = sqrt(sum_j w_j^2 sigma_j^2) / (w_k C_k)."""
    law = federation.outsiders
    reason = _missing(law, federation.norm, "whoever sees the model")
    if reason:
        return _none(reason, federation)
    weights, clip = np.asarray(federation.weights, np.float64), federation.clip
    multipliers = []
    for phase in federation.phases:
        deviation = np.asarray(phase.outsiders, np.float64)
        own = _scale(law, deviation) / clip
        if law == "gaussian" and federation.independent_coordinates:
            spread = np.square(weights * deviation)
            total = np.sum(spread)
            if federation.sampling != "all":  # the client's own noise and that of the quietest others
                others = federation.per_round - 1 if federation.sampling == "fixed" else 0
                total = spread + np.sum(np.sort(spread)[:others])
            own = np.sqrt(total) / (weights * clip)
        multipliers.append((phase.rounds, np.broadcast_to(own, clip.shape)))
    of_client = lambda k: [(n, z[k]) for n, z in multipliers]  # noqa: E731
    if federation.sampling == "all":
        return _per_client(federation, of_client, law)
    return _sampled(federation, of_client, law)


def _sampled(federation, of_client, law) -> list[Guarantee]:
    clients, per_round = len(federation.clip), federation.per_round
    noise = dp_accounting.GaussianDpEvent if law == "gaussian" else dp_accounting.LaplaceDpEvent
    if federation.sampling == "fixed" and law == "laplace":
        # No accountant at hand knows this case: the guarantee without amplification is a valid one.
        return _per_client(federation, of_client, law)

    def build(multipliers):
        events = []
        for count, z in multipliers:
            if federation.sampling == "poisson":
                event = dp_accounting.PoissonSampledDpEvent(per_round / clients, noise(z))
            else:
                event = dp_accounting.SampledWithoutReplacementDpEvent(clients, per_round, noise(z / 2))
            events.append(dp_accounting.SelfComposedDpEvent(event, count))
        return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)

    relation = "replace" if federation.sampling == "fixed" else "add_remove"
    return _per_client(federation, of_client, law, build, relation)


ADVERSARIES = {
    "released_model": released_model,
    "colluding_clients": colluding_clients,
    "decoded_updates": decoded_updates,
    "server": server,
}
