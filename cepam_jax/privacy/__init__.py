"""What an adversary can learn about a client: guarantees, accounting, calibration, audits."""

from cepam_jax.extras import need

need("cepam_jax.privacy", "train", "dp_accounting")

from cepam_jax.privacy.accounting import adversaries, epsilon, guaranteed, report, text
from cepam_jax.privacy.calibrate import affordable_rounds, expected_bits, gamma_for, sigmas_for
from cepam_jax.privacy.events import ADVERSARIES, Guarantee
from cepam_jax.privacy.federation import RELATIONS, Federation, Phase, bounds, reach
from cepam_jax.privacy.releases import ObservedDraws, noise_scale

__all__ = [
    "ADVERSARIES",
    "RELATIONS",
    "Federation",
    "Guarantee",
    "ObservedDraws",
    "Phase",
    "adversaries",
    "affordable_rounds",
    "bounds",
    "epsilon",
    "expected_bits",
    "gamma_for",
    "guaranteed",
    "noise_scale",
    "reach",
    "report",
    "sigmas_for",
    "text",
]
