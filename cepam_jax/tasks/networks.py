"""A flax module as what a task calls: collections beside the parameters, frozen parameters, dropout."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.tasks.base import Model

Path = tuple[str, ...]


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

    A module whose `__call__` has an argument `train` is told whether it trains. Collections beside "params",
    such as "batch_stats", become the model's statistics: they are sent with the parameters, which is what
    makes them part of what a mechanism protects, and variances among them stay positive whatever noise they
    meet.

    Args:
      module: flax.linen module, called as module(inputs[batch, ...]).
      example: inputs of one example, without the batch's axis.
      trainable: path of a parameter, such as ("Dense_0", "kernel") -> whether it is trained and sent; the
        others are frozen. By default all are.
      pretrained: parameters to begin with, as the module's `init` would make them; by default random ones.

    Raises:
      ConfigError: no parameter is trainable; pretrained parameters are not those of the module.
    """
    tells = "train" in inspect.signature(type(module).__call__).parameters

    def initialize(key):
        batch = jax.tree.map(lambda a: jnp.zeros((1, *jnp.shape(a)), jnp.asarray(a).dtype), example)
        options: dict[str, Any] = {"train": False} if tells else {}
        variables = dict(module.init(key, batch, **options))
        params = variables.pop("params", {})
        if pretrained is not None:
            params = _checked(pretrained, params)
        kept, frozen = _divided(params, trainable)
        return Model(kept, variables or None, frozen or None)

    def apply(model, inputs, key):
        params = _joined(model.params, model.frozen)
        variables = {"params": params, **(model.statistics or {})}
        options: dict[str, Any] = {"train": key is not None} if tells else {}
        if key is None:
            return module.apply(variables, inputs, **options), model.statistics
        options["rngs"] = {"dropout": key}
        if not model.statistics:
            return module.apply(variables, inputs, **options), model.statistics
        outputs, changed = module.apply(variables, inputs, mutable=list(model.statistics), **options)
        return outputs, {**model.statistics, **changed}

    return Network(initialize, apply, _positive_variances)


def _checked(pretrained, params):
    old, new = (
        jax.tree.map(lambda a: (jnp.shape(a), jnp.asarray(a).dtype), tree) for tree in (params, pretrained)
    )
    if old != new:
        raise ConfigError("pretrained parameters are not those of the module: names, shapes or types differ")
    return jax.tree.map(jnp.asarray, pretrained)


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
