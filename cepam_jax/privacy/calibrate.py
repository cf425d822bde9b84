"""How much noise an epsilon takes, and how many rounds it allows.

Gamma is the clip over the standard deviation of the noise: the larger it is, the less noise there is.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from cepam_jax.errors import ConfigError, require
from cepam_jax.privacy import events
from cepam_jax.privacy.accounting import guaranteed
from cepam_jax.privacy.federation import Federation, Phase
from cepam_jax.theory import rate

_LOG_RANGE = (-14.0, 14.0)


def largest_epsilon(federation: Federation, adversary: str, delta: float) -> float:
    """The largest epsilon of any client.

    Args:
      federation: the facts that guarantees depend on.
      adversary: one of `events.ADVERSARIES`.
      delta: as for `epsilon`.

    Returns:
      epsilon; infinity if a client has no guarantee.
    """
    # Equal guarantees are one object, and hashing tens of thousands takes longer than accounting for one.
    different = {id(g): g for g in events.ADVERSARIES[adversary](federation)}
    return max(guaranteed(g, delta) for g in different.values())


def gamma_for(
    federation_of: Callable[[float], Federation], adversary: str, target: float, delta: float
) -> float:
    """The largest gamma whose epsilon stays below the target for every client.

    Args:
      federation_of: gamma -> Federation. Epsilon must grow with gamma.
      adversary: one of `events.ADVERSARIES`.
      target: the epsilon to stay below, above 0.
      delta: as for `epsilon`.

    Returns:
      gamma.

    Raises:
      ConfigError: no noise reaches the target; the message says why.
    """
    require(target > 0, "target epsilon", target, "positive")
    # Where the noise is largest: another part of the error may take over what gamma leaves.
    quiet = federation_of(math.exp(_LOG_RANGE[0]))
    reasons = {g.reason for g in events.ADVERSARIES[adversary](quiet)} - {""}
    if reasons:
        raise ConfigError(f"no gamma gives an epsilon against {adversary}: {reasons.pop()}")

    def excess(log_gamma: float) -> float:
        """Logarithm of epsilon over the target; positive where there is too little noise."""
        epsilon = largest_epsilon(federation_of(math.exp(log_gamma)), adversary, delta)
        return min(math.log(max(epsilon, 1e-12)), 1e3) - math.log(target)

    low, high = _LOG_RANGE
    if excess(low) > 0:
        why = ": updates within their clips are counted, and the noise on that count alone spends more"
        counted = "" if quiet.counted is None else why
        raise ConfigError(
            f"no gamma above e^{low:g} keeps epsilon against {adversary} below {target:g}{counted}"
        )
    if excess(high) < 0:
        return math.exp(high)
    root = optimize.brentq(excess, low, high, xtol=1e-7)
    margin = 1e-6  # on the safe side of the root, also where rounding has epsilon go up and down
    while excess(root - margin) > 0:
        margin *= 2
    return math.exp(root - margin)


def sigmas_for(
    targets: ArrayLike,
    clip: ArrayLike,
    rounds: int,
    delta: float,
    law: str = "gaussian",
    relation: str = "add_remove",
) -> np.ndarray:
    """Each client's noise from its own epsilon, against `decoded_updates` or `colluding_clients`.

    Against these adversaries a client counts on its own noise, so every client chooses alone. (Against the
    released model noises add up and the strictest client decides for all: use `gamma_for`.)

    Args:
      targets: f64[clients], epsilon of each client.
      clip: f64[clients], bound of each client's norm: L2 for a Gaussian, L1 for a Laplace law.
      rounds: number of rounds, in each of which every client takes part.
      delta: as for `epsilon`.
      law: law of the noise, "gaussian" or "laplace".
      relation: as for `Federation`.

    Returns:
      f64[clients], standard deviation of the noise, in units of the update.

    Raises:
      ConfigError: no noise reaches a target.
    """
    targets, clip = np.broadcast_arrays(np.asarray(targets, np.float64), np.asarray(clip, np.float64))
    norm = "l2" if law == "gaussian" else "l1"

    def alone(gamma: float) -> Federation:
        """A federation of one client with clip 1 and this gamma."""
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
      federation_of: number of rounds -> Federation.
      adversary: one of `events.ADVERSARIES`.
      target: the epsilon to stay below.
      delta: as for `epsilon`.
      most: the largest number of rounds that counts.

    Returns:
      A number of rounds from 0 to `most`.
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
    """Bits per coordinate to expect of scalar LRSUQ with a Gaussian target, for updates as long as the clip.

    An update of norm C over d coordinates has deviation s = C / sqrt(d), so s / sigma = gamma / sqrt(d); the
    rate is `theory.rate.layered_limit` of that ratio. Updates shorter than the clip take less.

    Args:
      gamma: clip over the standard deviation of the noise.
      coordinates: d, number of coordinates of the update.

    Returns:
      Bits per coordinate.
    """
    return rate.layered_limit(gamma / math.sqrt(coordinates))
