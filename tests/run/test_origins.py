"""Runs that begin with another run's model: the same model, other noise, and a note of it that is kept."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.errors import CheckpointDamagedError, CheckpointMismatchError, ConfigError
from cepam_jax.run import build, finished, origins, training
from cepam_jax.run.checkpoints import digest
from configs import digits

pytestmark = [pytest.mark.compiled_fast(mlir=True), pytest.mark.slow]  # sweeps are their runs to the bit


def config_of(variant="cepam_gaussian", **changes):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.clients_per_round = "linear", 2, 1, 4
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("first")
    return folder, training.train(config_of(), folder, progress=False)


def run(folder, **changes):
    return training.train(config_of(**changes), folder, progress=False)


def metrics(line):
    return {name: line[name] for name in ("loss", "accuracy")}


def test_it_begins_where_the_other_run_ended(first, tmp_path):
    folder, lines = first
    mine = run(tmp_path / "a", init=str(folder))
    assert metrics(mine[0]) == metrics(lines[-1]) != metrics(lines[0])
    note = json.loads((tmp_path / "a/initial.json").read_text())
    assert note["run"] == str(folder.resolve()) and note["round"] == 2
    assert note["digest"] == digest(finished.load(folder).model)
    assert "initial.json" not in {path.name for path in folder.iterdir()}


def test_the_report_says_that_the_other_run_is_not_counted(first, tmp_path):
    run(tmp_path / "a", init=str(first[0]))
    text = (tmp_path / "a/privacy.txt").read_text()
    assert f"the model of {first[0]}, with which training began: an epsilon is of this run alone" in text
    assert "with which training began" not in (first[0] / "privacy.txt").read_text()


def test_no_noise_is_shared_with_the_other_run(first, tmp_path):
    """With equal seeds too, also where the run is one more of a row; and it says how by its note alone."""
    run(tmp_path / "a", init=str(first[0]))
    run(tmp_path / "b", init=str(tmp_path / "a"))
    split = build.split_of(config_of(), sources.load_examples("digits"))
    notes = [origins.Origin.read(json.loads((tmp_path / name / "initial.json").read_text())) for name in "ab"]
    arrays = [build.client_arrays(config_of(), split, words) for words in ((), *(n.words for n in notes))]
    for key in ("training_key", "shared_key"):
        words = [tuple(jax.random.key_data(getattr(a, key)).tolist()) for a in arrays]
        assert len(set(words)) == 3
    # The twin: without the words they are those of the first run.
    same = build.client_arrays(config_of(), split)
    assert (jax.random.key_data(same.training_key) == jax.random.key_data(arrays[0].training_key)).all()


def test_it_goes_on_to_the_bit_without_the_other_run(first, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(first[0], other)
    straight = run(tmp_path / "straight", init=str(other), rounds=3)
    run(tmp_path / "broken", init=str(other))
    shutil.rmtree(other)
    resumed = run(tmp_path / "broken", init=str(other), rounds=3)
    for a, b in zip(straight, resumed, strict=True):
        assert {n: v for n, v in a.items() if "seconds" not in n} == {
            n: v for n, v in b.items() if "seconds" not in n
        }
    note = tmp_path / "broken/initial.json"
    intact = note.read_text()
    for altered in (
        intact.replace('"digest": "', '"digest": "?'),
        re.sub('"round": 2', '"round": 3', intact),
    ):
        note.write_text(altered)
        with pytest.raises(CheckpointDamagedError, match="initial.json cannot be read"):
            run(tmp_path / "broken", init=str(other), rounds=4)
    other_noise = json.loads(intact)
    other_noise["digest"] = "0" * 64
    note.write_text(json.dumps(other_noise))
    with pytest.raises(CheckpointDamagedError, match="it was altered"):
        run(tmp_path / "broken", init=str(other), rounds=4)
    note.unlink()
    with pytest.raises(CheckpointDamagedError, match="has lost its initial.json"):
        run(tmp_path / "broken", init=str(other), rounds=4)


def test_a_run_that_began_with_another_model_is_refused(first, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(first[0], other)
    run(tmp_path / "a", init=str(other))
    shutil.rmtree(tmp_path / "a/checkpoints")
    run(other, rounds=3)
    with pytest.raises(CheckpointMismatchError, match="began with the model of .*other after round 2, and"):
        run(tmp_path / "a", init=str(other))
    with pytest.raises(CheckpointMismatchError, match="config.init"):
        run(tmp_path / "a", init=str(first[0]))
    with pytest.raises(CheckpointMismatchError, match="config.init = '', this one has"):
        run(other, init=str(first[0]), rounds=3)


def test_adapters_begin_with_the_others_model_and_are_merged_into_it(first, tmp_path):
    adapters = {"adapter.rank": 2, "local.learning_rate": 0.02}
    mine = run(tmp_path / "a", init=str(first[0]), **adapters)
    assert metrics(mine[0]) == metrics(first[1][-1])
    whole = run(tmp_path / "b", init=str(tmp_path / "a"))
    np.testing.assert_allclose(whole[0]["loss"], mine[-1]["loss"], rtol=1e-6)
    before, after = (finished.load(folder).model.params for folder in (first[0], tmp_path / "a"))
    np.testing.assert_array_equal(before["Dense_0"]["bias"], after["Dense_0"]["bias"])
    change = (after["Dense_0"]["kernel"] - before["Dense_0"]["kernel"]).astype(np.float64)
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2


def test_a_sweep_of_seeds_from_one_model(first, tmp_path):
    """As if each had been called for; with one compilation."""
    configs = [config_of(init=str(first[0])) for _ in range(3)]
    configs[1].seeds.training = configs[2].seeds.shared = 1
    found = training.train_many(configs, [tmp_path / str(n) for n in range(3)], progress=False)
    assert len({lines[-1]["loss"] for lines in found}) == 3
    assert all(metrics(lines[0]) == metrics(first[1][-1]) for lines in found)
    alone = training.train(configs[1], tmp_path / "alone", progress=False)
    np.testing.assert_allclose(alone[-1]["loss"], found[1][-1]["loss"], rtol=1e-6)


def test_what_cannot_be_begun_with_is_refused_by_name(first, tmp_path):
    for init, changes, message in (
        (tmp_path / "none", {}, "config.init is '.*none'; it must be the work directory of a run"),
        (first[0], {"model": "mlp"}, "whose model is another one: params/Dense_0/bias is float32.10. there"),
        (tmp_path / "a", {}, "another directory than that of the run itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "a", init=str(init), **changes)
    assert not (tmp_path / "a").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(first[0] / "config.json", empty)
    with pytest.raises(ConfigError, match="a run without a checkpoint"):
        run(tmp_path / "a", init=str(empty))
    text = (empty / "config.json").read_text()
    (empty / "config.json").write_text(text.replace('"model"', '"modell"'))
    with pytest.raises(ConfigError, match="whose config.json is not one of here: .*modell"):
        run(tmp_path / "a", init=str(empty))
    assert not (tmp_path / "a").exists()
