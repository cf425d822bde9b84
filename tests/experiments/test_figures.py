"""What the figures compute, on small settings; that their commands run is tested with the README."""

import math

import numpy as np
import pytest

from cepam_jax.mechanisms import lattices as lattice_table
from experiments import tables
from experiments.figures import lattices, mean_estimation


@pytest.mark.parametrize(
    ("name", "expected"), [("Z1", 0.521), ("Z2", 0.72), ("Z3", 0.68), ("D4", 0.52), ("E8", 0.36)]
)
def test_gap_at_high_resolution(name, expected):
    """The published figures, to their last digit."""
    digits = len(str(expected).split(".")[1])
    assert round(lattices.gap(lattice_table.LATTICES[name]), digits) == expected


@pytest.mark.parametrize("name", ["Z1", "A2", "D4"])
def test_measured_rate_meets_the_theory_at_high_resolution(name):
    row = lattices.measure(name, 100_000, 1)
    assert row["bits"][10.0] - 0.5 * math.log2(101) == pytest.approx(row["gap"], abs=0.02)
    assert row["measured_tries"] == pytest.approx(row["tries"], rel=0.02)
    assert row["p_value"] > 1e-6


@pytest.mark.parametrize(("kind", "levels", "mechanism"), mean_estimation.QUANTIZERS)
def test_mean_estimation_matches_the_formula_and_respects_the_bound(kind, levels, mechanism):
    error, deviation, exact = mean_estimation.measure(mechanism, levels, 10, 64, repeats=100)
    assert error < mean_estimation.bound(kind, levels, 10, 64)
    if exact is not None:
        assert error == pytest.approx(exact, abs=5.5 * deviation)


def test_the_demonstration_settles():
    values, reports = mean_estimation.demonstration()
    np.testing.assert_allclose(np.unique(np.round(reports, 5)), [values.min(), values.max()], atol=1e-4)
    assert reports.mean() == pytest.approx(values.mean(), abs=0.15)


def test_markdown():
    assert tables.markdown(["a", "b"], [[1, "long cell"]]).splitlines() == [
        "| a   | b         |",
        "| --- | ---       |",
        "| 1   | long cell |",
    ]
