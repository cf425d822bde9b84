"""What the figure on rules over rounds computes and says, from runs that are made up."""

import numpy as np
import pytest

from cepam_jax.theory import rate
from experiments.figures import adaptive

pytestmark = pytest.mark.compiled_fast


def rows_of(budget, gains, seeds=10):
    """Constant gamma best at 40 rounds; rules with these points more than it, at all lengths."""
    random = np.random.default_rng(0)
    base = 0.9 + 0.01 * random.normal(size=seeds)
    rows = []
    for length in (20, 40, 80):
        for name in (*adaptive.FIXED, *adaptive.RULES):
            for part in (1.0, adaptive.SAVED) if budget == "bits" and name in adaptive.RULES else (1.0,):
                gain = gains.get(name, -2.0) if name != "constant" else (0.0 if length == 40 else -1.0)
                accuracy = base + gain / 100 + 0.001 * random.normal(size=seeds)
                rows.append(
                    {
                        **{"data": "digits", "partition": "iid", "budget": budget, "method": name},
                        **{"rounds": length, "part": part, "accuracy": accuracy.tolist(), "diverged": 0},
                        **{"bits": [8.0] * seeds, "epsilon": None},
                    }
                )
    return rows


@pytest.mark.parametrize(
    ("gains", "verdicts"),
    [
        ({"greedy": 2.0}, ["holds", "holds", "holds"]),
        ({}, ["does not hold"] * 2 + ["does not hold"]),
        ({"greedy": 0.5, "plateau": 0.2}, ["does not hold", "does not hold", "holds"]),
        ({"greedy": 1.0}, ["not decided", "not decided", "holds"]),
    ],
)
def test_claims_follow_the_runs(gains, verdicts):
    found = adaptive.claims_of(rows_of("epsilon", gains))
    assert [claim.verdict for claim in found] == verdicts
    few = adaptive.claims_of(rows_of("epsilon", gains, seeds=2))
    assert {claim.verdict for claim in few} == {"not tested"}


def test_the_claim_on_bits_is_about_the_runs_with_fewer():
    assert adaptive.claims_of(rows_of("bits", {"greedy": 0.0}))[-1].verdict == "holds"
    assert adaptive.claims_of(rows_of("bits", {}))[-1].verdict == "does not hold"


def test_tables_and_pictures_are_made_of_the_rows():
    rows = rows_of("epsilon", {"greedy": 2.0}) + rows_of("bits", {})
    text = adaptive.table(rows)
    assert text.count("\n") == 1 + len(rows) and "bits, 75 %" in text
    assert len(adaptive.plot(rows).axes) == 2
    assert "80 rounds" in adaptive.near_text([20, 80])


def test_the_bound_says_what_an_even_spread_loses():
    """Against the spread that greedy takes, with the noise added up round by round."""
    a, rounds = 0.05, 80
    weights = (1 - a) ** (2 * np.arange(rounds - 1, -1, -1))
    spread = np.sqrt(weights) * rounds / np.sum(np.sqrt(weights))
    assert adaptive.even_over_best(a, rounds) == pytest.approx(np.sum(weights) / np.sum(weights / spread))
    assert adaptive.even_over_best(1e-9, rounds) == pytest.approx(1)


@pytest.mark.parametrize("end", [1.0, 4.0])
def test_schedules_spend_the_bits_that_they_are_given(end):
    gamma = adaptive.gamma_of_bits(8.0, 20, end, 1000)
    factors = [end ** (t / 20) for t in range(20)]
    spent = [rate.layered_limit(gamma * f / 1000**0.5, 400) for f in factors]
    assert sum(spent) == pytest.approx(8.0, rel=0.01)
