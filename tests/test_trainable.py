"""What is trained: patterns of parameters and low-rank adapters, over every task, and what of it is sent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_tasks import PAIRS, made, model_for, start

from cepam_jax.errors import ConfigError
from cepam_jax.run import build, training
from cepam_jax.run.config import defaults, validate
from cepam_jax.tasks import Model, Task
from cepam_jax.tasks.base import check_model
from cepam_jax.tasks.trainable import adapted, of_config, paths_of, product, restricted
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

ONE_EACH = list({name: (name, data) for name, data in PAIRS}.values())


def first_path(model):
    return next(iter(paths_of(model.params)))


def has_matrices(name, data):
    model = jax.eval_shape(made(name, data)[0].initialize, jax.random.key(0))
    return any(leaf.ndim == 2 for leaf in jax.tree.leaves(model.params))


WITH_MATRICES = [pair for pair in ONE_EACH if has_matrices(*pair)]


def divided(kind, task, model):
    """The task with one parameter trained, or with adapters on all matrices."""
    return restricted(task, f"^{first_path(model)}$") if kind == "restricted" else adapted(task, 2, 4.0, ".*")


@functools.lru_cache
def wrapped(kind, name, data):
    task, model, batch, constants = start(name, data)
    part = divided(kind, task, model)
    return task, model, part, part.initialize(jax.random.key(0)), batch, constants


CASES = [("restricted", *pair) for pair in ONE_EACH] + [("adapted", *pair) for pair in WITH_MATRICES]


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_it_begins_as_the_whole_model_to_the_bit(kind, name, data):
    task, model, part, mine, batch, constants = wrapped(kind, name, data)
    check_model(mine)
    jax.tree.map(np.testing.assert_array_equal, part.whole(mine), model)
    before, after = task.evaluate(model, batch, constants), part.evaluate(mine, batch, constants)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    again = part.begin(model, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, mine)
    key = jax.random.key(1)
    np.testing.assert_array_equal(
        task.loss(model, batch, constants, key)[0], part.loss(mine, batch, constants, key)[0]
    )


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_a_step_moves_what_is_trained_and_nothing_else(kind, name, data):
    _, model, part, mine, batch, constants = wrapped(kind, name, data)
    loss = jax.jit(lambda p: part.loss(mine._replace(params=p), batch, constants, jax.random.key(1))[0])
    gradient = jax.grad(loss)(mine.params)
    # So short that the loss falls by about a part in a thousand, if it is nearly straight that far.
    length = 1e-3 * float(loss(mine.params)) / max(1e-9, float(optax.global_norm(gradient)) ** 2)
    moved = mine._replace(params=jax.tree.map(lambda w, g: w - length * g, mine.params, gradient))
    assert float(loss(moved.params)) < float(loss(mine.params))
    after, before = paths_of(part.whole(moved).params), paths_of(model.params)
    assert list(after) == list(before)
    changed = {path for path in before if (after[path] != before[path]).any()}
    if kind == "restricted":
        assert changed == {first_path(model)} == set(mine.params)
    else:
        assert changed and changed <= {path for path, leaf in before.items() if leaf.ndim == 2}


@pytest.mark.parametrize(("name", "data"), WITH_MATRICES)
def test_adapters_are_low_rank(name, data):
    _, model, part, mine, _, _ = wrapped("adapted", name, data)
    random = jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(2), a.shape), mine.params)
    after, before = paths_of(part.whole(mine._replace(params=random)).params), paths_of(model.params)
    for path, adapter in random.items():
        change = np.asarray(after[path] - before[path], np.float64)
        assert np.linalg.matrix_rank(change, tol=1e-3) == min(2, *change.shape)
        np.testing.assert_allclose(
            change, 2.0 * np.asarray(adapter["A"]) @ np.asarray(adapter["B"]), atol=1e-4
        )
    sizes = sum(sum(before[path].shape) * min(2, *before[path].shape) for path in mine.params)
    assert sum(leaf.size for leaf in jax.tree.leaves(mine.params)) == sizes


def test_adapters_begin_at_random_and_apart():
    task, _, _, _ = start("image_classification", "digits")
    params = adapted(task, 4).initialize(jax.random.key(0)).params
    assert list(params) == ["Dense_0/kernel", "Dense_1/kernel", "Dense_2/kernel"]
    a = params["Dense_0/kernel"]["A"]
    assert a.shape == (64, 4) and 0.8 < float(a.std()) * 8 < 1.2  # 256 draws: 4.5 deviations
    assert not np.array_equal(a[:16], params["Dense_2/kernel"]["A"])
    other = adapted(task, 4).initialize(jax.random.key(1)).params
    assert not np.array_equal(a, other["Dense_0/kernel"]["A"])
    np.testing.assert_array_equal(product(params["Dense_1/kernel"], 2.0), np.zeros((32, 16)))


def test_own_parameters_beside_adapters():
    task, _, _, _ = start("image_classification", "digits")
    part = adapted(task, 2, pattern="Dense_0/kernel", own="bias")
    model = part.initialize(jax.random.key(0))
    assert list(model.params) == ["Dense_0/bias", "Dense_1/bias", "Dense_2/bias", "Dense_0/kernel"]
    assert set(model.frozen[0]) == {f"Dense_{n}/kernel" for n in range(3)}
    with pytest.raises(ConfigError, match="both match 'Dense_0/kernel', which would be trained twice"):
        adapted(task, 2, own="Dense_0")


def test_a_divided_task_may_be_divided_again():
    task, model, batch, constants = start("image_classification", "digits")
    inner = adapted(task, 2)
    part = restricted(inner, "A$")
    mine = part.initialize(jax.random.key(0))
    assert all(path.endswith("/A") for path in mine.params)
    jax.tree.map(np.testing.assert_array_equal, part.whole(mine), model)
    jax.tree.map(np.testing.assert_array_equal, part.begin(model, jax.random.key(0)), mine)
    key = jax.random.key(1)
    a, b = task.loss(model, batch, constants, key), part.loss(mine, batch, constants, key)
    np.testing.assert_array_equal(a[0], b[0])


def test_statistics_and_what_was_frozen_go_through():
    """Of a task whose own Model has both; statistics are sent as before."""

    def loss(model, batch, constants, key):
        return jnp.sum(model.params["w"] * model.frozen["f"]) + model.params["v"], {
            "s": model.statistics["s"] + 1
        }

    whole = Model({"w": jnp.ones(3), "v": jnp.ones(())}, {"s": jnp.zeros(2)}, {"f": jnp.arange(3.0)})
    task = Task(lambda key: whole, loss, lambda *_: {}, lambda *_: {})
    part = restricted(task, "v")
    model = part.initialize(jax.random.key(0))
    assert list(model.params) == ["v"] and model.statistics is whole.statistics
    found, statistics = part.loss(model, {}, {}, None)
    assert float(found) == 4 and statistics["s"].tolist() == [1, 1]
    jax.tree.map(np.testing.assert_array_equal, part.whole(model), whole)


@pytest.mark.parametrize("name", dict(PAIRS))
def test_a_configuration_says_what_is_trained(name):
    config = defaults()
    task, found = made(name, dict(PAIRS)[name])
    config.task, config.model = name, model_for(name, found.specification)
    assert of_config(config, task) is task
    path = first_path(task.initialize(jax.random.key(0)))
    config.trainable = f"^{path}$"
    validate(config)
    part = build.task_of(config, found.specification)
    assert list(part.initialize(jax.random.key(0)).params) == [path]
    config.trainable = "no such"
    with pytest.raises(ConfigError, match=f"config.trainable is 'no such', which matches no par.*: .*{path}"):
        build.task_of(config, found.specification)


def test_patterns_that_make_no_sense_are_refused():
    config = defaults()
    for field, value in (("trainable", "("), ("trainable", ""), ("adapter.pattern", "[")):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: value})
        with pytest.raises(ConfigError, match=f"config.{field} is .*; it must be .*a regular expression"):
            validate(changed)
    task, _, _, _ = start("image_classification", "digits")
    with pytest.raises(ConfigError, match="is 'bias', which matches no matrix; there are: Dense_0/kernel"):
        adapted(task, 2, pattern="bias")


RANK_2 = {"adapter.rank": 2, "local.learning_rate": 0.02}


@pytest.mark.parametrize(
    ("variant", "changes", "sent"),
    [
        ("fedavg", {"trainable": "Dense_2"}, 16 * 10 + 10),
        ("cepam_gaussian", RANK_2 | {"wire": True}, 2 * (64 + 32 + 32 + 16 + 16 + 10)),
        ("fedavg", RANK_2 | {"trainable": "bias"}, 340 + 32 + 16 + 10),
        ("clipped", RANK_2 | {"wire": True}, 340),
        ("cepam_gaussian", {"trainable": "Dense_2", "wire": True}, 170),
    ],
)
def test_only_what_is_trained_travels(variant, changes, sent, tmp_path):
    """Bits count it alone, in real messages too; with partial participation and several chunks."""
    config = digits.get_config(variant)
    quick = {"rounds": 2, "eval_every": 1, "clients_per_round": 4, "clients_per_chunk": 2}
    config.update_from_flattened_dict({**quick, **changes})
    lines = training.train(config, tmp_path, progress=False)
    assert lines[-1]["loss"] < lines[0]["loss"]
    coordinates = lines[-1]["uplink_bits"] / 4 / lines[-1]["bits_per_coordinate"]
    assert coordinates == pytest.approx(sent, rel=1e-6)
    if variant == "fedavg":
        assert lines[-1]["uplink_bits"] == 4 * 32 * sent
    if config.wire:
        assert 0 < lines[-1]["uplink_bytes"] * 8 < 4 * (32 * sent + 8 * 64)
