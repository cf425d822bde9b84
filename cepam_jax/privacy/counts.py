"""The count of updates within their clips, which a round publishes beside the model: docs/clipping.md.

Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping (arXiv 1905.03871,
theorem 1). With the server's noise on the sum of votes, a round is one Gaussian mechanism with a coordinate
more. A client moves its update by C, relative to noise sigma, and the sum of votes by 1/2, relative to noise
sigma_b: the mean moves by sqrt((C / sigma)^2 + (1 / (2 sigma_b))^2) deviations.
"""

import numpy as np

from cepam_jax.privacy.federation import Federation

SEEN = "each client's vote, whether its update was within the clip, reaches the server without noise"


def joined(federation: Federation, z: np.ndarray) -> np.ndarray:
    """z f64[clients] of the updates, together with that of the count, where there is one."""
    if federation.counted is None:
        return z
    with np.errstate(divide="ignore"):
        return 1 / np.sqrt(1 / np.square(z) + federation.counted**-2)


def words(federation: Federation) -> str:
    """What a guarantee counts on beside the noise of updates, in words; "" where nothing is counted."""
    if federation.counted is None:
        return ""
    return ", and on the server's own on the count of updates within their clips"
