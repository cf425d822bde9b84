"""From epsilon to noise, and back to how long a budget lasts."""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize

from cepam_jax.errors import ConfigError, require
from cepam_jax.privacy import events
from cepam_jax.privacy.accounting import guaranteed
from cepam_jax.privacy.federation import Federation, Phase
from cepam_jax.theory import rate

_LOG_RANGE = (-14.0, 14.0)


def largest_epsilon(federation: Federation, adversary: str, delta: float) -> float:
    """Over clients."""
    return max({guaranteed(g, delta) for g in events.ADVERSARIES[adversary](federation)})


def gamma_for(
    federation_of: Callable[[float], Federation], adversary: str, target: float, delta: float
) -> float:
    """The largest gamma whose epsilon stays below the target for every client.

    Args:
      federation_of: gamma -> Federation. Epsilon must grow with gamma.
      adversary: of `events.ADVERSARIES`.
      target: epsilon.
      delta: as for `epsilon`.

    Raises:
      ConfigError: no noise reaches the target; says why.
    """
    require(target > 0, "target epsilon", target, "positive")
    # Where the noise is largest: another part of the error may take over what gamma leaves.
    quiet = federation_of(math.exp(_LOG_RANGE[0]))
    reasons = {g.reason for g in events.ADVERSARIES[adversary](quiet)} - {""}
    if reasons:
        raise ConfigError(f"no gamma gives an epsilon against {adversary}: {reasons.pop()}")

    def excess(log_gamma):
        found = largest_epsilon(federation_of(math.exp(log_gamma)), adversary, delta)
        return min(math.log(max(found, 1e-12)), 1e3) - math.log(target)

    low, high = _LOG_RANGE
    if excess(low) > 0:
        raise ConfigError(f"no gamma above e^{low:g} keeps epsilon against {adversary} below {target:g}")
    if excess(high) < 0:
        return math.exp(high)
    found = optimize.brentq(excess, low, high, xtol=1e-7)
    return math.exp(found - 1e-6)  # on the safe side of the root


def sigmas_for(
    targets, clip, rounds: int, delta: float, law: str = "gaussian", relation: str = "add_remove"
) -> np.ndarray:
    """Each client's noise from its own epsilon, against `decoded_updates` or `colluding_clients`.

    Against those a client counts on its own noise, so everyone chooses alone. (Against the released model
    noises add up and the strictest client decides for all: use `gamma_for`.)

    Args:
      targets: f64[clients], epsilon of each client.
      clip: f64[clients], bound of each client's norm: L2 for a Gaussian, L1 for a Laplace law.
      rounds: in which every client takes part.
      delta: as for `epsilon`.
      law: of the noise.
      relation: as for `Federation`.

    Returns:
      f64[clients], standard deviation of the noise.
    """
    targets, clip = np.broadcast_arrays(np.asarray(targets, np.float64), np.asarray(clip, np.float64))
    norm = "l2" if law == "gaussian" else "l1"

    def alone(gamma):
        sigma = np.ones(1) * (1 if law == "gaussian" else math.sqrt(2)) / gamma
        phase = Phase(rounds, sigma, sigma)
        return Federation(
            law, None, norm, np.ones(1), (phase,), np.ones(1), relation, aggregation="function", fresh=True
        )

    gammas = {t: gamma_for(alone, "decoded_updates", t, delta) for t in set(targets.ravel().tolist())}
    unit = 1.0 if law == "gaussian" else math.sqrt(2)
    return np.array([unit * c / gammas[t] for t, c in zip(targets.ravel(), clip.ravel(), strict=True)])


def affordable_rounds(
    federation_of: Callable[[int], Federation], adversary: str, target: float, delta: float, most: int
) -> int:
    """The most rounds, up to `most`, whose epsilon stays below the target; 0 if not even one does.

    Args:
      federation_of: rounds -> Federation.
      The others: as for `gamma_for`.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if largest_epsilon(federation_of(middle), adversary, delta) <= target:
            low = middle
        else:
            high = middle - 1
    return low


def expected_bits(gamma: float, coordinates: int) -> float:
    """Bits per coordinate of scalar LRSUQ to expect for a clipped update of full norm, Gaussian target.

    An update of norm C over d coordinates has deviation s = C / sqrt(d), so s / sigma = gamma / sqrt(d); the
    rate is `theory.rate.layered_limit` of that ratio. Updates shorter than the clip take less.
    """
    return rate.layered_limit(gamma / math.sqrt(coordinates))
