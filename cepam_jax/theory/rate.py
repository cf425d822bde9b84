"""Lower limits on the bits per coordinate of a message.

Sources: Ling and Li: Vector Quantization with Error Uniformly Distributed over an Arbitrary Set (arXiv
2305.06788); Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors (arXiv
2402.03030).
"""

import numpy as np
from scipy import stats


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
    halves = stats.chi(3).ppf(probability) / ratio
    bits = []
    for a in halves:
        # Density of x + U; it is flat up to the edge a, where it falls over a few s.
        edge = np.linspace(max(a - 9, 0.0), a + 9, 2001)
        z = edge if a <= 9 else np.concatenate([[0.0], edge])
        density = (stats.norm.cdf(z + a) - stats.norm.cdf(z - a)) / (2 * a)
        terms = -density * np.log2(np.maximum(density, 1e-300))
        entropy = 2 * np.trapezoid(terms, z)
        bits.append(entropy - np.log2(2 * a))
    return float(np.mean(bits))
