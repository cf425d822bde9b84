"""How one client's update becomes a message and comes back. See `base` for the contract."""

from cepam_jax.mechanisms.base import About, Keys, Knobs, Mechanism, Message, Transform, chain
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.registry import REGISTRY, make
from cepam_jax.mechanisms.rsuq import lrsuq
from cepam_jax.mechanisms.transforms import clip

__all__ = [
    "REGISTRY",
    "About",
    "Keys",
    "Knobs",
    "Mechanism",
    "Message",
    "Transform",
    "chain",
    "clip",
    "identity",
    "lrsuq",
    "make",
]
