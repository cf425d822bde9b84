"""DAdaQuant and AdaQuantFL as their papers say, and what the report says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.errors import ConfigError
from cepam_jax.federated import adaptive_levels
from cepam_jax.federated.control import Control, Measured
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import guarantees, training
from cepam_jax.run.config import validate
from cepam_jax.run.records import RunDirectory
from configs import digits

pytestmark = pytest.mark.compiled_fast

CLIENTS = 5


def config_of(control="dadaquant", variant="clipped", **changes):
    c = digits.get_config(variant)
    c.model, c.num_clients, c.rounds, c.eval_every, c.control = "linear", CLIENTS, 40, 20, control
    c.mechanism.bits = 1
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    validate(c)
    return c


def knobs_of(name="bits", value=1.0):
    return Knobs(**{name: jnp.full(CLIENTS, value, jnp.float32)})


def walk(rule, losses, start, examples=None):
    """The knob of all clients in each round, [rounds + 1, clients], when the losses are these."""
    examples = jnp.ones(CLIENTS) if examples is None else jnp.asarray(examples, jnp.float32)
    state, found = rule.initialize(start), []
    watch, knobs = jax.jit(rule.watch), jax.jit(rule.knobs)
    for number, loss in enumerate([*losses, None]):
        applied = knobs(state, start, jnp.int32(number))
        found.append(np.asarray(next(v for v in applied if v is not None)))
        if loss is not None:
            given = Measured(jnp.int32(number + 1), jnp.full(CLIENTS, loss, jnp.float32), examples, examples)
            state = watch(state, given)
    return np.array(found)


def by_the_paper(losses, patience, psi, cap):
    """Algorithm 1 of 2111.00465, word by word, with q from 1: q of each round."""
    running, levels = [], [1.0]
    for t, loss in enumerate(losses, 1):
        running.append(loss if t == 1 else psi * running[-1] + (1 - psi) * loss)
        stalls = t >= patience and running[-1] >= running[-patience]
        rested = len(set(levels[-patience:])) == 1 and len(levels) >= patience
        levels.append(min(cap, 2 * levels[-1]) if stalls and rested else levels[-1])
    return levels


def test_levels_double_as_the_paper_says():
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(2, 1, 15), 1 + 0.05 * rng.normal(size=45)])
    rule = adaptive_levels.dadaquant(config_of(variant="qsgd", mechanism__levels=2, rounds=60))
    found = walk(rule, losses, knobs_of("levels", 2.0))[:, 0]
    assert found.tolist() == [2 * q for q in by_the_paper(losses, 6, 0.9, 128)]
    assert len(set(found)) == 3  # it doubled twice
    # The twin: another patience gives another sequence.
    assert found.tolist() != [2 * q for q in by_the_paper(losses, 5, 0.9, 128)]


def test_bits_grow_by_one_with_twice_the_levels_up_to_the_cap():
    rule = adaptive_levels.dadaquant(config_of(adaptive_levels__most=4, adaptive_levels__patience=3))
    found = walk(rule, [1.0] * 20, knobs_of())[:, 0]
    assert np.all(np.diff(found) >= 0) and found.max() == 4 and found[0] == 1
    falling = walk(rule, np.linspace(2, 0.1, 20), knobs_of())[:, 0]
    assert np.all(falling == 1)


def test_clients_with_more_examples_get_more_levels_at_the_same_variance():
    examples = np.array([10.0, 20.0, 40.0, 80.0, 200.0])
    q = np.full(CLIENTS, 16.0)
    found = np.asarray(adaptive_levels.by_weight(jnp.asarray(q), jnp.asarray(examples)))
    w = examples / examples.sum()
    np.testing.assert_allclose(np.sum(w**2 / found**2), np.sum(w**2 / q**2), rtol=1e-5)  # the variance
    assert np.sum(np.log2(found)) < np.sum(np.log2(q))  # the bits
    np.testing.assert_allclose(found / found[0], (w / w[0]) ** (2 / 3), rtol=1e-5)
    # Of all q with that variance it has the least sum (the paper's measure of bits): others have more.
    rng = np.random.default_rng(1)
    for _ in range(50):
        other = found * np.exp(0.2 * rng.normal(size=CLIENTS))
        other *= np.sqrt(np.sum(w**2 / other**2) / np.sum(w**2 / q**2))
        assert other.sum() > found.sum()
    rule = adaptive_levels.dadaquant(
        config_of(variant="qsgd", mechanism__levels=16, adaptive_levels__by_client=True)
    )
    knobs = walk(rule, [1.0], knobs_of("levels", 16.0), examples)
    assert np.all(knobs[0] == 16)  # before the first results
    assert knobs[1].tolist() == np.round(found).tolist()


def test_adaquantfl_follows_the_root_of_the_loss():
    rule = adaptive_levels.adaquantfl(config_of("adaquantfl", "qsgd", mechanism__levels=4))
    losses = np.array([2.0, 1.0, 0.5, 0.02, 3.0])
    found = walk(rule, losses, knobs_of("levels", 4.0))[:, 0]
    assert found[0] == 4  # nothing is known yet
    assert found[1:].tolist() == np.ceil(np.sqrt(losses[0] / losses) * 4).tolist()


def test_a_loss_that_is_not_finite_changes_nothing():
    for control in ("dadaquant", "adaquantfl"):
        rule = getattr(adaptive_levels, control)(config_of(control, "qsgd", mechanism__levels=4))
        found = walk(rule, [2.0, 1.0, np.nan, np.inf], knobs_of("levels", 4.0))
        assert np.isfinite(found).all() and np.all(found[3:] == found[2])


@pytest.mark.parametrize("field", ["rounds", "bits", "least", "most"])
def test_a_filter_that_nobody_reads_is_an_error(field):
    with pytest.raises(ConfigError, match=rf"config\.filter\.{field}"):
        config_of(**{f"filter__{field}": 1.5 if field != "least" else 0.5})


@pytest.mark.parametrize(("control", "rate"), [("dadaquant", 1e-4), ("adaquantfl", 0.1)])
def test_a_run_has_no_guarantee_says_why_and_continues_to_the_bit(tmp_path, monkeypatch, control, rate):
    # At a rate of 1e-4 the loss stalls, and levels double; elsewhere it falls.
    patience = {"adaptive_levels__patience": 3} if control == "dadaquant" else {}
    config = config_of(control, **patience, local__learning_rate=rate)
    whole = training.train(config, tmp_path / "whole", progress=False)
    assert whole[-1]["epsilon"] == dict.fromkeys(whole[-1]["epsilon"])
    assert whole[-1]["bits_per_coordinate"] > 1.05 * whole[1]["bits_per_coordinate"]  # bits grew
    monkeypatch.setattr(RunDirectory, "open", property(lambda record: record.done < 20))
    training.train(config, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    continued = training.train(config, tmp_path / "cut", progress=False)
    kept = [{name: value for name, value in line.items() if "seconds" not in name} for line in continued]
    assert len(kept) == 3
    assert kept == [{name: value for name, value in line.items() if "seconds" not in name} for line in whole]


def test_a_rule_that_watches_has_no_guarantee_whatever_the_noise():
    rule = Control(lambda state, knobs, number: knobs, lambda knobs: jnp.float32(0), watch=lambda s, m: s)
    config = digits.get_config("cepam_gaussian")
    facts = guarantees.facts_of(config, np.full(config.num_clients, 10))
    book = guarantees.plan(config, 3)
    assert not guarantees.federation_from(facts, book).refused
    refused = guarantees.federation_from(facts._replace(control=rule), book).refused
    assert any("reads what is not released" in reason for reason in refused)
    assert rule.adaptive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "cepam_gaussian"}, "sets bits or levels, and the mechanism .* has neither"),
        ({"variant": "clipped", "mechanism__bits": 5, "adaptive_levels__most": 4}, "adaptive_levels.most"),
        ({"variant": "qsgd", "mechanism__levels": 512}, "adaptive_levels.most .* 256 levels"),
        ({"adaptive_levels__forgetting": 1.0}, "forgetting"),
        ({"schedule__knob": "bits"}, "schedule.knob"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        adaptive_levels.dadaquant(config_of(**changes))


@pytest.mark.parametrize(
    ("control", "field"), [("schedule", "patience"), ("adaquantfl", "patience"), ("schedule", "most")]
)
def test_settings_that_the_rule_does_not_read_are_refused(control, field):
    with pytest.raises(ConfigError, match=rf"config\.adaptive_levels\.{field} is 5"):
        config_of(control, "qsgd", **{"mechanism__levels": 2, f"adaptive_levels__{field}": 5})
