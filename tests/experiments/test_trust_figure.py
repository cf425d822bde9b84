"""The price of trust: each row's noise is right for its adversary, and claims ask for bounds."""

import numpy as np
import pytest
from absl import flags

from cepam_jax.run import guarantees
from configs import digits
from experiments.figures import trust

pytestmark = pytest.mark.compiled_fast

TARGET = 3.0


@pytest.fixture
def given(monkeypatch):
    """The figure's flags, as its configurations read them."""
    holder = flags.FlagValues()
    flags.DEFINE_string("data_dir", "", "", flag_values=holder)
    flags.DEFINE_integer("rounds", 5, "", flag_values=holder)
    flags.DEFINE_integer("clients", 20, "", flag_values=holder)
    holder(["test"])
    monkeypatch.setattr(flags, "FLAGS", holder)


POINTS = [(model, method) for model in trust.MODELS if model.adversary for method in model.methods]


@pytest.mark.parametrize(("model", "method"), POINTS)
def test_the_epsilon_of_whom_a_row_names_is_the_target(given, model, method):
    """And nobody who sees less has a larger one."""
    config = trust.config_for("digits", method, model.adversary, TARGET)
    counts = np.full(config.num_clients, 70)
    found = guarantees.epsilons(config, counts, guarantees.plan(config, config.rounds))
    assert found[model.adversary] == pytest.approx(TARGET, rel=1e-3) and found[model.adversary] <= TARGET
    assert found["released_model"] <= TARGET
    # Trust that a row asks for is trust that it needs.
    if model.trusted in ("server, other clients", "server") and not method.startswith("split"):
        assert found["server"] is None


def test_errors_are_those_of_the_noise_that_an_adversary_asks_for(given):
    """In units of a trusted server's noise: 20 clients alone take 20 times its variance, a sum takes once."""
    over = {
        (model.adversary, method): trust.over_ideal(
            trust.config_for("digits", method, model.adversary, TARGET), TARGET, "digits"
        )
        for model, method in POINTS
    }
    assert over["released_model", "CEPAM Z1"] == pytest.approx(1)
    assert over["decoded_updates", "CEPAM Z1"] == pytest.approx(20, rel=1e-3)
    assert over["server", "split rotated E8"] == pytest.approx(20 / 0.8, rel=1e-3)
    assert over["server", trust.SECURE] == pytest.approx(1 + 1 / 27, rel=1e-3)
    # 14 noises of 20 count, and of 20 messages 18 come.
    expected = (1 + 1 / 27) * 20 / 14 / 0.9
    assert over["server_and_colluders", trust.LOSSY] == pytest.approx(expected, rel=1e-3)
    assert over["released_model", trust.SERVER_SDQ] == pytest.approx(1 + 4 / 12, rel=1e-3)
    assert 1.25 * 20 < over["server", trust.OWN_SDQ] < 1.32 * 20  # E8 is rounder than Z1


def test_formulas_meet_their_target_and_say_that_they_are_formulas(given):
    rows = trust.computed("digits", TARGET, 650, 32.0)
    assert {row["method"] for row in rows} == {"discrete gaussian (formula)", "skellam (formula)"}
    for row in rows:
        assert not row["run"] and row["accuracies"] is None and row["epsilons"]["server"] == TARGET
        assert 1 < row["over"] < 4 and row["bits"] >= 6
    assert len([name for name in rows[0]["epsilons"].values() if name is not None]) == 1


def rows_with(lost_by_sum, lost_alone):
    base = np.array([0.9, 0.91, 0.92])
    found = {
        ("server, other clients", trust.SERVER_SDQ): base,
        ("server, other clients", "CEPAM Z1"): base,
        ("a secure sum, all clients", trust.SECURE): base - lost_by_sum,
        ("nobody", trust.OWN_SDQ): base - lost_alone,
    }
    return [
        {
            "trusted": who,
            "method": method,
            "target": 3.0,
            "accuracies": values.tolist(),
            "bits": 1.0,
        }
        for (who, method), values in found.items()
    ]


def test_claims_ask_for_bounds():
    def verdicts(*lost):
        return [claim.verdict for claim in trust.claims_of("made up", rows_with(*lost), 3)]

    assert verdicts(0.0, 0.1) == ["holds", "holds", "holds"]
    assert verdicts(0.02, 0.1) == ["holds", "does not hold", "holds"]
    assert verdicts(0.0, 0.0) == ["holds", "holds", "does not hold"]
    rows = rows_with(0.0, 0.1)
    rows[0]["accuracies"] = [0.5, 0.9, 0.95]
    assert trust.claims_of("made up", rows, 3)[0].verdict == "not decided"
    rows[0]["accuracies"] = None
    diverged = trust.claims_of("made up", rows, 3)
    assert len(diverged) == 3 and diverged[0].verdict == "not decided"
    assert diverged[0].measured == "diverged: server noise + SDQ at epsilon 3"
    assert [claim.verdict for claim in diverged[1:]] == ["holds", "holds"]
    last = rows_with(0.0, 0.1)
    last[-1]["accuracies"] = None
    assert [claim.verdict for claim in trust.claims_of("made up", last, 3)][1:] == ["holds", "not decided"]
    assert len(trust.claims_of("made up", rows[1:], 3)) == 2  # a method that was not asked for


def test_the_names_of_variants_exist():
    for variant, _ in trust.METHODS.values():
        digits.get_config(variant)
