"""What the sampling of examples within a client is worth for one round, as the CEPAM papers count it.

Ling, Shiu, Wu, Sun, Li, Song, Xu: Communication-Efficient and Privacy-Adaptable Mechanism for Federated
Learning, arXiv 2501.12046, section on privacy: a client draws m of its n examples with replacement and sends
one clipped update with Gaussian noise; neighbours differ in one example of that client. The example is drawn
at all with probability p = 1 - (1 - 1/n)^m, and a pair (epsilon~, delta~) of the noise alone becomes

  epsilon = log(1 + p (exp(epsilon~) - 1)),  delta = p delta~

(Balle, Barthe, Gaboardi: Privacy Amplification by Subsampling: Tight Analyses via Couplings and Divergences,
arXiv 1807.01647, theorem 10; the update is clipped as a whole, so that an example which comes more than once
moves it no farther than one that comes once).

These are statements about one round. Nothing in this project's privacy reports rests on them: those
compose over rounds, at the level of clients. They are here to read published epsilons with.
"""

import math

import dp_accounting
import numpy as np

from cepam_jax.errors import require
from cepam_jax.privacy import releases


def chance(examples: int, draws: int) -> float:
    """Probability that one of a client's examples is drawn at all: 1 - (1 - 1/examples)^draws.

    Args:
      examples: of the client.
      draws: with replacement, all together in a round.
    """
    require(examples >= 1, "examples", examples, "at least 1")
    require(draws >= 1, "draws", draws, "at least 1")
    return 1.0 if examples == 1 else -math.expm1(draws * math.log1p(-1.0 / examples))


def amplified(epsilon: float, delta: float, probability: float) -> tuple[float, float]:
    """(epsilon, delta) of a round in which what is protected takes part with a probability only.

    Args:
      epsilon, delta: of a round in which it takes part.
      probability: above 0, at most 1.
    """
    _check_probability(probability)
    with np.errstate(divide="ignore"):  # a probability of 1
        grown = np.logaddexp(np.log1p(-probability), math.log(probability) + epsilon)
    return float(grown), probability * delta


def before_sampling(epsilon: float, delta: float, probability: float) -> tuple[float, float]:
    """The (epsilon~, delta~) that noise alone must give for `amplified` to give this pair.

    A delta~ of 1 or more asks nothing of the noise: the pair holds for any mechanism, also for one that sends
    the examples in the clear. So it is wherever delta is at least the chance of being drawn.
    """
    _check_probability(probability)
    grown = epsilon + math.log(-math.expm1(-epsilon)) if epsilon > 0 else -math.inf  # log(exp(epsilon) - 1)
    return float(np.logaddexp(grown - math.log(probability), 0.0)), delta / probability


def says_nothing(delta: float, probability: float) -> bool:
    """Whether (0, delta) holds without any noise: delta is at least the chance of being drawn."""
    _check_probability(probability)
    return delta >= probability


def gaussian_delta(epsilon: float, multiplier: float) -> float:
    """The exact delta of Gaussian noise of one release.

    Args:
      epsilon: not negative.
      multiplier: deviation of the noise over the sensitivity, above 0.
    """
    require(multiplier > 0, "multiplier", multiplier, "above 0")
    return float(releases.gaussian_delta(epsilon, 1 / multiplier))


def gaussian_epsilon(delta: float, multiplier: float) -> float:
    """The least epsilon of Gaussian noise of one release at this delta; 0 where none is needed.

    Args:
      delta: above 0.
      multiplier: deviation of the noise over the sensitivity, above 0.
    """
    require(delta > 0, "delta", delta, "above 0")
    require(multiplier > 0, "multiplier", multiplier, "above 0")
    return float(dp_accounting.get_epsilon_gaussian(multiplier, delta))


def round_epsilon(delta: float, multiplier: float, probability: float) -> float:
    """The least epsilon that one round has at this delta, for an example of the client.

    Args:
      delta: above 0.
      multiplier: deviation of the noise over how far a replaced example may move the update.
      probability: that the example is drawn.

    Returns:
      0 where `says_nothing`.
    """
    if says_nothing(delta, probability):
        return 0.0
    return amplified(gaussian_epsilon(delta / probability, multiplier), 0.0, probability)[0]


def _check_probability(probability: float) -> None:
    require(0 < probability <= 1, "probability", probability, "above 0 and at most 1")
