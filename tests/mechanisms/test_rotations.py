"""Multiplication of complex numbers, quaternions and octonions; law and arithmetic of the rotations."""

import jax
import numpy as np
import pytest

from cepam_jax.mechanisms import rotations
from cepam_jax.theory import directions
from experiments import rotation_components

DIMENSIONS = {"A2": 2, "D4": 4, "E8": 8}


def integers(n, size=1000, seed=0):
    """Two lists of n arrays int64[size]."""
    return np.random.default_rng(seed).integers(-4095, 4096, (2, n, size))


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_products_of_norms_and_inverses_are_exact(n):
    q, u = integers(n)
    square = lambda v: sum(a * a for a in v)  # noqa: E731
    product = rotations.times(q, u)
    np.testing.assert_array_equal(square(product), square(q) * square(u))
    np.testing.assert_array_equal(rotations.times(q, product, inverse=True), square(q) * u)
    np.testing.assert_array_equal(rotations.times(q, rotations.times(q, u, inverse=True)), square(q) * u)


def test_units_multiply_as_stated():
    """i j = k in the quaternions; the octonions are not associative."""
    unit = lambda a, n: [np.array([float(a == i)]) for i in range(n)]  # noqa: E731
    assert np.ravel(rotations.times(unit(1, 4), unit(2, 4))).tolist() == [0, 0, 0, 1]
    assert np.ravel(rotations.times(unit(2, 4), unit(1, 4))).tolist() == [0, 0, 0, -1]
    one, two, four = (unit(a, 8) for a in (1, 2, 4))
    left = rotations.times(rotations.times(one, two), four)
    right = rotations.times(one, rotations.times(two, four))
    np.testing.assert_array_equal(left, -np.array(right))
    assert np.count_nonzero(left) == 1


def random_words(count, size=20_000):
    words = np.random.default_rng(1).integers(0, 2**32, (count, size), dtype=np.uint32)
    words[:, :4] = np.array([0, 2**32 - 1, 2**31, 2**16 - 1], np.uint32)
    return list(words)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_platform_gets_the_same_product(n):
    """All products are exact, so a fused multiply-add changes nothing: in float64, and compiled."""
    q = rotations.components(random_words(n // 2))
    random = np.random.default_rng(2)
    u = list(
        (random.normal(size=(n, len(q[0]))) * 2.0 ** random.uniform(-30, 22, len(q[0]))).astype(np.float32)
    )
    upper = [(a.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32) for a in u]
    lower = [a - b for a, b in zip(u, upper, strict=True)]
    for part in (upper, lower):
        for a in q:
            for b in part:
                exact = a.astype(np.float64) * b
                np.testing.assert_array_equal(exact, exact.astype(np.float32))
    for a, b, c in zip(u, upper, lower, strict=True):
        np.testing.assert_array_equal(a.astype(np.float64), b.astype(np.float64) + c)
    fused = []
    for axis in range(n):
        sums = []
        for part in (upper, lower):
            total = q[0] * part[axis]
            for a in range(1, n):
                term = rotations.signs(n)[a, a ^ axis] * q[a].astype(np.float64) * part[a ^ axis]
                total = (total + term).astype(np.float32)
            sums.append(total)
        fused.append(sums[0] + sums[1])
    np.testing.assert_array_equal(rotations.times_exactly(q, u), fused)
    np.testing.assert_array_equal(jax.jit(rotations.times_exactly)(q, u), fused)
    true = rotations.times([a.astype(np.float64) for a in q], [a.astype(np.float64) for a in u])
    size = np.sqrt(
        sum(np.square(a, dtype=np.float64) for a in q) * sum(np.square(a, dtype=np.float64) for a in u)
    )
    assert np.abs(np.array(fused) - true).max(0).max() > 0
    assert (np.abs(np.array(fused) - true).max(0) / size).max() < 4e-7


def test_components_and_roots_are_the_same_compiled():
    words = random_words(4)

    def both(words):
        q = rotations.components(words)
        square = rotations.square(q)
        return q, square, rotations.inverse_root(square)

    for a, b in zip(jax.tree.leaves(both(words)), jax.tree.leaves(jax.jit(both)(words)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inverse_roots():
    """To 5e-7, from the least |q|^2 to the largest; without a fused multiply-add or with one."""
    squares = np.exp2(np.random.default_rng(0).uniform(0, 27, 200_000)).astype(np.float32)
    largest = np.float32(8 * int(rotations.component_table().max()) ** 2)
    squares = np.concatenate([squares, np.float32([1, 2, 3, 4, 8, largest])])
    assert largest < 2**27
    root = rotations.inverse_root(squares)
    assert np.abs(root * np.sqrt(squares.astype(np.float64)) - 1).max() < 5e-7
    np.testing.assert_array_equal(jax.jit(rotations.inverse_root)(squares), root)
    _, slope = rotations._root_table()
    position = np.array([-2047.0, 1.0, 1365.0, 2047.0])[:, None]
    exact = slope.astype(np.float64) * position
    np.testing.assert_array_equal(exact, exact.astype(np.float32))


def test_components_are_odd_symmetric_and_short():
    table = rotations.component_table().astype(int)
    assert len(table) == 2**16 and (table % 2 == 1).all() and np.abs(table).max() < 2**12
    np.testing.assert_array_equal(np.sort(table), np.sort(-table))
    moments = [np.mean((table / rotations.DEVIATION) ** k) for k in (2, 4, 6, 8)]
    np.testing.assert_allclose(moments, [1, 3, 15, 105], rtol=1e-4)


def harmonics(table, deviation, name):
    """Degree -> root mean square, of directions in the dimension of a lattice."""
    values, counts = np.unique(table, return_counts=True)
    return directions.deviations(values / deviation, counts / len(table), DIMENSIONS[name], 12)


# What the docstring of `rotations` says, in the degrees that the cell has, too.
LARGEST = {"A2": ((12,), 1.9e-5), "D4": ((6, 8, 12), 4.1e-7), "E8": ((8, 12), 2.1e-6)}


@pytest.mark.parametrize("name", LARGEST)
def test_directions_are_as_uniform_as_stated(name):
    degrees, limit = LARGEST[name]
    found = harmonics(rotations.component_table()[: rotations.MAGNITUDES], rotations.DEVIATION, name)
    assert found[2] < 1e-10  # no harmonic: the precision of the calculation
    assert limit / 2 < max(found[degree] for degree in degrees) < limit
    # A table of 11 bits, and short integers, are noticed.
    values = rotation_components.with_moments(rotation_components.means(1 << 10))
    coarse = harmonics(rotation_components.rounded(values * 100), 100, name)
    assert max(coarse[degree] for degree in degrees) > 5 * limit


def test_the_table_is_what_the_command_makes():
    made = rotation_components.with_moments(rotation_components.means(rotations.MAGNITUDES))
    stored = rotations.component_table()[: rotations.MAGNITUDES].astype(int)
    again = rotation_components.rounded(made * rotations.DEVIATION).astype(int)
    # Another machine's logarithms may tip one number, and the next with it.
    assert (stored != again).mean() < 1e-3 and np.abs(stored - again).max() <= 2
