"""Quality of scores for a yes or no, from sums that add up over batches, devices and clients.

A rank statistic such as the area under the ROC curve is no sum over examples. A histogram of the scores by
outcome is, and the area follows from it but for pairs that fall into the same bin, each counted one half: the
error is at most half the share of such pairs, which the histogram itself says (`area_error`).
"""

import jax
import jax.numpy as jnp
import numpy as np

BINS = 512  # of a score
WIDE = 4.0  # scores are binned by sigmoid(score / WIDE): resolution is WIDE times 4 / BINS = 1/32 at 0
LEVELS = 10  # of a predicted probability, for calibration


def histogram_of(score: jax.Array, label: jax.Array) -> jax.Array:
    """What each example adds to a histogram of scores by outcome.

    Args:
      score: f32[batch], log odds; any real number.
      label: int[batch], 0 or 1.

    Returns:
      f32[batch, 2, BINS], one at the example's outcome and bin.
    """
    place = jnp.floor(jax.nn.sigmoid(score / WIDE) * BINS).astype(jnp.int32)
    place = jnp.clip(place, 0, BINS - 1)
    return jax.nn.one_hot(label, 2)[:, :, None] * jax.nn.one_hot(place, BINS)[:, None, :]


def calibration_of(score: jax.Array, label: jax.Array) -> jax.Array:
    """f32[batch, LEVELS]: probability less outcome of each example, at the level of its probability.

    Args:
      score: f32[batch], log odds.
      label: int[batch], 0 or 1.
    """
    probability = jax.nn.sigmoid(score)
    level = jnp.clip(jnp.floor(probability * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    return (probability - label)[:, None] * jax.nn.one_hot(level, LEVELS)


def area(histogram: np.ndarray) -> float:
    """The area under the ROC curve: the share of pairs (yes, no) in which yes has the higher score.

    Args:
      histogram: f[2, bins], of outcomes 0 and 1, by increasing score.

    Returns:
      The share, ties counted one half; NaN where an outcome never came.
    """
    no, yes = np.asarray(histogram, np.float64)
    pairs = no.sum() * yes.sum()
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / pairs) if pairs else float("nan")


def area_error(histogram: np.ndarray) -> float:
    """The most that `area` can be wrong by because scores were binned; NaN where an outcome never came."""
    no, yes = np.asarray(histogram, np.float64)
    pairs = no.sum() * yes.sum()
    return float((yes * no).sum() / 2 / pairs) if pairs else float("nan")


def sensitivity_at(histogram: np.ndarray, specificity: float) -> float:
    """The share of yes that is found where at least a share of no is left alone.

    The threshold is the lowest edge of a bin that leaves that share alone, and is chosen on these very
    examples, as a point of the ROC curve is. A threshold inside the bin below it may find more, but at most
    that bin's yes.

    Args:
      histogram: f[2, bins], of outcomes 0 and 1, by increasing score.
      specificity: from 0 to 1.

    Returns:
      The share; NaN where an outcome never came.
    """
    no, yes = np.asarray(histogram, np.float64)
    if not no.sum() * yes.sum():
        return float("nan")
    return float(yes[edge_at(no, specificity) :].sum() / yes.sum())


def edge_at(no: np.ndarray, specificity: float) -> int:
    """The lowest edge of bins below which at least a share of no lies; f[bins], not all zero."""
    alone = np.concatenate([[0.0], np.cumsum(no)]) / no.sum()
    return int(np.flatnonzero(alone >= specificity - 1e-9)[0])


def calibration_error(sums: np.ndarray, count: float) -> float:
    """Expected calibration error: |mean probability - share of yes|, averaged over the examples' levels.

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.

    Args:
      sums: f[LEVELS], of `calibration_of` over examples.
      count: examples.
    """
    return float(np.abs(np.asarray(sums, np.float64)).sum() / count)
