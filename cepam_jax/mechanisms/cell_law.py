"""How likely each lattice point is, given the dither: the law behind the coder of `rotated`.

The update's block, turned and scaled as the encoder sees it, is y; e is the error that y = 0 would suffer,
known to both sides; a is the lattice vector by which the point that was sent differs from the point that zero
would get. If y is Gaussian with deviation tau per coordinate (in units of the lattice's scale), then

  P(a | e) = P(y - e in a + cell) = density of y + U at a + e,    U uniform on the cell (of volume 1)

No formula is known for a Gaussian's mass in a polytope of 8 dimensions. Two observations replace it:

- Given that a is not 0, the law is within one per cent (in code length) of a discrete Gaussian on the shifted
  lattice, P(a) ~ exp(-|a + e|^2 / 2v). Its variance v is tau^2 plus the cell's second moment where tau is
  large, and proportional to tau where it is small: there the exponential of the distance to a facet stands
  for a Gaussian tail.
- Let B be the sum of exp((|e|^2 - |a + e|^2) / 2v) over all a but 0. One facet at distance s from the origin
  gives B = exp(-s |a| / v) and P(0 | e) = Phi(s / tau); l facets of which all are at distance 0 (a hole
  where l + 1 cells meet) give B = l and P(0 | e) = 1 / (l + 1). The same function of B joins both cases, and
  is right to half a per cent in between.

Sums over these lattices are products: each is a union of cosets of grids, whose points have an even number
of odd coordinates. `class_sums` are the sums along one axis, and `combine` multiplies axes while it
keeps track of the parity, without a subtraction. So B costs some dozen exponentials for each coordinate, and
the discrete Gaussian can be coded axis by axis with exact probabilities (`wire.cells`).

The functions take arrays of JAX (`cell_bits`, on the device) or of numpy. On the host they use nothing but
additions, multiplications, divisions and square roots of float64, so that every machine gets the same numbers
(see `exact`). `python -m experiments.figures.cell_coder` measures what is lost against the exact law.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import exact, lattices
from cepam_jax.mechanisms.arrays import ArrayT, namespace

# Smallest variance: a Gaussian that is narrower has weights beyond the range of float32.
_LEAST_VARIANCE = 0.0065
_MOST_TAU = 1e15  # its square is a float32
# Variance from which the lattice counts as continuous; below it float32 has room for sums over 8 dimensions.
_CONTINUOUS = 64.0
_POISSON = 0.16  # variance of a unit grid from which Poisson's formula is the shorter one
SMALLEST_SUM = 1e-9  # a smaller sum stands for a probability below 1e-15


class Grid(NamedTuple):
    """A lattice as cosets of grids, and the constants of its law.

    Attributes:
      steps: distance of the points of one class along each axis. Class 0 is a multiple of it, class 1 lies
        half way between; an even number of axes has class 1.
      shifts: what is added to all axes, one number for each coset.
      shortest: length of the lattice's shortest vectors.
      slope: v / tau where tau is small.
      limit: tau from which v = tau^2 + second moment.
      moment: second moment of the cell per coordinate.
      volume: of the cell.
    """

    steps: tuple[float, ...]
    shifts: tuple[float, ...]
    shortest: float
    slope: float
    limit: float
    moment: float
    volume: float


GRIDS = {
    name: Grid(
        *(steps, shifts, shortest, slope, limit),
        lattices.LATTICES[name].second_moment,
        lattices.LATTICES[name].volume,
    )
    for name, steps, shifts, shortest, slope, limit in (
        ("A2", (1.0, math.sqrt(3)), (0.0,), 1.0, 0.50, 0.25),
        ("D4", (2.0,) * 4, (0.0,), math.sqrt(2), 0.58, 0.30),
        ("E8", (2.0,) * 8, (0.0, 0.5), math.sqrt(2), 0.55, 0.22),
    )
}

# Laws of a block's coordinates at scale 1: (weight, deviation) of spherical Gaussians. The scale of
# "spheres" is the mean of the blocks' root mean squares; blocks of trained updates differ in size about as
# much as this says.
COMPONENTS = {
    "gaussian": ((1.0, 1.0),),
    "spheres": ((0.12, 0.1), (0.25, 0.4), (0.38, 1.0), (0.245, 2.0), (0.005, 8.0)),
}


def grid(name: str) -> Grid:
    """The lattice called `name` as cosets of grids; ConfigError lists the choices."""
    require_choice("lattice", name, GRIDS)
    return GRIDS[name]


def exp(y: ArrayT) -> ArrayT:
    """exp(y) for y <= 88: of JAX, or the same number on every host."""
    if isinstance(y, np.ndarray):
        return exact.exp(y)
    return jnp.exp(y)


def log(y: ArrayT) -> ArrayT:
    """ln(y) for positive y: of JAX, or the same number on every host."""
    if isinstance(y, np.ndarray):
        return exact.log(y)
    return jnp.log(y)


def _normal_tail(y: ArrayT) -> ArrayT:
    """P(X > y) of a standard Gaussian X, for y >= 0."""
    if isinstance(y, np.ndarray):
        return exact.tail(y, "gaussian")
    return jax.scipy.special.ndtr(-y)


def _cosine(a: ArrayT) -> ArrayT:
    """cos(2 pi a) for a in [0, 1/2], to 1e-9, by basic operations."""
    t = 2 * math.pi * (0.25 - a)
    square = t * t
    total: Any = 1.0
    for k in (13, 11, 9, 7, 5, 3):
        total = 1.0 - total * square * (1.0 / (k * (k - 1)))
    return t * total


def variance(grid: Grid, tau: ArrayT) -> ArrayT:
    """The variance v of the discrete Gaussian for blocks of deviation tau.

    Args:
      grid: the lattice.
      tau: float[...], deviation of a coordinate in units of the lattice's scale.

    Returns:
      float[...].
    """
    xp = namespace(tau)
    tau = xp.minimum(tau, _MOST_TAU)
    narrow = xp.maximum(grid.slope * tau, _LEAST_VARIANCE)
    return xp.where(tau < grid.limit, narrow, tau * tau + grid.moment)


class Classes(NamedTuple):
    """Sums of exp((e^2 - (t + e)^2) / 2v) over the points t of either class along one axis.

    Attributes:
      first: excess of class 0 over the term of t = 0 where the coset has it, otherwise the whole sum.
      second: sum over class 1.
    """

    first: Any
    second: Any


def class_sums(step: float, shift: float, e: ArrayT, v: ArrayT) -> Classes:
    """The sums along one axis of one coset.

    Both sums are a leading term times a short series. Where the variance is small the series runs over the
    points beside the nearest one; where it is large, Poisson's formula gives a faster one.

    Args:
      step: distance of the points of one class.
      shift: coset; with shift 0 class 0 has the point t = 0, whose term 1 is left out of `first`.
      e: float[k], coordinate of the error that zero would suffer, below half a step in magnitude.
      v: float[..., k], variance of the discrete Gaussian, broadcastable.

    Returns:
      Classes of float[..., k].
    """
    xp = namespace(e)
    inverse = step * step / (2 * v)  # 1 / (2 variance) in units of the step
    u = (e + shift) * (1 / step)
    near = abs(u - xp.round(u))  # distance from the nearest point of class 0, in steps
    far = 0.5 - near
    lead = e * e / (2 * v)
    wide = inverse * (2 * _POISSON) < 1
    # Either series is computed for all; where it is not the one to use, at the border of its range.
    narrow, v_wide = xp.maximum(inverse, 0.5 / _POISSON), xp.maximum(v * (1 / step**2), _POISSON)
    height = exp(lead * wide) * xp.sqrt(2 * math.pi * v_wide)
    ripple = 2 * exp(-2 * math.pi**2 * v_wide) * _cosine(near)
    first = _beside(near, narrow)
    if shift:
        first = exp(lead - near * near * inverse) * (1 + first)
    second = exp(lead - far * far * inverse) * (1 + _beside(far, narrow))
    own = 0.0 if shift else 1.0
    return Classes(
        xp.where(wide, height * (1 + ripple) - own, first), xp.where(wide, height * (1 - ripple), second)
    )


def _beside(distance: ArrayT, inverse: ArrayT) -> ArrayT:
    """Sum over the points beside the nearest one, relative to its term.

    Args:
      distance: float[k], of the nearest point, in steps; at most 1/2.
      inverse: float[..., k], 1 / (2 variance) in units of the step, at least 1 / (2 `_POISSON`).

    Returns:
      float[..., k].
    """
    one, other = exp((2 * distance - 1) * inverse), exp(-(2 * distance + 1) * inverse)
    return one + other + one * one * exp(-2 * inverse)


class Parity(NamedTuple):
    """Sums over points of several axes, by the parity of the number of axes with class 1.

    Attributes:
      even: excess over the term of the point 0 where the coset has it, otherwise the whole sum.
      odd: the sum for odd numbers.
    """

    even: Any
    odd: Any


def combine(classes: Classes, rest: Parity, excess: bool) -> Parity:
    """Sums over one more axis.

    Args:
      classes: sums along that axis.
      rest: sums over the other axes.
      excess: whether the coset has the point 0, so that first sums are excesses over 1.

    Returns:
      Sums over all of them.
    """
    if not excess:
        return Parity(
            classes.first * rest.even + classes.second * rest.odd,
            classes.first * rest.odd + classes.second * rest.even,
        )
    return Parity(
        classes.first + rest.even + classes.first * rest.even + classes.second * rest.odd,
        rest.odd + classes.first * rest.odd + classes.second * (1 + rest.even),
    )


def no_axis(excess: bool) -> Parity:
    """Sums over no axis at all: one point, which is 0."""
    return Parity(0.0 if excess else 1.0, 0.0)


def log_of_others(grid: Grid, error: list[Any], v: ArrayT) -> ArrayT:
    """ln B for any variance, float[..., k]; arguments as for `weight_of_others`."""
    xp = namespace(v)
    smooth = 0.5 * len(error) * log(2 * math.pi * v) - math.log(grid.volume)
    smooth = smooth + sum(e * e for e in error) / (2 * v)
    few = weight_of_others(grid, error, xp.minimum(v, _CONTINUOUS))
    return xp.where(v > _CONTINUOUS, smooth, log(few))


def weight_of_others(grid: Grid, error: list[Any], v: ArrayT) -> ArrayT:
    """B: the sum of exp((|e|^2 - |a + e|^2) / 2v) over all lattice points a but 0.

    Args:
      grid: the lattice.
      error: n arrays float[k], the error e that zero would suffer, in units of the lattice's scale.
      v: float[..., k], variance of the discrete Gaussian, broadcastable.

    Returns:
      float[..., k], at least a tiny positive number.
    """
    total: Any = 0.0
    for shift in grid.shifts:
        sums = no_axis(shift == 0)
        for step, e in zip(grid.steps, error, strict=True):
            sums = combine(class_sums(step, shift, e, v), sums, shift == 0)
        total = total + sums.even
    return namespace(v).maximum(total, SMALLEST_SUM)


def stay(grid: Grid, log_others: ArrayT, v: ArrayT, tau: ArrayT) -> tuple[ArrayT, ArrayT]:
    """P(a = 0 | e), the probability that the point is the one that zero would get, and its complement.

    Args:
      grid: the lattice.
      log_others: float[...], from `log_of_others`.
      v: float[...], variance of the discrete Gaussian.
      tau: float[...], deviation of a coordinate in units of the lattice's scale.

    Returns:
      float[...] each.
    """
    xp = namespace(tau)
    stays = 1 / (1 + exp(xp.minimum(log_others, 80.0)))
    # The distance of the one facet that would give this sum, in deviations.
    distance = -xp.minimum(log_others, 0.0) * v / (grid.shortest * xp.maximum(tau, 1e-30))
    beyond = _normal_tail(xp.minimum(distance, 30.0))
    one_facet = (tau < grid.limit) & (log_others < 0)
    return xp.where(one_facet, 1 - beyond, stays), xp.where(one_facet, beyond, 1 - stays)
