"""Two methods over the same seeds: their difference, and whether it is more than chance.

Seeds decide partition, initial model and batches, so runs of one seed belong together.
"""

import math

import numpy as np
from scipy import stats

FALSE_ALARMS = 0.05  # that any of the comparisons behind one claim rejects what is true


def deviation(values) -> float:
    """Standard deviation over runs; 0 for a single one, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread(values, digits: int = 4) -> str:
    """Mean and standard deviation over runs, as text."""
    after = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{after}"


def difference(first, second) -> tuple[float, float]:
    """Mean of the paired differences of two sets of runs, in points (hundredths), and its standard error."""
    d = 100 * (np.asarray(first, float) - np.asarray(second, float))
    return float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else math.nan


def points(first, second) -> str:
    """`difference` as text."""
    mean, error = difference(first, second)
    return f"{mean:+.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}")


def p_value(first, second, alternative: str = "less") -> float:
    """Of Student's paired t test that `first` is "less" than `second`, or the two differ ("two-sided").

    NaN for a single pair, which tells nothing. Equal pairs have 1.
    """
    d = np.asarray(first, float) - np.asarray(second, float)
    if len(d) > 1 and np.all(d == d[0]):  # no spread to compare with
        return 1.0 if d[0] == 0 or (d[0] > 0 and alternative == "less") else 0.0
    return float(stats.ttest_1samp(d, 0, alternative=alternative).pvalue) if len(d) > 1 else math.nan


def verdict(p_values, tests: int | None = None) -> str:
    """Of a claim that many comparisons could contradict, by Bonferroni's rule at `FALSE_ALARMS`.

    Args:
      p_values: of the comparisons.
      tests: comparisons behind this and its sister claims, if they are more.
    """
    p_values = list(p_values)
    if not p_values or any(map(math.isnan, p_values)):
        return "not comparable"
    return "does not hold" if min(p_values) < FALSE_ALARMS / (tests or len(p_values)) else "holds"
