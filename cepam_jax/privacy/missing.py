"""Why nothing is guaranteed against an adversary, where a federation lacks what a guarantee needs."""

from cepam_jax.privacy.federation import Federation, check


def reason(law: str | None, federation: Federation, adversary: str) -> str:
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
    return _for_laplace(federation) if law == "laplace" else ""


def _for_laplace(federation: Federation) -> str:
    """The same, of Laplace noise alone."""
    if federation.norm != "l1":
        return "Laplace noise needs an L1 clip, and the clip is L2"
    if federation.budget is not None:
        return "earlier results set the noise, and the filter for that is one of Gaussian noise"
    if federation.counted is not None:
        return "the noise on the count of updates within their clips is Gaussian, and the updates' is not"
    return ""
