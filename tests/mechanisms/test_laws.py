"""The laws of `mechanisms.base`, for every mechanism of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms import programs
from mechanisms.programs import EACH, KEYS, KNOBS, LONG, NAMES, SHORT, compiled, float32, updates

from cepam_jax import mechanisms, wire
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import RANGE, Knobs

BAD = 16  # where an update has a coordinate that is not valid
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
SOME_KNOBS = Knobs(sigma=0.1, step=0.3, clip=0.7, fraction=0.3, bits=3.0, levels=4.0)


def put(value):
    """An update of length LONG with one special coordinate."""
    x = updates(LONG)
    x[BAD] = value
    return x


@pytest.mark.parametrize(
    "name", [programs.param(name) for name in ["lrsuq_gaussian_z2", "rotated_e8", "sketched"]]
)
def test_jit_changes_nothing(name):
    mechanism = mechanisms.make(name)
    x = updates(SHORT)
    message = programs.round_trip(name)(KEYS, x, KNOBS)[0]
    for a, b in zip(*map(jax.tree.leaves, (message, mechanism.encode(KEYS, x, KNOBS))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # floats of side information
    np.testing.assert_allclose(
        programs.round_trip(name)(KEYS, x, KNOBS)[1],
        mechanism.decode(KEYS.shared, message, KNOBS),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", EACH)
def test_vmap_over_clients_equals_a_loop(name):
    mechanism = compiled(name)
    xs = np.stack([updates(LONG, k) for k in range(programs.CLIENTS)])
    knobs = float32(
        sigma=[0.001, 0.01, 0.1, 1.0, 10.0],
        clip=[1, 1, 1, 1, 1],
        step=[0.001, 0.01, 0.1, 1.0, 10.0],
        bits=[1, 2, 3, 4, 8],
        levels=[2, 3, 4, 16, 256],
        fraction=[0.01, 0.1, 0.5, 0.9, 1.0],
    )
    clients = (programs.client_keys(), xs, knobs)
    message, decoded = programs.together(name)(*clients)
    bits = programs.bits_together(name)(clients[0], message, knobs)
    together = jax.tree.map(np.asarray, (message, decoded, bits))
    for k in range(programs.CLIENTS):
        keys, x, own = jax.tree.map(lambda a, k=k: a[k], clients)
        message = mechanism.encode(keys, x, own)
        decoded = mechanism.decode(keys.shared, message, own)
        bits = mechanism.bits(keys.shared, message, own)
        mine = jax.tree.map(lambda a, k=k: a[k], together)
        if name.startswith(("lrsuq", *ROTATED_CELLS)):
            np.testing.assert_array_equal(mine[0].symbols, message.symbols)
            np.testing.assert_array_equal(mine[1], decoded)
        # Sums over the update (norms, means, transforms) may be rounded in another order. So may x over a
        # common step: a point on a border of cells may fall to either side. Seen are up to 2.
        one_scale = name.startswith(("sdq", "jopeq")) or name.endswith("_sdq")
        for a, b in zip(*map(jax.tree.leaves, (mine, (message, decoded, bits))), strict=True):
            close = np.isclose(a, b, rtol=1e-4, atol=1e-5)
            assert np.sum(~close) <= (8 if one_scale and np.size(b) >= LONG else 0)


@pytest.mark.parametrize("name", EACH)
def test_padding_changes_nothing(name):
    mechanism = compiled(name)
    if not mechanism.about.local:
        pytest.skip("depends on the whole update, as `about` states")
    x = updates(SHORT)
    padded = np.pad(x, (0, LONG - SHORT))
    plain = programs.round_trip(name)(KEYS, x, KNOBS)[1]
    longer = mechanism.decode(KEYS.shared, mechanism.encode(KEYS, padded, KNOBS), KNOBS)
    whole = SHORT - SHORT % mechanism.about.block
    if mechanism.code.kind == "float":  # two compilers round a logarithm differently
        np.testing.assert_allclose(plain[:whole], longer[:whole], rtol=1e-6, atol=1e-7)
    else:
        np.testing.assert_array_equal(plain[:whole], longer[:whole])


@pytest.mark.parametrize("name", EACH)
def test_short_updates(name):
    """Nothing, one coordinate or a few blocks and a part of one."""
    check_short(name, 0)
    check_short(name, 1 if compiled(name).about.block == 1 else SHORT)


@pytest.mark.parametrize(
    "name",
    [programs.param(name) for name in ["lrsuq_gaussian_d4", "noise_laplace_sdq", "rotated_e8", "sdq_e8"]],
)
def test_an_update_of_less_than_a_block(name):
    check_short(name, 3)


def check_short(name, length):
    x = updates(length)
    _, x_hat, bits = programs.round_trip(name)(KEYS, x, KNOBS)
    assert x_hat.shape == (length,)
    assert np.abs(x_hat - x).max(initial=0) < 12 * KNOBS.sigma
    assert np.isfinite(bits)


SIGNALS = {
    "zeros": np.zeros(LONG, np.float32),
    "constant": np.ones(LONG, np.float32),
    "random": updates(LONG),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("signal", SIGNALS)
def test_any_scale(name, signal):
    """Finite at 2^-100 (about 1e-30), at 2^100 and in between, with the variance that the formula states."""
    mechanism, formula, x = compiled(name), programs.variance(name), SIGNALS[signal]
    for scale in np.float32([2.0**-100, 1e-10, 1.0, 1e10, 2.0**100]):
        knobs = KNOBS._replace(sigma=KNOBS.sigma * scale, clip=scale, step=KNOBS.step * scale)
        message = mechanism.encode(KEYS, x * scale, knobs)
        x_hat = np.asarray(mechanism.decode(KEYS.shared, message, knobs), np.float64)
        error = (x_hat - (x * scale).astype(np.float64)) / np.float64(scale)
        bits = float(mechanism.bits(KEYS.shared, message, knobs))
        assert np.isfinite(error).all() and np.isfinite(bits) and bits >= 0
        if mechanism.about.law == "none":
            assert (error == 0).all()
        # jnp.square(1e30) is beyond f32: there the formula is evaluated at scale 1.
        at = scale if 1e-11 < scale < 1e11 else np.float32(1)
        own = KNOBS._replace(sigma=KNOBS.sigma * at, clip=at, step=KNOBS.step * at)
        variance = np.nan if formula is None else formula(x * at, own)
        variance = np.asarray(variance, np.float64) / np.float64(at) ** 2
        if np.isfinite(variance).all():
            square = np.square(error)
            # Six deviations of the sample mean; 1e-5 for f32 rounding of x itself.
            assert abs(square.mean() - variance.mean()) < 6 * square.std() / np.sqrt(LONG) + 1e-5


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_invalid_update_stays_invalid(name, bad):
    mechanism = compiled(name)
    x = put(bad)
    x_hat = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    assert not np.isfinite(x_hat).all()
    if mechanism.about.local:
        block = mechanism.about.block
        others = np.arange(LONG) // block != BAD // block
        assert not np.isfinite(x_hat[BAD]) and np.isfinite(x_hat[others]).all()


ROTATED_CELLS = ("rotated_a2", "rotated_d4", "rotated_e8")


def largest(name):
    """Largest |x| that is coded, where sigma and step are 0.1; None: any number is."""
    if name.startswith(("lrsuq", "noise", "rounding", "sdq", *ROTATED_CELLS)) and name != "sdq_d4_bits":
        # A rate by sigma means cells of sqrt(12) sigma.
        return 0.1 * RANGE * (12**0.5 if name == "sdq_z1_sigma" else 1)
    smaller = {  # of the two parts of the error, in units of sigma = step
        "jopeq_gaussian": (1 - 1 / 12) ** 0.5,
        "jopeq_laplace_z2": (1 - 1 / 12) ** 0.5,
        "split_z1": 0.5**0.5,
        "split_d4": 0.2**0.5,
        "split_rotated_e8": 0.5**0.5,
    }
    return 0.1 * RANGE * smaller[name] if name in smaller else None


LIMITED = [programs.param(n) for n in NAMES if largest(n)]


# These have a range of their own.
MEASURED = (
    "binary",
    "clipped",
    "float16",
    "k_level",
    "qsgd",
    "rotated_binary",
    "rotated_k_level",
    "sketched",
    "sdq_d4_bits",
)
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
    mine = np.arange(LONG) // block == BAD // block
    x = put(sign * 0.999 * largest(name))
    below = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, x, KNOBS), KNOBS))
    # Eleven deviations of the noise or cells of the lattice; no neighbour suffers from the large one.
    assert np.abs(below - x).max() < 11 * 0.1 * (12**0.5 if name == "sdq_z1_sigma" else 1)
    for factor in (1.001, 1e3, 1e4, 1e5, 1e8, 1e25):
        message = mechanism.encode(KEYS, put(sign * factor * largest(name)), KNOBS)
        x_hat = np.asarray(mechanism.decode(KEYS.shared, message, KNOBS))
        assert np.isnan(x_hat[mine]).all()
        np.testing.assert_array_equal(x_hat[~mine], below[~mine])


@pytest.mark.parametrize("name", [p for p in EACH if p.values[0] not in [q.values[0] for q in LIMITED]])
def test_what_has_no_limit_codes_any_number(name):
    mechanism = compiled(name)
    x_hat = np.asarray(mechanism.decode(KEYS.shared, mechanism.encode(KEYS, put(1e30), KNOBS), KNOBS))
    if name.endswith("lrsuq"):  # a step, then LRSUQ with its limit
        assert np.isnan(x_hat[BAD])
    else:
        assert np.isfinite(x_hat).all() and x_hat[BAD] >= 0


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_an_invalid_update_has_bits_and_bytes(name, bad):
    mechanism = compiled(name)
    message = mechanism.encode(KEYS, put(bad), KNOBS)
    bits = float(mechanism.bits(KEYS.shared, message, KNOBS))
    assert np.isfinite(bits) and bits >= 0
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, LONG)
    np.testing.assert_array_equal(
        mechanism.decode(KEYS.shared, back, KNOBS), mechanism.decode(KEYS.shared, message, KNOBS)
    )


BIASED = KNOBS._replace(step=np.float32(0.4), bits=np.float32(2))  # coarse, so that a bias shows


@pytest.mark.parametrize("name", EACH)
def test_unbiased_as_stated(name):
    """Mean errors of 43 sets of coordinates, those of similar x, by 40 clients, who are independent."""
    about = mechanisms.make(name).about
    x = np.sort(updates(LONG, seed=5))
    order = np.random.default_rng(0).permutation(LONG)  # neighbours in a block are not neighbours by size
    xs = np.tile(x[order], (programs.CLIENTS, 1))
    knobs = jax.tree.map(lambda value: np.full(programs.CLIENTS, value), BIASED)
    means = []
    # A threshold by divergence cuts off next to nothing.
    for call in range(80 if name == "clipped_kl" else 8):
        x_hat = np.asarray(programs.together(name)(programs.client_keys(call), xs, knobs)[1], np.float64)
        errors = np.empty_like(x_hat)
        errors[:, order] = x_hat - xs
        sets = [errors[:, :5], *np.array_split(errors[:, 5:-5], 41, axis=1), errors[:, -5:]]
        means.append(np.stack([part.mean(1) for part in sets], 1))
    means = np.concatenate(means)
    deviation = means.std(0, ddof=1) / np.sqrt(len(means))
    # 43 of Student's t with 39 degrees of freedom, at 7: false alarm 1e-6 per mechanism. 1e-6: f32 rounding.
    biased = np.abs(means.mean(0)) > 7 * deviation + 1e-6
    assert biased.any() == (not about.unbiased)


@pytest.mark.parametrize("name", EACH)
def test_wrong_arguments_are_named(name):
    mechanism = mechanisms.make(name)

    def encode(x, knobs):
        """The knobs are known, and nothing is computed."""
        return jax.eval_shape(lambda x: mechanism.encode(KEYS, x, knobs), x)

    with pytest.raises(ConfigError, match="shape of x is"):
        encode(jnp.zeros((2, 2)), KNOBS)
    with pytest.raises(ConfigError, match="dtype of x is 'int32'"):
        encode(jnp.zeros(3, jnp.int32), KNOBS)
    for knob in mechanism.about.knobs:
        with pytest.raises(ConfigError, match=f"knob {knob} is None; it must be a (positive |whole |)number"):
            encode(jnp.ones(3), KNOBS._replace(**{knob: None}))
        every = WRONG + NOT_A_NUMBER + BEYOND[knob]
        for wrong in every[::7] if name.endswith(programs.VARIANTS) else every:
            with pytest.raises(ConfigError, match=f"knob {knob} is .*; it must be a"):
                encode(jnp.ones(3), KNOBS._replace(**{knob: wrong}))
    if mechanism.about.knobs == ("levels",):
        with pytest.raises(ConfigError, match="knob levels is 2.5; it must be a whole number"):
            encode(jnp.ones(3), KNOBS._replace(levels=2.5))


@pytest.mark.parametrize("name", EACH)
def test_a_wrong_knob_inside_a_compiled_function_gives_nan(name):
    """There it cannot be seen when it is given; it must not lead to numbers that look right either."""
    mechanism = compiled(name)
    for knob in mechanism.about.knobs:
        for wrong in (-1.0, 0.0, np.nan, *(b for b in BEYOND[knob] if isinstance(b, float))):
            given = KNOBS._replace(**{knob: np.float32(wrong)})
            theirs = mechanism.encode(KEYS, updates(LONG), given)
            assert np.isnan(mechanism.decode(KEYS.shared, theirs, given)).all()


@pytest.mark.parametrize("name", EACH)
def test_a_number_is_the_same_knob_however_it_is_given(name):
    """0.1, numpy's and jax's float32(0.1): all are float32 before anything is calculated with them."""
    mechanism = mechanisms.make(name)
    message = programs.round_trip(name)(KEYS, updates(SHORT), KNOBS)[0]
    kinds = (float, np.float64, np.float32, jnp.float32)
    given = [Knobs(*(None if v is None else kind(v) for v in SOME_KNOBS)) for kind in kinds]

    def decoded(shared, message):  # as one program: outside of one, each operation is compiled for itself
        return [mechanism.decode(shared, message, knobs) for knobs in given]

    found = jax.jit(decoded, compiler_options=programs.FAST)(KEYS.shared, message)
    for one in found:
        assert one.dtype == np.float32
        np.testing.assert_array_equal(found[0], one)


@pytest.mark.parametrize("name", EACH)
def test_private_key_matters_only_if_stated(name):
    mechanism = compiled(name)
    x = updates(LONG)
    one = mechanism.encode(KEYS, x, KNOBS)
    other = mechanism.encode(KEYS._replace(private=jax.random.key(77)), x, KNOBS)
    same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))
    assert same == ("private" not in mechanism.about.randomness)


@pytest.mark.parametrize("name", ["identity", "lrsuq_gaussian_z1", "sketched"])
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


@pytest.mark.parametrize(
    "name", [programs.param(n) for n in NAMES if n.startswith("lrsuq") and n[-2:] in ("z1", "z2", "z3")]
)
def test_decoder_in_numpy_gives_the_same_bits(name):
    """The decoder's arithmetic is fixed to the last bit: no platform may round otherwise."""
    from cepam_jax.mechanisms import counter, latents  # noqa: PLC0415

    mechanism = compiled(name)
    n = mechanism.about.block
    message = mechanism.encode(KEYS, updates(LONG), KNOBS)
    blocks = np.arange(-(-LONG // n), dtype=np.uint32)
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
    symbols = np.asarray(message.symbols).astype(np.float32)
    x_hat = np.repeat(width, n)[:LONG] * (symbols + shift.ravel()[:LONG])
    np.testing.assert_array_equal(mechanism.decode(KEYS.shared, message, KNOBS), x_hat)
