"""The aggregate Gaussian: n rounding errors whose scaled and moved sum is exactly Gaussian.

All participants and the server draw the same (A, B) for each coordinate from a key of the round. Client k
sends m_k = round(x_k / (A w) + V_k), the server decodes A w (sum m_k - sum V_k) + B w. The error is w (A S
+ B), S a sum of n uniform numbers, and A, B are drawn so that A S + B is N(0, n / 12), to 1e-5 in total
variation or less (`total_variation`). It holds for exactly the n that were expected to send: with fewer the
error is another.

(A, B) come from `irwin_hall.parts`: A = a and B = 0, or an interval on which a uniform law is wanted. A
uniform law on 2 n cells is split by B-splines: n + 1 Irwin-Hall laws of that cell lie inside it, and cover
all but its ends. At an end what is missing after t cells is the probability that a sum of n - 1 uniform
numbers on [0, 1] exceeds t, because a B-spline's derivative is a difference of the next lower ones. That
falls, so it is a mixture of uniform laws from the end to such a sum T, of density proportional to T: one
number has density 2 t, the others are uniform, by symmetry. Each of them is split again; half of all are
done after each time.

These are the functions of one round. The rounds of `federated` do not use them, and no epsilon counts this
error: `total_variation` is of one coordinate, so that a guarantee over N of them had N times that more delta.
A coordinate with a small A also needs a larger modulus, and no format of a message has one for each.

Source: Hegazy, Leluc, Li, Dieuleveut: Compression with Exact Error Distribution for Federated Learning,
arXiv 2310.20682.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms import counter, irwin_hall

_PARTS, _SPLITS = 11, 12  # tags of shared streams
_TIMES = 10  # a uniform law is split at most so often: what remains is 4^-10 of its width
_ABOVE = 9.0  # deviations by which more coordinates are split than expected before one is left plain


class Turn(NamedTuple):
    """What all share in a round.

    Attributes:
      scale: f32[d], A.
      shift: f32[d], B in steps.
    """

    scale: jax.Array
    shift: jax.Array


def _uniform(word: jax.Array) -> jax.Array:
    """uint32[...] as f32[...] above 0 and below 1."""
    return ((word >> np.uint32(9)).astype(jnp.float32) + 0.5) * np.float32(2.0**-23)


def draw(common: jax.Array, n: int, d: int) -> Turn:
    """(A, B) of every coordinate for sums of n messages.

    Args:
      common: a key of the round that all know.
      n: participants, at least 2.
      d: coordinates.

    Raises:
      ConfigError: fewer than two participants (a single message has LRSUQ).
    """
    require(n >= 2, "participants of an aggregate Gaussian", n, "at least 2")
    table = irwin_hall.parts(n)
    ids = jnp.arange(d, dtype=jnp.uint32)
    word, second = counter.words(counter.stream(common, _PARTS), 0, ids)
    part = jnp.searchsorted(jnp.asarray(table.upper), word, side="left", method="scan_unrolled")
    plain = part == 0
    expected = d * (1 - table.share)
    most = min(d, math.ceil(expected + _ABOVE * math.sqrt(expected + 1)))
    # The few coordinates that are not plain; filled up with one past the end, which is dropped.
    at = jnp.nonzero(~plain, size=most, fill_value=d)[0].astype(jnp.uint32)
    mine = part.at[at].get(mode="clip")
    slope, width = (jnp.asarray(a)[mine] for a in (table.slope, table.width))
    # A triangle is uniform from its higher end to a place with density 2 t.
    reach = jnp.where(slope == 0, 1.0, jnp.sqrt(_uniform(second.at[at].get(mode="clip")))) * width
    left = jnp.asarray(table.left)[mine] + jnp.where(slope > 0, width - reach, 0.0)
    scale, shift = _split(counter.stream(common, _SPLITS), at, n, left, reach)
    whole = jnp.full(d, np.float32(table.scale)).at[at].set(scale, mode="drop")
    return Turn(whole, jnp.zeros(d, jnp.float32).at[at].set(shift, mode="drop"))


def _split(stream: counter.Words, at: jax.Array, n: int, left: jax.Array, width: jax.Array):
    """Cell and middle f32[k] of an Irwin-Hall law drawn from each uniform law on [left, left + width]."""
    pairs = n // 2 + 2  # calls of two words for one time

    def words(time, number):
        return counter.words(stream, time * np.uint32(pairs) + number, at)

    def once(time, state):
        done, left, width = state
        time = time.astype(jnp.uint32)
        choice, place = words(time, np.uint32(0))
        biased, _ = words(time, np.uint32(1))

        def add(number, total):
            first, second = words(time, number.astype(jnp.uint32) + np.uint32(2))
            both = 2 * number + 1 < n - 2  # n - 2 numbers in all
            return total + _uniform(first) + jnp.where(both, _uniform(second), 0.0)

        ends = jax.lax.fori_loop(0, (n - 1) // 2, add, jnp.sqrt(_uniform(biased)))
        cell = width / (2 * n)
        inside = _uniform(choice) < np.float32((n + 1) / (2 * n))
        spline = jnp.floor(_uniform(place) * (n + 1)) * cell
        end = ends * cell
        right = place >> np.uint32(31) == 1
        stop = done | inside
        # What is done is the interval of one Irwin-Hall law: n cells.
        new_left = jnp.where(inside, left + spline, jnp.where(right, left + width - end, left))
        new_width = jnp.where(inside, n * cell, end)
        return stop, jnp.where(done, left, new_left), jnp.where(done, width, new_width)

    start = (jnp.zeros(left.shape, bool), left, width)
    _, left, width = jax.lax.fori_loop(0, _TIMES, once, start)
    return width / n, left + width / 2


def total_variation(n: int) -> float:
    """Bound on the total variation between a coordinate's error and the Gaussian, for n messages."""
    table = irwin_hall.parts(n)
    return table.error + (1 - table.share) * ((n - 1) / (2 * n)) ** _TIMES


def encode(turn: Turn, x: jax.Array, dither: jax.Array) -> jax.Array:
    """Integers f32[d] of one client: round(x / A + V), with x in steps and dithers f32[d]."""
    return jnp.round(x / turn.scale + dither)


def decode(turn: Turn, places: jax.Array) -> jax.Array:
    """The sum f32[d] in steps, from sum m - sum V f32[d]."""
    return turn.scale * places + turn.shift
