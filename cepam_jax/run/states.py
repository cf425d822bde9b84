"""Whether a state that somebody hands in is one of these rounds, before it meets their programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.federated import State
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import parts
from cepam_jax.tasks.base import Model


def shapes(start: Callable, knobs: Knobs) -> State:
    """Those of the states that begin with start(key, model or None, knobs); nothing is computed."""
    with jax.enable_x64(False):
        return jax.eval_shape(start, jax.random.key(0), None, knobs)


def check_state(state: Any, own: State) -> State:
    """The state, if its arrays have the names, shapes and types that those of these rounds have.

    Where clients remember something, one of other clients would be read beyond its end without a word.

    Raises:
      ConfigError: names the first array that is another one.
    """
    parts.check_kind("state", state, State, "a result of initialize() or step()")
    _check("state", state, own)
    return state


def model_of(state: Any, own: State) -> Model:
    """The state's model, if it is one of these shapes; the clients may be others.

    Raises:
      ConfigError: names the first array that is another one.
    """
    parts.check_kind("state", state, State, "a result of initialize() or step()")
    _check("state.model", state.model, own.model)
    return state.model


def _check(name: str, found: Any, own: Any) -> None:
    theirs, ours = _described(found), _described(own)
    for path in (*ours, *theirs):
        if (one := theirs.get(path, "absent")) != (other := ours.get(path, "absent")):
            raise ConfigError(f"{name}{path} is {one}, and here {other}: it is of another federation")


def _described(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): f"{jnp.result_type(a)}{list(jnp.shape(a))}" for path, a in leaves}
