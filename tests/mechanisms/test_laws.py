"""The laws of `mechanisms.base`, for every mechanism of the registry."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Keys, Knobs

NAMES = sorted(mechanisms.REGISTRY)
KNOBS = Knobs(sigma=0.1, clip=1.0)
KEYS = Keys(jax.random.key(1), jax.random.key(2))


@functools.cache
def compiled(name):
    mechanism = mechanisms.make(name)
    return mechanism._replace(
        encode=jax.jit(mechanism.encode), decode=jax.jit(mechanism.decode), bits=jax.jit(mechanism.bits)
    )


def updates(length, seed=0):
    return jax.random.normal(jax.random.key(seed), (length,)) * 0.3


def leaves_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", NAMES)
def test_decode_needs_only_the_shared_key(name):
    """In another process: nothing but the message's arrays, the shared key and the knobs."""
    mechanism = compiled(name)
    message = mechanism.encode(KEYS, updates(1001), KNOBS)
    here = np.asarray(mechanism.decode(KEYS.shared, message, KNOBS))
    script = """
import pickle, sys, jax, jax.numpy as jnp
from cepam_jax import mechanisms
name, fields, knobs = pickle.load(sys.stdin.buffer)
message = mechanisms.Message(*jax.tree.map(jnp.asarray, fields))
x_hat = jax.jit(mechanisms.make(name).decode)(jax.random.key(1), message, mechanisms.Knobs(*knobs))
sys.stdout.buffer.write(bytes(memoryview(x_hat)))
"""
    import pickle  # noqa: PLC0415

    given = pickle.dumps((name, jax.tree.map(np.asarray, tuple(message)), tuple(KNOBS)))
    done = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), here)


@pytest.mark.parametrize("name", NAMES)
def test_jit_changes_nothing(name):
    mechanism = mechanisms.make(name)
    x = updates(1000)
    message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
    leaves_equal(message, mechanism.encode(KEYS, x, KNOBS))
    leaves_equal(
        jax.jit(mechanism.decode)(KEYS.shared, message, KNOBS),
        mechanism.decode(KEYS.shared, message, KNOBS),
    )


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_clients_equals_a_loop(name):
    mechanism = compiled(name)
    clients = 5
    keys = Keys(*(jax.vmap(lambda k, s=s: jax.random.key(10 * k + s))(jnp.arange(clients)) for s in (1, 2)))
    xs = jnp.stack([updates(700, k) for k in range(clients)])
    knobs = Knobs(sigma=jnp.array([0.001, 0.01, 0.1, 1.0, 10.0]), clip=jnp.ones(clients))

    def round_trip(keys, x, knobs):
        message = mechanism.encode(keys, x, knobs)
        return (
            message,
            mechanism.decode(keys.shared, message, knobs),
            mechanism.bits(keys.shared, message, knobs),
        )

    together = jax.jit(jax.vmap(round_trip))(keys, xs, knobs)
    for k in range(clients):
        alone = round_trip(*jax.tree.map(lambda a, k=k: a[k], (keys, xs, knobs)))
        mine = jax.tree.map(lambda a, k=k: a[k], together)
        leaves_equal(mine[:2], alone[:2])
        np.testing.assert_allclose(mine[2], alone[2], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    mechanism = compiled(name)
    x = updates(600)  # whole blocks of 1, 2 and 3
    padded = jnp.pad(x, (0, 424))
    plain = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS)
    longer = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, padded, KNOBS), KNOBS)
    np.testing.assert_array_equal(plain, longer[:600])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 1, 2, 4, 5])
def test_short_updates(name, length):
    mechanism = compiled(name)
    x = updates(length)
    message = mechanism.encode(KEYS, x, KNOBS)
    x_hat = mechanism.decode(KEYS.shared, message, KNOBS)
    assert x_hat.shape == (length,)
    assert np.abs(x_hat - x).max(initial=0) < 8 * KNOBS.sigma
    assert np.isfinite(mechanism.bits(KEYS.shared, message, KNOBS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("signal", ["zeros", "constant", "random"])
def test_any_scale(name, scale, signal):
    mechanism = compiled(name)
    x = {"zeros": jnp.zeros(3000), "constant": jnp.ones(3000), "random": updates(3000)}[signal] * scale
    knobs = Knobs(sigma=0.1 * scale, clip=scale)
    message = mechanism.encode(KEYS, x, knobs)
    error = np.asarray(mechanism.decode(KEYS.shared, message, knobs), np.float64) - np.asarray(x)
    bits = float(mechanism.bits(KEYS.shared, message, knobs)) / x.size
    assert np.isfinite(bits) and bits >= 0
    if mechanism.about.law == "none":
        assert (error == 0).all()
    else:
        # Variance of 3,000 Laplace errors: relative deviation sqrt(5/3000); six of them.
        assert abs(np.mean(error**2) / (0.1 * scale) ** 2 - 1) < 6 * np.sqrt(5 / 3000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_cannot_be_coded_is_never_a_number(name, bad):
    mechanism = compiled(name)
    x = updates(100).at[37].set(bad)
    x_hat = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    if mechanism.about.law == "none":
        np.testing.assert_array_equal(x_hat, x)
    else:
        assert np.isnan(x_hat[37])
    others = np.delete(np.arange(100), 37)
    assert np.isfinite(x_hat[others]).all()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_named(name):
    mechanism = mechanisms.make(name)
    with pytest.raises(ConfigError, match="shape of x is"):
        mechanism.encode(KEYS, jnp.zeros((2, 2)), KNOBS)
    with pytest.raises(ConfigError, match="dtype of x is 'int32'"):
        mechanism.encode(KEYS, jnp.zeros(3, jnp.int32), KNOBS)
    for knob in mechanism.about.knobs:
        with pytest.raises(ConfigError, match=f"knob {knob} is"):
            mechanism.encode(KEYS, jnp.zeros(3), KNOBS._replace(**{knob: None}))
        with pytest.raises(ConfigError, match=f"knob {knob} is -1"):
            mechanism.encode(KEYS, jnp.zeros(3), KNOBS._replace(**{knob: -1.0}))


@pytest.mark.parametrize("name", NAMES)
def test_private_key_matters_only_if_stated(name):
    mechanism = compiled(name)
    x = updates(1000)
    one = mechanism.encode(KEYS, x, KNOBS)
    other = mechanism.encode(KEYS._replace(private=jax.random.key(77)), x, KNOBS)
    same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))
    assert same == ("private" not in mechanism.about.randomness)


@pytest.mark.parametrize("name", NAMES)
def test_chain_measures_the_error_from_the_clipped_update(name):
    mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.make(name))
    x = updates(1000) * 100
    reference = mechanism.reference(x, KNOBS)
    assert np.linalg.norm(reference) == pytest.approx(1.0, rel=1e-5)
    x_hat = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS)
    assert np.std(x_hat - reference) < 1.2 * KNOBS.sigma
    assert mechanism.about.clip == "l2" and "clip" in mechanism.about.knobs


def test_chain_must_end_with_its_only_mechanism():
    with pytest.raises(ConfigError, match="must end with a mechanism"):
        mechanisms.chain(mechanisms.clip("l2"))
    with pytest.raises(ConfigError, match="every step before the last"):
        mechanisms.chain(mechanisms.identity(), mechanisms.identity())


def test_impossible_lrsuq_is_named():
    with pytest.raises(ConfigError, match="lattice is 'Z0'; it must be one of 'Z1', 'Z2', 'Z3'"):
        mechanisms.lrsuq(lattice="Z0")
    with pytest.raises(ConfigError, match="lattice is 'Z2'; it must be 'Z1' where the target is 'laplace'"):
        mechanisms.lrsuq(target="laplace", lattice="Z2")
    with pytest.raises(ConfigError, match="segments is"):
        mechanisms.lrsuq(segments=(3, 4)).encode(KEYS, jnp.zeros(8), KNOBS)
    with pytest.raises(ConfigError, match="mechanism is 'nope'"):
        mechanisms.make("nope")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_decoder_in_numpy_gives_the_same_bits(name):
    """The decoder's arithmetic is fixed to the last bit: no platform may round otherwise."""
    from cepam_jax.mechanisms import counter, latents  # noqa: PLC0415

    mechanism = compiled(name)
    n = mechanism.about.block
    message = mechanism.encode(KEYS, updates(3000), KNOBS)
    blocks = np.arange(3000 // n, dtype=np.uint32)
    pair = lambda tag, major: map(  # noqa: E731
        np.asarray, counter.words(counter.stream(KEYS.shared, tag), major, blocks)
    )
    layer, dither = pair(1, 0)
    table = latents.radius_table(mechanism.about.law, n)
    index, position = map(np.asarray, latents.cell(layer))
    radius = table.middle[index] + table.slope[index] * position.astype(np.float32)
    unit = np.float32(2.0 if mechanism.about.law == "gaussian" else 2 * 2**-0.5)
    width = radius * (np.float32(KNOBS.sigma) * unit)
    shifts = [dither]
    if n > 1:
        pairs = (n + 1) // 2
        accepted = np.asarray(message.index) * np.uint32(pairs)
        shifts = [word for p in range(pairs) for word in pair(2, accepted + np.uint32(p))][:n]
    shift = np.stack([s.view(np.int32).astype(np.float32) * np.float32(2.0**-32) for s in shifts], 1)
    x_hat = np.repeat(width, n) * (np.asarray(message.symbols).astype(np.float32) + shift.ravel())
    np.testing.assert_array_equal(mechanism.decode(KEYS.shared, message, KNOBS), x_hat)
