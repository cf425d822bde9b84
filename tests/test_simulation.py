"""Laws of a federation put together in Python: the configured round and ledger, nothing undercounted."""

import functools
import math
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_federation import (
    CLIENTS,
    DATA,
    NOISE,
    OWNERS,
    TASK,
    Net,
    X,
    Y,
    after,
    federation,
    same,
)

import cepam_jax as cepam
from cepam_jax import federated, mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, DatasetError
from cepam_jax.federated.state import client_keys
from cepam_jax.run import build, checkpoints, training
from configs import digits

pytestmark = pytest.mark.compiled_fast


@pytest.mark.parametrize("variant", ["fedavg", "cepam_gaussian"])
def test_a_federation_equals_the_configured_run_to_the_bit(variant, tmp_path):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every = "linear", 3, 3
    line = training.train(config, tmp_path, progress=False)[-1]
    data = sources.load_examples("digits")

    def quantizer(shapes):
        sizes = tuple(map(math.prod, shapes))
        return mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq(segments=sizes))

    fed = cepam.Federation(
        cepam.tasks.image_classification(config, data.specification),
        cepam.clients(data.train, number=10, constants=data.constants),
        mechanisms.identity() if variant == "fedavg" else quantizer,
        **({} if variant == "fedavg" else {"sigma": 0.01, "clip": 1.0}),
        steps=config.local.steps,
        batch_size=config.local.batch_size,
        learning_rate=config.local.learning_rate,
        momentum=config.local.momentum,
    )
    state = after(fed, 3)
    template = jax.tree.map(np.asarray, fed.initialize())
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints").newest(template, lambda number: "").state
    same(saved, jax.tree.map(np.asarray, state))
    metrics = fed.evaluate(state, data.test)
    assert (metrics["loss"], metrics["accuracy"]) == (line["loss"], line["accuracy"])
    for adversary, values in fed.epsilons(config.privacy.delta).items():
        expected = line["epsilon"][adversary]
        assert values.max() == (math.inf if expected is None else expected)
    configured = (tmp_path / "privacy.txt").read_text().splitlines()
    ours = fed.privacy(config.privacy.delta).splitlines()
    assert [row for row in ours if not row.startswith("not covered")] == [
        row for row in configured if not row.startswith("not covered")
    ]
    assert configured[-2] in ours or configured[-1] in ours  # what 32-bit words leave out, with its size


def test_statistics_are_averaged_and_stay_in_range_under_noise():
    task = cepam.tasks.classification(Net(normalized=True), example=X[0])
    fed = federation(mechanisms.identity(), task, steps=3, learning_rate=0.1)
    before = fed.initialize()
    state, _ = fed.step(before)
    arrays, changes = fed._parts.arrays, []
    run = jax.jit(lambda key, client: fed.plan.local_update.run(before.model, arrays, client, key, None, 0))
    for client in range(4):
        key, _ = client_keys(arrays, 0, client)
        changes.append(run(key, client).update)
    flat, unravel = jax.flatten_util.ravel_pytree((before.params, before.statistics))
    expected = unravel(flat + np.mean(changes, axis=0))[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.statistics, expected
    )
    assert not np.allclose(state.statistics["batch_stats"]["BatchNorm_0"]["mean"], 0)
    noisy = federation(NOISE, task, sigma=30.0, steps=3)
    state = after(noisy, 3)
    variance = np.asarray(state.statistics["batch_stats"]["BatchNorm_0"]["var"])
    assert (variance >= 0).all() and (
        variance == 0
    ).any()  # noise of this size went below, and was brought back
    assert np.isfinite(noisy.evaluate(state, DATA)["loss"])


def test_frozen_parameters_stay_and_are_not_sent():
    net = cepam.tasks.network(Net(), X[0], trainable=lambda path: path[0] == "Dense_1")
    fed = federation(task=cepam.tasks.classification(net))
    assert fed.coordinates == 4 * 2 + 2
    before = fed.initialize()
    state = after(fed, 2, before)
    same(state.frozen, before.frozen)
    assert state.frozen.keys() == {"Dense_0"} and state.params.keys() == {"Dense_1"}
    assert not np.array_equal(state.params["Dense_1"]["kernel"], before.params["Dense_1"]["kernel"])


def test_pretrained_parameters_and_a_model_to_begin_with():
    parameters = jax.tree.map(lambda a: a + 1, federation().initialize().params)
    net = cepam.tasks.network(Net(), X[0], pretrained=parameters)
    fed = federation(task=cepam.tasks.classification(net))
    same(fed.initialize().params, parameters)
    same(federation().initialize(cepam.tasks.Model(parameters)).params, parameters)
    with pytest.raises(ConfigError, match="model is .*; it must be of the task's shapes"):
        federation().initialize(cepam.tasks.Model({"other": jnp.zeros(3)}))


def test_computing_in_bfloat16():
    task = cepam.tasks.classification(Net(dtype=jnp.bfloat16), example=X[0])
    fed = federation(mechanisms.identity(), task, steps=20, optimizer=optax.adam(1e-2))
    state = after(fed, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert fed.evaluate(state, DATA)["accuracy"] > 0.8


def test_the_optimizer_may_be_a_function_of_the_round():
    constant = federation(mechanisms.identity(), optimizer=optax.sgd(0.1))
    fading = federation(mechanisms.identity(), optimizer=lambda n: optax.sgd(0.1 * 0.5**n))
    start, _ = constant.step(constant.initialize())
    same(fading.step(fading.initialize())[0].params, start.params)

    def change(fed):
        return jax.tree.map(jnp.subtract, fed.step(start)[0].params, start.params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-4, atol=1e-7),
        change(fading),
        change(constant),
    )


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": optax.sgd}, r"the function optax\.sgd itself; call it, as in optax\.sgd\(0\.1\)"),
        ({"optimizer": optax.sgd(0.1), "learning_rate": 5.0}, "learning_rate is 5.0; it must be left out"),
        ({"optimizer": optax.sgd(0.1), "momentum": 0.9}, "momentum is 0.9; it must be left out beside"),
    ],
)
def test_rates_that_would_be_ignored_are_refused(training, message):
    with pytest.raises(ConfigError, match=message):
        federation(**training)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y - 1, "has labels from -1 to 0; the model's 2 outputs stand for those from 0 to 1"),
        (Y + 1, "has labels from 1 to 2"),
        (Y[:, None], "must be one whole number for each example"),
        (Y.astype(np.float32), "must be one whole number for each example"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused(labels, message):
    """They trained without a word: -1 is the last class for a loss, and beyond the last it is NaN."""
    with pytest.raises(DatasetError, match=message):
        federation(clients=cepam.clients({"inputs": X, "labels": labels}, owners=OWNERS))
    fed = federation()
    with pytest.raises(DatasetError, match=r"labels|like those"):
        fed.evaluate(fed.initialize(), {"inputs": X, "labels": labels})


def test_names_of_arrays_that_are_not_there_are_named():
    with pytest.raises(DatasetError, match="no array 'label'; they have: inputs, labels"):
        federation(task=cepam.tasks.classification(Net(), example=X[0], labels="label"))


def test_arrays_in_any_byte_order_are_the_same():
    for kind in (">f4", ">f8", np.float64):
        turned = cepam.clients({"inputs": X.astype(kind), "labels": Y.astype(">i8")}, owners=OWNERS)
        same(turned.examples, CLIENTS.examples)
    if np.dtype(np.longdouble).itemsize > 8:  # not on every machine
        with pytest.raises(DatasetError, match="it must have at most 64 bits a number"):
            cepam.clients({"inputs": X.astype(np.longdouble), "labels": Y}, owners=OWNERS)


def test_clients_are_evaluated_one_by_one():
    fed = federation(mechanisms.identity())
    state = after(fed, 1)
    own = fed.evaluate_clients(state)
    assert own["accuracy"].shape == (4,)
    assert np.average(own["loss"], weights=[20, 15, 10, 15]) == pytest.approx(
        fed.evaluate(state, DATA)["loss"]
    )
    assert CLIENTS.owners.tolist() == [3, 5, 7, 9] and CLIENTS.split.counts.tolist() == [20, 15, 10, 15]
    some = fed.evaluate_clients(state, {"inputs": X[:12], "labels": Y[:12]}, owners=OWNERS[:12])
    assert np.isfinite(some["loss"]).tolist() == [True, False, True, False]
    assert some["loss"][2] == pytest.approx(own["loss"][2])
    for strangers in ([4] * 12, OWNERS[:12].astype(str)):
        with pytest.raises(ConfigError, match="owners is .*; it must be those of clients, such as .3, 5, 7"):
            fed.evaluate_clients(state, {"inputs": X[:12], "labels": Y[:12]}, owners=strangers)


def test_few_examples_are_not_evaluated_many_times():
    """Five graphs of a thousand nodes were filled up to a thousand graphs."""
    seen = []

    def evaluate(model, batch, constants):
        seen.append(len(batch["labels"]))
        return TASK.evaluate(model, batch, constants)

    fed = federation(mechanisms.identity(), task=TASK._replace(evaluate=evaluate))
    fed.evaluate(fed.initialize(), {"inputs": X[:5], "labels": Y[:5]})
    assert set(seen) == {5}


def test_steps_of_each_client_need_updates_of_weights():
    """A clipped gradient of one batch has no steps: the largest number was taken for all, in silence."""
    with pytest.raises(ConfigError, match="it must be one number where update_kind is 'gradient'"):
        federation(steps=[1, 6, 2, 2], update_kind="gradient")
    federation(steps=[1, 6, 2, 2])


def test_a_downlink_and_bytes_go_through_the_same_round():
    knobs = mechanisms.Knobs(step=0.01)
    down = federated.compressed(mechanisms.sdq(), knobs)
    quantizer = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq())
    fed = federation(quantizer, downlink=down, wire=True, server=optax.adam(0.1), participants=3)
    state, report = fed.step(fed.initialize())
    assert report.participants.bytes.min() > 0 and float(report.downlink_bits) == 0
    full = 32 * fed.coordinates
    np.testing.assert_array_equal(report.participants.down_bits, full)  # all are new
    state, report = fed.step(state)
    assert 0 < float(report.downlink_bits) < full
    assert state.downlink.shape == (fed.coordinates,)
    assert "(post-processing)" in fed.privacy().splitlines()[-1]


WRONG = [
    ({"task": 3}, "task is 3; it must be a tasks.Task"),
    ({"clients": DATA}, "it must be a result of cepam_jax.clients"),
    ({"mechanism": 3}, "mechanism is 3; it must be a Mechanism"),
    ({"sigma": None}, "knob sigma is None; it must be a positive number"),
    ({"sigma": -1.0}, "knob sigma is -1.0"),
    ({"sigma": [1.0, 2.0]}, "shape of knob sigma is (2,); it must be () or (4,)"),
    ({"knobs": mechanisms.Knobs(sigma=1.0, clip=1.0)}, "knobs are given twice"),
    (
        {"mechanism": mechanisms.additive("gaussian")},
        "knob clip is given, but the mechanism gaussian-noise+iden",
    ),
    ({"optimizer": "adam"}, "optimizer is 'adam'; it must be an optax optimizer"),
    ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
    ({"steps": 2**32 + 1}, "steps is 4294967297; it must be a whole number of at least 1 and below 2**31"),
    ({"optimizer": functools.partial(optax.sgd, momentum=0.9)}, "optimizer is the function optax.sgd itself"),
    ({"update_kind": "gradient", "momentum": 0.9}, "momentum is 0.9; it must be left out where update_kind"),
    ({"wire": "no"}, "wire is 'no'; it must be True or False"),
    ({"error_feedback": "False"}, "error_feedback is 'False'; it must be True or False"),
    ({"server": optax.lbfgs()}, "server cannot take a step with the model's gradients"),
    ({"ledger": "x"}, "ledger is 'x'; it must be a run.Ledger"),
    ({"control": federated.Control(lambda s, k, n: k._replace(step=k.step * 2))}, "control gives no knobs"),
    (
        {"aggregator": federated.Aggregator(weights=lambda s, p: -jnp.ones(4))},
        "weights of the aggregator is [-1",
    ),
    (
        {"aggregator": federated.Aggregator(weights=lambda s, p: jnp.ones(3))},
        "shape of the aggregator's weights",
    ),
    ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
    ({"steps": 2**27, "batch_size": 16}, "steps is 134217728; it must be below 2**31 / batch_size"),
    ({"normalize": True, "update_kind": "gradient"}, "normalize is True; it must be False where update_kind"),
    ({"proximal": -1.0}, "proximal is -1.0"),
    ({"learning_rat": 0.1}, "argument of Federation is 'learning_rat'; it must be one of learning_rate"),
    ({"local": federated.LocalUpdate(lambda *a: None), "batch_size": 5}, "local= is given together with"),
    ({"aggregator": "mode"}, "aggregator is 'mode'; it must be one of 'centered_clipping', 'examples'"),
    ({"control": 3}, "control is 3; it must be a federated.Control"),
    (
        {"control": federated.Control(lambda s, k, n: k._replace(sigma=k.sigma[0]))},
        "shapes of the control rule",
    ),
    ({"server": 3}, "server is 3; it must be an optax optimizer"),
    ({"downlink": 3}, "downlink is 3; it must be a federated.Downlink"),
    ({"links": 3}, "links is 3; it must be a federated.Links"),
    (
        {"links": federated.Links(up=1.0, down=0.0)},
        "links.down is [0.0]; it must be a positive number",
    ),
    ({"links": federated.Links(up=[1.0, 2.0], down=1.0)}, "shape of links.up is (2,); it must be () or (4,)"),
    (
        {"links": federated.Links(up=1.0, down=1.0, quorum=0.5), "error_feedback": True},
        "error_feedback is True; it must be False where a quorum ends a round",
    ),
    ({"participants": 5}, "participants is 5; it must be a whole number from 0 (as it suits) to 4"),
    ({"seed": -1}, "seed of the model is -1; it must be a whole number from 0 to"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_impossible_values_are_named_before_anything_runs(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        federation(**changes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2],), DatasetError, "examples are a list; they must be a dictionary"),
        (({"inputs": X},), ConfigError, "needs either owners=, one per example, or number="),
        (({"inputs": X, "labels": Y[:5]}, OWNERS), DatasetError, "all need one leading axis"),
        (
            ({"inputs": X}, OWNERS[:5]),
            DatasetError,
            "owners are int64[5]; they must be 60 integers or strings",
        ),
        (({"inputs": X * np.nan}, OWNERS), DatasetError, "holds NaN or infinite numbers"),
        (({"inputs": X}, None, "dirichlet", 3), ConfigError, "takes the option alpha=; given are: none"),
        (
            ({"inputs": X}, None, "natural", 3),
            ConfigError,
            "partition is 'natural'; it must be one of 'by_size', 'dirichlet'",
        ),
        (({"inputs": X}, None, "iid", 61), ConfigError, "at most 60, the examples"),
    ],
)
def test_impossible_clients_are_named(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cepam.clients(*arguments)


def test_examples_that_are_not_like_those_of_training():
    fed = federation(mechanisms.identity())
    with pytest.raises(DatasetError, match="they must be alike"):
        fed.evaluate(fed.initialize(), {"inputs": X[:, :3], "labels": Y})
    with pytest.raises(ConfigError, match="needs both examples= and owners="):
        fed.evaluate_clients(fed.initialize(), DATA)
    with pytest.raises(ConfigError, match="state is 3; it must be a result of initialize"):
        fed.step(3)


def test_a_state_of_another_federation_is_named():
    """One of fewer clients was taken, and what the absent ones remember was read beyond its end."""
    memory = {"error_feedback": True, "participants": 2}
    fewer = cepam.clients(DATA, owners=np.minimum(OWNERS, 5))
    whole, other = federation(**memory), federation(clients=fewer, **memory)
    with pytest.raises(ConfigError, match=r"state.memory is of shape \(2, 34\), and here of shape \(4, 34\)"):
        whole.step(other.initialize())
    wider = federation(task=cepam.tasks.classification(nn.Dense(2), example=X[0]))
    with pytest.raises(ConfigError, match=r"state.params\[.*absent.*one of another federation"):
        whole.step(wider.initialize())
    with pytest.raises(ConfigError, match=r"state.params\[.*absent.*one of another federation"):
        whole.evaluate(wider.initialize(), DATA)
    assert whole.evaluate(other.initialize(), DATA)  # of other clients, and of the same model
    with pytest.raises(ConfigError, match="state is 3; it must be a result of initialize"):
        whole.evaluate(3, DATA)
    half = other.initialize()
    half = half._replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), half.params))
    assert whole.evaluate(half, DATA)


def test_the_state_of_a_rule_may_become_another_type():
    """One that begins with a whole number and goes on with fractions of it."""
    rule = federated.Aggregator(initialize=lambda d: 0, combine=lambda s, u, f: (u.mean(0), s + 0.5))
    assert float(after(federation(aggregator=rule), 3).aggregator) == 1.5


def test_clients_by_partition_and_names():
    by_name = cepam.clients({"inputs": jnp.asarray(X)}, owners=np.array(["b", "a"])[Y])
    assert (
        by_name.owners.tolist() == ["a", "b"] and by_name.split.counts.tolist() == np.bincount(1 - Y).tolist()
    )
    spread = cepam.clients(DATA, partition="dirichlet", number=5, labels=Y, alpha=0.5, seed=3)
    assert spread.split.counts.sum() == 60 and spread.owners is None
    assert (
        build.partition.partition(Y, "dirichlet", 5, 3, alpha=0.5).counts.tolist()
        == spread.split.counts.tolist()
    )


DEVICES = """
import flax.linen as nn
import jax
jax.config.update("jax_num_cpu_devices", 2)
import sys
sys.path[:0] = [".", "tests"]
import numpy as np
from own_federation import after, federation
from cepam_jax.run.account import mark
found = [federation(device_count=n, steps=3) for n in (1, 2)]
one, two = (after(fed, 2) for fed in found)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, two.params)
assert found[1].plan.devices == 2 and found[0].privacy() == found[1].privacy()
assert mark(two) == mark(jax.tree.map(np.asarray, two)) != mark(one._replace(round=two.round + 1))
"""


def test_clients_may_be_spread_over_devices(root):
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
