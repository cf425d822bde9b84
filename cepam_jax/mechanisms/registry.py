"""All mechanisms by name, each named once: what configurations choose from and what law tests run through.

A mechanism joins the project by one call of `register`, in its own file, with two things: how
`config.mechanism` builds it, and the instances of it that obey the laws of `base` under test.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from cepam_jax.mechanisms.base import Mechanism
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.clipped import clipped
from cepam_jax.mechanisms.dither import jopeq, noise_then_rounding, noise_then_sdq, rounding, sdq
from cepam_jax.mechanisms.half import float16
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.noise import additive
from cepam_jax.mechanisms.rotated import rotated
from cepam_jax.mechanisms.rsuq import lrsuq
from cepam_jax.mechanisms.split import split
from cepam_jax.mechanisms.stochastic import binary, k_level, qsgd
from cepam_jax.mechanisms.transforms import random_mask, rotate, top_k
from cepam_jax.registry import Registry


class Entry(NamedTuple):
    """What a configuration may choose by `config.mechanism.name`.

    Attributes:
      build: (config.mechanism, options of its coder {"segments", "coding", "scales"}, shapes of the update's
        tensors or None) -> Mechanism.
      scaled: whether it codes with scales, which may then be public.
      range_by: config.mechanism -> "gamma", "step" or "", the setting that decides how large a coordinate it
        can code.
      exposes: config.mechanism -> what shapes its result without noise, in words.
    """

    build: Callable[[Any, dict, Any], Mechanism]
    scaled: bool = False
    range_by: Callable[[Any], str] = lambda settings: ""
    exposes: Callable[[Any], tuple[str, ...]] = lambda settings: ()


# Name -> Entry: the choices of config.mechanism.name.
CONFIGURABLE: Registry = Registry("mechanism")

# Name -> factory without arguments: what the laws, tables and benchmarks run through.
REGISTRY: Registry = Registry("mechanism")


def register(
    name: str,
    entry: Entry | Callable[[], Mechanism],
    instances: dict[str, Callable[[], Mechanism]] | None = None,
    replace: bool = False,
) -> None:
    """Makes a mechanism known to configurations, law tests, tables and benchmarks.

    Args:
      name: of `config.mechanism.name`.
      entry: how a configuration builds it; a factory without arguments if it has no settings.
      instances: name -> factory without arguments, for the law tests; by default the factory under `name`.
      replace: whether another mechanism of that name gives way to this one.

    Raises:
      ConfigError: another mechanism has that name, and it is not said that it is to be replaced.
    """
    if not isinstance(entry, Entry):
        factory = entry
        instances = instances or {name: factory}
        entry = Entry(lambda settings, coder, shapes: factory())
    CONFIGURABLE.register(name, entry, replace)
    for instance, make_instance in (instances or {}).items():
        REGISTRY.register(instance, make_instance, replace)


def make(name: str) -> Mechanism:
    """The instance called `name`; ConfigError names the choices."""
    return REGISTRY.get_or_raise(name)()


def _sdq_range(settings) -> str:
    return {"step": "step", "sigma": "gamma"}.get(settings.rate, "")


def _sdq_exposes(settings) -> tuple[str, ...]:
    if settings.rate != "bits":
        return ()
    return ("the scale of the lattice, computed from the update without noise",)


def _register_all() -> None:
    """The mechanisms of this project, each once."""
    gamma, step = (lambda settings: "gamma"), (lambda settings: "step")
    register("identity", identity)
    register("float16", float16)
    register(
        "lrsuq",
        Entry(lambda c, coder, shapes: lrsuq(c.target, c.lattice, **coder), scaled=True, range_by=gamma),
        {
            f"lrsuq_{law}_{lattice.lower()}": partial(lrsuq, law, lattice)
            for law, lattices in (
                ("gaussian", ("Z1", "Z2", "Z3", "A2", "D4", "E8")),
                ("laplace", ("Z1", "Z2", "Z3", "D4")),
            )
            for lattice in lattices
        },
    )
    register(
        "rotated",
        Entry(lambda c, coder, shapes: rotated(c.lattice, **coder), scaled=True, range_by=gamma),
        {f"rotated_{lattice.lower()}": partial(rotated, lattice) for lattice in ("A2", "D4", "E8")},
    )
    register(
        "sdq",
        Entry(
            lambda c, coder, shapes: sdq(c.lattice, c.rate, **coder),
            scaled=True,
            range_by=_sdq_range,
            exposes=_sdq_exposes,
        ),
        {
            **{f"sdq_{lattice.lower()}": partial(sdq, lattice) for lattice in ("Z1", "Z2", "A2", "D4", "E8")},
            "sdq_z1_sigma": partial(sdq, "Z1", "sigma"),
            "sdq_d4_bits": partial(sdq, "D4", "bits"),
        },
    )
    register(
        "rounding",
        Entry(lambda c, coder, shapes: rounding(**coder), scaled=True, range_by=step),
        {"rounding": rounding},
    )
    register(
        "noise",
        Entry(lambda c, coder, shapes: additive(c.target), range_by=gamma),
        {f"noise_{law}": partial(additive, law) for law in ("gaussian", "laplace")},
    )
    register(
        "noise_sdq",
        Entry(
            lambda c, coder, shapes: noise_then_sdq(c.target, lattice=c.lattice, **coder),
            scaled=True,
            range_by=step,
        ),
        {f"noise_{law}_sdq": partial(noise_then_sdq, law) for law in ("gaussian", "laplace")},
    )
    register(
        "noise_rounding",
        Entry(lambda c, coder, shapes: noise_then_rounding(c.target, **coder), scaled=True, range_by=step),
        {"noise_gaussian_rounding": partial(noise_then_rounding, "gaussian")},
    )
    register(
        "jopeq",
        Entry(lambda c, coder, shapes: jopeq(c.target, c.lattice, **coder), scaled=True, range_by=step),
        {"jopeq_gaussian": partial(jopeq, "gaussian"), "jopeq_laplace_z2": partial(jopeq, "laplace", "Z2")},
    )
    register(
        "split",
        Entry(
            lambda c, coder, shapes: split(c.lattice, c.share, c.quantizer, **coder),
            scaled=True,
            range_by=gamma,
        ),
        {
            "split_z1": split,
            "split_d4": partial(split, "D4", 0.8),
            "split_rotated_e8": partial(split, "E8", 0.5, "rotated"),
        },
    )
    register(
        "clipped",
        Entry(lambda c, coder, shapes: clipped(c.rounding, c.threshold, c.granularity, shapes)),
        {
            "clipped_stochastic": clipped,
            "clipped_deterministic": partial(clipped, "deterministic"),
            "clipped_stochastic_max": partial(clipped, "stochastic", "max", "model"),
            "clipped_kl": partial(clipped, "stochastic", "kl"),
            "clipped_percentile": partial(clipped, "deterministic", "percentile"),
        },
    )
    register("binary", binary)
    register("k_level", k_level)
    register("qsgd", qsgd)
    # Chains, which a configuration puts together from `rotate` and `sparsify`.
    chains = {
        "rotated_binary": lambda: chain(rotate(), binary()),
        "rotated_k_level": lambda: chain(rotate(), k_level()),
        "masked": lambda: chain(random_mask(), identity()),
        "masked_lrsuq": lambda: chain(random_mask(), lrsuq()),
        "sketched": lambda: chain(rotate(), random_mask(), k_level()),
        "top_k": lambda: chain(top_k(), identity()),
        "top_k_lrsuq": lambda: chain(top_k(), lrsuq()),
    }
    for name, factory in chains.items():
        REGISTRY.register(name, factory)


_register_all()
