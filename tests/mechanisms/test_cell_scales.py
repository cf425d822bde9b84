"""The scales of rotated cells: their tables, the error's law by integrals and by samples, and equal bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import cell_scales, latents
from cepam_jax.mechanisms.lattices import LATTICES
from cepam_jax.theory import cells, deconvolution
from experiments import rotation_deviation, rotation_tables, rotation_words

# Of each Kolmogorov-Smirnov test; the seeds are fixed.
FALSE_ALARM = 1e-4
# One after the other in one process: integrals of a table take seconds, and several tests need the same.
pytestmark = [pytest.mark.xdist_group("scales of cells"), pytest.mark.slow]


def scales_alone(table):
    """The half of a table that serves cells, f32[3, cells]."""
    return np.stack(table[:3])[:, : len(table.middle) // 2]


def stretched(table, factor):
    return table._replace(**{name: getattr(table, name) * np.float32(factor) for name in table._fields[:3]})


@functools.cache
def blocks(lattice, factor=1.0):
    return rotation_deviation.of_table(lattice, stretched(cell_scales.scale_table(lattice), factor))


@functools.cache
def remainder(lattice, factor=1.0):
    law = rotation_words.law(scales_alone(stretched(cell_scales.scale_table(lattice), factor)))
    return rotation_tables.remainder(cells.norm_law(lattice), law)


def words():
    random = np.random.default_rng(0)
    uniform = random.integers(0, 2**32, 50_000, dtype=np.uint32)
    tail = (2.0 ** random.uniform(0, 31.9, 100_000)).astype(np.uint32)
    ends = np.array([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    return np.concatenate([uniform, tail, ~tail, ends])


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_numpy_and_jax_get_the_same_bits(lattice):
    word, table = words(), cell_scales.scale_table(lattice)
    spare = np.where(np.arange(word.size) % 2, word, np.uint32(0))
    draw = functools.partial(cell_scales.scales, table=table)
    expected, ball = draw(word, spare)
    assert expected.dtype == np.float32 and ball.dtype == bool and (expected > 0).all()
    np.testing.assert_array_equal(ball, spare < table.threshold)
    for run in (draw, jax.jit(draw), jax.jit(jax.vmap(draw))):
        found = run(jnp.asarray(word), jnp.asarray(spare))
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], ball)


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_scales_do_not_depend_on_fused_multiply_add(lattice):
    """Both products are exact in f32, so that every platform rounds the same two sums."""
    table, word = cell_scales.scale_table(lattice), words()
    index, position = latents.cell(word, cell_scales.STEP_BITS)
    square = (position * position) >> cell_scales.SQUARE_SHIFT
    for shift in (0, len(table.middle) // 2):
        for factor, number in ((table.slope, position), (table.bend, square)):
            product = factor[index + shift].astype(np.float64) * number
            assert (product == product.astype(np.float32)).all()


def test_a_word_falls_into_the_cell_that_counts_it():
    """At both ends of every cell, and for every scale that the count of words draws."""
    cell = rotation_words.words_of_cells()
    used = np.flatnonzero(cell.stop > cell.start)
    first, last = (np.ceil(end[used]).astype(np.int64) for end in (cell.start, cell.stop))
    for word in (first, last - 1):
        index, _ = latents.cell(word.astype(np.uint32), cell_scales.STEP_BITS)
        np.testing.assert_array_equal(index, used)
        index, _ = latents.cell(~word.astype(np.uint32), cell_scales.STEP_BITS)
        np.testing.assert_array_equal(index, used + len(cell.start))
    assert (cell.stop - cell.start).sum() == 2**31
    for lattice in cell_scales.LATTICES:
        table = cell_scales.scale_table(lattice)
        law = rotation_words.law(scales_alone(table))
        scale, chance = rotation_words.drawn(table)
        assert chance.sum() == pytest.approx(1, abs=1e-14)
        assert scale @ chance == pytest.approx(law.moment(1), rel=1e-10)
        assert scale**2 @ chance == pytest.approx(law.moment(2), rel=1e-9)


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_the_table_follows_the_exact_deconvolution(lattice):
    """Moments of S, with what the balls hold; S with T's mean in place of T does not have them."""
    norm, table = cells.norm_law(lattice), cell_scales.scale_table(lattice)
    law, share = rotation_words.law(scales_alone(table)), table.threshold / 2**32
    for power in (1, 2, 3):
        exact = (
            deconvolution.gaussian_mellin(norm.dimension, power) / cells.mellin(norm, np.array(power))
        ).real
        assert law.moment(power) == pytest.approx(exact, rel=40 * share)
        without = deconvolution.gaussian_mellin(norm.dimension, power).real
        without /= cells.mellin(norm, np.array(1.0)).real ** power
        assert power == 1 or law.moment(power) != pytest.approx(without, rel=40 * share)


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_cells_never_take_more_than_the_gaussian_has(lattice):
    """And the probability of a ball in the package is the one that this needs."""
    table, rest = cell_scales.scale_table(lattice), remainder(lattice)
    assert rest.threshold == table.threshold
    assert 0 < rest.margin < table.threshold / 2**32 < 1e-4
    assert (np.diff(rest.below) >= 0).all() and (np.diff(rest.above) <= 0).all()


def test_scales_that_are_too_wide_would_take_more_than_the_gaussian_has():
    assert remainder("A2", 1 + 1e-4).threshold > 10 * cell_scales.scale_table("A2").threshold


@pytest.mark.parametrize(
    ("lattice", "variation", "bulk"), [("A2", 2e-9, 4e-17), ("D4", 2e-10, 6e-19), ("E8", 2e-10, 3e-18)]
)
def test_the_error_is_gaussian_by_integrals(lattice, variation, bulk):
    """Figures of docs/rotated.md: total variation of a block, and the numbers for many blocks."""
    found = blocks(lattice)
    assert found.total_variation() < variation
    assert found.defect().bulk < bulk and found.defect().tail < 2e-15
    assert found.smooth.mass.sum() == pytest.approx(1, abs=1e-13)
    assert (found.smooth.mass @ found.smooth.relative) == pytest.approx(0, abs=1e-9)


def test_a_scale_that_is_too_wide_is_found_by_integrals():
    assert 1e-7 < blocks("A2", 1 + 1e-6).total_variation() < 1e-5


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_the_second_moment_is_the_targets(lattice):
    table = cell_scales.scale_table(lattice)
    moment, end = rotation_deviation.moment_and_end(lattice, table)
    assert moment == pytest.approx(1, abs=1e-9)  # D4's own second moment is tabulated to ten digits
    n = LATTICES[lattice].dimension
    assert special.gammaincc(n / 2, end**2 / 2) < 1e-14
    # A twin: without the balls.
    alone, _ = rotation_deviation.moment_and_end(lattice, table._replace(threshold=0))
    assert abs(alone - 1) > 1e-7


def errors(lattice, factor=1.0, count=1_000_000):
    """f64[n, blocks]: S * R * U by numpy, with R U a random direction of the length of U."""
    lat = LATTICES[lattice]
    n, size = lat.dimension, count // lat.dimension
    random = np.random.default_rng(1)
    word, spare = random.integers(0, 2**32, (2, size), dtype=np.uint32)
    spare[:1000] = (
        0  # what balls suffer is seen only if there are more of them than one in a hundred thousand
    )
    scale, ball = cell_scales.scales(word, spare, cell_scales.scale_table(lattice))
    point = lat.point([np.zeros(size)] * n, list(random.uniform(-0.5, 0.5, (n, size))))
    nearest = lat.point(lat.nearest(point), [0.0] * n)
    length = np.linalg.norm(np.stack(point) - np.stack(nearest), axis=0)
    length = np.where(ball, lat.inradius * random.uniform(size=size) ** (1 / n), length)
    way = random.normal(size=(n, size))
    return (factor * scale * length * way / np.linalg.norm(way, axis=0))[:, ~ball]


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_the_error_is_gaussian_by_samples(lattice):
    """A million coordinates, squared norms of blocks, and a coordinate beside the next one's sign."""
    found = errors(lattice)
    n = len(found)
    assert stats.kstest(found.ravel(), "norm").pvalue > FALSE_ALARM
    assert stats.kstest(np.square(found).sum(0), stats.chi2(n).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(np.abs(found[0]) * np.sign(found[1]), "norm").pvalue > FALSE_ALARM
    # A twin: scales that are 2 % too wide.
    assert stats.kstest(errors(lattice, 1.02).ravel(), "norm").pvalue < FALSE_ALARM


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_the_balls_have_the_law_that_is_missing(lattice):
    """All errors of ball blocks, by numpy, beside the law of the remainder."""
    table, n = cell_scales.scale_table(lattice), LATTICES[lattice].dimension
    random = np.random.default_rng(2)
    word = random.integers(0, 2**32, 100_000, dtype=np.uint32)
    scale, ball = cell_scales.scales(word, np.zeros_like(word), table)
    assert ball.all()
    rest = remainder(lattice)
    radii = LATTICES[lattice].inradius * scale.astype(np.float64)
    cdf = lambda r: np.interp(np.log(r), rest.log, rest.below)  # noqa: E731
    assert stats.kstest(radii, cdf).pvalue > FALSE_ALARM
    assert stats.kstest(1.02 * radii, cdf).pvalue < FALSE_ALARM
    # They are not Gaussian: what is missing lies mostly at the ends.
    assert stats.kstest(radii, stats.chi(n + 2).cdf).pvalue < FALSE_ALARM


def same_scales(new, old):
    """Whether two tables draw the same scales, but for a few last bits, at every cell and in between."""
    word = words()
    apart = [
        np.abs(cell_scales.scales(word, spare, new)[0].astype(np.float64) / scale - 1).max()
        for spare in (np.zeros_like(word), np.full_like(word, 2**32 - 1))
        for scale in [cell_scales.scales(word, spare, old)[0]]
    ]
    return max(apart) <= 2.0**-21


@pytest.mark.parametrize("lattice", cell_scales.LATTICES)
def test_the_script_makes_the_packages_table(lattice):
    """The same numbers almost everywhere, and everywhere the same scales.

    Where a quantile is nearly straight, its bend is the rounding of the machine that made the table, which no
    scale feels: there the numbers themselves may differ.
    """
    made, _ = rotation_tables.table(lattice)
    stored = cell_scales.scale_table(lattice)
    assert made.threshold == stored.threshold
    for name in ("middle", "slope", "bend"):
        assert np.mean(getattr(made, name) == getattr(stored, name)) > 0.99, name
    assert same_scales(made, stored)
    assert not same_scales(stretched(stored, 1 + 2.0**-20), stored)
    bend = stored.bend.copy()
    bend[np.argmax(np.abs(bend) / stored.middle)] *= np.float32(0.98)
    assert not same_scales(stored._replace(bend=bend), stored)


def test_other_lattices_are_named():
    with pytest.raises(ConfigError, match="lattice is 'Z1'; it must be one of 'A2', 'D4', 'E8'"):
        cell_scales.scale_table("Z1")


def test_the_table_of_another_release_is_refused(monkeypatch):
    """Its numbers would be taken from wrong cells: noise of another law, and nobody would see it."""
    cell_scales.scale_table.cache_clear()
    monkeypatch.setattr(cell_scales, "STEP_BITS", 5)
    with pytest.raises(ConfigError, match="another release"):
        cell_scales.scale_table("E8")
