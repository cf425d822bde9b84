"""How one client's update becomes a message and comes back. See `base` for the contract."""

from cepam_jax.mechanisms.base import RANGE, About, Keys, Knobs, Mechanism, Message, Noise, Transform
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.clipped import clipped
from cepam_jax.mechanisms.configured import build, knobs_of, sigma_of_gamma
from cepam_jax.mechanisms.dither import jopeq, noise_then_rounding, noise_then_sdq, rounding, sdq
from cepam_jax.mechanisms.half import float16
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.joint import Joint, Summed
from cepam_jax.mechanisms.noise import add_noise, additive
from cepam_jax.mechanisms.registry import REGISTRY, Entry, make, register
from cepam_jax.mechanisms.rotated import rotated
from cepam_jax.mechanisms.rsuq import lrsuq
from cepam_jax.mechanisms.secure_config import secure_sum
from cepam_jax.mechanisms.split import split
from cepam_jax.mechanisms.stochastic import binary, k_level, qsgd
from cepam_jax.mechanisms.transforms import clip, random_mask, rotate, top_k

__all__ = [
    "RANGE",
    "REGISTRY",
    "About",
    "Entry",
    "Joint",
    "Keys",
    "Knobs",
    "Mechanism",
    "Message",
    "Noise",
    "Summed",
    "Transform",
    "add_noise",
    "additive",
    "binary",
    "build",
    "chain",
    "clip",
    "clipped",
    "float16",
    "identity",
    "jopeq",
    "k_level",
    "knobs_of",
    "lrsuq",
    "make",
    "noise_then_rounding",
    "noise_then_sdq",
    "qsgd",
    "random_mask",
    "register",
    "rotate",
    "rotated",
    "rounding",
    "sdq",
    "secure_sum",
    "sigma_of_gamma",
    "split",
    "top_k",
]
