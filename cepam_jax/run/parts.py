"""From what a researcher hands over in Python to the parts of a round: checked early, named in messages."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax.data import examples as example_sets
from cepam_jax.data.clients import Clients, arrays_of
from cepam_jax.data.examples import Examples
from cepam_jax.errors import ConfigError, is_whole, require
from cepam_jax.federated import aggregation, local
from cepam_jax.federated.aggregation import Aggregator
from cepam_jax.federated.control import Control
from cepam_jax.federated.local import LocalTraining, LocalUpdate
from cepam_jax.mechanisms import Knobs, Mechanism
from cepam_jax.mechanisms import knobs as knob_values
from cepam_jax.settings import FIELDS
from cepam_jax.tasks.base import Task, check_examples, check_model

Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


def mechanism_of(mechanism, shapes: tuple[tuple[int, ...], ...]) -> Mechanism:
    """A Mechanism as it is, or what a function of the shapes of the update's tensors makes."""
    built = mechanism
    if not isinstance(mechanism, Mechanism) and inspect.isroutine(mechanism):
        built = mechanism(shapes)
    allowed = "a Mechanism, such as mechanisms.lrsuq(), or a function (shapes of the tensors) -> Mechanism"
    require(isinstance(built, Mechanism), "mechanism", built, allowed)
    return built


def all_knobs(knobs: Knobs | None, sigma: Any, clip: Any) -> Knobs:
    """The knobs that are given, all together or as these two; ConfigError if they are given twice."""
    if knobs is None:
        return Knobs(sigma=sigma, clip=clip)
    check_kind("knobs", knobs, Knobs, "a mechanisms.Knobs")
    if sigma is not None or clip is not None:
        raise ConfigError("knobs are given twice: either knobs=, or sigma= and clip=")
    return knobs


def client_knobs(mechanism: Mechanism, knobs: Knobs, clients: int, server_noise: bool = False) -> Knobs:
    """Knobs of all clients, f32[clients] each.

    Args:
      mechanism: that uses them.
      knobs: numbers, or arrays with one for each client; None where the mechanism has no such knob.
      clients: of the federation.
      server_noise: whether the server adds noise, whose deviation is the knob sigma.

    Raises:
      ConfigError: one is missing, too many, or not allowed; names it.
    """
    about = mechanism.about
    wanted = [name for name in about.knobs if name != "scale"]
    if server_noise and "sigma" not in wanted:
        wanted.append("sigma")
    for name in Knobs._fields:
        if getattr(knobs, name) is not None and name not in wanted:
            raise ConfigError(
                f"knob {name} is given, but the mechanism {about.name} has no such knob; it has: "
                f"{', '.join(wanted) or 'none'}"
            )
    knob_values.check(knobs, wanted)
    found = {}
    for name in wanted:
        value = np.asarray(getattr(knobs, name), np.float32)
        fits = value.shape in ((), (clients,))
        require(fits, f"shape of knob {name}", value.shape, f"() or ({clients},), one for each client")
        found[name] = jnp.asarray(np.broadcast_to(value, (clients,)))
    if about.sensitivity and "clip" not in wanted:
        raise ConfigError(
            f"the mechanism {about.name} states that it bounds updates, but has no knob clip to say how far"
        )
    return Knobs(**found)


def local_training(
    steps: int, batch_size: int, fields: dict[str, Any], mechanism: Mechanism
) -> LocalTraining:
    """Checked settings of local training.

    Args:
      steps, batch_size: of every client (at most).
      fields: other fields of LocalTraining by name.
      mechanism: that receives the update.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    names = [name for name in LocalTraining._fields if name not in ("steps", "batch_size", "optimizer")]
    for name in fields:
        require(name in names, "argument of Federation", name, "one of " + ", ".join(names))
    training = LocalTraining(steps, batch_size, **fields)
    for name in ("learning_rate", "momentum", "proximal") if training.update_kind == "gradient" else ():
        value, usual = getattr(training, name), LocalTraining._field_defaults[name]
        require(value == usual, name, value, "left out where update_kind is 'gradient', which takes no steps")
    for name, value in training._asdict().items():
        field = FIELDS[f"local.{name}"]
        require(field.test(value), name, value, field.words())
    return local.check(training, mechanism.about.clip)


def local_update(task: Task, training: LocalTraining, optimizer: Optimizer | None) -> LocalUpdate:
    """Local training by an optax optimizer, or by a function of the round that gives one.

    Raises:
      ConfigError: it is neither, or does not go with the other settings.
    """
    if optimizer is None:
        return local.make_local_update(task, training)
    if training.update_kind == "gradient":
        raise ConfigError("optimizer is given; update_kind 'gradient' takes no local steps: leave it out")
    if training.normalize:
        raise ConfigError("normalize is True; it must be False with an optimizer: its weights are not known")
    whole = optimizer
    while isinstance(whole, functools.partial):
        whole = whole.func
    if callable(whole) and str(getattr(whole, "__module__", "")).startswith("optax"):
        name = getattr(whole, "__name__", "sgd")
        raise ConfigError(f"optimizer is the function optax.{name} itself; call it, as in optax.{name}(0.1)")
    for name in ("learning_rate", "momentum"):
        value, usual = getattr(training, name), LocalTraining._field_defaults[name]
        require(value == usual, name, value, "left out beside optimizer=, which has its own")
    made = optimizer
    if not isinstance(made, optax.GradientTransformation) and callable(made):
        made = made(jnp.int32(0))
    allowed = "an optax optimizer, or a function of the round that gives one"
    require(isinstance(made, optax.GradientTransformation), "optimizer", made, allowed)
    _check_optimizer("optimizer", task, made)
    return local.make_local_update(task, training, optimizer)


def _check_optimizer(name: str, task: Task, optimizer: optax.GradientTransformation) -> None:
    """ConfigError, with this name, if it wants more than gradients, its state and parameters."""

    def step():
        params = task.initialize(jax.random.key(0)).params
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    try:
        jax.eval_shape(step)
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot take a step with the model's gradients, its state and the parameters alone, and "
            f"a round gives it nothing else: {type(error).__name__}: {error}"
        ) from error


def client_steps(steps, clients: int) -> np.ndarray:
    """Local steps of each client, int32[clients], from one number or one for each.

    Raises:
      ConfigError: they are no whole numbers of at least 1, or not as many.
    """
    array = np.asarray(steps)
    whole = array.dtype.kind in "iu" and array.shape in ((), (clients,)) and 1 <= array.min()
    good = whole and array.max() < 2**31
    allowed = f"a whole number of at least 1 and below 2**31, or {clients} of them, one for each client"
    require(good, "steps", steps, allowed)
    return np.broadcast_to(array, (clients,)).astype(np.int32)


def aggregator_of(rule, counts) -> Aggregator:
    """A rule, or the one of that name, whose statement about its weights is true.

    Raises:
      ConfigError: it does not keep the contract, or its weights are not those that it states.
    """
    if isinstance(rule, str):
        rule = aggregation.AGGREGATORS.get_or_raise(rule)
    aggregation.check(rule)
    aggregation.check_weights(rule, counts)
    return rule


def check_control(rule, knobs: Knobs, names: tuple[str, ...]) -> Control:
    """A rule whose first knobs are of the right shapes and allowed.

    Args:
      rule: the Control.
      knobs: of all clients at the start.
      names: the knobs that the mechanism needs.

    Raises:
      ConfigError: they are not; says how.
    """
    require(isinstance(rule, Control), "control", rule, "a federated.Control")
    alone = rule.most is None or rule.budget is not None
    require(alone, "most of the control rule", rule.most, "None where it states no budget")

    def begin():
        state = rule.initialize(knobs) if rule.initialize else None
        return rule.knobs(state, knobs, jnp.int32(0))

    try:  # traced first: inside a round it is, too
        jax.eval_shape(begin)
        first = begin()
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"control gives no knobs from those at the start ({_given(knobs)}): {type(error).__name__}: "
            f"{error}"
        ) from error
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (knobs, first)]
    require(shapes[0] == shapes[1], "shapes of the control rule's knobs", shapes[1], f"{shapes[0]}")
    knob_values.check(first, [name for name in names if name != "scale"])
    return rule


def _given(knobs: Knobs) -> str:
    """Names of the knobs that are given."""
    return ", ".join(name for name, value in knobs._asdict().items() if value is not None) or "none"


def check_kind(name: str, value: Any, kind: Any, allowed: str) -> Any:
    """The value, if it is of this kind.

    Raises:
      ConfigError: it is not.
    """
    require(isinstance(value, kind), name, value, allowed)
    return value


def count(name: str, value: Any, most: int) -> int:
    """A whole number from 0 to `most`; ConfigError names it otherwise."""
    whole = is_whole(value)
    require(whole and 0 <= value <= most, name, value, f"a whole number from 0 (as it suits) to {most}")
    return int(value)


def check_own_local(update: Any, given: bool) -> LocalUpdate:
    """A local update that is handed over, checked.

    Args:
      update: the LocalUpdate.
      given: whether settings of the usual one are given beside it.

    Raises:
      ConfigError: it is none, or settings are given that it would not follow.
    """
    check_kind("local", update, LocalUpdate, "a federated.LocalUpdate")
    if given:
        raise ConfigError(
            "local= is given together with optimizer=, batch_size= or another setting of the usual local "
            "training, which it would not follow; leave those out"
        )
    return update


def server_of(optimizer: Any, task: Task) -> optax.GradientTransformation:
    """The server's optimizer; by default one that adds the aggregate."""
    if optimizer is None:
        return optax.sgd(1.0)
    check_kind("server", optimizer, optax.GradientTransformation, "an optax optimizer")
    _check_optimizer("server", task, optimizer)
    return optimizer


def exposed(clients: Clients, training: LocalTraining, steps: np.ndarray) -> tuple[str, ...]:
    """What shapes the result without noise, of data and local training, in words."""
    found = []
    if np.ptp(steps) > 0 or training.normalize:
        found.append("numbers of local steps, where they follow from the sizes of the clients' data")
    if clients.kind != "iid":
        found.append("which client holds which example, which is taken as given")
    if clients.constants:
        found.append("the constants that every batch is seen with, if they were computed from examples")
    return tuple(found)


def check_alike(model: Any, like: Any) -> None:
    """ConfigError unless this is a Model with the shapes and types of another."""
    check_model(model)
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), m) for m in (model, like)]
    require(shapes[0] == shapes[1], "model", shapes[0], f"of the task's shapes, {shapes[1]}")


def examples_like(given: Mapping[str, Any], clients: Clients, task: Task) -> dict[str, np.ndarray]:
    """Arrays of examples, if they are like those of training; DatasetError otherwise."""
    like = {name: array[:1] for name, array in clients.examples.items()}
    found = example_sets.check(Examples(like, arrays_of(given))).test
    check_examples(task, found, clients.constants)
    return found


def check_both(function: str, **given: Any) -> None:
    """ConfigError unless all of these arguments of a function are given, or none of them."""
    if len({value is None for value in given.values()}) > 1:
        names = " and ".join(f"{name}=" for name in given)
        raise ConfigError(f"{function}(...) needs both {names}, or neither")
