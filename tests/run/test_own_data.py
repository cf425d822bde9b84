"""Runs of configurations on data sets and parts of one's own: what is checked, and what is never stale."""

import os

import numpy as np
import pytest

from cepam_jax.data import augment, sources
from cepam_jax.data.examples import examples
from cepam_jax.errors import DatasetError
from cepam_jax.run import build, training
from configs import digits, hospitals

pytestmark = [pytest.mark.compiled_fast, pytest.mark.usefixtures("no_picture")]


def config_of(name, **fields):
    config = digits.get_config("fedavg")
    few = {"model": "linear", "num_clients": 2, "rounds": 1, "eval_every": 1, "local.steps": 1}
    config.update_from_flattened_dict({"data.name": name, **few, **fields})
    return config


def images(labels, value=100):
    """Examples of 2x2 pixels with these labels in training and test."""
    labels = np.asarray(labels, np.int32)
    part = {"image": np.full((len(labels), 2, 2, 1), value, np.uint8), "label": labels}
    constants = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
    return examples(part, part, constants=constants, labels=np.abs(labels), num_classes=3)


@pytest.mark.parametrize("labels", [[-1, 0, 1, 2], [0, 1, 2, 3]])
def test_labels_that_the_model_has_no_output_for_are_refused(labels, monkeypatch, tmp_path):
    """-1 was learned as the last class, and a label beyond the last was blamed on the learning rate."""
    monkeypatch.setitem(sources.SOURCES, "mine", lambda data_dir: images(labels))
    with pytest.raises(DatasetError, match="'label' has labels from .* to .*; the model's 3 outputs stand"):
        training.train(config_of("mine"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_outcomes_other_than_0_and_1_are_refused(monkeypatch, tmp_path):
    """Of 1 and 2 the loss has no least value, and training made it ever more negative."""
    table = sources.load_examples("hospitals")
    found = [{**part, "label": part["label"] + 1} for part in (table.train, table.test)]
    other = table._replace(train=found[0], test=found[1])
    monkeypatch.setattr(training.sources, "load_examples", lambda *given: other)
    config = hospitals.get_config("fedavg")
    config.rounds = config.eval_every = 1
    with pytest.raises(DatasetError, match="'label' has .1, 2.; each outcome must be 0 or 1"):
        training.train(config, tmp_path / "run", progress=False)


def test_examples_follow_the_folder_that_a_name_stands_for(monkeypatch, tmp_path):
    """$TFDS_DATA_DIR of another moment: the partition was of one folder, and training saw the other."""
    monkeypatch.setitem(
        sources.SOURCES, "mine", lambda data_dir: images(np.arange(8) % 3, int(os.path.basename(data_dir)))
    )
    seen = []
    put = training.devices.put
    monkeypatch.setattr(training.devices, "put", lambda tree, *more: seen.append(tree) or put(tree, *more))
    for value in (10, 200):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / str(value)))
        training.train(config_of("mine"), tmp_path / f"run{value}", progress=False)
        trained = [tree["image"].max() for tree in seen if isinstance(tree, dict) and "image" in tree]
        assert trained[-1] == value


def test_a_part_registered_anew_is_not_a_compiled_one(monkeypatch):
    """A cell of a notebook that is edited and run again."""
    specification = sources.load_examples("digits").specification

    def program(function):
        monkeypatch.setitem(augment.AUGMENTATIONS, "mine", function)
        return build.program(config_of("digits", **{"local.augment": "mine"}), specification)

    def first(key, pixels):
        return pixels

    def second(key, pixels):
        return 0 * pixels

    made = program(first)
    assert program(first) is made and program(second) is not made
