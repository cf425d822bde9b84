"""The laws of tasks, for all that are registered, on every data set that needs no files."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.data import sources
from cepam_jax.data.examples import example_of, examples, number_of
from cepam_jax.errors import ConfigError, DataNotPreparedError, DatasetError
from cepam_jax.federated.local import batch_of
from cepam_jax.run.config import defaults
from cepam_jax.tasks import TASKS, Model, Task
from cepam_jax.tasks.base import check_model

pytestmark = pytest.mark.compiled_fast

FIRST = ("mlp", "gin", "gcn_plain", "transformer_tiny")  # models, of which each task takes one


def fitting():
    """(task, data set) for each task and the data sets that it takes."""
    for name in TASKS:
        for data in sources.SOURCES:
            try:
                made(name, data)
            except (DatasetError, DataNotPreparedError, KeyError):
                continue
            yield name, data


@functools.lru_cache
def made(name, data):
    """(Task, Examples), with the first model that fits; each of these is without dropout."""
    config = defaults()
    found = sources.load_examples(data, "no such directory")
    config.model = model_for(name, found.specification)
    return TASKS[name](config, found.specification), found


def model_for(name, specification):
    """The first of FIRST that a task takes."""
    config = defaults()
    for config.model in FIRST:
        with contextlib.suppress(ConfigError):
            TASKS[name](config, specification)
            return config.model
    raise KeyError(f"none of {FIRST} fits {name}")


PAIRS = list(fitting())


def start(name, data):
    task, found = made(name, data)
    rows = np.linspace(0, number_of(found.train) - 1, 12).round().astype(int)  # of every label
    batch = batch_of({key: jnp.asarray(a) for key, a in found.train.items()}, jnp.asarray(rows))
    return task, task.initialize(jax.random.key(0)), batch, found.constants


def test_every_task_has_a_data_set():
    # Communities of a graph need a file: tests/test_graphs.py has their laws, on a graph made there.
    assert {name for name, _ in PAIRS} == set(TASKS) - {"node_classification"}


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_loss_is_the_mean_over_examples(name, data):
    task, model, batch, constants = start(name, data)
    loss = jax.jit(task.loss)
    whole, statistics = loss(model, batch, constants, jax.random.key(1))
    each = [loss(model, batch_of(batch, jnp.array([k])), constants, jax.random.key(1))[0] for k in range(12)]
    assert statistics is None  # with statistics of a batch an example moves the losses of the others
    np.testing.assert_allclose(whole, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_metrics_are_sums_over_examples(name, data):
    task, model, batch, constants = start(name, data)
    evaluate = jax.jit(task.evaluate)
    whole = evaluate(model, batch, constants)
    each = [evaluate(model, batch_of(batch, jnp.array([k])), constants) for k in range(12)]
    for metric, values in whole.items():
        assert values.shape[0] == 12
        np.testing.assert_allclose(
            values, np.concatenate([one[metric] for one in each]), rtol=1e-4, atol=1e-5
        )
    sums = jax.tree.map(lambda a: np.asarray(a).sum(0), whole)
    metrics = task.summarize(sums, 12.0)
    assert "loss" in metrics and task.headline in metrics and set(task.formats) <= set(metrics)
    assert all(np.isfinite(value) and np.ndim(value) == 0 for value in metrics.values())


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_a_step_down_the_gradient_lowers_the_loss(name, data):
    task, model, batch, constants = start(name, data)
    check_model(model)
    loss = jax.jit(lambda p: task.loss(model._replace(params=p), batch, constants, jax.random.key(1))[0])
    gradient = jax.grad(loss)(model.params)
    after = jax.tree.map(lambda w, g: w - 1e-4 * g, model.params, gradient)
    assert float(loss(after)) < float(loss(model.params))


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_the_specification_is_of_one_example(name, data):
    _, found = made(name, data)
    one = example_of(found.specification)
    assert {key: (a.dtype, a.shape[1:]) for key, a in found.train.items()} == {
        key: (a.dtype, a.shape) for key, a in one.items()
    }
    hash(found.specification)


def test_a_model_that_cannot_be_sent_is_refused():
    with pytest.raises(ConfigError, match=r"\['w'\] is float16; what is sent must be"):
        check_model(Model({"w": jnp.zeros(3, jnp.float16)}))
    with pytest.raises(ConfigError, match="no parameters"):
        check_model(Model({}))
    with pytest.raises(ConfigError, match="returned a dict; it must return a tasks.Model"):
        check_model({"w": jnp.zeros(3)})


def test_data_that_does_not_fit_a_task_is_named():
    data = examples({"x": np.ones((4, 2))}, {"x": np.ones((2, 2))})
    with pytest.raises(DatasetError, match="'image_classification', but the data set's examples are"):
        TASKS["image_classification"](defaults(), data.specification)


GOOD = {"train": {"x": np.ones((4, 2)), "y": np.arange(4)}, "test": {"x": np.ones((2, 2)), "y": np.arange(2)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "train is a list; it must be a dictionary"),
        ({"train": {"x": [1, 2]}}, r"train\['x'\] is list; it must be a NumPy array"),
        ({"train": {"x": np.ones(4), "y": np.ones(3)}}, "all need one leading axis"),
        ({"train": {"x": np.ones((0, 2))}}, "not empty"),
        ({"test": {"x": np.ones((2, 2))}}, "train has the arrays"),
        ({"test": {"x": np.ones((2, 3)), "y": np.arange(2)}}, "they must be alike"),
        ({"train": {"x": np.full((4, 2), np.nan), "y": np.arange(4)}}, "NaN or infinite"),
        ({"train": {"x": np.ones((4, 2)), "y": np.full(4, 2**40)}}, "integers that 32 bits do not"),
        ({"train": {"x": np.full((4, 2), 1e300), "y": np.arange(4)}}, "32-bit floats do not"),
        ({"owners": np.arange(3)}, "owners are int32.*must be 4 integers"),
        ({"owners": np.array([0, 1, -1, 0])}, r"owners\[2\] is -1"),
        ({"test_owners": np.ones(2)}, "test_owners are float32"),
        ({"shape": [1, 2]}, "facts are .* must be hashable"),
    ],
)
def test_examples_that_do_not_fit_together_are_named(changes, message):
    with pytest.raises(DatasetError, match=message):
        examples(**{**GOOD, **changes})


def test_examples_come_in_types_of_32_bits():
    data = examples(**GOOD, owners=np.arange(4), constants={"m": np.ones(2)}, width=2)
    assert data.train["x"].dtype == np.float32 and data.train["y"].dtype == np.int32
    assert data.constants["m"].dtype == np.float32 and data.facts == (("width", 2),)


def test_defaults_of_a_task_are_a_loss_to_be_lowered():
    task = Task(None, None, None, None)
    assert (task.headline, task.higher_is_better) == ("loss", False)
