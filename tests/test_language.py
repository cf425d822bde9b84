"""The next character: padding never counts, means are over characters, other models and data are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.data import sources, text
from cepam_jax.errors import ConfigError, DatasetError
from cepam_jax.federated.local import batch_of
from cepam_jax.run import training
from cepam_jax.run.config import defaults
from cepam_jax.tasks import TASKS
from cepam_jax.tasks.language import summarize
from configs import common, shakespeare

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

OPTIONS = (("text", tuple(sorted({**dict(sources._defaults("text")), "context": 12, "stride": 12}.items()))),)


@functools.lru_cache
def made():
    config = defaults()
    config.model = "transformer_tiny"
    data = sources.load_examples("shakespeare", "", OPTIONS)
    task = TASKS["next_character"](config, data.specification)
    batch = batch_of({name: jnp.asarray(a) for name, a in data.train.items()}, jnp.arange(5))
    return task, task.initialize(jax.random.key(0)), batch


def test_padding_never_counts():
    task, model, batch = made()
    short = {**batch, "length": jnp.array([13, 5, 2, 9, 3], jnp.int32)}
    places = jnp.arange(13)
    other = jnp.where(places < short["length"][:, None], short["characters"], 64 - short["characters"])
    filled = {**short, "characters": other.astype(jnp.uint8)}
    assert (filled["characters"] != short["characters"]).any()
    loss = jax.jit(jax.value_and_grad(lambda m, b: task.loss(m, b, {}, jax.random.key(1))[0], allow_int=True))
    for a, b in zip(jax.tree.leaves(loss(model, short)), jax.tree.leaves(loss(model, filled)), strict=True):
        np.testing.assert_array_equal(a, b)
    one, two = (task.evaluate(model, b, {}) for b in (short, filled))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    np.testing.assert_array_equal(one["characters"], short["length"] - 1)


def test_a_window_counts_by_its_characters():
    task, model, batch = made()
    short = {**batch, "length": jnp.array([13, 5, 2, 9, 3], jnp.int32)}
    sums = jax.tree.map(lambda a: np.asarray(a).sum(0), task.evaluate(model, short, {}))
    found = task.summarize(sums, 5.0)
    assert found["loss"] == pytest.approx(sums["nats"] / 27) and sums["characters"] == 27
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    each = task.evaluate(model, short, {})
    mean = float(task.loss(model, short, {}, jax.random.key(1))[0])
    assert mean == pytest.approx(float((each["nats"] / each["characters"]).mean()), rel=1e-5)
    assert summarize({"nats": 0.0, "right": 0.0, "characters": 0.0}, 0.0)["loss"] == 0


def test_a_loss_that_overflows_has_no_perplexity():
    assert summarize({"nats": 1e6, "right": 0.0, "characters": 1.0}, 1.0)["perplexity"] == np.inf


def test_other_models_and_other_data_are_refused_by_name():
    config = defaults()
    specification = sources.load_examples("shakespeare").specification
    with pytest.raises(ConfigError, match="model of sequences is 'mlp'; it must be one of 'lstm'"):
        TASKS["next_character"](config, specification)
    config.model = "lstm"
    with pytest.raises(DatasetError, match=r"'next_character', but .* \['image', 'label'\]; it needs charac"):
        TASKS["next_character"](config, sources.load_examples("digits").specification)
    with pytest.raises(ConfigError, match="config.model is 'lstm'; it must be a model for images: 'cnn2'"):
        TASKS["image_classification"](config, sources.load_examples("digits").specification)


def small(variant="cepam_gaussian", **changes):
    config = shakespeare.get_config(variant)
    quick = {"text.context": 8, "text.stride": 50, "text.least_lines": 100, "num_clients": 8}
    quick |= {"clients_per_round": 3, "local.steps": 2, "local.batch_size": 4, "rounds": 2, "eval_every": 1}
    config.update_from_flattened_dict({**quick, **changes})
    return config


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("fedavg", {"local.dropout": 0.2, "local.learning_rate": 1e-2}),
        ("cepam_gaussian", {"wire": True, "clients_per_chunk": 2}),
        ("cepam_rotated", {"wire": True}),
        ("clipped", {"wire": True}),
        ("cepam_gaussian", {"model": "lstm", "text.context": 4}),
    ],
)
def test_a_federation_of_speakers_trains(variant, changes, tmp_path):
    lines = training.train(small(variant, **changes), tmp_path, progress=False)
    assert lines[-1]["round"] == 2 and lines[-1]["loss"] < lines[0]["loss"]
    clients = lines[-1]["clients"]
    assert clients["perplexity"]["clients"] == 8
    assert clients["loss"]["best"] < lines[-1]["loss"] < clients["loss"]["worst"]
    assert clients["perplexity"]["best"] < clients["perplexity"]["worst"]
    assert clients["accuracy"]["best"] > clients["accuracy"]["worst"]
    if changes.get("wire"):
        assert lines[-1]["uplink_bytes"] * 8 >= 0.99 * lines[-1]["uplink_bits"]


@pytest.mark.parametrize("variant", common.VARIANTS)
def test_every_variant_of_the_configuration_is_valid(variant):
    config = shakespeare.get_config(variant)
    training.validate(config)
    assert config.num_clients == len(text.speakers(text.play(), config.text.least_lines))
