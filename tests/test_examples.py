"""The examples run, cut short, and show what they say."""

import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.privacy.accounting import rounded_up
from examples import characters, own_model, own_quantizer, privacy_report

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def test_own_model(capsys):
    metrics = own_model.main(number=6, each=30, rounds=6)
    assert metrics["accuracy"] > 0.6
    text = capsys.readouterr().out
    assert "round 6: training loss" in text and "released_model: epsilon = " in text


def test_own_quantizer(capsys):
    before = own_quantizer.main(rounds=1)
    after = own_quantizer.main(rounds=6)
    assert after["loss"] < before["loss"]
    text = capsys.readouterr().out
    assert "the laws hold" in text and "counts on each client's own noise" in text
    broken = own_quantizer.ternary()._replace(variance=lambda x, knobs: np.ones(x.shape))
    try:
        own_quantizer.check_laws(broken, repeats=200)
    except AssertionError as error:
        assert "law 2" in str(error)
    else:
        raise AssertionError("a wrong statement passed the check")
    assert own_quantizer.ternary().about.outsiders is None is mechanisms.identity().about.outsiders


def test_characters(capsys):
    start, end = characters.main(rounds=1), characters.main(rounds=8)
    assert end["bits"] < start["bits"] < 5.2
    text = capsys.readouterr().out
    assert "HORATIO: " in text and "numbers of examples, which are the weights" in text
    letters, speakers = characters.windows(["A: ab", "no colon", "B: c"])
    assert letters.shape == (2, characters.CONTEXT + 1) and speakers.tolist() == ["A", "B"]


def test_privacy_report(capsys):
    table = privacy_report.compared(rounds=3)
    usual = table["gamma 2, all 100 clients, mean"]
    assert table["gamma 1"]["released_model"] < usual["released_model"] < table["gamma 4"]["released_model"]
    assert table["10 of 100 clients a round"]["decoded_updates"] < usual["decoded_updates"]
    assert table["median"]["released_model"] == usual["decoded_updates"]
    assert np.isinf(list(table["weights by inverse error"].values())).all()
    assert np.isinf(usual["server"])
    assert np.isfinite(table["split: half of the noise is private"]["server"])
    found = privacy_report.main(rounds=3)
    assert found["rising"] > 2 * found["constant"]
    text = capsys.readouterr().out
    assert "rising: gamma 2, 3.4, 5.78 were applied" in text
    assert f"released_model: epsilon = {rounded_up(found['rising'])} at delta" in text
