"""Confidence intervals of proportions and of areas under the ROC curve, for few examples."""

import math

from scipy import optimize, stats

CONFIDENCE = 0.95


def _z() -> float:
    return float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def wilson(successes: float, number: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) where nothing was tried.

    Wilson: Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    if not number:
        return 0.0, 1.0
    z, p = _z(), successes / number
    middle = (p + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(p * (1 - p) / number + z**2 / (4 * number**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def area_interval(area: float, yes: float, no: float) -> tuple[float, float]:
    """A score interval of the area under the ROC curve, which an area of 1 does not make empty.

    Newcombe: Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    Statistics in Medicine 25, 2006, method 5: all areas from which the measured one is at most z deviations
    away, where the deviation is that of Hanley and McNeil's exponential model at the area asked.

    Args:
      area: measured; NaN where there is none.
      yes, no: numbers of examples with each outcome.

    Returns:
      The two ends; (0, 1) where an outcome never came.
    """
    if not yes * no:
        return 0.0, 1.0
    z, pairs, middle = _z(), yes * no, (yes + no) / 2 - 1

    def beyond(true):
        spread = (1 - true) / (2 - true) + true / (1 + true)
        variance = true * (1 - true) * (1 + middle * spread) / pairs
        return (area - true) ** 2 - z**2 * variance

    low = 0.0 if area <= 0 else optimize.brentq(beyond, 0, area - 1e-12) if beyond(0) > 0 else 0.0
    high = 1.0 if area >= 1 else optimize.brentq(beyond, area + 1e-12, 1) if beyond(1) > 0 else 1.0
    return float(low), float(high)
