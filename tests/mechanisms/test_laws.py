"""The laws of `mechanisms.base`, for every mechanism of the registry."""

import functools
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms, wire
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import RANGE, Keys, Knobs

NAMES = sorted(mechanisms.REGISTRY)
# All tests of one mechanism in one process, so that they share what is compiled.
EACH = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES]
LENGTH = 104  # of most updates here: whole blocks of 1, 2, 4 and 8
KNOBS = Knobs(sigma=0.1, clip=1.0, step=0.1, bits=3.0, levels=4.0, fraction=0.5)
KEYS = Keys(jax.random.key(1), jax.random.key(2))
# What no knob may be, and what one of them may not.
WRONG = [-1, -1.0, 0.0, np.nan, np.inf, np.float32(-1), np.float64(1e39), 1e-50, 10**400, jnp.float32(np.nan)]
WRONG += [np.array([0.5, -1.0], np.float32), jnp.array([2.0, np.inf])]
NOT_A_NUMBER = ["0.1", True, 1j, [[1.0], [1.0, 2.0]]]
BEYOND = {
    "sigma": [],
    "clip": [],
    "step": [],
    "bits": [32.0, 9, 0.5],
    "levels": [0.5, 2.0**21],
    "fraction": [2.0, np.float32(1.5)],
}
# None of them is a float32; a product with one of them is rounded differently in float64.
SOME_KNOBS = KNOBS._replace(sigma=0.1, step=0.3, clip=0.7, fraction=0.3)


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


def test_decode_needs_only_the_shared_key():
    """In another process: nothing but the message's arrays, the shared key and the knobs."""
    given, here = [], {}
    for name in NAMES:
        mechanism = compiled(name)
        message = mechanism.encode(KEYS, updates(LENGTH), KNOBS)
        here[name] = np.asarray(mechanism.decode(KEYS.shared, message, KNOBS))
        given.append((name, jax.tree.map(np.asarray, message)))
    script = """
import pickle, sys, jax
from cepam_jax import mechanisms
given, knobs = pickle.load(sys.stdin.buffer)
decode = lambda name, m: jax.jit(mechanisms.make(name).decode)(jax.random.key(1), m, mechanisms.Knobs(*knobs))
pickle.dump({name: bytes(memoryview(decode(name, m))) for name, m in given}, sys.stdout.buffer)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((given, tuple(KNOBS))),
        capture_output=True,
        check=True,
    )
    there = pickle.loads(done.stdout)
    for name in NAMES:
        np.testing.assert_array_equal(np.frombuffer(there[name], np.float32), here[name], err_msg=name)


@pytest.mark.parametrize("name", ["lrsuq_gaussian_z1", "lrsuq_gaussian_z3", "noise_laplace_sdq", "sketched"])
def test_jit_changes_nothing(name):
    mechanism = mechanisms.make(name)
    x = updates(LENGTH)
    message = compiled(name).encode(KEYS, x, KNOBS)
    for a, b in zip(*map(jax.tree.leaves, (message, mechanism.encode(KEYS, x, KNOBS))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # floats of side information
    np.testing.assert_allclose(
        compiled(name).decode(KEYS.shared, message, KNOBS),
        mechanism.decode(KEYS.shared, message, KNOBS),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", EACH)
def test_vmap_over_clients_equals_a_loop(name):
    mechanism = compiled(name)
    clients = 5
    keys = Keys(*(jax.vmap(lambda k, s=s: jax.random.key(10 * k + s))(jnp.arange(clients)) for s in (1, 2)))
    xs = jnp.stack([updates(LENGTH, k) for k in range(clients)])
    scale = jnp.array([0.001, 0.01, 0.1, 1.0, 10.0])
    knobs = Knobs(
        sigma=scale,
        clip=jnp.ones(clients),
        step=scale,
        bits=jnp.array([1.0, 2, 3, 4, 8]),
        levels=jnp.array([2.0, 3, 4, 16, 256]),
        fraction=jnp.array([0.01, 0.1, 0.5, 0.9, 1.0]),
    )

    def round_trip(keys, x, knobs):
        message = mechanism.encode(keys, x, knobs)
        return (
            message,
            mechanism.decode(keys.shared, message, knobs),
            mechanism.bits(keys.shared, message, knobs),
        )

    one = round_trip  # of compiled functions
    together = jax.jit(jax.vmap(round_trip))(keys, xs, knobs)
    for k in range(clients):
        alone = one(*jax.tree.map(lambda a, k=k: a[k], (keys, xs, knobs)))
        mine = jax.tree.map(lambda a, k=k: a[k], together)
        if name.startswith(("lrsuq", "sdq")):
            leaves_equal(mine[0].symbols, alone[0].symbols)
            leaves_equal(mine[1], alone[1])
        # Sums over the update (norms, means, transforms) may be rounded in another order.
        for a, b in zip(*map(jax.tree.leaves, (mine, alone)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_padding_changes_nothing(name):
    mechanism = compiled(name)
    if not mechanism.about.local:
        pytest.skip("depends on the whole update, as `about` states")
    x = updates(LENGTH)
    padded = jnp.pad(x, (0, 424))
    plain = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS)
    longer = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, padded, KNOBS), KNOBS)
    whole = LENGTH - LENGTH % mechanism.about.block
    np.testing.assert_array_equal(plain[:whole], longer[:whole])


@pytest.mark.parametrize("name", EACH)
def test_short_updates(name):
    """Nothing, one coordinate, a few: part of a block, or a whole one and a part."""
    mechanism = compiled(name)
    for length in (0, 5) if mechanism.code.kind == "lattice" else (0, 1, 5):
        x = updates(length)
        message = mechanism.encode(KEYS, x, KNOBS)
        x_hat = mechanism.decode(KEYS.shared, message, KNOBS)
        assert x_hat.shape == (length,)
        assert np.abs(x_hat - x).max(initial=0) < 12 * KNOBS.sigma
        assert np.isfinite(mechanism.bits(KEYS.shared, message, KNOBS))


SIGNALS = {"zeros": jnp.zeros(3000), "constant": jnp.ones(3000), "random": updates(3000)}


@functools.cache
def measured(name):
    """(error, bits, variance formula) as one compiled function."""
    mechanism = mechanisms.make(name)
    formula = mechanism.variance or (lambda x, knobs: jnp.float32(jnp.nan))

    @jax.jit
    def run(x, scale):
        knobs = KNOBS._replace(sigma=0.1 * scale, clip=scale, step=0.1 * scale)
        message = mechanism.encode(KEYS, x * scale, knobs)
        error = mechanism.decode(KEYS.shared, message, knobs) - x * scale
        # jnp.square(1e30) is beyond f32: the formula is evaluated at scale 1.
        return error / scale, mechanism.bits(KEYS.shared, message, knobs), formula(x, KNOBS)

    return mechanism.about, run


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("signal", SIGNALS)
def test_any_scale(name, signal):
    """Finite at 1e-30 and 1e30 and in between, with the variance that the formula states."""
    about, run = measured(name)
    for scale in (1e-30, 1e-10, 1.0, 1e10, 1e30):
        error, bits, variance = map(np.asarray, run(SIGNALS[signal], jnp.float32(scale)))
        assert np.isfinite(error).all() and np.isfinite(bits) and bits >= 0
        if about.law == "none":
            assert (error == 0).all()
        if np.isfinite(variance).all():
            square = np.square(error.astype(np.float64))
            # Six deviations of the sample mean; 1e-5 for f32 rounding of x itself.
            assert abs(square.mean() - variance.mean()) < 6 * square.std() / np.sqrt(3000) + 1e-5


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_invalid_update_stays_invalid(name, bad):
    mechanism = compiled(name)
    x = updates(LENGTH).at[37].set(bad)  # the same shape for all: one compilation
    x_hat = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    assert not np.isfinite(x_hat).all()
    if mechanism.about.local:
        block = mechanism.about.block
        others = np.arange(LENGTH) // block != 37 // block
        assert not np.isfinite(x_hat[37]) and np.isfinite(x_hat[others]).all()


def largest(name):
    """Largest |x| that is coded, where sigma and step are 0.1; None: any number is."""
    if name.startswith(("lrsuq", "noise", "rounding", "sdq")) and name != "sdq_d4_bits":
        # A rate by sigma means cells of sqrt(12) sigma.
        return 0.1 * RANGE * (12**0.5 if name == "sdq_z1_sigma" else 1)
    smaller = {  # of the two parts of the error, in units of sigma = step
        "jopeq_gaussian": (1 - 1 / 12) ** 0.5,
        "jopeq_laplace_z2": (1 - 1 / 12) ** 0.5,
        "split_z1": 0.5**0.5,
        "split_d4": 0.2**0.5,
    }
    return 0.1 * RANGE * smaller[name] if name in smaller else None


LIMITED = [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in NAMES if largest(n)]


MEASURED = ("binary", "clipped", "k_level", "qsgd", "rotated", "sketched", "sdq_d4_bits")  # their own range
AS_THEY_ARE = ("identity", "masked", "top_k")


def test_every_mechanism_with_noise_or_a_given_lattice_has_the_limit():
    for name in NAMES:
        assert bool(largest(name)) == (not name.startswith(MEASURED + AS_THEY_ARE)), name
    assert RANGE == 2**15


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("sign", [-1, 1])
def test_what_is_too_large_to_be_coded_is_nan_with_its_block(name, sign):
    mechanism = compiled(name)
    block = mechanism.about.block
    mine = np.arange(LENGTH) // block == 37 // block
    x = updates(LENGTH).at[37].set(sign * 0.999 * largest(name))
    below = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    # Eleven deviations of the noise or cells of the lattice; no neighbour suffers from the large one.
    assert np.abs(below - x).max() < 11 * 0.1 * (12**0.5 if name == "sdq_z1_sigma" else 1)
    for factor in (1.001, 1e3, 1e4, 1e5, 1e8, 1e25):
        x = x.at[37].set(sign * factor * largest(name))
        message = mechanism.encode(KEYS, x, KNOBS)
        x_hat = np.asarray(mechanism.decode(KEYS.shared, message, KNOBS))
        assert np.isnan(x_hat[mine]).all()
        np.testing.assert_array_equal(x_hat[~mine], below[~mine])


@pytest.mark.parametrize("name", [p for p in EACH if p.values[0] not in [q.values[0] for q in LIMITED]])
def test_what_has_no_limit_codes_any_number(name):
    mechanism = compiled(name)
    x = updates(LENGTH).at[37].set(1e30)
    x_hat = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    if name.endswith("lrsuq"):  # a step, then LRSUQ with its limit
        assert np.isnan(x_hat[37])
    else:
        assert np.isfinite(x_hat).all() and x_hat[37] >= 0


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_an_invalid_update_has_bits_and_bytes(name, bad):
    mechanism = compiled(name)
    x = updates(LENGTH).at[37].set(bad)
    message = mechanism.encode(KEYS, x, KNOBS)
    bits = float(mechanism.bits(KEYS.shared, message, KNOBS))
    assert np.isfinite(bits) and bits >= 0
    data = wire.pack(message, mechanisms.make(name), KEYS.shared, KNOBS)
    back = wire.unpack(data, mechanisms.make(name), KEYS.shared, KNOBS, LENGTH)
    np.testing.assert_array_equal(
        mechanism.decode(KEYS.shared, back, KNOBS), mechanism.decode(KEYS.shared, message, KNOBS)
    )


SEEDS = 4000
BIASED = KNOBS._replace(step=0.4, bits=2.0)  # coarse, so that a bias shows


@pytest.mark.parametrize("name", EACH)
def test_unbiased_as_stated(name):
    mechanism = mechanisms.make(name)
    # A threshold by divergence cuts something off only where there are many values.
    x = updates(4096 if name == "clipped_kl" else 32, seed=5)

    def error(seed):
        keys = Keys(jax.random.key(seed), jax.random.key(seed + SEEDS))
        return mechanism.decode(keys.shared, mechanism.encode(keys, x, BIASED), BIASED) - x

    errors = np.asarray(jax.jit(jax.vmap(error))(jnp.arange(SEEDS)), np.float64)
    deviation = errors.std(0) / np.sqrt(SEEDS)
    mean = errors.mean(0)
    # 32 coordinates at 6 deviations: false alarm 6e-8 per mechanism. 1e-6: f32 rounding.
    biased = np.abs(mean) > 6 * deviation + 1e-6
    assert biased.any() == (not mechanism.about.unbiased)


@pytest.mark.parametrize("name", EACH)
def test_wrong_arguments_are_named(name):
    mechanism = mechanisms.make(name)
    with pytest.raises(ConfigError, match="shape of x is"):
        mechanism.encode(KEYS, jnp.zeros((2, 2)), KNOBS)
    with pytest.raises(ConfigError, match="dtype of x is 'int32'"):
        mechanism.encode(KEYS, jnp.zeros(3, jnp.int32), KNOBS)
    for knob in mechanism.about.knobs:
        with pytest.raises(ConfigError, match=f"knob {knob} is None; it must be a (positive |whole |)number"):
            mechanism.encode(KEYS, jnp.ones(3), KNOBS._replace(**{knob: None}))
        for wrong in WRONG + NOT_A_NUMBER + BEYOND[knob]:
            given = KNOBS._replace(**{knob: wrong})
            with pytest.raises(ConfigError, match=f"knob {knob} is .*; it must be a"):
                mechanism.encode(KEYS, jnp.ones(3), given)
    if mechanism.about.knobs == ("levels",):
        with pytest.raises(ConfigError, match="knob levels is 2.5; it must be a whole number"):
            mechanism.encode(KEYS, jnp.ones(3), KNOBS._replace(levels=2.5))


@pytest.mark.parametrize("name", EACH)
def test_a_wrong_knob_inside_a_compiled_function_gives_nan(name):
    """There it cannot be seen when it is given; it must not lead to numbers that look right either."""
    mechanism = compiled(name)
    for knob in mechanism.about.knobs:
        for wrong in (-1.0, 0.0, np.nan, *(b for b in BEYOND[knob] if isinstance(b, float))):
            given = KNOBS._replace(**{knob: wrong})
            theirs = mechanism.encode(KEYS, updates(LENGTH), given)
            assert np.isnan(mechanism.decode(KEYS.shared, theirs, given)).all()


@pytest.mark.parametrize("name", EACH)
def test_a_number_is_the_same_knob_however_it_is_given(name):
    """0.1, numpy's and jax's float32(0.1): all are float32 before anything is calculated with them."""
    mechanism = mechanisms.make(name)
    message = compiled(name).encode(KEYS, updates(LENGTH), KNOBS)
    found = []
    for kind in (float, np.float64, np.float32, jnp.float32):
        given = Knobs(*(None if value is None else kind(value) for value in SOME_KNOBS))
        found.append(np.asarray(mechanism.decode(KEYS.shared, message, given)))
        assert found[-1].dtype == np.float32
        np.testing.assert_array_equal(found[0], found[-1])


@pytest.mark.parametrize("name", EACH)
def test_private_key_matters_only_if_stated(name):
    mechanism = compiled(name)
    x = updates(LENGTH)
    one = mechanism.encode(KEYS, x, KNOBS)
    other = mechanism.encode(KEYS._replace(private=jax.random.key(77)), x, KNOBS)
    same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))
    assert same == ("private" not in mechanism.about.randomness)


@pytest.mark.parametrize(
    "name", ["identity", "lrsuq_gaussian_z2", "noise_laplace_sdq", "clipped_kl", "sketched"]
)
def test_chain_measures_the_error_from_the_clipped_update(name):
    mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.make(name))
    x = updates(1000) * 100
    reference = mechanism.reference(x, KNOBS)
    assert np.linalg.norm(reference) == pytest.approx(1.0, rel=1e-5)
    assert mechanism.about.clip == "l2" and "clip" in mechanism.about.knobs
    message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
    error = jax.jit(mechanism.decode)(KEYS.shared, message, KNOBS) - reference
    assert np.std(error) < 0.3  # of updates of norm 100: far off if measured from x


def test_chain_must_end_with_its_only_mechanism():
    with pytest.raises(ConfigError, match="must end with a mechanism"):
        mechanisms.chain(mechanisms.clip("l2"))
    with pytest.raises(ConfigError, match="every step before the last"):
        mechanisms.chain(mechanisms.identity(), mechanisms.identity())
    with pytest.raises(ConfigError, match="rotate cannot follow mask"):
        mechanisms.chain(mechanisms.random_mask(), mechanisms.rotate(), mechanisms.identity())


def test_steps_of_a_chain_use_different_randomness():
    """Two masks of one half keep a quarter."""
    twice = mechanisms.chain(mechanisms.random_mask(), mechanisms.random_mask(), mechanisms.identity())
    x_hat = twice.decode(KEYS.shared, twice.encode(KEYS, jnp.ones(10_000), KNOBS), KNOBS)
    np.testing.assert_allclose(np.unique(x_hat), [0, 4])
    assert np.mean(x_hat > 0) == pytest.approx(0.25, abs=6 * np.sqrt(0.1875 / 10_000))


def test_impossible_mechanisms_are_named():
    with pytest.raises(ConfigError, match="lattice is 'Z0'; it must be one of 'A2', 'D4', 'E8', 'Z1'"):
        mechanisms.lrsuq(lattice="Z0")
    with pytest.raises(ConfigError, match="segments is"):
        mechanisms.lrsuq(segments=(3, 4)).encode(KEYS, jnp.zeros(8), KNOBS)
    with pytest.raises(ConfigError, match="rate is 'speed'"):
        mechanisms.sdq(rate="speed")
    with pytest.raises(ConfigError, match="threshold is 'best'"):
        mechanisms.clipped(threshold="best")
    with pytest.raises(ConfigError, match="shapes is"):
        mechanisms.clipped(shapes=((3, 4),)).encode(KEYS, jnp.zeros(8), KNOBS)
    with pytest.raises(ConfigError, match="mechanism is 'nope'"):
        mechanisms.make("nope")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("lrsuq") and n[-2:] in ("z1", "z2", "z3")])
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
