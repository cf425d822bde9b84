"""Rotated cells as bytes: the decisions cost what the law says, and whatever is sent arrives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms, wire
from cepam_jax.errors import WireError
from cepam_jax.mechanisms import Keys, Knobs, cell_bits, cell_law, cell_scales, lattices
from cepam_jax.mechanisms.blocks import INVALID
from cepam_jax.wire import cells, cosets, header
from cepam_jax.wire.coder import LEAST

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

KEYS = Keys(jax.random.key(1), jax.random.key(2))
KNOBS = Knobs(sigma=np.float32(1))
NAMES = list(cell_law.GRIDS)


class Count:
    """A coder that writes nothing and adds up what it would cost, in bits."""

    def __init__(self):
        self.bits = 0.0

    def code_bits(self, p, outcomes=None):
        p = np.where(np.isnan(p), 0.5, np.clip(p, LEAST, 1 - LEAST))
        self.bits -= np.log2(np.where(outcomes, p, 1 - p)).sum()
        return outcomes

    def uniform(self, number, size, values=None):
        self.bits += size * np.log2(number)
        return values


def points(name, scale, count=400, seed=0):
    """Errors that zero would suffer, n arrays f64[count], and lattice vectors int64[count, n]."""
    lat, rng = lattices.LATTICES[name], np.random.default_rng(seed)
    zero = [np.zeros(count)] * lat.dimension
    box = lat.point(zero, [rng.uniform(-0.5, 0.5, count) for _ in zero])
    error = [p - q for p, q in zip(box, lat.point(lat.nearest(box), zero), strict=True)]
    integers = lat.nearest([scale * rng.standard_normal(count) - e for e in error])
    return error, np.stack(integers, 1).astype(np.int64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", list(cell_law.COMPONENTS))
def test_decisions_cost_what_the_law_says(name, family):
    """Axis by axis on the host in float64, and as one formula on the device in float32."""
    lat = lattices.LATTICES[name]
    for scale in (0.1, 0.3, 1.0, 3.0):
        error, vectors = points(name, scale)
        law = cells._law(cell_law.grid(name), family, error, np.full(len(vectors), scale))
        moved = np.flatnonzero(vectors.any(1))
        coder = Count()
        moves = (law.prior[:, None] * law.leaves).sum(0)
        coder.code_bits(moves, vectors.any(1))
        np.testing.assert_array_equal(
            cells._Moved(coder, lat, law, moved).code(vectors[moved]), vectors[moved]
        )
        at = lat.point(list(vectors.T.astype(np.float64)), [np.zeros(1)] * lat.dimension)
        log = cell_bits.log_probability(
            name,
            family,
            [jnp.asarray(e, jnp.float32) for e in error],
            [jnp.asarray(a, jnp.float32) for a in at],
            jnp.full(len(vectors), np.float32(scale)),
        )
        assert coder.bits == pytest.approx(-float(jnp.sum(log)) / np.log(2), rel=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_come_apart_and_together(name):
    _, vectors = points(name, 40.0)
    given = cosets.split(lattices.LATTICES[name], vectors)
    np.testing.assert_array_equal(cosets.join(lattices.LATTICES[name], given), vectors)
    assert not (given.odd.sum(1) % 2).any()


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_sent_arrives(name):
    """Nothing, noise, sizes far apart, the largest that can be coded, and what cannot."""
    mechanism = mechanisms.rotated(name)
    d, rng = 4001, np.random.default_rng(3)
    x = rng.standard_normal(d).astype(np.float32)
    x[:800], x[800:1600] = 0, 1e-12
    x[1600:2400] *= 3e4 / np.abs(x[1600:2400]).max()
    x[2400:2500] *= 100
    for bad in (None, np.nan, np.inf, 1e30):
        if bad is not None:
            x[[5, 3000, d - 1]] = bad
        message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
        data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
        found = wire.unpack(data, mechanism, KEYS.shared, KNOBS, d)
        np.testing.assert_array_equal(found.symbols, message.symbols)
        np.testing.assert_array_equal(found.index, message.index)
        decoded = jax.jit(mechanism.decode)(KEYS.shared, found, KNOBS)
        assert np.isfinite(decoded).all() == (bad is None)
        bits = float(jax.jit(mechanism.bits)(KEYS.shared, message, KNOBS))
        assert 8 * len(data) < 1.02 * bits + 600


@pytest.mark.parametrize("name", NAMES)
def test_integers_that_name_no_lattice_point_arrive(name):
    mechanism, x = mechanisms.rotated(name), np.zeros(64, np.float32)
    message = jax.tree.map(np.asarray, jax.jit(mechanism.encode)(KEYS, x, KNOBS))
    symbols = message.symbols.copy()
    symbols[0] += 1
    symbols[-1] = INVALID
    index = message.index.copy()
    index[1] = 7  # of a block that rejects nothing
    odd = dataclasses.replace(message, symbols=symbols, index=index)
    data = wire.pack(odd, mechanism, KEYS.shared, KNOBS)
    found = wire.unpack(data, mechanism, KEYS.shared, KNOBS, 64)
    np.testing.assert_array_equal(found.symbols, symbols)
    np.testing.assert_array_equal(found.index, index)


def test_balls_arrive(monkeypatch):
    """They are so rare that one would never meet them: here every fourth block is one."""
    table = cell_scales.scale_table("E8")._replace(threshold=2**30)
    monkeypatch.setattr(cell_scales, "scale_table", lambda lattice: table)
    header.tables.cache_clear()
    mechanism = mechanisms.rotated("E8")
    x = (3 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
    assert 0.1 < np.mean(np.asarray(message.index) > 0) < 0.25
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    found = wire.unpack(data, mechanism, KEYS.shared, KNOBS, len(x))
    np.testing.assert_array_equal(found.symbols, message.symbols)
    np.testing.assert_array_equal(found.index, message.index)
    bits = float(jax.jit(mechanism.bits)(KEYS.shared, message, KNOBS))
    assert 8 * len(data) == pytest.approx(bits, rel=0.02, abs=250)
    header.tables.cache_clear()


def test_messages_of_the_first_format_are_refused_by_name():
    mechanism, x = mechanisms.rotated("A2"), np.ones(20, np.float32)
    data = wire.pack(jax.jit(mechanism.encode)(KEYS, x, KNOBS), mechanism, KEYS.shared, KNOBS)
    old = data[:2] + bytes([1 << 4 | data[2] & 15]) + data[3:]
    with pytest.raises(WireError, match=f"format version 1; this program reads {header.VERSION}"):
        wire.unpack(old, mechanism, KEYS.shared, KNOBS, 20)


def test_bytes_that_no_coder_wrote_are_refused():
    mechanism = mechanisms.rotated("D4")
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    data = wire.pack(jax.jit(mechanism.encode)(KEYS, x, KNOBS), mechanism, KEYS.shared, KNOBS)
    for damaged in (data[:-4], data + b"abcd", data[:60] + bytes([data[60] ^ 1]) + data[61:]):
        with pytest.raises(WireError):
            wire.unpack(damaged, mechanism, KEYS.shared, KNOBS, 2000)
