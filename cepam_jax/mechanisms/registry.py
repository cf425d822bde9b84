"""All mechanisms by name: what configs choose from and what the law tests run through."""

from collections.abc import Callable

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms.base import Mechanism
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.rsuq import lrsuq

# A mechanism joins the project, and every law test, by one line here.
REGISTRY: dict[str, Callable[[], Mechanism]] = {
    "identity": identity,
    "lrsuq_gaussian_z1": lambda **options: lrsuq("gaussian", "Z1", **options),
    "lrsuq_gaussian_z2": lambda **options: lrsuq("gaussian", "Z2", **options),
    "lrsuq_gaussian_z3": lambda **options: lrsuq("gaussian", "Z3", **options),
    "lrsuq_laplace_z1": lambda **options: lrsuq("laplace", "Z1", **options),
}


def make(name: str, **options) -> Mechanism:
    """The mechanism called `name`; ConfigError names the choices."""
    require_choice("mechanism", name, REGISTRY)
    return REGISTRY[name](**options)
