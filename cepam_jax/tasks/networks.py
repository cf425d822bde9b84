"""A flax module as what a task calls: collections beside the parameters, frozen parameters, dropout."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError, require
from cepam_jax.tasks.base import Model

Path = tuple[str, ...]

# Arguments by which a module's `__call__` is told whether it trains, and what they are while it does.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Network(NamedTuple):
    """A module without state of its own.

    Attributes:
      initialize: key -> Model.
      apply: (Model, inputs, key or None) -> (outputs, new statistics). With a key in training mode: dropout
        draws from it and statistics are renewed; without one the statistics come back as they were.
      project: as of `tasks.Task`.
    """

    initialize: Callable[[jax.Array], Model]
    apply: Callable[[Model, Any, jax.Array | None], tuple[Any, Any]]
    project: Callable[[Any], Any] | None = None


def network(
    module: nn.Module,
    example: Any,
    trainable: Callable[[Path], bool] | None = None,
    pretrained: Any = None,
) -> Network:
    """The Network of a flax module.

    A module whose `__call__` has an argument `train` (or `training`, `is_training`, `deterministic`,
    `use_running_average`) is told by it whether it trains. Collections beside "params", such as
    "batch_stats", become the model's statistics: they are sent with the parameters, which is what makes them
    part of what a mechanism protects. Leaves called "var", as flax's own norms call their variances, are at
    least zero again after the noise; what else must stay in a range the module keeps there itself. A module
    may draw from the stream "dropout" and from no other.

    Args:
      module: flax.linen module, called as module(inputs[batch, ...]).
      example: inputs of one example, without the batch's axis.
      trainable: path of a parameter, such as ("Dense_0", "kernel") -> whether it is trained and sent; the
        others are frozen. By default all are.
      pretrained: parameters to begin with, as the module's `init` would make them; by default random ones. Of
        a module with other collections all of them: {"params": ..., "batch_stats": ...}.

    Raises:
      ConfigError: not a module, or no example; no parameter is trainable; what is pretrained is not the
        module's.
    """
    require(isinstance(module, nn.Module), "module", module, "a flax.linen.Module, such as nn.Dense(10)")
    require(example is not None, "example", example, "inputs of one example, such as x[0]")
    told = inspect.signature(type(module).__call__).parameters
    modes = {name: value for name, value in _MODES.items() if name in told}

    def initialize(key):
        batch = jax.tree.map(lambda a: jnp.zeros((1, *jnp.shape(a)), jnp.asarray(a).dtype), example)
        options: dict[str, Any] = _told(modes, training=False)
        variables = dict(module.init(key, batch, **options))
        if pretrained is not None:
            variables = _checked(pretrained, variables)
        params = variables.pop("params", {})
        kept, frozen = _divided(params, trainable)
        return Model(kept, variables or None, frozen or None)

    def apply(model, inputs, key):
        params = _joined(model.params, model.frozen)
        variables = {"params": params, **(model.statistics or {})}
        options: dict[str, Any] = _told(modes, training=key is not None)
        if key is None:
            return module.apply(variables, inputs, **options), model.statistics
        options["rngs"] = {"dropout": key}
        if not model.statistics:
            return module.apply(variables, inputs, **options), model.statistics
        outputs, changed = module.apply(variables, inputs, mutable=list(model.statistics), **options)
        return outputs, {**model.statistics, **changed}

    return Network(initialize, apply, _positive_variances)


def _told(modes: dict[str, bool], training: bool) -> dict[str, bool]:
    """Arguments of a module's `__call__` in training mode, or out of it."""
    return {name: value if training else not value for name, value in modes.items()}


def _checked(pretrained, variables):
    """Pretrained collections of a module, of which `init` makes `variables`; ConfigError if they differ."""
    if not isinstance(pretrained, Mapping) or pretrained.keys() != variables.keys():
        others = variables.keys() - {"params"}
        if others:  # parameters alone would be met by means and variances that were never learned
            names = ", ".join(repr(name) for name in ("params", *sorted(others)))
            raise ConfigError(f"pretrained must have the collections {names} of this module, one of each")
        pretrained = {"params": pretrained}
    old, new = (
        jax.tree.map(lambda a: (jnp.shape(a), jnp.asarray(a).dtype), dict(tree))
        for tree in (variables, pretrained)
    )
    if old != new:
        raise ConfigError("pretrained parameters are not those of the module: names, shapes or types differ")
    return jax.tree.map(jnp.asarray, dict(pretrained))


def _divided(params, trainable):
    """(what is trained, what is frozen), two nested dictionaries."""
    if trainable is None:
        return params, {}
    flat = flax.traverse_util.flatten_dict(params)
    kept = {path: leaf for path, leaf in flat.items() if trainable(path)}
    if not kept:
        names = ", ".join("/".join(path) for path in flat)
        raise ConfigError(f"no parameter of the model is trainable; there are: {names}")
    frozen = {path: leaf for path, leaf in flat.items() if path not in kept}
    return flax.traverse_util.unflatten_dict(kept), flax.traverse_util.unflatten_dict(frozen)


def _joined(params, frozen):
    if frozen is None:
        return params
    flat = flax.traverse_util.flatten_dict(frozen) | flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict(flat)


def _positive_variances(statistics):
    """Variances of batch normalization are at least zero again; flax adds its epsilon to them."""

    def mend(path, leaf):
        return jnp.maximum(leaf, 0) if getattr(path[-1], "key", "") == "var" else leaf

    return jax.tree_util.tree_map_with_path(mend, statistics)
