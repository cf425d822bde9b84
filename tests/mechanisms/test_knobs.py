"""Ranges of knobs that only some mechanisms have, and public scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.mechanisms.knobs import LIMITS, check, knob

KEYS = Keys(jax.random.key(1), jax.random.key(2))
X = jnp.linspace(-1, 1, 9)


def test_the_ends_of_every_range_are_allowed():
    for name, limits in LIMITS.items():
        for end in (limits.low, limits.high):
            assert float(knob(Knobs(**{name: end}), name)) == np.float32(end)
            assert float(jax.jit(lambda v, name=name: knob(Knobs(**{name: v}), name))(end)) == np.float32(end)


def test_one_level_is_enough_for_qsgd_alone():
    mechanisms.qsgd().encode(KEYS, X, Knobs(levels=1))
    with pytest.raises(ConfigError, match="knob levels is 1.* whole number from 2 to 1048576"):
        mechanisms.k_level().encode(KEYS, X, Knobs(levels=1))
    compiled = jax.jit(lambda x, levels: mechanisms.k_level().encode(KEYS, x, Knobs(levels=levels)).symbols)
    assert (compiled(X, 1.0) == -(2**31)).all()


def test_a_rate_need_not_be_whole_but_bits_of_levels_must():
    mechanisms.sdq(rate="bits").encode(KEYS, X, Knobs(bits=2.5))
    with pytest.raises(ConfigError, match="knob bits is 2.5; it must be a whole number from 1 to 8"):
        mechanisms.clipped().encode(KEYS, X, Knobs(bits=2.5))


def test_the_first_wrong_value_of_an_array_is_named():
    with pytest.raises(ConfigError, match="knob sigma is -3.0; it must be a positive number"):
        check(Knobs(sigma=jnp.array([1.0, -3.0, 2.0])), ("sigma",))
    check(Knobs(sigma=jnp.array([1.0, 3.0], jnp.bfloat16)), ("sigma",))


def test_public_scales_are_one_for_each_segment():
    mechanism = mechanisms.lrsuq(segments=(4, 5), scales="public")
    for scale in (jnp.zeros(3, jnp.int32), jnp.zeros((), jnp.int32)):
        with pytest.raises(ConfigError, match="shape of knob scale is .*; it must be int32.2., one for each"):
            mechanism.encode(KEYS, X, Knobs(sigma=1.0, scale=scale))
