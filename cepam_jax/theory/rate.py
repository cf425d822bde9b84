"""Lower limits on the bits per coordinate of a message.

Sources: Ling and Li: Vector Quantization with Error Uniformly Distributed over an Arbitrary Set (arXiv
2305.06788); Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors (arXiv
2402.03030).
"""

import numpy as np
from scipy import special


def mutual_information(ratio: float) -> float:
    """I(x; x + z) in bits for independent Gaussians x and z with standard deviations s and sigma.

    It is the least that any scheme with shared randomness can spend on simulating the Gaussian channel.

    Args:
      ratio: s / sigma, of the update's coordinate and of the noise.

    Returns:
      Bits per coordinate.
    """
    return 0.5 * float(np.log2(1 + ratio**2))


def layered_limit(ratio: float, layers: int = 4000) -> float:
    """H(M | W, V) in bits of scalar LRSUQ with a Gaussian target, for a Gaussian coordinate x.

    M is the message, W the latent that sets the layer, and V the dither. The entropy of the message given the
    shared randomness equals I(x; x + U | W), with U uniform on the layer (arXiv 2305.06788 and 2402.03030):
    the least that an entropy coder can spend on LRSUQ over Z^1. It is computed by numerical integration; the
    integral over the layers is a mean over their quantiles.

    Args:
      ratio: s / sigma, standard deviation of the coordinate over that of the noise.
      layers: number of quantiles.

    Returns:
      Bits per coordinate.
    """
    probability = (np.arange(layers) + 0.5) / layers
    # Half widths of the layers in units of s; chi with 3 degrees of freedom has a light tail near zero.
    halves = np.sqrt(special.chdtri(3, 1 - probability)) / ratio
    bits = []
    for a in halves:
        # Density of x + U; it is flat up to the edge a, where it falls over a few s.
        edge = np.linspace(max(a - 9, 0.0), a + 9, 2001)
        z = edge if a <= 9 else np.concatenate([[0.0], edge])
        density = (special.ndtr(z + a) - special.ndtr(z - a)) / (2 * a)
        terms = -density * np.log2(np.maximum(density, 1e-300))
        entropy = 2 * np.trapezoid(terms, z)
        bits.append(entropy - np.log2(2 * a))
    return float(np.mean(bits))


def ball_limit(ratio: float, dimension: int, layers: int = 200) -> float:
    """I(x; x + sigma Z | W) per coordinate, if Z is made of balls of n dimensions and none is rejected.

    A Gaussian error is a mixture of uniform laws on balls, of radius W. A quantizer whose cells were
    those balls would have to send at least this much to a receiver who knows W; cells that tile space can but
    come near it. With n = 1 it is `layered_limit`; as n grows it tends to `mutual_information`.

    Given W = w the sum of a Gaussian block and a point of the ball has the density
    P(|r + ratio G| < w) / volume at distance r from 0, a noncentral chi-squared probability. Its entropy is
    an integral over r.

    Args:
      ratio: s / sigma, standard deviation of the coordinates over that of the noise.
      dimension: n, coordinates per block.
      layers: number of quantiles of W over which is averaged.

    Returns:
      Bits per coordinate.
    """
    n = dimension
    bits = []
    for w in np.sqrt(special.chdtri(n + 2, 1 - (np.arange(layers) + 0.5) / layers)):
        # The density falls around w over a few `ratio`; far below it is flat.
        edge = np.linspace(max(w - 9 * ratio, 0.0), w + (9 + np.sqrt(n)) * ratio, 401)
        r = edge if edge[0] == 0 else np.concatenate([np.linspace(0, edge[0], 101)[:-1], edge])
        inside = special.chndtr((w / ratio) ** 2, n, np.maximum(r / ratio, 1e-6) ** 2)
        shell = n / w * (r / w) ** (n - 1)  # surface of the sphere of radius r over the ball's volume
        terms = -shell * inside * np.log2(np.maximum(inside, 1e-300))
        # Entropy of the sum less that of the ball: the ball's volume cancels.
        bits.append(np.trapezoid(terms, r))
    return float(np.mean(bits)) / n


def high_resolution_gap(mean_log_scale: float, volume: float, dimension: int) -> float:
    """Bits per coordinate above `mutual_information` of a quantizer with Gaussian error, for large updates.

    The message's entropy tends to h(x) - E log2(volume of the scaled cell) / n per coordinate (Zamir and
    Feder: On universal quantization by randomized uniform/lattice quantizers, IEEE Trans. Inf. Theory 38(2),
    1992).

    Args:
      mean_log_scale: E ln of the lattice's scale, in units of sigma.
      volume: of the lattice's cell at scale 1.
      dimension: n, coordinates per block.

    Returns:
      Bits per coordinate.
    """
    cell = mean_log_scale / np.log(2) + np.log2(volume) / dimension
    return float(0.5 * np.log2(2 * np.pi * np.e) - cell)
