"""How far the direction of a random vector is from uniform, harmonic by harmonic.

Let q have n independent components with one symmetric law. The law of q / |q| on the sphere is invariant
under permutations and changes of sign of the axes, so its density is 1 plus a sum of invariant harmonics of
the even degrees 4, 6, 8, ...; `deviations` gives the root mean square of each degree's part. It takes the
moments

  E prod d_i^(2 a_i) = 1 / Gamma(m) * integral of t^(m - 1) prod E[q_i^(2 a_i) exp(-t q_i^2)] dt,  m = sum a_i

of the direction d = q / |q|, where the expectation of a product is a product of sums over one component's
values, and compares them with those of a uniform direction, which are rational. Nothing is simulated.
"""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

_LOG_T = np.linspace(-45.0, 25.0, 1401)  # of components with deviation 1; the integrand vanishes at both ends


def partitions(total: int, parts: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of at most `parts` numbers from 1 to `largest`, which fall."""
    if total == 0:
        yield ()
    elif parts:
        for first in range(min(total, largest or total), 0, -1):
            for rest in partitions(total - first, parts - 1, first):
                yield (first, *rest)


def _arrangements(numbers: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The distinct orders of some numbers."""
    if not numbers:
        yield ()
    for first in sorted(set(numbers)):
        rest = list(numbers)
        rest.remove(first)
        for order in _arrangements(tuple(rest)):
            yield (first, *order)


def _rising(x: Fraction, count: int) -> Fraction:
    """x (x + 1) ... (x + count - 1)."""
    return math.prod((x + i for i in range(count)), start=Fraction(1))


def uniform_moment(powers: tuple[int, ...], n: int) -> Fraction:
    """E prod d_i^(2 a_i) of a uniform direction d in n dimensions, for powers a_i."""
    above = math.prod((_rising(Fraction(1, 2), a) for a in powers), start=Fraction(1))
    return above / _rising(Fraction(n, 2), sum(powers))


@functools.cache
def _products(n: int, m: int) -> tuple[list[tuple[int, ...]], list[list[Fraction]]]:
    """The invariant polynomials of degree 2 m by their exponents, and the means of their products."""
    names = list(partitions(m, n))
    full = [name + (0,) * (n - len(name)) for name in names]
    table = []
    for a in full:
        row = []
        for b in full:
            orders = list(_arrangements(b))
            sums = (tuple(x + y for x, y in zip(a, order, strict=True)) for order in orders)
            row.append(sum((uniform_moment(s, n) for s in sums), start=Fraction(0)) / len(orders))
        table.append(row)
    return names, table


def _solve(table: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """The solution of a system of equations that is positive definite, exactly."""
    rows = [[*row, value] for row, value in zip(table, right, strict=True)]
    for i, _ in enumerate(rows):
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [x - row[i] * y for x, y in zip(row, rows[i], strict=True)]
    return [row[-1] for row in rows]


def deviations(values: np.ndarray, weights: np.ndarray, n: int, degree: int) -> dict[int, float]:
    """Root mean squares of the harmonics of a direction's density, relative to the uniform density.

    Args:
      values: f64[k], the magnitudes of a component, with standard deviation about 1; none is 0.
      weights: f64[k], their probabilities, with sum 1.
      n: number of components.
      degree: highest degree, even.

    Returns:
      Degree -> f64, for 2, 4, ..., `degree`; that of degree 2 is 0 up to rounding.
    """
    t = np.exp(_LOG_T)
    sums = np.empty((degree // 2 + 1, len(t)))
    for i, exponent in enumerate(t):
        term = weights * np.exp(-exponent * values**2)
        for a in range(len(sums)):
            sums[a, i] = term.sum()
            term = term * values**2
    found, lower = {}, Fraction(0)
    for m in range(1, degree // 2 + 1):
        names, table = _products(n, m)
        excess = []
        for powers in names:
            integrand = t**m * sums[0] ** (n - len(powers)) * math.prod(sums[a] for a in powers)
            moment = Fraction(math.fsum(integrand) * (_LOG_T[1] - _LOG_T[0])) / math.factorial(m - 1)
            excess.append(moment - uniform_moment(powers, n))
        # The squared norm of the density's part of degrees up to 2 m.
        total = sum((x * y for x, y in zip(excess, _solve(table, excess), strict=True)), start=Fraction(0))
        found[2 * m] = math.sqrt(max(total - lower, Fraction(0)))
        lower = total
    return found
