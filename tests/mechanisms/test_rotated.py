"""Rotated cells: what both sides know, on every platform; whole blocks; and the few blocks that are balls."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms import programs
from mechanisms.programs import KEYS, KNOBS, LONG, SHORT, compiled, updates

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import blocks, cell_scales, counter, inscribed, latents, lattices, rotations
from experiments import rotation_words

pytestmark = pytest.mark.slow

rotated = sys.modules["cepam_jax.mechanisms.rotated"]  # the package's name `rotated` is the factory
NAMES = [programs.param(f"rotated_{lattice.lower()}") for lattice in cell_scales.LATTICES]


def lattice_of(name):
    return lattices.LATTICES[name[-2:].upper()]


def many_balls(lattice, share=0.5):
    """A table whose law is as exact as the package's, with a share of balls of the Gaussian's own radii."""
    own, lat = cell_scales.scale_table(lattice), lattices.LATTICES[lattice]
    cells = len(own.middle) // 2
    radius = lambda p, above: latents.quantile(  # noqa: E731
        "gaussian", lat.dimension, *((1 - p, p) if above else (p, 1 - p))
    )
    balls = rotation_words.fit(lambda p, above: radius(p, above) / lat.inradius)
    parts = [np.concatenate([a[:cells], b]) for a, b in zip(own[:3], balls, strict=True)]
    return cell_scales.ScaleTable(*parts, int(share * 2**32))


@pytest.fixture
def with_many_balls(monkeypatch):
    """lattice -> mechanism half of whose blocks are balls."""
    monkeypatch.setattr(cell_scales, "scale_table", functools.lru_cache(many_balls_of_package()))
    return mechanisms.rotated


def many_balls_of_package():
    tables = {lattice: many_balls(lattice) for lattice in cell_scales.LATTICES}
    return lambda lattice: tables[lattice]


def host_copy(name, index, count, sigma):
    """Scale over |q|, multipliers and dithers of the first blocks, by numpy alone."""
    lat = lattice_of(name)
    n, ids = lat.dimension, np.arange(count, dtype=np.uint32)
    key = np.asarray(jax.random.key_data(KEYS.shared))
    word, spare = counter.words(counter.stream(key, rotated.SCALES), 0, ids)
    scale, ball = cell_scales.scales(word, spare, cell_scales.scale_table(lat.name))
    turns = []
    for call in range((n + 3) // 4):
        turns += counter.words(counter.stream(key, rotated.ROTATIONS), call, ids)
    q = rotations.components(turns[: n // 2])
    factor = (np.float32(sigma) * scale) * rotations.inverse_root(rotations.square(q))
    box = blocks.dither_samples(lat, counter.stream(key, rotated.DITHERS), index, ids, unrolled=True)
    return factor, q, ball, lat.point([np.float32(0)] * n, box)


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_in_numpy_gives_the_same_bits(name):
    mechanism, lat = compiled(name), lattice_of(name)
    n = lat.dimension
    message = mechanism.encode(KEYS, updates(LONG), KNOBS)
    index = np.asarray(message.index)
    factor, q, _, dithers = host_copy(name, index, len(index), KNOBS.sigma)
    symbols = list(np.asarray(message.symbols).reshape(-1, n).T.astype(np.float32))
    points = lat.point(symbols, [np.float32(0)] * n)
    places = [p + v for p, v in zip(points, dithers, strict=True)]
    assert all(a.dtype == np.float32 for a in [*places, *q, factor])
    x_hat = np.stack([a * factor for a in rotations.times_exactly(q, places)], 1).ravel()[:LONG]
    np.testing.assert_array_equal(mechanism.decode(KEYS.shared, message, KNOBS), x_hat)


@pytest.mark.parametrize("name", NAMES)
def test_what_both_sides_know_does_not_depend_on_how_it_is_calculated(name):
    """Compiled, uncompiled, for several clients at once, and by numpy: scale, rotation, dithers, balls."""
    lat = lattice_of(name)
    setting = rotated._Setting(lat, cell_scales.scale_table(lat.name), None)
    count = 500

    def known(shared):
        both = rotated._known(setting, shared, count, KNOBS)
        return (*both, rotated._dithers(setting, shared, jnp.arange(count, dtype=jnp.uint32) % 3))

    factor, q, ball, dithers = host_copy(name, np.arange(count, dtype=np.uint32) % 3, count, KNOBS.sigma)
    expected = [np.stack(q), factor, ball, np.stack(dithers)]
    clients = jnp.stack([jax.random.key(9), KEYS.shared])
    together = jax.tree.map(lambda a: a[1], jax.jit(jax.vmap(known))(clients))
    for found in (jax.jit(known)(KEYS.shared), known(KEYS.shared), together):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_whole_blocks_are_sent(name):
    """The symbols of the last block depend on all of its axes, so none may be left out."""
    mechanism, n = compiled(name), lattice_of(name).dimension
    message = programs.round_trip(name)(KEYS, updates(SHORT), KNOBS)[0]
    assert message.symbols.shape == (n * -(-SHORT // n),) and message.length == SHORT
    assert message.index.shape == (-(-SHORT // n),)
    assert mechanism.code.mixed
    longer = mechanism.encode(KEYS, np.pad(updates(SHORT), (0, LONG - SHORT)), KNOBS)
    np.testing.assert_array_equal(message.symbols, longer.symbols[: len(message.symbols)])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_an_invalid_block_is_sent(name):
    mechanism, n = compiled(name), lattice_of(name).dimension
    x = updates(LONG)
    x[16] = np.nan
    symbols = np.asarray(mechanism.encode(KEYS, x, KNOBS).symbols).reshape(-1, n)
    invalid = (symbols == blocks.INVALID).all(1)
    np.testing.assert_array_equal(np.flatnonzero(invalid), [16 // n])
    assert (symbols[~invalid] != blocks.INVALID).all()


def test_other_lattices_are_named():
    with pytest.raises(ConfigError, match="lattice is 'Z1'; it must be one of 'A2', 'D4', 'E8'"):
        mechanisms.rotated("Z1")
    with pytest.raises(ConfigError, match="quantizer is 'sdq'; it must be one of 'lrsuq', 'rotated'"):
        mechanisms.split("E8", 0.5, "sdq")


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_balls_keep_the_error_inside(lattice, with_many_balls):
    mechanism, n = with_many_balls(lattice), lattices.LATTICES[lattice].dimension
    x = updates(LONG - LONG % n)
    message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
    x_hat = jax.jit(mechanism.decode)(KEYS.shared, message, KNOBS)
    index = np.asarray(message.index)
    name = f"rotated_{lattice.lower()}"
    factor, q, ball, _ = host_copy(name, index, len(index), KNOBS.sigma)
    assert 0.45 < ball.mean() < 0.55 and (index[~ball] == 0).all() and index[ball].max() > 2
    error = np.asarray(x_hat, np.float64) - x
    width = factor * np.sqrt(sum(np.square(a, dtype=np.float64) for a in q))
    norm = np.sqrt(np.square(error.reshape(-1, n)).sum(1)) / width
    assert norm[ball].max() < lattices.LATTICES[lattice].inradius * (1 + 1e-5) < norm[~ball].max()
    # The accepted are as many as the ball's share of the cell, within six deviations of a geometric law.
    rate = lattices.acceptance(lattices.LATTICES[lattice], "gaussian")
    deviation = np.sqrt(1 - rate) / rate / np.sqrt(ball.sum())
    assert abs(index[ball].mean() - (1 - rate) / rate) < 6 * deviation


def test_several_clients_with_balls_equal_a_loop(with_many_balls):
    mechanism = with_many_balls("D4")
    encode, decode = jax.jit(mechanism.encode), jax.jit(mechanism.decode)
    keys = programs.client_keys()
    xs = np.stack([updates(SHORT, k) for k in range(programs.CLIENTS)])
    together = jax.jit(jax.vmap(mechanism.encode, in_axes=(0, 0, None)))(keys, xs, KNOBS)
    decoded = jax.jit(jax.vmap(mechanism.decode, in_axes=(0, 0, None)))(keys.shared, together, KNOBS)
    assert np.asarray(together.index).max() > 0
    for k, x in enumerate(xs):
        own = jax.tree.map(lambda a, k=k: a[k], keys)
        message = encode(own, x, KNOBS)
        np.testing.assert_array_equal(together.symbols[k], message.symbols)
        np.testing.assert_array_equal(together.index[k], message.index)
        np.testing.assert_array_equal(decoded[k], decode(own.shared, message, KNOBS))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e5])
def test_an_invalid_ball_ends_the_search(value, with_many_balls):
    mechanism = with_many_balls("D4")
    x = np.full(800, value, np.float32)
    message = jax.jit(mechanism.encode)(KEYS, x, KNOBS)
    assert np.isnan(jax.jit(mechanism.decode)(KEYS.shared, message, KNOBS)).all()


def search_of(points, room):
    """A search for points f32[k, n] of D4."""
    stream = counter.stream(KEYS.shared, rotated.DITHERS)
    points = jnp.asarray(points)
    return inscribed.Search(
        lattices.LATTICES["D4"],
        stream,
        lambda ids: [points[:, axis].at[ids].get(mode="clip") for axis in range(4)],
        room,
    )


@pytest.mark.parametrize(("size", "share"), [(1, 1.0), (100, 0.3), (700, 0.02), (700, 1.0)])
@pytest.mark.parametrize("room", [1, 7, 1000])
def test_groups_find_what_a_loop_over_proposals_finds(size, share, room):
    """However little room there is, and in whichever row of blocks they are."""
    random = np.random.default_rng(size)
    points = random.normal(size=(size, 4)).astype(np.float32)
    chosen = random.uniform(size=size) < share
    room = min(room, size)
    found = np.asarray(jax.jit(lambda c: inscribed.first_inside(search_of(points, room), c))(chosen))
    ids = jnp.arange(size, dtype=jnp.uint32)
    test = jax.jit(lambda h: inscribed._inside(search_of(points, room), h, ids, list(points.T)))
    inside = np.stack([test(np.uint32(h)) for h in range(found.max() + 1)])
    np.testing.assert_array_equal(found, np.where(chosen, inside.argmax(0), 0))
    assert inside[found, ids][chosen].all()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 10_000])
@pytest.mark.parametrize("room", [1, 5, 40])
def test_the_first_true_entries(size, room):
    random = np.random.default_rng(size)
    for share in (0.0, 0.001, 0.1, 1.0):
        left = random.uniform(size=size) < share
        found = np.asarray(jax.jit(lambda a: inscribed._first(a, room))(left))
        there = np.flatnonzero(left)[:room]
        np.testing.assert_array_equal(found[: len(there)], there)
        assert (found[len(there) :] >= size).all() and len(found) == room


def test_room_is_seldom_too_little():
    assert inscribed.room_for(10, 1.0) == 10
    assert 4 <= inscribed.room_for(10**6, 1e-6) < 20
    assert inscribed.room_for(10**6, 0.5) > 500_000
