"""Integers for secure sums: rotation, decoding, the law of the error, the modulus, bytes, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms.programs import FAST
from scipy import stats

from cepam_jax import mechanisms, wire
from cepam_jax.errors import ConfigError, WireError
from cepam_jax.mechanisms import Keys, Knobs, common_rotation
from cepam_jax.mechanisms.blocks import INVALID

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

KNOBS = Knobs(sigma=np.float32(0.05), clip=np.float32(1))
KEYS = Keys(jax.random.key(1), jax.random.key(2))
COMMON = jax.random.key(3)

rotate = jax.jit(common_rotation.rotate, compiler_options=FAST)
rotate_back = jax.jit(common_rotation.rotate_back, compiler_options=FAST)


def fast(mechanism):
    """The mechanism with functions compiled fast rather than well."""
    encode, decode = (jax.jit(f, compiler_options=FAST) for f in (mechanism.encode, mechanism.decode))
    return mechanism._replace(encode=encode, decode=decode)


def summed(mechanism, xs, knobs=KNOBS, seed=0, participants=None):
    """(decoded sum f32[d], sum of symbols int32[d], bits) of clients with updates xs f32[n, d]."""
    joint, (n, d) = mechanism.joint, xs.shape
    participants = participants or n

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(xs, knobs, seed):
        bits = joint.bits(knobs, participants, d)

        def one(k, x):
            keys = Keys(*(jax.random.fold_in(jax.random.key(seed + i), k) for i in range(2)))
            message = joint.encode(keys, COMMON, participants, bits, x, knobs)
            return message.symbols, joint.dithers(keys.shared, d)

        symbols, dithers = (a.sum(0) for a in jax.vmap(one)(jnp.arange(n), xs))
        arrived = jnp.float32(n)
        return joint.decode(COMMON, participants, arrived, symbols, dithers, bits, knobs, d), symbols, bits

    return jax.tree.map(np.asarray, run(jnp.asarray(xs, jnp.float32), knobs, 10 * seed))


@pytest.mark.parametrize("d", [0, 1, 2, 3, 5, 8, 1000, 1024])
def test_the_common_rotation_keeps_norms_and_sums_and_is_undone(d):
    x, y = np.random.default_rng(d).normal(size=(2, d)).astype(np.float32)
    turned = rotate(COMMON, x)
    np.testing.assert_allclose(rotate_back(COMMON, turned), x, atol=1e-5)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    both = turned + rotate(COMMON, y)
    np.testing.assert_allclose(rotate(COMMON, x + y), both, atol=1e-5)
    if d > 1:
        assert np.abs(turned - x).max() > 0.1


@pytest.mark.parametrize("where", [0, 500, 999])
def test_no_coordinate_of_a_rotated_update_is_larger_than_its_bound(where):
    """A spike is spread: over many signs, P(|y_i| > t) <= 2 exp(-t^2 2^k / 2)."""
    x = np.zeros(1000, np.float32)
    x[where] = 1
    turned = jax.jit(jax.vmap(common_rotation.rotate, (0, None)), compiler_options=FAST)(
        jax.random.split(jax.random.key(0), 200), x
    )
    scaled = np.abs(np.asarray(turned)) * common_rotation.width(1000) ** 0.5
    for t in (1.5, 2.0, 3.0):
        assert np.mean(scaled > t) <= 2 * np.exp(-(t**2) / 2)
    assert np.mean(np.square(turned).sum(1)) == pytest.approx(1, abs=1e-5)


def reference_error(n, size):
    """The stated law of the error, in steps of one and cells of 1.5: n Gaussians and n uniform numbers."""
    random = np.random.default_rng(5)
    uniform = random.uniform(-0.5, 0.5, (n, size)).sum(0)
    return 1.5 * n**0.5 * random.normal(size=size) + uniform


@pytest.mark.parametrize("n", [1, 3])
def test_the_error_of_a_sum_has_the_stated_law_whatever_the_updates(n):
    """False alarm 1e-6 for each statement; a law without the rounding's 3.7 % is found out."""
    d = 2**19
    x = np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)
    x *= np.float32(0.5) / np.linalg.norm(x, axis=1, keepdims=True)
    decoded, _, _ = summed(mechanisms.secure_sum(), x)
    error = (decoded.astype(np.float64) - x.astype(np.float64).sum(0)) / (KNOBS.sigma / 1.5)
    # In the rotated domain, where rounding errors are: there they have their law coordinate by coordinate.
    turned = np.asarray(rotate(COMMON, jnp.asarray(error, jnp.float32)), np.float64)
    variance = n * (1.5**2 + 1 / 12)
    z = (np.mean(turned**2) / variance - 1) * np.sqrt(d / 2)
    assert abs(z) < 5
    assert abs(turned.mean()) < 5 * np.sqrt(variance / d)
    without = (np.mean(turned**2) / (n * 1.5**2) - 1) * np.sqrt(d / 2)
    assert without > 5
    assert stats.ks_2samp(turned, reference_error(n, d)).pvalue > 1e-6
    assert stats.ks_2samp(turned, 0.97 * reference_error(n, d)).pvalue < 1e-6


def test_the_rounding_error_depends_on_no_update():
    """Without private noise it would be all of the error: uniform, whatever is rounded (twin: no dither)."""
    d = 2**16
    mechanism = mechanisms.secure_sum(cells=1.0)
    for x in (np.zeros((1, d)), np.full((1, d), 0.4 / d**0.5)):
        decoded, _, _ = summed(mechanism, x)
        whole = np.asarray(rotate(COMMON, jnp.asarray(decoded))) / KNOBS.sigma
        # The place between integers of what is decoded is that of the dithers alone.
        assert stats.kstest(whole % 1, "uniform").pvalue > 1e-6
    assert stats.kstest(np.round(whole) % 1, "uniform").pvalue < 1e-6


def test_decoding_needs_the_sum_alone_and_wraps_around():
    """Adding the modulus, or 2^32, to any message changes nothing."""
    mechanism = mechanisms.secure_sum()
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * np.float32(0.1)
    decoded, symbols, bits = summed(mechanism, x)
    assert symbols.max() >= 2**bits or symbols.min() >= 0
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(0), k))(jnp.arange(5))
    drawn = jax.jit(jax.vmap(lambda key: mechanism.joint.dithers(key, 40)), compiler_options=FAST)
    dithers = np.asarray(drawn(keys)).sum(0, dtype=np.int32)
    decode = jax.jit(mechanism.joint.decode, static_argnums=(1, 7), compiler_options=FAST)
    for more in (0, 1, -7, 2**20):
        moved = (symbols.astype(np.int64) + more * 2 ** int(bits)) % 2**32
        moved = moved.astype(np.uint32).view(np.int32)
        again = decode(COMMON, 5, jnp.float32(5), moved, dithers, bits, KNOBS, 40)
        np.testing.assert_array_equal(again, decoded)


@pytest.mark.parametrize("gamma", [0.5, 3.0, 30.0, 500.0])
def test_a_sum_wraps_around_no_more_often_than_stated(gamma):
    """Updates that all point one way fill the bound; with a quarter of the modulus they break it."""
    n, d, wrap = 8, 4096, 0.05
    knobs = Knobs(sigma=np.float32(1 / gamma), clip=np.float32(1))
    mechanism = mechanisms.secure_sum(wrap=wrap)
    direction = np.random.default_rng(2).normal(size=d)
    xs = np.tile(direction / np.linalg.norm(direction), (n, 1)).astype(np.float32)
    wrapped = {}
    for less in (0, 1, 2):
        joint = mechanism.joint
        fewer = joint._replace(bits=lambda *a, joint=joint, less=less: joint.bits(*a) - less)
        decoded, _, bits = summed(mechanism._replace(joint=fewer), xs, knobs)
        error = np.asarray(rotate(COMMON, jnp.asarray(decoded - xs.sum(0))))
        steps = error / (knobs.sigma / 1.5)
        wrapped[less] = np.mean(np.abs(steps) > 2 ** (int(bits) - 1))
    deviation = np.sqrt(wrap / d)
    assert wrapped[0] <= wrap + 5 * deviation
    # Bits are whole, and the bound is 8 times the tail of a Gaussian: at most two of them are to spare.
    assert wrapped[2] > wrap + 5 * deviation
    assert wrapped[0] <= wrapped[1] < wrapped[2]


def test_more_private_updates_take_fewer_bits():
    joint = mechanisms.secure_sum().joint
    bits = [int(joint.bits(Knobs(sigma=s, clip=1.0), 100, 10**5)) for s in (1e-3, 1e-2, 0.1, 1.0)]
    assert bits == sorted(bits, reverse=True) and bits[0] > bits[-1] >= 7
    assert int(joint.bits(Knobs(sigma=1e-20, clip=1.0), 100, 10**5)) == 0  # more than can be decoded


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_an_invalid_update_is_no_integer(bad):
    mechanism = fast(mechanisms.secure_sum())
    x = jnp.zeros(20).at[3].set(bad)
    message = mechanism.encode(KEYS, x, KNOBS)
    assert (message.symbols == INVALID).any()
    assert np.isnan(mechanism.decode(KEYS.shared, message, KNOBS)).all()
    data = wire.pack(message, mechanisms.secure_sum(), KEYS.shared, KNOBS)
    back = wire.unpack(data, mechanisms.secure_sum(), KEYS.shared, KNOBS, 20)
    np.testing.assert_array_equal(back.symbols, message.symbols)


@pytest.mark.parametrize(
    "wrong", [Knobs(sigma=np.float32(-1), clip=1.0), Knobs(sigma=0.1, clip=np.float32(np.nan))]
)
def test_a_wrong_knob_inside_a_compiled_function_gives_nan(wrong):
    mechanism, wrong = fast(mechanisms.secure_sum()), jax.tree.map(jnp.float32, wrong)
    message = mechanism.encode(KEYS, jnp.zeros(20), wrong)
    assert np.isnan(mechanism.decode(KEYS.shared, message, wrong)).all()


def test_bytes_are_the_bits_of_the_modulus():
    plain = mechanisms.chain(mechanisms.clip("l2"), mechanisms.secure_sum())
    mechanism = fast(plain)
    x = jnp.asarray(np.random.default_rng(0).normal(size=3000), jnp.float32)
    message = mechanism.encode(KEYS, x, KNOBS)
    data = wire.pack(message, plain, KEYS.shared, KNOBS, round_number=3, client=5)
    back = wire.unpack(data, plain, KEYS.shared, KNOBS, 3000)
    for one, two in zip(*map(jax.tree.leaves, (message, back)), strict=True):
        np.testing.assert_array_equal(one, two)
    bits = float(mechanism.bits(KEYS.shared, message, KNOBS))
    modulus = int(message.side["chain"]["bits"][0])
    assert bits == 3000 * modulus + 16 and bits / 8 <= len(data) <= 1.02 * bits / 8 + 30
    with pytest.raises(WireError):
        wire.unpack(data, plain, jax.random.key(9), KNOBS, 3000)
    for wrong in (-1, 22, 880):
        side = {**message.side["chain"], "bits": jnp.full(1, wrong, jnp.int32)}
        with pytest.raises(WireError, match=f"says that its integers have {wrong} bits"):
            wire.pack(dataclasses.replace(message, side={"chain": side}), plain, KEYS.shared, KNOBS)
    error = mechanism.decode(KEYS.shared, message, KNOBS) - mechanism.reference(x, KNOBS)
    assert np.mean(np.square(error)) == pytest.approx(float(mechanism.variance(x, KNOBS)), rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"survivors": -1}, "survivors"),
        ({"survivors": 2.5}, "survivors"),
        ({"survivors": 3, "colluders": 3}, "fewer than survivors = 3"),
        ({"cells": 0.9}, "cells"),
        ({"cells": float("nan")}, "cells"),
        ({"wrap": 0.0}, "wrap"),
        ({"lost": 1.0}, "lost"),
    ],
)
def test_impossible_sums_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        mechanisms.secure_sum(**arguments)


@pytest.mark.parametrize("step", [mechanisms.rotate(), mechanisms.random_mask(), mechanisms.top_k()])
def test_steps_that_the_server_would_have_to_undo_are_refused(step):
    with pytest.raises(ConfigError, match=f"{step.name} cannot stand before secure-sum"):
        mechanisms.chain(mechanisms.clip("l2"), step, mechanisms.secure_sum())
