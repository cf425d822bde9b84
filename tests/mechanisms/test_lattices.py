import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.mechanisms import lattices

SAMPLES = 200_000


def nearby(lat):
    """All lattice points with integers near zero, f64[points, n]."""
    reach = 2 if lat.dimension < 8 else 1
    integers = np.array(list(itertools.product(range(-reach, reach + 1), repeat=lat.dimension)))
    if lat.name == "D4":
        integers = integers[integers.sum(1) % 2 == 0]
    if lat.name == "E8":  # halves: all even or all odd, and coordinates that sum to an even number
        whole = 2 * integers[integers.sum(1) % 2 == 0]
        odd = np.array(list(itertools.product((-1, 1), repeat=8)))
        integers = np.concatenate([whole, odd[odd.sum(1) % 4 == 0]])
    columns = lat.point([jnp.float32(c) for c in integers.T], [jnp.float32(0)] * lat.dimension)
    return np.stack(columns, 1).astype(np.float64)


def uniform_errors(lat, size=SAMPLES):
    random = np.random.default_rng(0)
    y = [jnp.asarray(c) for c in random.uniform(-9, 9, (lat.dimension, size)).astype(np.float32)]
    integers = lat.nearest(y)
    point = lat.point(integers, [jnp.float32(0)] * lat.dimension)
    return integers, np.stack([a - b for a, b in zip(point, y, strict=True)]).astype(np.float64)


@pytest.mark.parametrize("name", lattices.LATTICES)
def test_nearest_is_the_nearest_by_search(name):
    lat = lattices.LATTICES[name]
    random = np.random.default_rng(1)
    points = nearby(lat)
    y = random.uniform(-0.5, 0.5, (500, lat.dimension))
    found = lat.point(lat.nearest([jnp.float32(c) for c in y.T]), [jnp.float32(0)] * lat.dimension)
    distance = np.linalg.norm(np.stack(found, 1) - y, axis=1)
    best = np.linalg.norm(points[None] - y[:, None], axis=2).min(1)
    np.testing.assert_allclose(distance, best, atol=1e-6)


@pytest.mark.parametrize("name", lattices.LATTICES)
def test_numbers_of_the_cell(name):
    lat = lattices.LATTICES[name]
    integers, errors = uniform_errors(lat)
    assert all((np.round(m) == m).all() for m in integers)
    moment = np.square(errors).mean(0)
    tolerance = 6 * moment.std() / np.sqrt(SAMPLES)
    assert moment.mean() == pytest.approx(lat.second_moment, abs=tolerance)
    norm = {
        "gaussian": np.linalg.norm(errors, axis=0) <= lat.inradius,
        "laplace": np.abs(errors).sum(0) <= lat.cross,
    }
    for target, inside in norm.items():
        p = lattices.acceptance(lat, target)
        assert inside.mean() == pytest.approx(p, abs=6 * np.sqrt(p * (1 - p) / SAMPLES) + 1e-5)


@pytest.mark.parametrize("name", lattices.LATTICES)
def test_the_inscribed_ball_and_cross_polytope_lie_in_the_cell(name):
    """Every point inside is nearest to zero; just outside the ball some are not."""
    lat = lattices.LATTICES[name]
    random = np.random.default_rng(2)
    direction = random.normal(size=(lat.dimension, 50_000))
    ball = direction / np.linalg.norm(direction, axis=0) * lat.inradius
    cross = direction / np.abs(direction).sum(0) * lat.cross
    for inside in (ball, cross):
        for m in lat.nearest([jnp.float32(c) for c in 0.999 * inside]):
            assert (np.asarray(m) == 0).all()
    corner = nearby(lat)
    shortest = corner[np.argsort(np.linalg.norm(corner, axis=1))[1]]
    assert np.linalg.norm(shortest) / 2 == pytest.approx(lat.inradius, rel=1e-6)


@pytest.mark.parametrize("name", lattices.LATTICES)
def test_the_dither_box_is_uniform_modulo_the_lattice(name):
    """Its points, reduced to the cell, have the cell's second moment and acceptance."""
    lat = lattices.LATTICES[name]
    random = np.random.default_rng(3)
    box = [jnp.asarray(c) for c in random.uniform(-0.5, 0.5, (lat.dimension, SAMPLES)).astype(np.float32)]
    dither = lat.point([jnp.float32(0)] * lat.dimension, box)
    nearest = lat.point(lat.nearest(dither), [jnp.float32(0)] * lat.dimension)
    reduced = np.stack([a - b for a, b in zip(dither, nearest, strict=True)]).astype(np.float64)
    moment = np.square(reduced).mean(0)
    assert moment.mean() == pytest.approx(lat.second_moment, abs=6 * moment.std() / np.sqrt(SAMPLES))
    p = lattices.acceptance(lat, "gaussian")
    inside = (np.linalg.norm(reduced, axis=0) <= lat.inradius).mean()
    assert inside == pytest.approx(p, abs=6 * np.sqrt(p * (1 - p) / SAMPLES) + 1e-5)


@pytest.mark.parametrize("name", lattices.LATTICES)
def test_the_nearest_point_in_two_steps_is_the_same(name):
    """Also of points half way between others, and by numpy."""
    lat = lattices.LATTICES[name]
    random = np.random.default_rng(2)
    anywhere = random.normal(size=(lat.dimension, 20_000)) * 3
    for y in (anywhere, np.round(4 * anywhere) / 4):
        for kind in (np.float32, np.float64):
            axes = list(y.astype(kind))
            found = lat.round(axes, lat.choose(axes))
            np.testing.assert_array_equal(found, lat.nearest(axes))
        axes = [jnp.asarray(a, jnp.float32) for a in y]
        np.testing.assert_array_equal(lat.round(axes, lat.choose(axes)), lat.nearest(axes))
