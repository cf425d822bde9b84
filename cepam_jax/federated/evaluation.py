"""What is compiled: rounds up to the next evaluation, the evaluation, and several runs of both at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cepam_jax.federated.clients import Images
from cepam_jax.federated.devices import RUNS


def make_block(run_round: Callable, evaluate: Callable, length: int) -> Callable:
    """Builds the function that a run repeats: up to `length` rounds, then an evaluation.

    Returns:
      (State, Federation, test Images, stop int32) -> (State, RoundMetrics with leading axis
      [length], evaluation). Rounds beyond `stop`, or after an invalid update, are skipped, so the
      last, shorter block needs no second compilation.
    """

    def block(state, federation, test, stop):
        def skip(state, federation):
            shapes = jax.eval_shape(run_round, state, federation)[1]
            return state, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def step(state, _):
            go = (state.round < stop) & (state.invalid_client < 0)
            return jax.lax.cond(go, run_round, skip, state, federation)

        state, metrics = jax.lax.scan(step, state, length=length)
        return state, metrics, evaluate(state.params, test)

    return block


def make_blocks(block: Callable, mesh: Mesh | None, together: int) -> Callable:
    """Builds the block of several runs at once: `together` under one vmap, the others in turn.

    Args:
      block: from `make_block`.
      mesh: devices over which the runs are spread, one axis `RUNS`; None: one device.
      together: runs under one vmap, on each device.

    Returns:
      As `make_block`, but State, Federation and stop have a leading axis [runs], which the number of devices
      divides; the Federation's images have none, and all runs share them.
    """

    def on_device(states, federations, images, test, stops):
        def one(arguments):
            state, federation, stop = arguments
            return block(state, federation._replace(data=images), test, stop)

        batch = together if together > 1 else None
        return jax.lax.map(one, (states, federations, stops), batch_size=batch)

    run = on_device
    if mesh is not None:
        own = P(RUNS)
        run = jax.shard_map(
            on_device, mesh=mesh, in_specs=(own, own, P(), P(), own), out_specs=own, check_vma=False
        )

    def blocks(states, federations, test, stops):
        return run(states, federations._replace(data=None), federations.data, test, stops)

    return blocks


def make_evaluate(module: Any, batch_size: int) -> Callable:
    """Builds (params, Images) -> (mean loss f32[], accuracy f32[]) over all images, exactly."""

    def evaluate(params, test: Images):
        number = test.labels.shape[0]
        batches = -(-number // batch_size)
        slots = jnp.arange(batches * batch_size).reshape(batches, batch_size)

        def add(carry, slot):
            rows = jnp.minimum(slot, number - 1)
            logits = module.apply({"params": params}, test.normalized(test.images[rows]))
            labels = test.labels[rows]
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            right = (logits.argmax(-1) == labels).astype(jnp.float32)
            real = slot < number
            return carry + jnp.stack([jnp.sum(jnp.where(real, a, 0)) for a in (loss, right)]), None

        totals, _ = jax.lax.scan(add, jnp.zeros(2, jnp.float32), slots)
        return totals[0] / number, totals[1] / number

    return evaluate
