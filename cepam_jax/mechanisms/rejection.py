"""The first accepted proposal of every block, with no bound on the number of tries.

Blocks accept at different proposals. Testing all of them until the slowest is done would cost
some twenty full passes for a million blocks of Z^3, where two proposals a block are needed on
average. So a few full passes come first, the blocks still rejected (known to be few) are
gathered into a smaller array, which is called a compaction, and the same is done there, level by level. The
alternatives (all blocks until done; tiles with loops of their own; a single compaction) are timed beside it
by `python -m experiments.benchmarks.rejection`.

Each level has room for the expected number of rejected blocks and eight standard deviations; a
block that finds no room (probability below 1e-14 a level) is not lost but tried in a last loop
at full width. All loops end only when every block has accepted.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_UNROLL = 3  # so many passes are worth compiling one by one
_SMALLEST = 8192  # below this many blocks another compaction saves less than it costs to compile


class _Tests(NamedTuple):
    """What is tried with every block, proposal by proposal.

    Attributes:
      attempt: (proposal uint32[] or uint32[k], blocks uint32[k], data, done bool[k], value [k]) -> (done,
        value), one proposal for each of k blocks.
      acceptance: probability that a proposal is accepted, the same for every block.
    """

    attempt: Callable
    acceptance: float

    @property
    def passes(self) -> int:
        """Full passes before a compaction: gathering costs about as much as one proposal."""
        return max(1, math.ceil(math.log(0.12) / math.log1p(-self.acceptance)))


def first_accepted(
    propose: Callable, blocks: jax.Array, data: Any, acceptance: float
) -> tuple[jax.Array, Any]:
    """For every block the first proposal that is accepted.

    Args:
      propose: (proposal number uint32[] or uint32[k], blocks uint32[k], data) -> (accepted bool[k],
        value), the test of one proposal for each of k blocks; value is a pytree of arrays [k].
      blocks: uint32[k], numbers of the blocks.
      data: pytree of arrays with leading axis k, what `propose` needs of the blocks.
      acceptance: probability that one proposal is accepted, the same for every block and input.

    Returns:
      (uint32[k] rejected proposals before the accepted one, accepted values). A block whose `propose`
      never accepts loops forever: the caller makes hopeless blocks accept.
    """
    tests = _Tests(partial(_accept, propose), acceptance)
    done, index = _by_levels(tests, blocks, data, jnp.uint32(0))
    accepted = lambda: propose(index, blocks, data)[1]  # noqa: E731
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(accepted))
    # A loop of one turn, which XLA cannot know: otherwise it fuses the proposal into whatever reads the
    # values and computes it again for every axis of a stack of them.
    turns = jnp.all(done).astype(jnp.int32)
    return index, jax.lax.fori_loop(0, turns, lambda _, values: accepted(), empty)


def _accept(
    propose: Callable, proposal: jax.Array, ids: jax.Array, data: Any, done: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An attempt of `first_accepted`: which blocks have accepted by now, bool[k], and what, uint32[k].

    Only the index is kept: values would be written and read again in every pass.
    """
    accepted, _ = propose(proposal, ids, data)
    return done | accepted, jnp.where(accepted & ~done, proposal, index)


def sum_over_rejected(
    cost: Callable, blocks: jax.Array, data: Any, index: jax.Array, acceptance: float
) -> jax.Array:
    """For every block the sum of `cost` over the proposals that it rejected.

    Args:
      cost: (proposal number uint32[], blocks uint32[k], data) -> f32[k].
      blocks: uint32[k], numbers of the blocks.
      data: pytree of arrays with leading axis k, what `cost` needs of the blocks.
      index: uint32[k], rejected proposals of each block.
      acceptance: probability that one proposal is accepted.

    Returns:
      f32[k].
    """
    tests = _Tests(partial(_add_cost, cost), acceptance)
    return _by_levels(tests, blocks, (index, data), jnp.float32(0))[1]


def _add_cost(
    cost: Callable, proposal: jax.Array, ids: jax.Array, items: Any, done: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An attempt of `sum_over_rejected`: which blocks are done, bool[k], and their costs so far, f32[k]."""
    index, data = items
    rejected = ~done & (proposal < index)
    total += jnp.where(rejected, cost(proposal, ids, data), 0.0)
    return done | (proposal + 1 >= index), total


def _by_levels(
    tests: _Tests, blocks: jax.Array, data: Any, start_value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Proposals in turn until every block is done, in ever smaller arrays.

    Args:
      tests: what is done with every block.
      blocks: uint32[k], numbers of the blocks.
      data: pytree of arrays with leading axis k.
      start_value: value [] of every block before its first proposal.

    Returns:
      (done bool[k], value [k]) of all blocks.
    """
    fresh = jnp.full(blocks.shape, start_value)
    done, value = _solve(tests, blocks, data, (jnp.zeros(blocks.shape, bool), fresh), 0)
    if blocks.shape[0] <= _SMALLEST:
        return done, value  # one level, which ended when all were done
    # A block without room anywhere starts over here: what rejected it once rejects it again.
    return _until_all_done(tests, blocks, data, (done, jnp.where(done, value, fresh)), 0)


def _until_all_done(tests: _Tests, ids: jax.Array, data: Any, state: tuple, start: int) -> tuple:
    """Proposals from number `start` on, for all blocks at once, until the slowest is done.

    The arguments and the returned state are those of `_solve`.
    """
    return jax.lax.while_loop(
        lambda carry: ~jnp.all(carry[1][0]),
        lambda carry: (carry[0] + np.uint32(1), tests.attempt(carry[0], ids, data, *carry[1])),
        (jnp.uint32(start), state),
    )[1]


def _solve(tests: _Tests, ids: jax.Array, data: Any, state: tuple, start: int) -> tuple:
    """One level: some full passes, then a level below for the blocks that are left.

    Args:
      tests: what is done with every block.
      ids: uint32[k], numbers of the blocks.
      data: pytree of arrays with leading axis k.
      state: (done bool[k], value [k]) before the level.
      start: number of the first proposal.

    Returns:
      (done, value) with every block done but those that found no room.
    """
    size, passes = ids.shape[0], tests.passes
    if size <= _SMALLEST:
        return _until_all_done(tests, ids, data, state, start)
    state = jax.lax.fori_loop(
        start,
        start + passes,
        lambda proposal, state: tests.attempt(proposal.astype(jnp.uint32), ids, data, *state),
        state,
        unroll=passes <= _UNROLL,
    )
    expected = size * (1 - tests.acceptance) ** passes
    room = min(size, math.ceil(expected + 8 * math.sqrt(expected) + 16))
    (rest,) = jnp.nonzero(~state[0], size=room, fill_value=size)
    gather = lambda a: a.at[rest].get(mode="fill", fill_value=0)  # noqa: E731
    state_of_rest = (rest >= size, gather(state[1]))
    solved = _solve(tests, gather(ids), jax.tree.map(gather, data), state_of_rest, start + passes)
    return jax.tree.map(lambda a, b: a.at[rest].set(b, mode="drop"), state, solved)
