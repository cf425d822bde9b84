"""What of a model is trained and sent: all, the parameters of a pattern, or low-rank adapters.

Both wrap a task of any kind. Its Model is divided: what is trained stands in `params` by its path, the
rest in `frozen`, and before the task's own functions see it, it is put together again. A path is written with
slashes, as in "block_0/query/kernel".
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError, is_whole, require
from cepam_jax.tasks.base import Model, Task

_ADAPTERS = np.uint32(0x4C6F5241)  # where a key is for adapters, apart from the model's own
ALL = "all"
Leaves = dict[str, jax.Array]


def _is_pattern(value) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _pattern(default: str, help: str, allowed: str) -> settings.Field:
    return settings.Field(default, help, allowed, _is_pattern)


settings.declare(
    "",
    {
        "trainable": _pattern(
            ALL,
            "Which parameters are trained and sent; beside adapters, all means the adapters alone. The "
            "others stay what they are.",
            "'all', or a regular expression that is searched in paths such as 'block_0/query/kernel'",
        )
    },
)
settings.declare(
    "adapter",
    {
        "rank": settings.integer(0, "Of low-rank adapters on matrices; 0: there are none.", low=0),
        "alpha": settings.positive(16.0, "An adapter's product counts alpha / rank times."),
        "pattern": _pattern(
            "kernel$",
            "Which matrices get adapters.",
            "a regular expression that is searched in paths such as 'block_0/query/kernel'",
        ),
    },
    "Low-rank adapters (LoRA).",
)


def of_config(config, task: Task) -> Task:
    """The task, of which the part is trained that a configuration says.

    Args:
      config: settings; read are trainable and adapter.
      task: that trains all.

    Raises:
      ConfigError: a pattern matches nothing; names all paths.
    """
    if config.adapter.rank:
        own = "" if config.trainable == ALL else config.trainable
        return adapted(task, config.adapter.rank, config.adapter.alpha, config.adapter.pattern, own)
    return task if config.trainable == ALL else restricted(task, config.trainable)


def restricted(task: Task, pattern: str) -> Task:
    """The task, in which only some parameters are trained and sent.

    Args:
      task: of any kind.
      pattern: regular expression, searched in the paths of parameters; those where it is found are trained.

    Raises:
      ConfigError: there are none; names all paths.
    """
    _, join = _flattening(task)
    trained = _matching(task, pattern, "trainable")

    def begin(whole: Model, key) -> Model:
        del key
        leaves = paths_of(whole.params)
        kept = {path: leaves.pop(path) for path in trained}
        return Model(kept, whole.statistics, (leaves, whole.frozen))

    def whole(model: Model) -> Model:
        leaves, frozen = model.frozen
        return Model(join({**leaves, **model.params}), model.statistics, frozen)

    return _wrapped(task, begin, whole)


def adapted(task: Task, rank: int, alpha: float = 16.0, pattern: str = "kernel$", own: str = "") -> Task:
    """The task, in which only low-rank changes of matrices are trained and sent.

    A matrix W of n inputs and m outputs becomes W + (alpha / rank) A B, with A f32[n, rank] and B
    f32[rank, m]; B begins at zero, and with it the model as it was, and A at normal numbers of variance 1
    / n (Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language
    Models, arXiv 2106.09685, section 4.1, where B stands on the left because inputs do on the right).

    The mean of the clients' A times the mean of their B, which is what the server makes, is not the mean
    of their products.

    Args:
      task: of any kind.
      rank: of the changes, a whole number of at least 1; of a matrix with a smaller side, that side.
      alpha: see above.
      pattern: regular expression, searched in the paths of matrices (parameters with two axes).
      own: likewise, of parameters that are trained themselves, as in `restricted`; "": none.

    Raises:
      ConfigError: a rank that cannot be; a pattern matches nothing; a matrix would be trained twice.
    """
    require(is_whole(rank) and rank >= 1, "rank", rank, "a whole number of at least 1")
    shapes, join = _flattening(task)
    found = _matching(task, pattern, "adapter.pattern", axes=2)
    mine = _matching(task, own, "trainable") if own else ()
    twice = sorted(set(found) & set(mine))
    if twice:
        raise ConfigError(
            f"config.trainable is {own!r}, and config.adapter.pattern is {pattern!r}: both match "
            f"{twice[0]!r}, "
            f"which would be trained twice"
        )

    def begin(whole: Model, key) -> Model:
        leaves = paths_of(whole.params)
        trained: dict[str, Any] = {path: leaves.pop(path) for path in mine}
        for number, path in enumerate(found):
            inputs, outputs = shapes[path].shape
            width = min(rank, inputs, outputs)
            a_key = jax.random.fold_in(jax.random.fold_in(key, _ADAPTERS), number)
            a = jax.random.normal(a_key, (inputs, width), jnp.float32) / np.float32(inputs**0.5)
            trained[path] = {"A": a, "B": jnp.zeros((width, outputs), jnp.float32)}
        return Model(trained, whole.statistics, (leaves, whole.frozen))

    def whole(model: Model) -> Model:
        leaves, frozen = model.frozen
        trained = dict(model.params)
        for path in found:
            trained[path] = leaves[path] + product(trained[path], alpha / rank)
        return Model(join({**leaves, **trained}), model.statistics, frozen)

    return _wrapped(task, begin, whole)


def product(adapter: dict[str, jax.Array], factor: float) -> jax.Array:
    """factor A B, f32[n, m], of {"A": f32[n, rank], "B": f32[rank, m]}."""
    return np.float32(factor) * jnp.matmul(adapter["A"], adapter["B"], precision="highest")


def paths_of(params: Any) -> Leaves:
    """Path -> parameter, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _flattening(task: Task) -> tuple[Leaves, Callable[[Leaves], Any]]:
    """(shapes of the task's parameters by path, path -> parameter to the task's tree of them)."""
    params = jax.eval_shape(task.initialize, jax.random.key(0)).params
    shapes, structure = paths_of(params), jax.tree.structure(params)
    require(len(shapes) == len(jax.tree.leaves(params)), "paths of parameters", list(shapes), "different")
    return shapes, lambda leaves: jax.tree.unflatten(structure, [leaves[path] for path in shapes])


def _matching(task: Task, pattern: str, field: str, axes: int | None = None) -> tuple[str, ...]:
    """The paths in which a pattern is found, of parameters with so many axes."""
    shapes, _ = _flattening(task)
    allowed = [path for path, leaf in shapes.items() if axes in (None, leaf.ndim)]
    found = tuple(path for path in allowed if re.search(pattern, path))
    what = "parameter" if axes is None else "matrix"
    if not found:
        names = ", ".join(allowed) or "none"
        raise ConfigError(f"config.{field} is {pattern!r}, which matches no {what}; there are: {names}")
    return found


def _wrapped(task: Task, begin: Callable, whole: Callable) -> Task:
    """The task over Models that `begin` divides and `whole` puts together; a task may be wrapped twice."""

    def started(full, key):
        return begin(full if task.begin is None else task.begin(full, key), key)

    def completed(model):
        inner = whole(model)
        return inner if task.whole is None else task.whole(inner)

    return task._replace(
        initialize=lambda key: begin(task.initialize(key), key),
        loss=lambda model, batch, constants, key: task.loss(whole(model), batch, constants, key),
        evaluate=lambda model, batch, constants: task.evaluate(whole(model), batch, constants),
        whole=completed,
        begin=started,
    )
