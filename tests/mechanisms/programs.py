"""Every mechanism of the registry, compiled once for each shape; shared by tests of laws, errors and bytes.

Compilation takes most of the tests' time, so they keep to two lengths of an update, and give knobs as
float32: a Python number of the same value would be compiled anew.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import WITHOUT_MLIR

from cepam_jax import mechanisms
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.wire import format

NAMES = sorted(mechanisms.REGISTRY)
# Ends of names of mechanisms that differ from another by lattice, law or the measure of a range, or that are
# chains of what is tested alone. The quick tests leave them out.
VARIANTS = ("_z3", "_a2", "_d4", "_e8", "_d4_bits", "_z1_sigma", "_max", "_deterministic", "_percentile")
VARIANTS += (
    "laplace_z2",
    "sdq_z2",
    "noise_gaussian_sdq",
    "masked_lrsuq",
    "rotated_binary",
    "rotated_k_level",
    "_kl",
)
QUICK = ("rotated_e8",)  # though its name ends like a variant's


def param(name, *rest, group="", slow=False):
    """Parameters of a test of one mechanism.

    All tests of a mechanism are in one process, one after the other, so that they share what is compiled.

    Args:
      name: of the mechanism, the first parameter.
      *rest: the other parameters.
      group: for tests that share no programs with the others of the mechanism.
      slow: leave the test out of the quick ones, as those of `VARIANTS`.
    """
    marks = [pytest.mark.xdist_group(f"{name} {group}".strip())]
    if slow or (name.endswith(VARIANTS) and name not in QUICK):
        marks.append(pytest.mark.slow)
    return pytest.param(name, *rest, marks=marks)


EACH = [param(name) for name in NAMES]

LONG = 15_999  # whole blocks of 3; of 2, 4 and 8 whole ones and a part
SHORT = 21  # the same


def float32(**values) -> Knobs:
    """Knobs of numpy float32 numbers."""
    return Knobs(**{name: np.float32(value) for name, value in values.items()})


KNOBS = float32(sigma=0.1, clip=1, step=0.1, bits=3, levels=4, fraction=0.5)
KEYS = Keys(jax.random.key(1), jax.random.key(2))


def updates(length, seed=0):
    """f32[length], normal with standard deviation 0.3."""
    return (0.3 * np.random.default_rng(seed).normal(size=length)).astype(np.float32)


@functools.cache
def compiled(name):
    """The mechanism whose functions are compiled, each alone; lengths, which are estimates, fast."""
    mechanism = mechanisms.make(name)
    code = mechanism.code
    return mechanism._replace(
        encode=jax.jit(mechanism.encode),
        decode=jax.jit(mechanism.decode),
        bits=jax.jit(mechanism.bits, compiler_options=FAST),
        code=code._replace(weight=code.weight and jax.jit(code.weight)),
    )


def _round_trip(mechanism):
    def run(keys, x, knobs):
        message = mechanism.encode(keys, x, knobs)
        shared = keys.shared
        return message, mechanism.decode(shared, message, knobs), mechanism.bits(shared, message, knobs)

    return run


@functools.cache
def round_trip(name):
    """(keys, x, knobs) -> (message, decoded, bits) as one program, compiled fast rather than well."""
    return jax.jit(_round_trip(mechanisms.make(name)), compiler_options=FAST)


# Machine code as it comes, after XLA's own passes. Not for tests of how production rounds.
FAST = {"xla_backend_optimization_level": 0, **WITHOUT_MLIR}
CLIENTS = 5  # of every call of `together`


@functools.cache
def together(name):
    """(keys, x, knobs) -> (message, decoded) of `CLIENTS` at once, of length LONG.

    Compiled as in production: compiled fast, it hides where vmap changes how SDQ's x / step is rounded.
    """
    mechanism = mechanisms.make(name)

    def run(keys, x, knobs):
        message = mechanism.encode(keys, x, knobs)
        return message, mechanism.decode(keys.shared, message, knobs)

    return jax.jit(jax.vmap(run))


@functools.cache
def bits_together(name):
    """(keys, message, knobs) -> bits of `CLIENTS` at once, compiled fast: else half of the time."""
    mechanism = mechanisms.make(name)
    run = jax.vmap(lambda keys, message, knobs: mechanism.bits(keys.shared, message, knobs))
    return jax.jit(run, compiler_options=FAST)


@functools.cache
def decoded(name):
    """(keys, x, knobs) -> decoded as one program, for the largest updates."""
    run = _round_trip(mechanisms.make(name))
    return jax.jit(lambda keys, x, knobs: run(keys, x, knobs)[1])


@functools.cache
def variance(name):
    """The formula, compiled; None where there is none."""
    formula = mechanisms.make(name).variance
    return formula and jax.jit(formula, compiler_options=FAST)


@jax.jit
def client_keys(call=0):
    """Keys of `CLIENTS` clients, others in every call."""
    numbers = jnp.arange(CLIENTS, dtype=jnp.uint32) + 2 * CLIENTS * jnp.uint32(call)
    return Keys(*(jax.vmap(jax.random.key)(numbers + CLIENTS * part) for part in range(2)))


def forget() -> None:
    """Lets go of every mechanism and of what was compiled for it."""
    for cache in (compiled, round_trip, together, bits_together, decoded, variance, format._template):
        cache.cache_clear()
