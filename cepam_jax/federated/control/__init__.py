"""Rules for the knobs of each round: the contract, schedules, and rules that read what was released."""

from cepam_jax.federated.control.base import (
    CONTROLS,
    Control,
    Measured,
    Released,
    constant,
    for_updates,
    plan,
    scaled,
    unchanged,
)
from cepam_jax.federated.control.clipping import quantile_clip
from cepam_jax.federated.control.filters import Purse, Spender, filtered
from cepam_jax.federated.control.rules import greedy, plateau, signal_to_noise
from cepam_jax.federated.control.schedules import SCHEDULES, scheduled

__all__ = [
    "CONTROLS",
    "SCHEDULES",
    "Control",
    "Measured",
    "Purse",
    "Released",
    "Spender",
    "constant",
    "filtered",
    "for_updates",
    "greedy",
    "plan",
    "plateau",
    "quantile_clip",
    "scaled",
    "scheduled",
    "signal_to_noise",
    "unchanged",
]
