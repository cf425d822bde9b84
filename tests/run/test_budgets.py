"""Rules that read results, in runs: what is printed, what is refused, what a killed run goes on with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_federation import federation

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.federated import control
from cepam_jax.federated.control import CONTROLS, Control
from cepam_jax.privacy.accounting import rounded_up
from cepam_jax.run import build, guarantees, ledger
from cepam_jax.run.config import validate
from cepam_jax.run.training import train, train_many
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

COUNTS = np.full(10, 140)
RULES = ("plateau", "signal_to_noise", "greedy")
OUTSIDERS = ("released_model", "colluding_clients", "decoded_updates")


def config_of(variant="cepam_gaussian", **fields):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.mechanism.gamma = "linear", 6, 2, 5.0
    config.update_from_flattened_dict(fields)
    validate(config)
    return config


def epsilons(config, book=None):
    book = guarantees.plan(config, config.rounds) if book is None else book
    return guarantees.epsilons(config, COUNTS, book)


def same(one, two):
    """Equal up to rounding, and None (no guarantee) where the other is."""
    infinite = [{name: np.inf if value is None else value for name, value in e.items()} for e in (one, two)]
    return infinite[0] == pytest.approx(infinite[1], rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_prints_the_epsilon_of_its_budget_from_the_first_round_on(rule, tmp_path):
    """That of as many rounds at the gamma of the start, against everybody, whatever the rounds spent."""
    config = config_of(control=rule)
    lines = train(config, tmp_path, progress=False)
    whole = epsilons(config_of())
    for line in lines[1:]:
        assert same(line["epsilon"], whole)
    text = (tmp_path / "privacy.txt").read_text()
    assert text.count("on a budget fixed beforehand that holds whatever earlier results led to") == 3
    assert f"epsilon = {rounded_up(whole['released_model'])} " in text
    book = ledger.read((tmp_path / "ledger.jsonl").read_text())
    spent = sum(e.rounds * (0.2 / float(e.knobs.sigma)) ** 2 for e in book.entries)
    assert 0 < spent <= 6 and (len(book.entries) > 1 or rule == "plateau")


def test_a_smaller_budget_and_a_target_are_what_is_printed():
    fewer = epsilons(config_of(rounds=3))
    assert same(epsilons(config_of(**{"control": "greedy", "filter.rounds": 3.0})), fewer)
    aimed = config_of(**{"control": "greedy", "privacy.target_epsilon": 30.0})
    found = guarantees.calibrated(aimed, COUNTS)
    assert epsilons(found)["released_model"] == pytest.approx(30, rel=1e-3)
    assert guarantees.rounds_within_budget(found, COUNTS) == 6


@pytest.mark.compiled_fast(mlir=True)
@pytest.mark.parametrize("rule", RULES)
def test_a_killed_run_goes_on_to_the_bit_and_a_sweep_is_its_runs(rule, tmp_path):
    """The checkpoint holds the state of rule and filter: 4 rounds and then 2 are 6 at once."""
    config = config_of(control=rule)
    whole = train(config, tmp_path / "whole", progress=False)
    other = config.copy_and_resolve_references()
    other.seeds.training = 5
    swept = train_many([config, other], [tmp_path / "a", tmp_path / "b"], progress=False)
    kept = ("accuracy", "loss", "uplink_bits")
    for one, two in zip(whole, swept[0], strict=True):
        assert {k: one.get(k) for k in kept} == {k: two.get(k) for k in kept}
    book = (tmp_path / "whole/ledger.jsonl").read_text()
    assert (tmp_path / "a/ledger.jsonl").read_text() == book
    # At a plateau alone gamma changes, and here there is none.
    assert (book != (tmp_path / "b/ledger.jsonl").read_text()) == (rule != "plateau")
    part = tmp_path / "part"
    train(config, part, progress=False)
    newest = part / "checkpoints/6"
    for file in sorted(newest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    newest.rmdir()
    metrics = (part / "metrics.jsonl").read_text().splitlines(keepends=True)
    (part / "metrics.jsonl").write_text("".join(metrics[:-1]))
    again = train(config, part, progress=False)
    for one, two in zip(whole, again, strict=True):
        assert {k: one.get(k) for k in kept} == {k: two.get(k) for k in kept}
    assert (part / "ledger.jsonl").read_text() == book


def exceeding(config):
    """States a budget, and spends twice that as soon as anything was released."""
    return Control(
        knobs=lambda state, knobs, number: knobs._replace(sigma=knobs.sigma / state),
        initialize=lambda knobs: jnp.float32(1),
        observe=lambda state, released: jnp.float32(2.0),
        budget=float(config.rounds),
    )


def uneven(config):
    """States a budget, and changes the noise of one client alone."""
    rule = exceeding(config)
    return rule._replace(
        knobs=lambda state, knobs, number: knobs._replace(sigma=knobs.sigma.at[0].multiply(0.9))
    )


def other_clip(config):
    """States a budget, and changes the clip."""
    return exceeding(config)._replace(knobs=lambda s, knobs, n: knobs._replace(clip=knobs.clip * 1.1))


def silent(config):
    """States none."""
    return exceeding(config)._replace(budget=None)


def infinite(config):
    """States one that nothing exceeds."""
    return exceeding(config)._replace(budget=float("inf"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            exceeding,
            "states a budget of 6 rounds at the start's gamma, and what the rounds applied is 21: it",
        ),
        (uneven, "not those of the start with one common factor of gamma"),
        (other_clip, "not those of the start with one common factor of gamma"),
        (silent, "reads earlier results and states no budget"),
        (infinite, "the budget of the rule that sets the knobs is inf"),
    ],
)
def test_a_rule_of_a_fork_that_does_not_keep_its_budget_has_no_guarantee(make, reason, monkeypatch, tmp_path):
    monkeypatch.setitem(CONTROLS, "own", make)
    lines = train(config_of(control="own"), tmp_path, progress=False)
    text = (tmp_path / "privacy.txt").read_text()
    assert text.count("no guarantee") == 4 and reason in text
    assert set(lines[-1]["epsilon"].values()) == {None}


@pytest.mark.parametrize(
    ("variant", "fields", "covered", "reason"),
    [
        ("cepam_laplace", {}, (), "the filter for that is one of Gaussian noise"),
        ("split", {}, (*OUTSIDERS, "server"), ""),
        ("jopeq", {}, (), "is not proportional to sigma"),
        ("noise_gaussian_sdq", {}, (*OUTSIDERS, "server"), ""),
        ("cepam_rotated", {}, OUTSIDERS, ""),
        ("cepam_gaussian", {"clients_per_round": 4}, OUTSIDERS, ""),
        ("cepam_gaussian", {"mechanism.error_feedback": True}, OUTSIDERS, ""),
        ("cepam_gaussian", {"mechanism.sparsify": "mask"}, OUTSIDERS, ""),
        ("cepam_gaussian", {"aggregator": "examples"}, OUTSIDERS, ""),
        ("cepam_gaussian", {"aggregator": "precision"}, OUTSIDERS, ""),
        ("cepam_gaussian", {"aggregator": "precision", "precision.tau": 0.1}, OUTSIDERS, ""),
        ("cepam_gaussian", {"mechanism.clip": "none"}, (), "updates are not clipped"),
        ("cepam_gaussian", {"privacy.relation": "replace"}, OUTSIDERS, ""),
    ],
)
def test_what_is_covered(variant, fields, covered, reason):
    """And never less epsilon than the rounds of the budget have that are planned, drawn or not."""
    config = config_of(variant, control="greedy", **fields)
    found = epsilons(config)
    assert {name for name, value in found.items() if value is not None} == set(covered)
    assert reason in guarantees.report_text(config, COUNTS)
    constant = epsilons(config_of(variant, **fields))
    for name in covered:
        assert found[name] >= constant[name] * (1 - 1e-9)
        alike = not fields.keys() & {"clients_per_round", "aggregator"} or name != "released_model"
        if alike and "clients_per_round" not in fields:
            assert found[name] == pytest.approx(constant[name], rel=1e-9)


def test_draws_are_not_counted_on():
    drawn = config_of(control="greedy", clients_per_round=4)
    text = guarantees.report_text(drawn, COUNTS).split("not covered")[0]
    assert "rounds without the client" not in text and "who was drawn" not in text


def test_weights_that_follow_from_the_noise_leave_a_client_its_own():
    found = epsilons(config_of(control="greedy", aggregator="precision"))
    assert found["released_model"] == found["decoded_updates"]


def test_each_client_has_its_own_filter():
    gammas = (1.0, 2.0, *[5.0] * 8)
    each = {"mechanism.per_client.gamma": gammas}
    reports = [
        guarantees.federation_of(config_of(**each, **more), COUNTS) for more in ({}, {"control": "greedy"})
    ]
    from cepam_jax import privacy  # noqa: PLC0415

    for one, two in zip(*(privacy.report(found, 1e-5) for found in reports), strict=True):
        np.testing.assert_allclose(one.epsilon, two.epsilon, rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"filter.rounds": 3.0},
            "config.filter.rounds is 3.0; it must be 0.0 where config.control is 'sched",
        ),
        ({"greedy.contraction": 0.1}, "config.greedy.contraction is 0.1; it must be 0.0 unless"),
        (
            {"control": "greedy", "privacy.target_epsilon": 5.0, "privacy.calibrate": False},
            "config.privacy.calibrate is False; it must be True where config.control is 'greedy'",
        ),
        ({"control": "plateau", "schedule.knob": "gamma"}, "config.schedule.knob"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, text):
    with pytest.raises(ConfigError, match=text):
        config_of(**fields)


def test_bits_have_a_budget_in_a_run(tmp_path):
    """Half a bit per coordinate and round is what the messages take at most, but for 64 bits of scales."""
    fields = {"control": "greedy", "filter.bits": 0.5, "filter.rounds": 1000.0, "mechanism.gamma": 1.0}
    lines = train(config_of(**fields), tmp_path, progress=False)
    assert 0.2 < np.mean([line["bits_per_coordinate"] for line in lines[1:]]) <= 0.5 + 64 / 650
    assert lines[-1]["epsilon"]["released_model"] is not None


# From Python.


def steps(fed, state, number):
    for _ in range(number):
        state, _ = fed.step(state)
    return state


def test_a_federation_in_python_is_held_to_its_budget():
    fed = federation(control=federated.greedy(rounds=3))
    state = steps(fed, fed.initialize(), 3)
    assert fed.epsilons()["decoded_updates"].max() == pytest.approx(
        federation().epsilons(planned_rounds=3)["decoded_updates"].max(), rel=1e-9
    )
    assert fed.epsilons(planned_rounds=50)["decoded_updates"].max() == fed.epsilons()["decoded_updates"].max()
    with pytest.raises(NonFiniteUpdateError, match="control rule set a knob in round 4 .* knob sigma is nan"):
        fed.step(state)
    assert np.isfinite(fed.epsilons()["decoded_updates"]).all()


def test_a_purse_that_was_filled_by_hand_is_seen():
    fed = federation(control=federated.greedy(rounds=3, contraction=0.3))
    state = steps(fed, fed.initialize(), 2)
    refilled = state._replace(control=state.control._replace(left=jnp.int32(control.filters.UNITS)))
    fed.step(refilled)
    assert np.isinf(fed.epsilons()["released_model"]).all()
    assert "began with more of a budget than is left" in fed.privacy()


def test_another_process_goes_on_with_what_is_left():
    rule = federated.greedy(rounds=3, contraction=0.3)
    fed = federation(control=rule)
    state = jax.tree.map(np.asarray, steps(fed, fed.initialize(), 2))
    book = ledger.read(fed.ledger.text())
    other = federation(control=rule, ledger=book)
    after = steps(other, jax.tree.map(jnp.asarray, state), 1)
    assert np.isfinite(other.epsilons()["released_model"]).all()
    whole = steps(federation(control=rule), fed.initialize(), 3)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(ConfigError, match="budget of the rule for knobs was"):
        federation(control=federated.greedy(rounds=3, budget=9.0), ledger=book)


def test_the_budget_is_part_of_what_made_a_ledger():
    made = guarantees.provenance.parts_of(guarantees.facts_of(config_of(control="greedy"), COUNTS))
    assert made.budget == pytest.approx(6 * 25) and made.adaptive
    plain = guarantees.provenance.parts_of(guarantees.facts_of(config_of(), COUNTS))
    assert plain.budget is None


def test_noise_that_is_not_proportional_to_sigma_has_no_budget():
    fed = federation(control=federated.greedy(rounds=3))
    facts = fed.facts()
    noise = mechanisms.base.Noise("gaussian", lambda knobs: 0.1 + np.asarray(knobs.sigma))
    other = facts._replace(about=facts.about._replace(outsiders=noise))
    found = guarantees.federation_from(other, fed._ledger_of(1))
    assert any("is not proportional to sigma" in reason for reason in found.refused)


def test_rules_of_a_configuration_are_those_from_python():
    """The same knobs, in the same rounds, from the same releases."""
    config = config_of(**{"control": "plateau", "plateau.first": 0.25, "filter.rounds": 4.0})
    one, two = build.control_of(config), federated.plateau(6, first=0.25, budget=4.0)
    knobs = mechanisms.knobs_of(config)
    a, b = one.initialize(knobs), two.initialize(knobs)
    for number in range(6):
        seen = federated.Released(jnp.int32(number), jnp.ones(5) * number, None, jnp.float32(0.1))
        np.testing.assert_array_equal(one.knobs(a, knobs, number).sigma, two.knobs(b, knobs, number).sigma)
        a, b = one.observe(a, seen), two.observe(b, seen)
