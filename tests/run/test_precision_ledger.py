"""Ledgers of rounds that weigh clients: weights are kept with the parts that made them, and with failures."""

import json

import numpy as np
import pytest
from own_federation import after, federation
from run.test_ledger import FAILS, failing
from run.test_precision_weights import COUNTS, config_of, printed

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.federated import AGGREGATORS, precision
from cepam_jax.run import guarantees, ledger, phases, provenance
from cepam_jax.run.training import train

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

SIGMAS = np.array([0.5, 1.0, 2.0, 4.0])


def weighed(tau=0.5, **changes):
    return federation(**{"sigma": SIGMAS, "aggregator": precision(tau), **changes})


@pytest.fixture(scope="module")
def two_rounds():
    fed = weighed()
    after(fed, 2)
    return fed.ledger.text()


def test_all_parts_of_an_entry_are_written_and_read(two_rounds):
    (entry,) = ledger.read(two_rounds).entries
    assert entry.weights.shape == (4,) and entry.made_by.aggregator == "known_spread(0.5)"
    np.testing.assert_allclose(entry.weights, 0.5 / (0.25 + SIGMAS**2), rtol=1e-5)
    failed = entry._replace(failed=True, drawn=((0, 2), (1, 3)))
    text = ledger.Ledger((entry, failed)).text()
    again = ledger.read(text)
    assert again.text() == text and len(again.entries) == 2
    np.testing.assert_array_equal(again.entries[1].weights, entry.weights)
    assert (again.entries[1].failed, again.entries[1].made_by) == (True, entry.made_by)
    assert again.entries[1].drawn == failed.drawn


def test_rounds_of_other_weights_are_another_stretch(two_rounds):
    """Taken for one stretch, the second's epsilon would be the first's."""
    (entry,) = ledger.read(two_rounds).entries
    others = [entry._replace(weights=entry.weights[::-1]), entry._replace(weights=None)]
    for other in others:
        assert len(ledger.Ledger((entry,)).joined([other]).entries) == 2
        assert len(ledger.read(ledger.Ledger((entry, other)).text()).entries) == 2
    assert [e.rounds for e in ledger.Ledger((entry,)).joined([entry]).entries] == [4]
    facts = weighed().facts()
    found = phases.of_ledger(facts, ledger.Ledger((entry, others[0])))
    assert [phase.rounds for phase in found] == [2, 2]
    assert found[0].weights[0] > found[0].weights[3] and found[1].weights[0] < found[1].weights[3]


@pytest.mark.parametrize("other", ["another tau", "estimated", "mean"])
def test_a_ledger_of_another_spread_is_refused(other, two_rounds):
    rule = {"another tau": precision(0.7), "estimated": precision(), "mean": "mean"}[other]
    name = {"another tau": "known_spread(0.7)", "estimated": "precision", "mean": "mean"}[other]
    match = rf"aggregator was 'known_spread\(0.5\)' and is '{name}'".replace("(0.7)", r"\(0.7\)")
    with pytest.raises(ConfigError, match=match):
        weighed(aggregator=rule, ledger=ledger.read(two_rounds))
    facts = weighed(aggregator=rule).facts()
    with pytest.raises(ConfigError, match=match):
        guarantees.federation_from(facts, ledger.read(two_rounds))


def test_the_same_rule_has_one_name_however_it_is_given():
    parts = [
        provenance.parts_of(weighed(aggregator=rule).facts())
        for rule in ("precision", precision(), precision(0.0), AGGREGATORS["precision"])
    ]
    assert {part.aggregator for part in parts} == {"precision"} and len(set(parts)) == 1
    assert parts[0].aggregation == "weighted sum within bounds"
    configured = provenance.parts_of(guarantees.facts_of(config_of(**{"precision.tau": 0.5}), COUNTS))
    assert (configured.aggregator, configured.aggregation) == ("known_spread(0.5)", "weighted sum by knobs")


def test_a_federation_goes_on_with_the_weights_of_its_ledger(two_rounds):
    fed = weighed(ledger=ledger.read(two_rounds))
    straight = weighed()
    after(straight, 2)
    assert fed.ledger.text() == two_rounds
    for adversary, epsilon in straight.epsilons().items():
        np.testing.assert_array_equal(fed.epsilons()[adversary], epsilon)
    (entry,) = ledger.read(two_rounds).entries
    with pytest.raises(ConfigError, match="knobs of 3 clients, not of 4"):
        weighed(ledger=ledger.Ledger((entry._replace(weights=np.ones(3)),)))


def test_weights_of_an_unsigned_ledger_are_not_passed_over():
    book = ledger.Ledger((ledger.Entry(1, mechanisms.Knobs(sigma=SIGMAS), weights=np.ones(4)),))
    with pytest.raises(ConfigError, match="its rounds weighed clients"):
        guarantees.federation_from(federation(sigma=SIGMAS).facts(), book)


def test_a_ledger_without_weights_counts_those_of_its_knobs(tmp_path):
    config = config_of(**{"model": "linear", "eval_every": 3, "precision.tau": 0.5})
    train(config, tmp_path, progress=False)
    old = []
    for line in (tmp_path / "ledger.jsonl").read_text().splitlines():
        found = json.loads(line)
        if "rounds" in found:
            assert found.pop("weights")
            old.append(json.dumps(found))
    book = ledger.read("\n".join(old))
    assert book.entries[0].made_by is None and book.entries[0].weights is None
    np.testing.assert_allclose(printed(config, ledger=book), printed(config), rtol=1e-6)


def test_a_round_that_fails_counts_with_its_weights(monkeypatch, tmp_path):
    failing(monkeypatch, 1)
    config = config_of(**{"model": "linear", "precision.tau": 0.5, **FAILS})
    with pytest.raises(NonFiniteUpdateError):
        train(config, tmp_path, progress=False)
    book = ledger.read((tmp_path / "ledger.jsonl").read_text())
    assert [(e.rounds, e.failed) for e in book.entries] == [(1, False), (1, True)]
    np.testing.assert_array_equal(*[e.weights for e in book.entries])
    assert book.entries[1].weights.shape == (4,)
    config.rounds = 2
    np.testing.assert_allclose(printed(config, ledger=book), printed(config), rtol=1e-6)
    one = book._replace(entries=book.entries[:1])
    assert np.all(printed(config, ledger=one)[1:] < printed(config)[1:])  # the first client's is 0
    equal = book.entries[1]._replace(weights=np.float32(1))
    other = printed(config, ledger=book._replace(entries=(book.entries[0], equal)))
    assert np.all(other[1:] != printed(config)[1:])


def test_weights_of_a_failed_round_with_wrong_knobs_are_those_of_the_knobs_that_count():
    fed = weighed()
    start = fed.initialize()
    after(fed, 1, start)
    (entry,) = fed.ledger.entries

    class Report:
        ran, opened = np.array([False]), None
        knobs = mechanisms.Knobs(
            **{
                n: np.broadcast_to(v, (1, 4)).copy()
                for n, v in entry.knobs._asdict().items()
                if v is not None
            }
        )
        weights = np.full((1, 4), np.nan, np.float32)
        participants = type("Participants", (), {"client": np.arange(4)[None]})

    Report.knobs.sigma[0, 3] = np.nan
    book = ledger.Ledger().add_failure(Report, 4, ("sigma", "clip"), entry.made_by)
    (failed,) = book.entries
    assert failed.failed and failed.weights is None
    np.testing.assert_allclose(failed.knobs.sigma, [0.5, 1, 2, 0.5])
    (phase,) = phases.of_ledger(fed.facts(), book)
    sigmas = np.array([0.5, 1, 2, 0.5])
    expected = 1 / (0.25 + sigmas**2)
    np.testing.assert_allclose(phase.weights / phase.weights[0], expected / expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["own", "precision"])
def test_a_lost_ledger_of_an_own_rule_for_weights_has_no_guarantee(name, monkeypatch, tmp_path):
    """A plugin's rule may weigh otherwise now than it did; `precision` follows from the configuration."""
    monkeypatch.setitem(AGGREGATORS, "own", precision(0.5)._replace(configure=None))
    tau = {"precision.tau": 0.5} if name == "precision" else {}
    config = config_of(**{"model": "linear", "aggregator": name, "eval_every": 3, **tau})
    train(config, tmp_path, progress=False)
    before = (tmp_path / "privacy.txt").read_text()
    (tmp_path / "ledger.jsonl").unlink()
    train(config, tmp_path, progress=False)
    reason = "ledger.jsonl was lost or altered, and what config.aggregator = 'own' applied is not known"
    text = (tmp_path / "privacy.txt").read_text()
    assert reason not in before and "released_model: epsilon" in before
    assert (f"released_model: no guarantee ({reason})" in text) == (name == "own")
