"""Clips that follow a quantile, in runs: what is printed and kept, what a killed run goes on with."""

import json

import numpy as np
import pytest
from own_federation import federation

from cepam_jax import federated, privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import Influence
from cepam_jax.run import budgets, guarantees, ledger
from cepam_jax.run.config import validate
from cepam_jax.run.training import train, train_many
from configs import digits

pytestmark = [pytest.mark.compiled_fast(mlir=True), pytest.mark.slow]  # sweeps are their runs to the bit

KEPT = ("accuracy", "loss", "uplink_bits", "epsilon")


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    small = {"num_clients": 4, "rounds": 4, "eval_every": 2, "model": "linear", "control": "quantile_clip"}
    small |= {"mechanism.gamma": 5.0, "mechanism.clip_norm": 0.2, "quantile_clip.noise": 1.0}
    config.update_from_flattened_dict({**small, **fields})
    validate(config)
    return config


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(where, configuration, lines of a run, lines of it and another one as a sweep)."""
    root = tmp_path_factory.mktemp("clipping")
    config = config_of(**{"mechanism.error_feedback": True})
    whole = train(config, root / "whole", progress=False)
    other = config.copy_and_resolve_references()
    other.seeds.training = 5
    swept = train_many([config, other], [root / "a", root / "b"], progress=False)
    return root, config, whole, swept


def books(root, *names):
    return [(root / name / "ledger.jsonl").read_text() for name in names]


def test_a_sweep_is_its_runs(places):
    root, _, whole, swept = places
    for one, two in zip(whole, swept[0], strict=True):
        assert {k: one.get(k) for k in KEPT} == {k: two.get(k) for k in KEPT}
    first, second, third = books(root, "whole", "a", "b")
    assert first == second != third


def test_a_killed_run_goes_on_to_the_bit(places):
    root, config, whole, _ = places
    before = books(root, "whole")[0]
    newest = root / "whole/checkpoints/4"
    for file in sorted(newest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    newest.rmdir()
    metrics = (root / "whole/metrics.jsonl").read_text().splitlines(keepends=True)
    (root / "whole/metrics.jsonl").write_text("".join(metrics[:-1]))
    again = train(config, root / "whole", progress=False)
    for one, two in zip(whole, again, strict=True):
        assert {k: one.get(k) for k in KEPT} == {k: two.get(k) for k in KEPT}
    assert books(root, "whole")[0] == before


def test_the_ledger_shows_clips_that_move_and_a_gamma_that_stays(places):
    """And what is printed is that of as many rounds as ran, at the gamma of the start."""
    root, config, whole, _ = places
    book = ledger.read(books(root, "whole")[0])
    clips = [float(entry.knobs.clip) for entry in book.entries]
    assert len(set(clips)) > 1
    for entry in book.entries:
        gamma = np.float64(entry.knobs.clip) / np.float64(entry.knobs.sigma)
        assert gamma == pytest.approx(5.0, rel=1e-5) and gamma <= 5.0 * (1 + 1e-7)
    planned = guarantees.epsilons(config, np.full(4, 10), guarantees.plan(config, 4))
    assert whole[-1]["epsilon"] == planned and whole[1]["epsilon"] != planned
    text = (root / "whole/privacy.txt").read_text()
    assert "each client's vote, whether its update was within the clip" in text
    parts = json.loads(books(root, "whole")[0].splitlines()[0])["parts"]
    assert parts["count_noise"] == 1.0 and parts["adaptive"] is True


def run_in_python(rule, **changes):
    made = federation(control=rule, **changes)
    state = made.initialize()
    for _ in range(2):
        state, _ = made.step(state)
    return made


@pytest.fixture(scope="module")
def in_python():
    return run_in_python(federated.quantile_clip(noise=1.0), wire=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda knobs: knobs._replace(sigma=knobs.sigma * np.float32(0.99)),
        lambda knobs: knobs._replace(sigma=knobs.sigma * np.float32(1.01)),
        lambda knobs: knobs._replace(clip=knobs.clip * np.float32([0.9, 1, 1, 1])),
        lambda knobs: knobs._replace(sigma=knobs.sigma * np.float32([1.1, 1, 1, 1])),
    ],
)
def test_a_rule_of_a_fork_that_changes_gamma_has_no_guarantee(change, in_python):
    """As the ledger would show it."""
    facts, book = in_python.facts(), in_python.ledger
    assert budgets.refused(facts, book) == ""
    first, *others = book.entries
    changed = book._replace(entries=(first._replace(knobs=change(first.knobs)), *others))
    assert "one common factor of clips and sigmas" in budgets.refused(facts, changed)
    text = privacy.text(guarantees.federation_from(facts, changed), 1e-5)
    assert text.count("no guarantee") == 4


def test_what_a_rule_states_besides_is_not_covered(in_python):
    """A budget, noise that is none, or a bound of local training that the clip does not move."""
    facts, book = in_python.facts(), in_python.ledger
    # A ledger says which parts made it, and these are others.
    book = book._replace(entries=tuple(entry._replace(made_by=None) for entry in book.entries))
    bound = Influence("client", "l2", bound=lambda counts: np.ones(4))
    for wrong in (
        facts._replace(control=facts.control._replace(budget=4.0)),
        facts._replace(control=facts.control._replace(count_noise=0.0)),
        facts._replace(start=facts.start._replace(clip=None)),
        facts._replace(influence=bound),
        facts._replace(influence=Influence("example", "l2", bound=lambda counts: np.ones(4))),
    ):
        assert budgets.refused(wrong, book)
        rows = privacy.report(guarantees.federation_from(wrong, book), 1e-5)
        assert all(np.isinf(row.epsilon).all() for row in rows)


def test_in_python_a_rule_has_the_epsilon_of_its_rounds(in_python):
    made = in_python
    found, planned = made.epsilons(), made.epsilons(planned_rounds=2)
    for name in ("released_model", "colluding_clients"):
        assert np.isfinite(found[name]).all()
        np.testing.assert_allclose(found[name], planned[name], rtol=1e-9)
    for name in ("decoded_updates", "server"):
        assert np.isinf(found[name]).all()


def test_needs_are_refused_by_name(tmp_path):
    config = config_of(**{"needs.bits": (1e5,) * 4})
    with pytest.raises(
        ConfigError, match=r"config.control = 'quantile_clip' sets knobs by what was released"
    ):
        train(config, tmp_path, progress=False)
