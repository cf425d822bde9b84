"""The defaults of all declared fields, and the variants that change a few of them."""

import ml_collections

from cepam_jax.run.config import defaults

__all__ = ["VARIANTS", "defaults", "with_variant"]

# What each variant changes, by field.
VARIANTS = {
    "fedavg": {"mechanism.name": "identity", "mechanism.clip": "none"},
    "cepam_gaussian": {},
    "cepam_laplace": {"mechanism.target": "laplace", "mechanism.clip": "l1"},
    "cepam_rotated": {"mechanism.name": "rotated", "mechanism.lattice": "E8"},
    "split": {"mechanism.name": "split"},
    "sdq": {"mechanism.name": "sdq", "mechanism.clip": "none", "mechanism.rate": "bits"},
    "noise_gaussian": {"mechanism.name": "noise"},
    "noise_laplace": {"mechanism.name": "noise", "mechanism.target": "laplace", "mechanism.clip": "l1"},
    "noise_gaussian_sdq": {"mechanism.name": "noise_sdq"},
    "noise_laplace_sdq": {
        "mechanism.name": "noise_sdq",
        "mechanism.target": "laplace",
        "mechanism.clip": "l1",
    },
    "noise_gaussian_rounding": {"mechanism.name": "noise_rounding"},
    "jopeq": {"mechanism.name": "jopeq"},
    "server_sdq": {"mechanism.name": "sdq", "server.noise": True},
    "server_sdq_laplace": {
        "mechanism.name": "sdq",
        "mechanism.target": "laplace",
        "mechanism.clip": "l1",
        "server.noise": True,
    },
    "server_clipped": {"mechanism.name": "clipped", "server.noise": True},
    "server_rotated_k_level": {
        "mechanism.name": "k_level",
        "mechanism.rotate": True,
        "server.noise": True,
    },
    "clipped": {"mechanism.name": "clipped", "mechanism.clip": "none"},
    "binary": {"mechanism.name": "binary", "mechanism.clip": "none"},
    "k_level": {"mechanism.name": "k_level", "mechanism.clip": "none"},
    "rotated_k_level": {
        "mechanism.name": "k_level",
        "mechanism.clip": "none",
        "mechanism.rotate": True,
    },
    "qsgd": {"mechanism.name": "qsgd", "mechanism.clip": "none", "mechanism.levels": 64},
    "sketched": {
        "mechanism.name": "k_level",
        "mechanism.clip": "none",
        "mechanism.rotate": True,
        "mechanism.sparsify": "mask",
    },
    "top_k": {
        "mechanism.name": "identity",
        "mechanism.clip": "none",
        "mechanism.sparsify": "top_k",
        "mechanism.fraction": 0.05,
        "mechanism.error_feedback": True,
    },
}


def with_variant(c: ml_collections.ConfigDict, variant: str, l1_clip_norm: float, laplace_gamma: float):
    """Turns the defaults of a family into one of its variants."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    c.update_from_flattened_dict(VARIANTS[variant])
    if c.mechanism.clip == "l1":
        c.mechanism.clip_norm = l1_clip_norm
        c.mechanism.gamma = laplace_gamma
    return c
