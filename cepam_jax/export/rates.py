"""One step for each array, so that an entropy coder needs a given number of bits for each weight.

A uniform step before an entropy coder needs at most about a quarter of a bit more than any quantizer with the
same squared error (Gish, Pierce: Asymptotically Efficient Quantizing, IEEE Transactions on Information Theory
14, 1968), and one step for all channels gives each of them the bits that it needs (reverse water-filling:
Cover, Thomas: Elements of Information Theory, section 10.3.3).
"""

import functools
from collections.abc import Collection, Mapping

import numpy as np

from cepam_jax.export.loader import STEPS, steps

_FINEST = 127  # steps in the largest weight, of the finest step: the largest code of eight bits
_LEAST, _MOST, _OF_TABLES = 0.1, 7.0, 2.5  # bits of a weight; what tables have more


def shared(sizes: Mapping[str, int], rate: float, tables: Collection[str] = ()) -> dict[str, float]:
    """Bits for each weight of each array, with this mean over all weights; small arrays have more.

    With R bits for each weight of a layer, errors are about 2^-2R of its outputs' mean square. Let these
    shares of all layers add up. Their sum, with N weights in a layer and so many bits in all, is least where
    2^-2R / N is the same for all layers: R is a constant less log2(N) / 2, here kept between 0.1 and 7.

    A row of a table, such as an embedding, is an input by itself, and its errors meet no other's in a sum.
    Tables have 2.5 bits more. (Of 0, 1.5 and 2.5 these were best for one Transformer; nothing is proved.)

    Args:
      sizes: name -> number of weights.
      rate: the mean, in bits.
      tables: names of arrays whose rows are looked up.
    """
    counts = np.array(list(sizes.values()), np.float64)
    more = np.array([_OF_TABLES if name in tables else 0.0 for name in sizes])
    low, high = -_MOST, _MOST + 40
    for _ in range(60):
        level = (low + high) / 2
        bits = np.clip(level - np.log2(counts) / 2 + more, _LEAST, _MOST)
        low, high = (level, high) if counts @ bits < rate * counts.sum() else (low, level)
    return dict(zip(sizes, bits.tolist(), strict=True)) if sizes else {}


def number_of_rate(values: np.ndarray, rate: float) -> np.ndarray:
    """int32[1], the number of about the finest step at which codes f32[...] / step need at most `rate` bits.

    By bisection: entropy falls as steps grow, if not at every single one, and the step that is found needs no
    more than `rate`. It is at least so large that eight bits hold the largest code.
    """
    largest = np.abs(values).max(initial=0).reshape(1)
    if largest[0] == 0:
        return np.zeros(1, np.int32)
    low, high = (
        int(numbers_of(largest / np.float32(_FINEST))[0]),
        min(int(numbers_of(largest)[0]) + 64, STEPS - 1),
    )
    while low < high:
        middle = (low + high) // 2
        if entropy(np.rint(values / ladder()[middle])) <= rate:
            high = middle
        else:
            low = middle + 1
    return np.array([low], np.int32)


def entropy(codes: np.ndarray) -> float:
    """Bits for each of codes [...], if their frequencies were known."""
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum())


def numbers_of(wanted: np.ndarray) -> np.ndarray:
    """int32[...]: the number of the least step that is no smaller than each of f32[...] at least 0."""
    numbers = np.clip(np.searchsorted(ladder(), wanted), 1, STEPS - 1)
    return np.where(wanted > 0, numbers, 0).astype(np.int32)


@functools.lru_cache
def ladder() -> np.ndarray:
    """All steps in order, f32[STEPS]."""
    return steps(np.arange(STEPS))
