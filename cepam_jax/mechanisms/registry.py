"""All mechanisms by name: what the law tests, tables and benchmarks run through."""

from collections.abc import Callable
from functools import partial

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms.base import Mechanism
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.clipped import clipped
from cepam_jax.mechanisms.dither import jopeq, noise_then_rounding, noise_then_sdq, rounding, sdq
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.noise import additive
from cepam_jax.mechanisms.rsuq import lrsuq
from cepam_jax.mechanisms.split import split
from cepam_jax.mechanisms.stochastic import binary, k_level, qsgd
from cepam_jax.mechanisms.transforms import random_mask, rotate, top_k

# A mechanism joins the project, and every law test, by one line here.
REGISTRY: dict[str, Callable[[], Mechanism]] = {
    "identity": identity,
    **{
        f"lrsuq_gaussian_{lattice.lower()}": partial(lrsuq, "gaussian", lattice)
        for lattice in ("Z1", "Z2", "Z3", "A2", "D4", "E8")
    },
    **{
        f"lrsuq_laplace_{lattice.lower()}": partial(lrsuq, "laplace", lattice)
        for lattice in ("Z1", "Z2", "Z3", "D4")
    },
    **{f"sdq_{lattice.lower()}": partial(sdq, lattice) for lattice in ("Z1", "Z2", "A2", "D4", "E8")},
    "sdq_z1_sigma": partial(sdq, "Z1", "sigma"),
    "sdq_d4_bits": partial(sdq, "D4", "bits"),
    "rounding": rounding,
    "noise_gaussian": partial(additive, "gaussian"),
    "noise_laplace": partial(additive, "laplace"),
    "noise_gaussian_sdq": partial(noise_then_sdq, "gaussian"),
    "noise_laplace_sdq": partial(noise_then_sdq, "laplace"),
    "noise_gaussian_rounding": partial(noise_then_rounding, "gaussian"),
    "jopeq_gaussian": partial(jopeq, "gaussian"),
    "jopeq_laplace_z2": partial(jopeq, "laplace", "Z2"),
    "split_z1": split,
    "split_d4": partial(split, "D4", 0.8),
    "clipped_stochastic": clipped,
    "clipped_deterministic": partial(clipped, "deterministic"),
    "clipped_stochastic_max": partial(clipped, "stochastic", "max", "model"),
    "clipped_kl": partial(clipped, "stochastic", "kl"),
    "clipped_percentile": partial(clipped, "deterministic", "percentile"),
    "binary": binary,
    "k_level": k_level,
    "qsgd": qsgd,
    "rotated_binary": lambda: chain(rotate(), binary()),
    "rotated_k_level": lambda: chain(rotate(), k_level()),
    "masked": lambda: chain(random_mask(), identity()),
    "masked_lrsuq": lambda: chain(random_mask(), lrsuq()),
    "sketched": lambda: chain(rotate(), random_mask(), k_level()),
    "top_k": lambda: chain(top_k(), identity()),
    "top_k_lrsuq": lambda: chain(top_k(), lrsuq()),
}


def make(name: str) -> Mechanism:
    """The mechanism called `name`; ConfigError names the choices."""
    require_choice("mechanism", name, REGISTRY)
    return REGISTRY[name]()
