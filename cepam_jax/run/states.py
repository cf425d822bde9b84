"""Whether a state that somebody hands in fits these rounds, before it meets their programs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.federated import State
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import parts
from cepam_jax.tasks.base import Model

_OF_MODEL = ("params", "statistics")


def shapes(start: Callable, knobs: Knobs) -> State:
    """Those of the states that begin with start(key, model or None, knobs); nothing is computed."""
    with jax.enable_x64(False):
        return jax.eval_shape(start, jax.random.key(0), None, knobs)


def check_state(state: Any, own: State) -> State:
    """The state, if its model and what clients remember have the shapes that they have in these rounds.

    What fewer clients remember would be read beyond its end without a word. Types may change from round to
    round, and the states of parts are theirs to check.

    Raises:
      ConfigError: names the first array that is another one.
    """
    _check(state, own, (*_OF_MODEL, "memory", "local", "behind"))
    return state


def model_of(state: Any, own: State) -> Model:
    """The state's model, if it is one of these shapes; the clients may be others, and the types.

    Raises:
      ConfigError: names the first array that is another one.
    """
    _check(state, own, _OF_MODEL)
    return state.model


def _check(state: Any, own: State, fields: tuple[str, ...]) -> None:
    parts.check_kind("state", state, State, "a result of initialize() or step()")
    others = dict.fromkeys(name for name in State._fields if name not in fields)
    theirs, ours = (_described(s._replace(**others)) for s in (state, own))
    for path in (*ours, *theirs):
        if (one := theirs.get(path, "absent")) != (other := ours.get(path, "absent")):
            raise ConfigError(
                f"state{path} is {one}, and here {other}: the state is one of another federation"
            )


def _described(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): f"of shape {np.shape(leaf)}" for path, leaf in leaves}
