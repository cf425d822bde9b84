"""Control rules, what they may read, and what the ledger makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SIZE, federation, make, start

from cepam_jax import mechanisms
from cepam_jax.federated import control, downlink
from cepam_jax.federated.control import Control, Released
from cepam_jax.federated.state import Behind
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import ledger

pytestmark = pytest.mark.compiled_fast


def growing(factor=1.7):
    """A rule with a state: gamma times `factor` after every round, whatever happened."""
    return Control(
        knobs=lambda state, knobs, number: knobs._replace(sigma=knobs.sigma / state),
        initialize=lambda knobs: jnp.float32(1),
        advance=lambda state: state * factor,
    )


def listening():
    """A rule that halves the noise once the aggregated update is small."""
    return Control(
        knobs=lambda state, knobs, number: knobs._replace(sigma=knobs.sigma * state),
        initialize=lambda knobs: jnp.float32(1),
        observe=lambda state, released: jnp.where(
            jnp.linalg.norm(released.aggregate) < 1e3, state / 2, state
        ),
    )


def run_rounds(rule, rounds=3):
    _, run, _ = make(control=rule)
    state = start()._replace(control=rule.initialize(federation().knobs))
    book = ledger.Ledger()
    for _ in range(rounds):
        state, report = jax.jit(run)(state, federation())
        book = book.add(jax.tree.map(lambda a: np.asarray(a)[None], report), CLIENTS)
    return state, book


@pytest.mark.parametrize(("rule", "factor"), [(growing(), 1 / 1.7), (listening(), 0.5)])
def test_the_ledger_says_what_the_rounds_applied(rule, factor):
    _, book = run_rounds(rule)
    assert [entry.rounds for entry in book.entries] == [1, 1, 1]
    for number, entry in enumerate(book.entries):
        np.testing.assert_allclose(entry.knobs.sigma, federation().knobs.sigma * factor**number, rtol=1e-6)
    again = ledger.read(book.text())
    assert again.text() == book.text() and again.rounds == 3


def test_a_rule_that_reads_nothing_is_planned_as_it_runs():
    _, book = run_rounds(growing())
    planned = ledger.planned(growing(), federation().knobs, 3)
    for a, b in zip(book.entries, planned.entries, strict=True):
        np.testing.assert_allclose(a.knobs.sigma, b.knobs.sigma, rtol=1e-6)
    assert not growing().adaptive and listening().adaptive


def test_equal_rounds_are_one_entry_and_draws_are_kept():
    _, run, _ = make(per_round=3)
    state, book = start(), ledger.Ledger()
    for _ in range(2):
        state, report = jax.jit(run)(state, federation())
        book = book.add(jax.tree.map(lambda a: np.asarray(a)[None], report), CLIENTS)
    (entry,) = book.entries
    assert entry.rounds == 2 and len(entry.drawn) == 2 and all(len(set(d)) == 3 for d in entry.drawn)
    assert ledger.read(book.text()).entries[0].drawn == entry.drawn


def test_a_round_that_was_not_applied_is_not_in_the_ledger():
    _, report = jax.jit(make()[1])(start(), federation())
    stopped = report._replace(ran=jnp.bool_(False))
    book = ledger.Ledger().add(jax.tree.map(lambda a: np.asarray(a)[None], stopped), CLIENTS)
    assert book.rounds == 0


def test_what_a_rule_reads_holds_nothing_unreleased():
    """A new field of Released must be one that the server publishes: this list is the place to say so."""
    # `within` has the server's noise, which privacy.counts pays for, and is made for rules that ask for it.
    assert Released._fields == ("round", "aggregate", "params", "noise", "within")


@pytest.mark.parametrize("kind", control.SCHEDULES)
def test_schedules_are_rules_without_state(kind):
    rule = control.scheduled({"gamma": control.SCHEDULES[kind](2.0, 4)})
    assert rule.initialize is None and not rule.adaptive


def test_a_compressed_downlink_tracks_the_model():
    """What clients receive is the model up to the mechanism's error, and errors do not add up."""
    knobs = Knobs(step=jnp.float32(0.01))
    link = downlink.compressed(mechanisms.make("sdq_z1"), knobs, fitted=False)
    _, run, _ = make("identity", downlink=link)
    lack = Behind(jnp.zeros(CLIENTS), jnp.zeros(CLIENTS, jnp.int32))
    state = start()._replace(
        downlink=link.initialize(start().params["w"] * 0), behind=lack, round=jnp.int32(1)
    )
    for _ in range(4):
        model = np.asarray(state.params["w"])
        state, report = jax.jit(run)(state, federation())
        assert np.abs(np.asarray(state.downlink) - model).max() <= 0.005 * (1 + 1e-4)
        assert 0 < float(report.downlink_bits) < 32 * SIZE


def test_without_a_downlink_the_model_is_sent_as_it_is():
    _, run, _ = make("identity")
    _, report = jax.jit(run)(start(), federation())
    assert float(report.downlink_bits) == 32 * SIZE
