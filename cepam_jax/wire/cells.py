"""Symbols of rotated lattice cells: did the block move? to which coset? and then axis by axis.

The probabilities are those of `mechanisms.cell_law`. Under each of the Gaussians that a family of block laws
consists of, a block stays where zero would go, or follows a discrete Gaussian on the shifted lattice,
whose axes are coded one after the other: the class of the coordinate (even or odd; the last one follows from
the others), then how far it is from the likeliest point of that class. How much the later axes may
contribute after either class is a sum known in advance. Every decision takes the mean of the Gaussians'
probabilities, weighted by how well each has predicted the block so far. So a block costs -log2 of its
probability under the whole law, as `mechanisms.cell_bits` says.
"""

from typing import Any, NamedTuple

import numpy as np

from cepam_jax.mechanisms import cell_law, cell_scales, counter, exact, lattices
from cepam_jax.wire import cosets, integers, symbols
from cepam_jax.wire.coder import Coder


class _Law(NamedTuple):
    """What is known of k blocks before their symbols, under each of J Gaussians.

    Attributes:
      grid: the lattice.
      error: n arrays f64[k], the error that zero would suffer, in units of the lattice's scale.
      prior: f64[J], weights of the Gaussians.
      v: f64[J, k], variances of the discrete Gaussians.
      leaves: f64[J, k], probability that a block moves.
      classes: by coset and axis, sums along the axis.
      later: by coset and axis, sums over the axes after it.
      whole: by coset, sums over all axes.
    """

    grid: cell_law.Grid
    error: list[np.ndarray]
    prior: np.ndarray
    v: np.ndarray
    leaves: np.ndarray
    classes: list[list[cell_law.Classes]]
    later: list[list[cell_law.Parity]]
    whole: list[cell_law.Parity]


def _law(grid: cell_law.Grid, family: str, error: list[np.ndarray], scale: np.ndarray) -> _Law:
    """The law of blocks.

    Args:
      grid: the lattice.
      family: law of the blocks, one of `cell_law.COMPONENTS`.
      error: n arrays f64[k], the error that zero would suffer, in units of the lattice's scale.
      scale: f64[k], scale of the blocks in the same units.
    """
    weights, deviations = zip(*cell_law.COMPONENTS[family], strict=True)
    tau = np.array(deviations)[:, None] * scale
    v = cell_law.variance(grid, tau)
    classes, later, whole = [], [], []
    for shift in grid.shifts:
        along = [cell_law.class_sums(step, shift, e, v) for step, e in zip(grid.steps, error, strict=True)]
        sums = [_no_axis(shift == 0, v)]
        for axis in reversed(along):
            sums.append(cell_law.combine(axis, sums[-1], shift == 0))
        classes.append(along)
        later.append(sums[-2::-1])
        whole.append(sums[-1])
    others = np.maximum(sum(parity.even for parity in whole), cell_law.SMALLEST_SUM)
    _, leaves = cell_law.stay(grid, exact.log(others), v, tau)
    return _Law(grid, error, np.array(weights), v, leaves, classes, later, whole)


def _no_axis(excess: bool, like: np.ndarray) -> cell_law.Parity:
    """Sums over no axis at all, as arrays."""
    none = cell_law.no_axis(excess)
    return cell_law.Parity(np.full(like.shape, none.even), np.full(like.shape, none.odd))


def code(
    coder: Coder,
    model: symbols.Model,
    ids: np.ndarray,
    values: np.ndarray | None = None,
    index: np.ndarray | None = None,
    forced: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and indices of blocks of `rotated`.

    Args:
      coder: Writer or Reader.
      model: model of the message.
      ids: uint32[k], numbers of the blocks.
      values: int64[k, n], symbols; None when reading.
      index: int64[k], accepted proposals, 0 but for ball blocks; None when reading.
      forced: bool[k], blocks to be written as if their symbols were those that zero would get; None when
        reading.

    Returns:
      int64[k, n] symbols, int64[k] accepted proposals.
    """
    lat = model.lattice
    scale, ball = scales(lat, model.stream(0), ids)
    accepted = np.zeros(len(ids), np.int64)
    at, tries = np.flatnonzero(ball), lattices.most_tries(lat, model.code.layer)
    accepted[at] = coder.uniform(tries, len(at), None if index is None else index[at])
    point, error = symbols.zero_at(model, accepted, ids)
    first = ids.astype(np.int64) * lat.dimension  # the coordinate whose segment the block belongs to
    of_block = model.scale[first] / (scale.astype(np.float64) * model.width)
    law = _law(cell_law.grid(lat.name), model.code.family, error, of_block)
    coded = np.rint(np.stack(point, 1)).astype(np.int64)
    known = None
    if values is not None and forced is not None:
        known = (values == coded).all(1) | forced
    moves = (law.prior[:, None] * law.leaves).sum(0)
    stays = integers.zeros(coder, 1 - moves, known)
    rest = np.flatnonzero(~stays)
    if rest.size:
        given = None if values is None else values[rest] - coded[rest]
        coded[rest] += _Moved(coder, lat, law, rest).code(given)
    return coded, accepted


def scales(lat: lattices.Lattice, layers: counter.Words, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales f32[k] of blocks uint32[k] in units of sigma, and which are ball blocks; from their stream."""
    return cell_scales.scales(*counter.words(layers, 0, ids), cell_scales.scale_table(lat.name))


class _Moved:
    """The coding of blocks that do not stay where zero would go.

    Args:
      coder: Writer or Reader.
      lat: the lattice.
      law: law of all blocks.
      at: int[m], which of them moved.
    """

    def __init__(self, coder: Coder, lat: lattices.Lattice, law: _Law, at: np.ndarray) -> None:
        self.coder, self.lat, self.law, self.at = coder, lat, law, at
        self.v = law.v[:, at]
        # Weights of the Gaussians, by how well they have predicted each block so far.
        self.weights = law.prior[:, None] * law.leaves[:, at]

    def code(self, vectors: np.ndarray | None) -> np.ndarray:
        """Codes the lattice vectors int64[m, n] (None when reading) and returns them."""
        count, n = len(self.at), self.lat.dimension
        given = None if vectors is None else cosets.split(self.lat, vectors)
        half = self._coset(None if given is None else given.half)
        odd, multiple = np.zeros((count, n), bool), np.zeros((count, n), np.int64)
        parity = np.zeros(count, bool)  # of the axes that are left
        unmoved = ~half  # all axes so far are where zero would go: a later one is not
        for axis in range(n):
            first, second, even, odd_sum, first_excess, even_excess = self._sums(axis, half)
            last = axis == n - 1
            stays = first_excess + even_excess + first_excess * even_excess  # but not all at zero
            with_first = np.where(unmoved, stays, first * np.where(parity, odd_sum, even))
            with_second = second * np.where(parity, even, odd_sum)
            odd[:, axis] = self._code_bits(
                with_second,
                with_first,
                None if given is None else given.odd[:, axis],
                forced=parity if last else None,
            )
            # Among the points of the class: which one?
            in_doubt = unmoved & ~odd[:, axis]
            share = np.where(in_doubt, even_excess / np.where(stays > 0, stays, 1.0), np.nan)
            multiple[:, axis] = self._along(
                axis, half, odd[:, axis], np.where(odd[:, axis], second, first), share, given
            )
            parity ^= odd[:, axis]
            unmoved &= ~odd[:, axis] & (multiple[:, axis] == 0)
        return cosets.join(self.lat, cosets.Vectors(half, odd, multiple))

    def _coset(self, given: np.ndarray | None) -> np.ndarray:
        """Codes bool[m], which blocks moved into the second coset."""
        if len(self.law.grid.shifts) == 1:
            return np.zeros(len(self.at), bool)
        zero, half = (whole.even[:, self.at] for whole in self.law.whole)
        return self._code_bits(half, zero, given)

    def _sums(self, axis: int, half: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums f64[J, m] along an axis and over those after it, in each block's coset.

        Returns:
          Of both classes along the axis; even and odd sums over the axes after it; and the excesses over the
          point 0 of the first class and of the even sum, which hold for the first coset alone.
        """
        classes, later = self.law.classes[0][axis], self.law.later[0][axis]
        first, second = classes.first[:, self.at], classes.second[:, self.at]
        even, odd = later.even[:, self.at], later.odd[:, self.at]
        if len(self.law.grid.shifts) == 1:
            return 1 + first, second, 1 + even, odd, first, even
        classes, later = self.law.classes[1][axis], self.law.later[1][axis]
        return (
            np.where(half, classes.first[:, self.at], 1 + first),
            np.where(half, classes.second[:, self.at], second),
            np.where(half, later.even[:, self.at], 1 + even),
            np.where(half, later.odd[:, self.at], odd),
            first,
            even,
        )

    def _code_bits(
        self,
        yes: np.ndarray,
        no: np.ndarray,
        outcomes: np.ndarray | None,
        at: np.ndarray | None = None,
        forced: np.ndarray | None = None,
    ) -> np.ndarray:
        """Codes decisions of which each Gaussian says yes : no, f64[J, k], and updates the weights.

        Args:
          yes: f64[J, k].
          no: f64[J, k].
          outcomes: bool[k], the decisions; None when reading.
          at: int[k], the blocks concerned, of those that moved; None: all.
          forced: bool[k], the decisions where they are known; None where they are not.

        Returns:
          bool[k].
        """
        total = yes + no
        share = np.divide(yes, total, out=np.full(total.shape, 0.5), where=total > 0)
        weights = self.weights if at is None else self.weights[:, at]
        if forced is None:
            outcomes = self.coder.code_bits(_mean(weights, share), outcomes)
        else:
            outcomes = forced
        self._learn(np.where(outcomes, share, 1 - share), at)
        return outcomes

    def _learn(self, likelihood: np.ndarray, at: np.ndarray | None) -> None:
        """Multiplies the weights of blocks `at` with f64[J, k]; those that explain nothing start again."""
        weights = (self.weights if at is None else self.weights[:, at]) * likelihood
        largest = weights.max(0)
        scaled = weights / np.where(largest > 0, largest, 1.0)
        weights = np.where(largest > 0, scaled, self.law.prior[:, None])
        if at is None:
            self.weights = weights
        else:
            self.weights[:, at] = weights

    def _along(
        self,
        axis: int,
        half: np.ndarray,
        odd: np.ndarray,
        total: np.ndarray,
        share: np.ndarray,
        given: cosets.Vectors | None,
    ) -> np.ndarray:
        """Codes which point of its class each coordinate is.

        Args:
          axis: the axis.
          half: bool[m], the blocks' cosets.
          odd: bool[m], the coordinates' classes.
          total: f64[J, m], sum over the class.
          share: f64[J, m], probability of the point 0 where a later axis must move otherwise; NaN elsewhere.
          given: the vectors; None when reading.

        Returns:
          int64[m], multiples of the step.
        """
        grid, e = self.law.grid, self.law.error[axis][self.at]
        step = grid.steps[axis]
        u = (e + half * grid.shifts[-1]) / step + 0.5 * odd
        nearest = np.rint(-u)
        x, inverse = u + nearest, step * step / (2 * self.v)
        at_nearest = exact.exp(np.minimum(e * e / (2 * self.v) - x * x * inverse, 80.0)) / total
        zero = np.where(np.isnan(share), at_nearest, share)
        values = None if given is None else given.multiple[:, axis] - nearest.astype(np.int64)
        stays = self._code_bits(zero, 1 - zero, None if values is None else values == 0)
        multiple = nearest.astype(np.int64)
        at = np.flatnonzero(~stays)
        if not at.size:
            return multiple
        known = None if values is None else values[at]
        up, down = (integers.gaussian_tail(sign * x[at], inverse[:, at], 1.0) for sign in (1.0, -1.0))
        positive = self._code_bits(up, down, None if known is None else known > 0, at)
        sign = np.where(positive, 1, -1)
        x, inverse, beyond = sign * x[at], inverse[:, at], np.where(positive, up, down)
        weights = self.weights[:, at] / np.where(beyond > 0, beyond, 1.0)

        def mixed_tail(some: np.ndarray, number: Any) -> np.ndarray:
            return (weights[:, some] * integers.gaussian_tail(x[some], inverse[:, some], number)).sum(0)

        size = integers.magnitudes(
            self.coder, mixed_tail, self.weights[:, at].sum(0), None if known is None else abs(known)
        )
        found = exact.exp(-(size * size + 2 * size * x) * inverse)
        self._learn(found / np.where(beyond > 0, beyond, 1.0), at)
        multiple[at] += sign * size
        return multiple


def _mean(weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean f64[k] of shares f64[J, k] with weights f64[J, k], summed in a fixed order."""
    return (weights * share).sum(0) / weights.sum(0)
