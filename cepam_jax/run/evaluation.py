"""What is compiled: rounds up to the next evaluation, the evaluation, and several runs of both at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cepam_jax import settings
from cepam_jax.data.examples import number_of
from cepam_jax.errors import ConfigError
from cepam_jax.federated import lengths
from cepam_jax.federated.local import batch_of
from cepam_jax.run.devices import RUNS
from cepam_jax.tasks.base import Model, Task

settings.declare(
    "evaluation",
    {
        "batch_size": settings.integer(1000, "Examples that are evaluated at a time."),
        "clients": settings.choice(
            "none",
            "Whether the model is also evaluated client by client: on each one's training examples, or its "
            "test examples.",
            ("none", "train", "test"),
        ),
    },
    "How a model is judged.",
)


@settings.rule
def _rules(fields):
    yield (
        fields["evaluation.clients"] != "test" or fields["partition.kind"] == "natural",
        "evaluation.clients",
        "'none' or 'train' unless config.partition.kind is 'natural': test examples have no clients",
    )


class HeldOut(NamedTuple):
    """Examples to evaluate on; arrays.

    Attributes:
      examples: name -> array [examples, ...].
      constants: arrays that every batch is seen with.
    """

    examples: dict[str, jax.Array]
    constants: Any


class Evaluation(NamedTuple):
    """Sums over examples; `Task.summarize` makes metrics of them.

    Attributes:
      test: name -> sum over the test examples.
      clients: name -> sums over each client's examples, leading axis [clients]; None where not asked for.
      counts: f32[clients], examples of each client in these sums; None likewise.
    """

    test: dict[str, jax.Array]
    clients: dict[str, jax.Array] | None = None
    counts: jax.Array | None = None


def make_block(run_round: Callable, evaluate: Callable, length: int, bits: str = lengths.EVERY) -> Callable:
    """Builds the function that a run repeats: up to `length` rounds, then an evaluation.

    Args:
      run_round: (State, ClientArrays) -> (State, RoundReport), from `make_round`.
      evaluate: (Model, HeldOut, ClientArrays, owners) -> evaluation.
      length: the most rounds of a block.
      bits: when the lengths of messages are counted, one of `lengths.SCHEDULES`; run_round's plan knows of
        "never".

    Returns:
      (State, ClientArrays, HeldOut, owners, stop int32) -> (State, RoundReport with leading axis [length],
      evaluation). Rounds beyond `stop`, or after an invalid update, are skipped, so the last, shorter block
      needs no second compilation.
    """

    def block(state, arrays, test, owners, stop):
        def skip(state, arrays, *counted):
            shapes = jax.eval_shape(run_round, state, arrays, *counted)[1]
            return state, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def step(state, place):
            go = (state.round < stop) & (state.invalid_client < 0)
            last = (place == length - 1) | (state.round + 1 == stop)
            counted = (last,) if bits == lengths.AT_EVALUATION else ()
            return jax.lax.cond(go, run_round, skip, state, arrays, *counted)

        state, report = jax.lax.scan(step, state, jnp.arange(length))
        return state, report, evaluate(state.model, test, arrays, owners)

    return block


def make_blocks(block: Callable, mesh: Mesh | None, together: int) -> Callable:
    """Builds the block of several runs at once: `together` under one vmap, the others in turn.

    Args:
      block: from `make_block`.
      mesh: devices over which the runs are spread, one axis `RUNS`; None: one device.
      together: runs under one vmap, on each device.

    Returns:
      As `make_block`, but State, ClientArrays, owners and stop have a leading axis [runs], which the number
      of devices divides; examples and constants have none, and all runs share them.
    """

    def on_device(states, arrays, owners, stops, examples, constants, test):
        def one_run(arguments):
            state, arrays, owners, stop = arguments
            whole = arrays._replace(examples=examples, constants=constants)
            return block(state, whole, test, owners, stop)

        batch = together if together > 1 else None
        return jax.lax.map(one_run, (states, arrays, owners, stops), batch_size=batch)

    run = on_device
    if mesh is not None:
        own = P(RUNS)
        run = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(own, own, own, own, P(), P(), P()),
            out_specs=own,
            check_vma=False,
        )

    def blocks(states, arrays, test, owners, stops):
        bare = arrays._replace(examples=None, constants=None)
        return run(states, bare, owners, stops, arrays.examples, arrays.constants, test)

    return blocks


def make_evaluate(task: Task, batch_size: int, clients: str = "none") -> Callable:
    """Builds (Model, HeldOut, ClientArrays, owners) -> Evaluation over all test examples, each counted once.

    Args:
      task: what is learned.
      batch_size: examples at a time.
      clients: "none"; "train", also over each client's training examples; or "test", over the test examples
        of each client, whose number `owners` int32[test examples] gives (the number of clients: of none of
        them).
    """

    def evaluate(model: Model, test: HeldOut, arrays, owners) -> Evaluation:
        number = number_of(test.examples)
        total = _sums(task, model, test.examples, test.constants, jnp.arange(number), batch_size)
        if clients == "none":
            return Evaluation(total)
        num_clients = arrays.counts.shape[0]
        if clients == "test":
            rows, who, source = jnp.arange(number), owners, test.examples
        else:
            capacity = arrays.rows.shape[1]
            inside = jnp.arange(capacity) < arrays.counts[:, None]
            who = jnp.where(inside, jnp.arange(num_clients)[:, None], num_clients).reshape(-1)
            rows, source = arrays.rows.reshape(-1), arrays.examples
        sums = _sums(task, model, source, test.constants, rows, batch_size, who, num_clients)
        counts = jnp.zeros(num_clients, jnp.float32).at[who].add(1.0, mode="drop")
        return Evaluation(total, sums, counts)

    return evaluate


def _sums(task, model, examples, constants, rows, batch_size, who=None, num_clients=0):
    """Sums of `task.evaluate` over rows int32[n]; by client, where `who` int32[n] says whose each row is."""
    number = rows.shape[0]
    batch_size = min(batch_size, number)  # few examples are not evaluated again to fill it
    batches = -(-number // batch_size)
    slots = jnp.arange(batches * batch_size).reshape(batches, batch_size)

    def values_of(slot):
        real = slot < number
        chosen = jnp.minimum(slot, number - 1)
        values = task.evaluate(model, batch_of(examples, rows[chosen]), constants)
        _check_leading(values, batch_size)
        masked = jax.tree.map(
            lambda a: jnp.where(real.reshape(-1, *[1] * (a.ndim - 1)), a, 0).astype(jnp.float32), values
        )
        return masked, None if who is None else jnp.where(real, who[chosen], num_clients)

    def add(carry, slot):
        values, owner = values_of(slot)
        if owner is None:
            return jax.tree.map(lambda total, a: total + jnp.sum(a, 0), carry, values), None
        return jax.tree.map(lambda total, a: total.at[owner].add(a, mode="drop"), carry, values), None

    shapes = jax.eval_shape(lambda: values_of(slots[0])[0])
    lead = () if who is None else (num_clients,)
    start = jax.tree.map(lambda a: jnp.zeros((*lead, *a.shape[1:]), jnp.float32), shapes)
    return jax.lax.scan(add, start, slots)[0]


def _check_leading(values, batch: int) -> None:
    """A mean over the batch would count copies that fill the last one, and would be nobody's own."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), jnp.shape(leaf)
        if shape[:1] != (batch,):
            raise ConfigError(
                f"the task's evaluate gives {name!r} of shape {shape} for a batch of {batch} examples; its "
                f"first axis must be the batch's: one value for each example, and no mean or sum over them"
            )


def by_client(task: Task, found: Evaluation) -> dict[str, np.ndarray]:
    """The metrics of each client, name -> f64[clients], NaN for those without examples."""
    sums, counts = jax.tree.map(np.asarray, (found.clients, found.counts))
    metrics: dict[str, np.ndarray] = {}
    for k in np.flatnonzero(counts):
        of_client = jax.tree.map(lambda a, k=k: a[k], sums)
        for name, value in task.summarize(of_client, float(counts[k])).items():
            metrics.setdefault(name, np.full(len(counts), np.nan))[k] = value
    return metrics
