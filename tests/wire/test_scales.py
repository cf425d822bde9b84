"""Scales of tensors and the laws that go with them: their bytes, their cost, and the encoder's choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms.programs import KEYS
from scipy import stats

from cepam_jax import mechanisms, wire
from cepam_jax.mechanisms import Knobs, code_length, exact, fitted, laws, scale_code
from cepam_jax.wire import WireError, coder, header, scales

pytestmark = pytest.mark.compiled_fast

LENGTHS = (32, 224, 32, 1024, 32, 1024, 2, 192, 1)
KNOBS = Knobs(sigma=np.float32(0.1))


def drawn(kind, number, rng):
    """Scales and laws of so many tensors."""
    if kind == "alike":
        return np.full(number, -40), np.full(number, 2)
    if kind == "near":
        return -40 + 2 * rng.integers(-6, 7, number), rng.integers(0, 3, number)
    ends = [-scale_code.LARGEST_SCALE, scale_code.LARGEST_SCALE]
    return rng.choice(ends, number), rng.integers(0, 3, number)


@pytest.mark.parametrize("kind", ["alike", "near", "far"])
@pytest.mark.parametrize("number", [1, 3])
def test_scales_come_back_and_cost_what_is_counted(kind, number):
    rng = np.random.default_rng(3)
    for lengths in (LENGTHS, (7,), tuple(rng.integers(1, 99, 60))):
        scale, law = drawn(kind, len(lengths), rng)
        law = law if number > 1 else None
        writer = coder.Writer()
        scales.code(writer, lengths, number, scale, law)
        data = writer.finish()
        back = scales.code(coder.Reader(data), lengths, number)
        np.testing.assert_array_equal(back[0], scale)
        np.testing.assert_array_equal(back[1], np.zeros(len(lengths)) if law is None else law)
        counted = float(
            scale_code.bits(jnp.asarray(scale), None if law is None else jnp.asarray(law), lengths, number)
        )
        assert counted <= scale_code.most_bits(len(lengths), number) + 1e-3
        assert -1 <= 8 * len(data) - counted < 9


def test_no_tensors_cost_nothing():
    assert scales.code(coder.Writer(), (), 3, np.zeros(0), np.zeros(0))[0].shape == (0,)
    assert float(scale_code.bits(jnp.zeros(0, jnp.int32), None, (), 1)) == scale_code.most_bits(0, 1) == 0


def test_forged_scales_are_refused_or_possible():
    """A reader of any bytes ends, with scales that encoders measure or an error."""
    rng, refused = np.random.default_rng(5), 0
    for _ in range(300):
        reader = coder.Reader(rng.choice([b"\xff" * 40, rng.bytes(40), bytes(40)]))
        try:
            scale, law = scales.code(reader, LENGTHS, 3)
        except WireError:
            refused += 1
            continue
        assert np.abs(scale).max() <= scale_code.LARGEST_SCALE and law.min() >= 0 and law.max() < 3
    assert refused < 300


def test_a_stream_ends_within_a_byte_of_its_bits():
    """2,000 streams, from none to 60 decisions: the same decisions come back, from 8 bits more at most."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        p = np.clip(rng.beta(0.3, 0.3, rng.integers(0, 60)), 1e-5, 1 - 1e-5)
        outcomes = rng.uniform(size=len(p)) < p
        writer = coder.Writer()
        writer.code_bits(p, outcomes)
        data = writer.finish()
        np.testing.assert_array_equal(coder.Reader(data).code_bits(p), outcomes)
        ideal = -np.log2(np.where(outcomes, p, 1 - p)).sum()
        assert 8 * len(data) < ideal + 9


@pytest.mark.parametrize("law", laws.LAWS)
def test_costs_of_cells_follow_the_law_of_the_coder_far_into_the_tails(law):
    random = np.random.default_rng(0)
    center, width = 30 * random.normal(size=2000), 10 ** random.uniform(-2, 2, 2000)
    parts = [(share, stats.laplace(scale=own)) for share, own in exact.COMPONENTS[law]]
    near, far = np.abs(center) - width / 2, np.abs(center) + width / 2
    mass = sum(share * (one.sf(near) - one.sf(far)) for share, one in parts)
    own = tuple(jnp.float32(part) for part in laws.PARTS[laws.LAWS.index(law)])
    found = laws.cell_nats(jnp.float32(center), jnp.float32(width), jnp.float32(1), own)
    np.testing.assert_allclose(found, -np.log(mass), rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(
        exact.tail(near, law), sum(share * one.sf(near) for share, one in parts), rtol=1e-6
    )


@functools.cache
def coded(coding, lengths):
    """x f32[d] -> message and its ideal bits, with the coding and tensors of these lengths."""
    mechanism = mechanisms.lrsuq(segments=lengths, coding=coding)

    @jax.jit
    def run(x, knobs):
        message = mechanism.encode(KEYS, x, knobs)
        return message, mechanism.bits(KEYS.shared, message, knobs)

    return mechanism, run


TENSORS = (64, 4000, 64, 4000)


def update(kind, rng):
    """An update of the shape of `TENSORS`."""
    x = rng.laplace(size=sum(TENSORS))
    if kind == "sparse":  # one row in ten was trained
        x *= np.repeat(rng.uniform(size=sum(TENSORS) // 8) < 0.1, 8)
    if kind == "even":
        x = np.sign(x) + 0.1 * x
    if kind == "zero":
        x *= 0
    if kind == "uneven":
        x *= np.repeat([30.0, 1.0, 0.01, 3.0], TENSORS)
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", ["laplace", "sparse", "even", "zero", "uneven"])
def test_no_message_is_longer_than_with_the_mixture(kind):
    rng = np.random.default_rng(1)
    for size in (0.003, 0.1, 3.0):
        x = size * update(kind, rng)
        own, bits = coded("auto", TENSORS)[1](x, KNOBS)
        _, mixture = coded("mixture", TENSORS)[1](x, KNOBS)
        # The laws of tensors that are all coded as the one before cost those of the first.
        assert float(bits) <= float(mixture) + np.log2(3) * len(TENSORS) + 1e-3 * float(mixture)
        mechanism = coded("auto", TENSORS)[0]
        data = wire.pack(own, mechanism, KEYS.shared, KNOBS, bare=True)
        assert abs(8 * len(data) - float(bits) - 8 * header.BARE_BYTES) < 0.01 * float(bits) + 16
        back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, len(x))
        np.testing.assert_array_equal(back.symbols, own.symbols)
        for name in ("scale", "law"):
            np.testing.assert_array_equal(back.side[name], own.side[name])


def test_sparse_and_even_updates_cost_less():
    """By a tenth and by a twentieth at least."""
    rng = np.random.default_rng(2)
    for kind, factor in (("sparse", 0.9), ("even", 0.95)):
        x = 0.05 * update(kind, rng)
        bits = {coding: float(coded(coding, TENSORS)[1](x, KNOBS)[1]) for coding in ("auto", "mixture")}
        assert bits["auto"] < factor * bits["mixture"], kind


@pytest.mark.parametrize("law", laws.LAWS)
def test_the_table_is_the_mean_over_layers_and_dithers(law):
    """Against 400,000 draws; five standard errors, one false alarm in 1.7 million for each comparison."""
    rng, number = np.random.default_rng(4), 400_000
    width = stats.chi(3).rvs(number, random_state=rng)
    dither = rng.uniform(-0.5, 0.5, number)
    place = laws.LAWS.index(law)
    for size, scale in ((-30, -20), (-12, -12), (-4, -8), (8, 4)):
        x, s = 2.0 ** (size / 4), 2.0 ** (scale / 4)
        center = width * (np.rint(x / width - dither) + dither)
        nats = laws.cell_nats_on_host(center, width, s, tuple(laws.PARTS[place].astype(float)))
        expected = fitted.table("gaussian")[place, 1 + size + 48, scale + 80]
        error = 5 * nats.std() / number**0.5
        # Radii are told apart in quarters of an octave.
        assert expected == pytest.approx(nats.mean(), abs=error + 0.04 * nats.mean())


def test_invalid_updates_and_knobs_are_coded_and_stay_invalid():
    x = 0.05 * update("laplace", np.random.default_rng(6))
    x[5], x[70] = np.nan, np.inf
    mechanism, run = coded("auto", TENSORS)
    message, bits = run(x, KNOBS)
    assert np.isfinite(float(bits))
    back = wire.unpack(
        wire.pack(message, mechanism, KEYS.shared, KNOBS), mechanism, KEYS.shared, KNOBS, len(x)
    )
    decoded = np.asarray(mechanism.decode(KEYS.shared, back, KNOBS))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(decoded)), [5, 70])
    nowhere = Knobs(sigma=np.float32(np.nan))
    message, _ = run(x, nowhere)
    assert np.isnan(jax.jit(mechanism.decode)(KEYS.shared, message, nowhere)).all()


def test_a_bare_message_says_nothing_and_is_refused_whole():
    x = 0.05 * update("laplace", np.random.default_rng(7))
    mechanism, run = coded("auto", TENSORS)
    message, _ = run(x, KNOBS)
    full = wire.pack(message, mechanism, KEYS.shared, KNOBS, round_number=3, client=300)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS, round_number=3, client=300, bare=True)
    assert len(data) == len(full) - (header.parse(full)[1] - header.BARE_BYTES)
    said = wire.describe(data)
    assert said["bytes"] == len(data) and said["mechanism"] is said["length"] is said["client"] is None
    other = mechanisms.lrsuq(segments=TENSORS, coding="laplace")
    for changed in (
        {"shared": jax.random.key(5)},
        {"knobs": Knobs(sigma=np.float32(0.2))},
        {"length": len(x) - 1, "mechanism": mechanisms.lrsuq()},
        {"mechanism": other},
        {"data": data[:-1] + bytes([data[-1] ^ 1])},
        {"data": data[:-1]},
        {"data": data + b"\0"},
    ):
        read = {"data": data, "mechanism": mechanism, "shared": KEYS.shared, "knobs": KNOBS, "length": len(x)}
        with pytest.raises(
            WireError, match="the bare message is corrupt, or was packed by another mechanism"
        ):
            wire.unpack(**read | changed)
    for front, text in ((0x30, "has format version 3; this program reads 4"), (0x50, "not a message")):
        with pytest.raises(WireError, match=text):
            wire.unpack(bytes([front | header.BARE]) + data[1:], mechanism, KEYS.shared, KNOBS, len(x))


def test_public_scales_keep_to_the_mixture():
    assert mechanisms.lrsuq(scales="public").code.family == "mixture"
    assert mechanisms.lrsuq().code.family == code_length.FITTED
