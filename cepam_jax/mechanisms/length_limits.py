r"""How long a message of scalar LRSUQ can be, for every update of bounded norm that is not too peaked.

**Theorem.** Let x be a vector of R^d of L2 norm at most C, chosen before the round's shared words are drawn,
in each of whose tensors the root mean square is at most `peak` times the mean absolute value. Let L be the
ideal code length, in nats, of its symbols under LRSUQ on Z1 with own scales, coded as "mixture" or "laplace".
Then for every theta > 0 and b

  P(L > b) <= exp(K(theta) - theta b),     K(theta) = d env B_theta(C^2 / d),

so that at most 1 % of messages are longer than b = (K(theta) + ln 100) / theta, the least over theta.

Proof. Given x the shared words of its coordinates are independent, so ln E exp(theta L) is the sum over
coordinates of f(|x_i|), with f(x) = ln E exp(theta nats of the cell around x + w U), w the width of the
coordinate's layer and U uniform on [-1/2, 1/2]. The coder's scale s is, tensor by tensor, the mean of |x_i|
rounded to eighths of an octave. Let n coordinates have mean absolute value m and mean square v. Whatever a, b
and c >= 0 with f(x) <= a + b x + c x^2 everywhere, they add at most n (a + b m + c v); let F(m, v) be the
least of these. B_theta(v) is the largest F(m, v) over m from sqrt(v) / peak to sqrt(v) and over the scales
that m is rounded to, and env B_theta the least concave function that is at least B_theta; by Jensen's
inequality tensors with sum of n v <= C^2 add at most d env B_theta(C^2 / d). The bound is Markov's inequality
for exp(theta L) (Chernoff). Where the L1 norm is bounded by C, the same with m at most C / d in mean, and v =
peak^2 m^2.

Where the encoder chooses laws and scales (`fitted`), it takes no choice that makes this message longer than
the mixture with those scales, so that the limit holds for it as well.

So no law of updates is assumed, but a limit to how peaked they are. Without one the statement would be empty:
an update with all its norm in one coordinate costs this coder some .9 bits for each coordinate that is zero.
With peak = 4 the worst shape has all coordinates equally large, and takes an eighth more bits than a Gaussian
one. The share of real messages within the limit is measured: see docs/needs.md.

What is computed and not proved: f by numerical integration in float64, B between the points of a grid by
interpolation; m by a grid from sqrt(v) / peak on, and of the scales that one is rounded to the two ends.
Tests hold this against direct evaluation, to a part of the margin that is added (`MARGIN`). Code lengths as
`code_bits` computes them in float32 differ by millionths.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.mechanisms.cell_cumulants import ROUNDING, THETAS, cumulants, grid, slopes_of

SHARE = 0.99  # of messages that are at most as long as the limit
MARGIN = 0.004  # that is added, as a part of the limit, for integration and interpolation
FAMILIES = ("laplace", "mixture")
NODES_PER_OCTAVE = 4
OCTAVES = (-22, 20)  # of scale over sigma, where there are nodes
_PEAKS = 10  # root mean squares over means, from 1 to the peak, that are tried


class Sent(NamedTuple):
    """What the length of a message depends on, beside the clip and the noise.

    Attributes:
      family: the coder's law, one of `FAMILIES`.
      target: law of the error, "gaussian" or "laplace".
      coordinates: d, how many are quantized.
      side_bits: of what is sent beside the symbols.
      norm: that is bounded, "l2" or "l1".
      peak: largest root mean square of a tensor over its mean absolute value.
    """

    family: str
    target: str
    coordinates: int
    side_bits: float
    norm: str = "l2"
    peak: float = 4.0


@functools.lru_cache(maxsize=512)
def _on_grid(scale: float, family: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """The grid, and f on it."""
    x = grid(1 / scale)
    return x, cumulants(x, 1 / scale, family, target)


def limits(scale: float, mean: float, peaks: np.ndarray, family: str, target: str) -> np.ndarray:
    """F of the theorem in nats times theta, f64[len(THETAS), len(peaks)].

    Args:
      scale: that the coder assumes for a tensor, over sigma.
      mean: absolute value in the tensor, over that scale; one of the grid's points.
      peaks: f64[n], root mean squares over mean absolute values.
      family, target: as of `Sent`.
    """
    x, f = _on_grid(scale, family, target)
    found = []
    for values, slope in zip(f, slopes_of(family), strict=True):
        # From the least c on whose parabola outgrows the line of f within the grid.
        curvatures = _powers(slope / (2 * x[-1]), 1e3 * slope)
        reduced = values - curvatures[:, None] * x**2
        curved = _over_chords(x, reduced, mean)[:, None] + curvatures[:, None] * (peaks * mean) ** 2
        rays = np.max((values + slope * (mean - x))[x <= mean])
        straight = max(float(_over_chords(x, values[None], mean)[0]), float(rays))
        found.append(np.minimum(straight, curved.min(0)))
    return np.stack(found)


def _powers(least: float, most: float) -> np.ndarray:
    """Numbers from the least on, each an eighth larger than the one before."""
    return least * 1.125 ** np.arange(math.ceil(math.log(most / least) / math.log(1.125)))


def _over_chords(x: np.ndarray, values: np.ndarray, mean: float) -> np.ndarray:
    """The least concave functions at least `values` f64[n, points] at the points x, at the mean: f64[n]."""
    left, right = x <= mean, x > mean
    share = (mean - x[left][:, None]) / (x[right][None, :] - x[left][:, None])
    chords = (1 - share) * values[:, left, None] + share * values[:, None, right]
    return chords.max((1, 2))


def _peaks(peak: float) -> np.ndarray:
    return np.geomspace(1, peak, _PEAKS) if peak > 1 else np.ones(1)


@functools.cache
def _node(number: int, mean: float, peak: float, family: str, target: str) -> np.ndarray:
    return limits(2.0 ** (number / NODES_PER_OCTAVE), mean, _peaks(peak), family, target)


def _of_means(at: np.ndarray, sent: Sent) -> np.ndarray:
    """F at means of |x|, the larger of the two scales that each may be rounded to.

    Args:
      at: f64[n, peaks], means over sigma, on a logarithmic axis of nodes.
      sent: what is sent.

    Returns:
      f64[len(THETAS), n, peaks].
    """
    shift = NODES_PER_OCTAVE * math.log2(ROUNDING)
    found = []
    for mean, moved in ((ROUNDING, at - shift), (1 / ROUNDING, at + shift)):
        # F grows with the scale, so that of the first node is a limit before it.
        places = np.clip(moved, NODES_PER_OCTAVE * OCTAVES[0], NODES_PER_OCTAVE * OCTAVES[1])
        nodes = np.arange(math.floor(places.min()) - 2, math.ceil(places.max()) + 3)
        values = [_node(int(node), mean, sent.peak, sent.family, sent.target) for node in nodes]
        splines = CubicSpline(nodes, np.log(np.stack(values)))
        found.append(np.stack([splines(places[:, i])[:, :, i] for i in range(at.shape[1])], axis=-1))
    return np.exp(np.maximum(*found)).swapaxes(0, 1)


def envelope(size: float, sent: Sent) -> np.ndarray:
    """env B of the theorem, f64[len(THETAS)].

    Args:
      size: C / sqrt(d) over sigma, the largest root mean square; of an L1 norm C / d over sigma.
      sent: what is sent.
    """
    place, square = NODES_PER_OCTAVE * math.log2(size), sent.norm == "l2"
    require(place < NODES_PER_OCTAVE * OCTAVES[1], "clip over sigma per coordinate", size, "smaller")
    # Chords from sizes around this one; farther ones lie lower, as B grows no faster than they.
    around = place + NODES_PER_OCTAVE / 2 * np.arange(-4, 5)
    peaks = _peaks(sent.peak)
    means = around[:, None] - (NODES_PER_OCTAVE * np.log2(peaks) if square else np.zeros(len(peaks)))
    values = np.maximum.accumulate(_of_means(means, sent).max(-1), axis=1)
    at, here = 2.0 ** ((2 if square else 1) * around / NODES_PER_OCTAVE), len(around) // 2
    a, b = at[:here][:, None], at[here + 1 :][None, :]
    share = (at[here] - a) / (b - a)
    chords = (1 - share) * values[:, :here, None] + share * values[:, None, here + 1 :]
    return np.maximum(values[:, here], chords.max((1, 2)))


def longest(sent: Sent, ratio: float) -> float:
    """Bits that at most 1 % of messages exceed, for any updates whose norm is bounded.

    Args:
      sent: what is sent.
      ratio: the bound on the norm over sigma.
    """
    require_choice("coding", sent.family, FAMILIES)
    require_choice("norm", sent.norm, ("l1", "l2"))
    d = sent.coordinates
    total = d * envelope(ratio / (d if sent.norm == "l1" else math.sqrt(d)), sent)
    symbols = float(np.min((total - math.log(1 - SHARE)) / THETAS)) / math.log(2)
    return sent.side_bits + (1 + MARGIN) * symbols


def largest_ratio(sent: Sent, bits: float, most: float) -> float:
    """The largest bound over sigma with which 99 % of messages at least keep to so many bits.

    Args:
      sent: what is sent.
      bits: of a message.
      most: the largest ratio that is of interest.

    Raises:
      ConfigError: not even messages that say all but nothing are so short; says by how much.
    """
    least, low, high = 1e-9 * most, 0.0, 0.0
    per = min(bits / sent.coordinates, 40.0)
    start = math.sqrt(4**per - 1) * (sent.coordinates if sent.norm == "l1" else math.sqrt(sent.coordinates))
    at = min(max(start, least), most)
    while not (low and high):  # double or halve until the answer lies between
        if longest(sent, at) <= bits:
            low = at
            if at == most:
                return most
            at = min(2 * at, most)
        else:
            high = at
            if at == least:
                raise ConfigError(_too_few(sent, bits, longest(sent, least)))
            at = max(at / 2, least)
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if longest(sent, middle) <= bits else (low, middle)
    return low


def _too_few(sent: Sent, bits: float, shortest: float) -> str:
    return (
        f"{bits:g} bits are {shortest - bits:.4g} too few: {sent.side_bits:g} are sent beside the symbols, "
        f"and with all but infinite noise a message takes up to {shortest:.5g}"
    )
