import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms.programs import FAST

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Knobs, transforms

pytestmark = pytest.mark.compiled_fast


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_clip_bounds_the_norm_and_keeps_short_updates(norm, scale):
    order = int(norm[1])
    x = jax.random.normal(jax.random.key(0), (1000,)) * jnp.float32(scale)
    size = np.linalg.norm(np.asarray(x, np.float64), order)
    assert float(transforms.NORMS[norm](x)) == pytest.approx(size, rel=1e-5)
    apply = mechanisms.clip(norm).reference
    np.testing.assert_array_equal(apply(x, Knobs(clip=float(size) * 1.01)), x)
    clipped = np.asarray(apply(x, Knobs(clip=float(size) / 7)), np.float64)
    assert np.linalg.norm(clipped, order) == pytest.approx(size / 7, rel=1e-5)
    np.testing.assert_allclose(clipped * 7, x, rtol=1e-5)


@pytest.mark.parametrize("norm", transforms.NORMS)
@pytest.mark.parametrize("size", [8e37, 9e37, 1.7e38, 3.3e38])
def test_clip_bounds_what_is_nearly_too_large_for_a_float(norm, size):
    """Above 2^126 a reciprocal is denormal, zero on many platforms, and so was every norm by it."""
    x = jnp.array([size, -size / 2, 0.1, 0, 1], jnp.float32)
    measure, apply = transforms.NORMS[norm], mechanisms.clip(norm).reference
    for run in (lambda f: f, jax.jit, lambda f: lambda x: jax.jit(jax.vmap(f))(x[None])[0]):
        assert run(measure)(x) >= 0.99 * size
        clipped = np.asarray(run(lambda x: apply(x, Knobs(clip=jnp.float32(1))))(x), np.float64)
        assert np.linalg.norm(clipped, int(norm[1])) <= 1 + 1e-5


@pytest.mark.parametrize("size", [1e37, 4e37, 9e37, 1.7e38, 3.3e38])
@pytest.mark.parametrize(
    "mechanism",
    [
        mechanisms.k_level(),
        mechanisms.binary(),
        mechanisms.qsgd(),
        mechanisms.clipped(threshold="max"),
        mechanisms.clipped(),
        mechanisms.float16(),
    ],
    ids=lambda one: one.about.name,
)
def test_quantizers_code_what_is_nearly_too_large_or_say_that_they_cannot(mechanism, size):
    unit = np.linspace(-1, 1, 16).astype(np.float32)
    knobs, keys = Knobs(bits=4.0, levels=9.0), mechanisms.Keys(jax.random.key(1), jax.random.key(2))

    def decoded(x):
        return mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)

    found, usual = (np.asarray(jax.jit(decoded)(one), np.float64) for one in (np.float32(size) * unit, unit))
    near = np.abs(found / size - usual) <= 0.01
    assert (near | ~np.isfinite(found)).all()


def test_norms_and_tensors_that_no_clip_has_are_named():
    with pytest.raises(ConfigError, match="norm is 'l3'; it must be one of 'l1', 'l2'"):
        mechanisms.clip("l3")
    with pytest.raises(ConfigError, match="number of tensors is 0"):
        mechanisms.clip("l2", ()).reference(jnp.zeros(0), Knobs(clip=1.0))


@pytest.mark.parametrize("norm", transforms.NORMS)
def test_a_clip_of_each_tensor_keeps_the_bound_of_the_whole(norm):
    """Also where all tensors are long; a short one among long ones is left as it is."""
    segments, knobs = (3, 50, 7), Knobs(clip=jnp.float32(2))
    step, order = transforms.clip(norm, segments), 2 if norm == "l2" else 1
    share = 2 * transforms.share_of_tensor(norm, 3)
    long = 9 * jax.random.normal(jax.random.key(0), (60,))
    parts = jnp.split(step.reference(long, knobs), np.cumsum(segments)[:-1])
    norms = [float(jnp.linalg.norm(part, order)) for part in parts]
    assert norms == pytest.approx([share] * 3, rel=1e-5)
    assert float(jnp.linalg.norm(step.reference(long, knobs), order)) == pytest.approx(2, rel=1e-5)
    mixed = long.at[:3].set(0.01)
    np.testing.assert_array_equal(step.reference(mixed, knobs)[:3], mixed[:3])
    # The twin: one bound for the whole scales the short one down with the rest.
    assert (transforms.clip(norm).reference(mixed, knobs)[:3] < mixed[:3]).all()
    # L2 balls in a product are convex: the step brings no two updates farther apart.
    if norm == "l2":
        other = long + jax.random.normal(jax.random.key(1), (60,))
        apart = [
            jnp.linalg.norm(a - b)
            for a, b in ((long, other), map(lambda x: step.reference(x, knobs), (long, other)))
        ]
        assert step.keeps == ("l2",) and apart[1] <= apart[0]
    with pytest.raises(ConfigError, match="segments is .*it must be lengths with sum 61"):
        step.reference(jnp.ones(61), knobs)


def test_clip_does_not_hide_nan():
    x = jnp.array([1.0, np.nan, 2.0])
    assert np.isnan(mechanisms.clip("l2").reference(x, Knobs(clip=1.0))).any()


def test_clip_of_nothing():
    assert mechanisms.clip("l2").reference(jnp.zeros(0), Knobs(clip=1.0)).shape == (0,)
    np.testing.assert_array_equal(mechanisms.clip("l1").reference(jnp.zeros(3), Knobs(clip=1.0)), np.zeros(3))


@pytest.mark.parametrize("exponent", [0, 1, 3, 7, 8, 15])
def test_walsh_hadamard_is_orthonormal_and_its_own_inverse(exponent):
    x = jax.random.normal(jax.random.key(0), (2**exponent,))
    y = transforms.walsh_hadamard(x)
    np.testing.assert_allclose(transforms.walsh_hadamard(y), x, atol=1e-5)
    if exponent <= 8:
        from scipy.linalg import hadamard  # noqa: PLC0415

        np.testing.assert_allclose(y, hadamard(2**exponent) @ np.asarray(x) / 2 ** (exponent / 2), atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 64, 1000])
def test_rotation_keeps_the_norm_and_is_undone(length):
    rotate = mechanisms.rotate()
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    x = jax.random.normal(jax.random.key(0), (length,))
    y, _ = rotate.forward(keys, x, Knobs())
    assert y.shape[0] == rotate.size(length) >= length
    np.testing.assert_allclose(np.linalg.norm(y), np.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(rotate.inverse(keys.shared, y, None, Knobs(), length), x, atol=1e-5)


def test_rotation_spreads_a_spike():
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    y, _ = mechanisms.rotate().forward(keys, jnp.zeros(1024).at[3].set(32.0), Knobs())
    np.testing.assert_allclose(np.abs(y), 1, rtol=1e-5)


def test_top_k_keeps_the_largest_and_counts_its_support():
    mechanism = mechanisms.chain(mechanisms.top_k(), mechanisms.identity())
    x = jnp.array([1.0, -5.0, 2.0, 0.5, 4.0, 0.0, 0.0, 0.0])
    keys, knobs = mechanisms.Keys(jax.random.key(1), jax.random.key(2)), Knobs(fraction=0.25)
    message = mechanism.encode(keys, x, knobs)
    np.testing.assert_array_equal(mechanism.decode(keys.shared, message, knobs), [0, -5, 0, 0, 4, 0, 0, 0])
    assert float(mechanism.bits(keys.shared, message, knobs)) == pytest.approx(2 * 32 + np.log2(28), rel=1e-4)


def test_a_mask_costs_what_is_sent():
    mechanism = mechanisms.chain(mechanisms.random_mask(), mechanisms.identity())
    keys, knobs = mechanisms.Keys(jax.random.key(1), jax.random.key(2)), Knobs(fraction=0.1)
    x = jnp.ones(100_000)
    message = mechanism.encode(keys, x, knobs)
    sent = int((mechanism.decode(keys.shared, message, knobs) > 0).sum())
    assert sent == pytest.approx(10_000, abs=6 * np.sqrt(9000))
    assert float(mechanism.bits(keys.shared, message, knobs)) == 32 * sent


def compiled(mechanism):
    encode, bits = (jax.jit(f, compiler_options=FAST) for f in (mechanism.encode, mechanism.bits))
    return mechanism._replace(encode=encode, bits=bits)


@pytest.mark.parametrize("d", [5, 8])
@pytest.mark.parametrize("last", [mechanisms.lrsuq, mechanisms.k_level, mechanisms.sdq])
def test_behind_a_rotation_a_weight_from_outside_means_nothing(d, last):
    """A shape error where d is no power of two, and weights of other coordinates where it is."""
    mechanism = compiled(mechanisms.chain(mechanisms.rotate(), last()))
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    knobs, x = Knobs(sigma=0.1, levels=4, step=0.1), jax.random.normal(jax.random.key(0), (d,))
    weight = jnp.zeros(d).at[0].set(1.0)
    whole, given = (mechanism.encode(keys, x, knobs, one) for one in (None, weight))
    jax.tree.map(np.testing.assert_array_equal, whole, given)
    bits = [float(mechanism.bits(keys.shared, whole, knobs, one)) for one in (None, weight)]
    assert bits[0] == bits[1] > 0
    before = compiled(
        mechanisms.chain(mechanisms.clip("l2"), last())
    )  # nothing is mixed: what is not sent is free
    knobs = knobs._replace(clip=100.0)
    message = before.encode(keys, x, knobs, weight)
    assert before.bits(keys.shared, message, knobs, weight) < before.bits(keys.shared, message, knobs)


def test_what_is_not_sent_is_not_mixed_by_a_chain_inside_a_chain_either():
    inner = mechanisms.chain(mechanisms.rotate(), mechanisms.lrsuq())
    assert inner.about.mixes and not mechanisms.lrsuq().about.mixes
    with pytest.raises(ConfigError, match="rotate.lrsuq\\S* cannot follow mask"):
        mechanisms.chain(mechanisms.random_mask(), inner)
    mechanisms.chain(mechanisms.clip("l2"), inner)
