"""Methods over the same seeds: differences, confidence bounds, and what they decide about a claim.

Seeds decide partition, initial model and batches, so runs of one seed belong together.

That a test rejects nothing shows nothing: few runs reject nothing, whatever is true. So a claim holds here
only where confidence bounds lie on its side of a stated threshold ("at most half a point worse"), and does
not hold where they lie on the other side; between the two it is not decided. Conditions have one of three
states: True (shown), False (its opposite shown) or None (neither), joined by `all_of` and `any_of`. All
bounds behind one claim hold together with probability 1 - `FALSE_ALARMS` (Bonferroni), so that neither
"holds" nor "does not hold" is said more often than that where it is wrong. Bounds are Student's: they
suppose that differences over seeds are about normal.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import integrate, optimize, stats

FALSE_ALARMS = 0.05  # that any of the bounds behind one claim is wrong
TOGETHER = f"together at {100 * FALSE_ALARMS:g} %"
LEAST_SEEDS = 3  # runs below which nothing is said
MARGIN = 0.5  # points of accuracy below which a difference does not matter here


def deviation(values) -> float:
    """Standard deviation over runs; 0 for a single one, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread(values, digits: int = 4) -> str:
    """Mean and standard deviation over runs, as text."""
    after = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{after}"


def in_points(first, second) -> np.ndarray:
    """Paired differences of two sets of accuracies, in points (hundredths)."""
    return 100 * (np.asarray(first, float) - np.asarray(second, float))


def with_error(values) -> str:
    """Mean of values and its standard error, as text; a single value has no error to show."""
    error = f" ± {deviation(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{error}"


def points(first, second) -> str:
    """`with_error` of the paired differences of two sets of runs, in points."""
    return with_error(in_points(first, second))


# Of the folds of a tenfold cross-validation: `share` of `bounds`.
FOLDS = 1 / 9


def of_folds(share: float) -> str:
    """What is said of tests with such a `share` of `bounds`: seeds are splits of the same data."""
    return ", corrected for splits that share training data" if share else ""


def bounds(values, tests: int = 1, share: float = 0.0) -> tuple[float, float]:
    """Student's lower and upper confidence bound of a mean.

    Args:
      values: [runs]; independent, or of folds.
      tests: bounds that are to hold together; each one is wrong with probability `FALSE_ALARMS` / tests.
      share: where runs are folds of one data set, its test examples over its training examples: folds share
        training examples, so that their mean varies more than their scatter says (Nadeau and Bengio,
        Inference for the Generalization Error, Machine Learning 52, 2003: the "corrected resampled" t test).

    Returns:
      The two bounds; infinite for fewer than two values, or where one is not finite.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return -math.inf, math.inf
    error = values.std(ddof=1) * math.sqrt(1 / len(values) + share)
    half = stats.t.ppf(1 - FALSE_ALARMS / tests, len(values) - 1) * error
    return float(values.mean() - half), float(values.mean() + half)


def above(values, least: float, tests: int = 1, share: float = 0.0) -> bool | None:
    """Whether the mean is above `least`: shown, its opposite shown, or neither."""
    low, high = bounds(values, tests, share)
    return True if low > least else False if high < least else None


def below(values, most: float, tests: int = 1, share: float = 0.0) -> bool | None:
    """Whether the mean is below `most`: shown, its opposite shown, or neither."""
    return above(-np.asarray(values, float), -most, tests, share)


def all_of(states: Iterable[bool | None]) -> bool | None:
    """Whether all conditions are true: False as soon as one is, None as long as one is open."""
    states = list(states)
    return False if False in states else None if None in states else True


def any_of(states: Iterable[bool | None]) -> bool | None:
    """Whether some condition is true: True as soon as one is, None as long as one is open."""
    states = list(states)
    return True if True in states else None if None in states else False


def verdict(state: bool | None, seeds: int, part: bool | None = False) -> str:
    """One of `output.VERDICTS`.

    Args:
      state: of the claim.
      seeds: runs that it rests on; fewer than `LEAST_SEEDS` test nothing.
      part: state of a weaker claim; where it is shown and the claim is not true, the claim holds in part.
    """
    if seeds < LEAST_SEEDS:
        return "not tested"
    if state is False and part is True:
        return "holds in part"
    return {True: "holds", False: "does not hold", None: "not decided"}[state]


def power(
    distance: float, spread_of_runs: float, seeds: int, tests: int = 1, two_sided: bool = False
) -> float:
    """Probability that a mean is shown to be on its side of a threshold, or of two.

    Args:
      distance: of the true mean from the threshold.
      spread_of_runs: standard deviation over runs.
      seeds: number of runs.
      tests: as for `bounds`.
      two_sided: whether there are two thresholds, with the true mean in their middle: both bounds have to lie
        between them, which is far less likely than that one of them does where it is unlikely at all.

    Returns:
      The probability; 1 for runs that do not differ.
    """
    if spread_of_runs == 0:
        return float(distance > 0)
    needed = stats.t.ppf(1 - FALSE_ALARMS / tests, seeds - 1)
    far = distance * math.sqrt(seeds) / spread_of_runs
    if not two_sided:
        return float(stats.nct.sf(needed, seeds - 1, far))
    # Of a sample of deviation s (over the true one) the mean may be off by far - needed s at most. The square
    # of s is chi-squared and independent of the mean.
    law = stats.chi(seeds - 1, scale=1 / math.sqrt(seeds - 1))
    inside = lambda s: law.pdf(s) * (2 * stats.norm.cdf(far - needed * s) - 1)  # noqa: E731
    return float(integrate.quad(inside, 0, far / needed, limit=200)[0])


def detectable(
    spread_of_runs: float, seeds: int, tests: int = 1, two_sided: bool = False, probability: float = 0.8
) -> float:
    """The distance from a threshold that is shown with the given probability; arguments as for `power`."""
    if spread_of_runs == 0:
        return 0.0

    def missing(distance):
        return power(distance, spread_of_runs, seeds, tests, two_sided) - probability

    end = spread_of_runs / math.sqrt(seeds)
    while missing(end) < 0:
        end *= 2
    return float(optimize.brentq(missing, 0, end))


class Finding(NamedTuple):
    """What many comparisons say about one claim.

    Attributes:
      state: whether it is true of all of them: shown, its opposite shown of one, or neither.
      measured: the least certain comparison, and those that differ from zero beyond chance, as text.
      why: as text: margin, number of bounds, and the power of the noisiest comparison: with what
        probability it is shown if there is no difference at all, and for what margin that would be .8.
    """

    state: bool | None
    measured: str
    why: str


def losses(found: Mapping[str, np.ndarray], margin: float, tests: int | None = None) -> Finding:
    """Non-inferiority: is every mean loss below the margin?

    Args:
      found: {what is compared: points lost [seeds], paired}.
      margin: in points.
      tests: comparisons behind this claim and its sisters, if they are more than these.
    """
    return _judge(found, margin, max(tests or 0, len(found)), two_sided=False)


def differences(found: Mapping[str, np.ndarray], margin: float, tests: int | None = None) -> Finding:
    """Equivalence, by two one-sided tests each: does every mean lie within the margin of zero?

    Both sides of a comparison count as one bound of all that are to hold together. Arguments as for
    `losses`.
    """
    return _judge(found, margin, 2 * max(tests or 0, len(found)), two_sided=True)


def _judge(found: Mapping[str, np.ndarray], margin: float, tests: int, two_sided: bool) -> Finding:
    states, lines, beyond = [], [], []
    for label, values in found.items():
        low, high = bounds(values, tests)
        sides = [below(values, margin, tests)] + ([above(values, -margin, tests)] if two_sided else [])
        states.append(all_of(sides))
        mean = f"{label}: {with_error(values)}"
        limit = f"{low:+.2f} to {high:+.2f}" if two_sided else f"at most {high:+.2f}"
        lines.append((max(high, -low) if two_sided else high, f"{mean} ({limit})"))
        if low > 0 or (two_sided and high < 0):
            beyond.append(mean)
    measured = max(lines)[1]
    if len(found) > 1:
        measured = f"least certain: {measured}; {states.count(True)} of {len(found)} shown"
    if beyond:
        measured += "; beyond chance not zero: " + ", ".join(beyond)
    why = f"margin {margin:g} points; {tests} bounds of paired t tests, {TOGETHER}"
    runs = [values for values in found.values() if len(values) > 1 and np.isfinite(values).all()]
    if runs:
        widest = max(runs, key=lambda values: deviation(values) / math.sqrt(len(values)))
        size = deviation(widest), len(widest), tests, two_sided
        chance = power(margin, *size)
        shown = f"{chance:.2f}" if chance >= 0.01 else "below 0.01"
        why += f"; power {shown} (0.80 for a margin of {detectable(*size):.2g})"
    return Finding(all_of(states), measured, why)
