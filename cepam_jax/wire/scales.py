"""Scales of a message in its range-coded stream, as `mechanisms.scale_code` counts them."""

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import scale_code
from cepam_jax.wire.coder import Coder


def code(
    coder: Coder,
    lengths: tuple[int, ...],
    laws: int,
    scale: np.ndarray | None = None,
    law: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Writes or reads the scales of tensors, and the numbers of their laws.

    Args:
      coder: Writer or Reader.
      lengths: of the tensors.
      laws: how many laws there are.
      scale: int[tensors], eighths of an octave; None when reading.
      law: int[tensors]; None when reading, or where there is one law.

    Returns:
      int64[tensors] scales and int64[tensors] laws.

    Raises:
      WireError: when reading, a scale that no encoder measures.
    """
    count = len(lengths)
    found = np.zeros(count, np.int64), np.zeros(count, np.int64)
    if not count:
        return found
    order = scale_code.order(lengths)
    scales = plain = numbers = None
    if scale is not None:
        scales = np.asarray(scale, np.int64)[order]
        numbers = np.zeros(count, np.int64) if law is None else np.asarray(law, np.int64)[order]
        steps, one_by_one = scale_code.costs(np.asarray(scale, np.int64), law, lengths, laws, np)
        changes = np.log2(1 - scale_code.PLAIN) - np.log2(scale_code.PLAIN)
        plain = np.array([steps > one_by_one + changes])
    alone = coder.code_bits(np.full(1, scale_code.PLAIN), plain)
    first = count if alone[0] else 1
    shifted = None if scales is None else scales[:first] + scale_code.LARGEST_SCALE
    values = np.zeros(count, np.int64)
    kinds = np.zeros(count, np.int64)
    values[:first] = np.asarray(coder.uniform(scale_code.VALUES, first, shifted), np.int64)
    values[:first] -= scale_code.LARGEST_SCALE
    kinds[:first] = coder.uniform(laws, first, None if numbers is None else numbers[:first])
    if first < count:
        _steps(coder, laws, values, kinds, scales, numbers)
    found[0][order], found[1][order] = values, kinds
    return found


def _steps(
    coder: Coder,
    laws: int,
    values: np.ndarray,
    kinds: np.ndarray,
    scales: np.ndarray | None,
    numbers: np.ndarray | None,
) -> None:
    """Writes or reads all scales after the first, as steps from one to the next.

    Args:
      coder: Writer or Reader.
      laws: how many laws there are.
      values: int64[tensors], the scales in the order in which they are sent; all after the first are set.
      kinds: int64[tensors], likewise the laws.
      scales: int64[tensors], the scales; None when reading.
      numbers: int64[tensors], the laws; None when reading.
    """
    count = len(values)
    step = same = None
    if scales is not None and numbers is not None:
        step = np.diff(scales)
        same = (step == 0) & (np.diff(numbers) == 0)
    same = coder.code_bits(np.full(count - 1, scale_code.SAME), same)
    at = np.flatnonzero(~same)
    law = coder.uniform(laws, len(at), None if numbers is None else numbers[1:][at])
    size, active = np.zeros(len(at), np.int64), np.arange(len(at))
    given = None if step is None else np.abs(step[at])
    while active.size:
        more = coder.code_bits(
            np.full(len(active), scale_code.FARTHER), None if given is None else given[active] > size[active]
        )
        active = active[more]
        size[active] += 1
        if (size > scale_code.VALUES).any():
            raise WireError("the message has a scale that no coder writes")
    moved = np.flatnonzero(size)
    up = coder.code_bits(np.full(len(moved), 0.5), None if step is None else step[at][moved] > 0)
    size[moved[~up]] *= -1
    steps = np.zeros(count - 1, np.int64)
    steps[at] = size
    values[1:] = values[0] + np.cumsum(steps)
    if (np.abs(values) > scale_code.LARGEST_SCALE).any():
        raise WireError("the message has a scale that no coder writes")
    last = np.maximum.accumulate(np.where(same, 0, np.arange(1, count)))
    known = np.zeros(count, np.int64)
    known[0], known[1:][at] = kinds[0], law
    kinds[1:] = known[last]
