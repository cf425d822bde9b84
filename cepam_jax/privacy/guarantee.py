"""What is guaranteed to one client, and when nothing is."""

from typing import NamedTuple

import dp_accounting

from cepam_jax.privacy.federation import Federation, check
from cepam_jax.privacy.releases import Release


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
    return ""
