"""The first accepted proposal of every block, with no bound on the number of tries.

Blocks accept at different proposals. Testing all of them until the slowest is done would cost
some twenty full passes for a million blocks of Z^3, where two proposals a block are needed on
average. So a few full passes come first, the blocks still rejected (known to be few) are
gathered into a smaller array, and the same is done there, and again. The alternatives (all blocks until
done; tiles with loops of their own; a single compaction) are timed beside it by
`python -m experiments.benchmarks.rejection`.

Each level has room for the expected number of rejected blocks and eight standard deviations; a
block that finds no room (probability below 1e-14 a level) is not lost but tried in a last loop
at full width. All loops end only when every block has accepted.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_UNROLL = 3  # so many passes are worth compiling one by one
_SMALLEST = 8192  # below this many blocks another compaction saves less than it costs to compile


def first_accepted(propose: Callable, blocks: jax.Array, data, acceptance: float):
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

    def attempt(proposal, ids, items, done, index):
        # Only the index is kept: values would be written and read again in every pass.
        accepted, _ = propose(proposal, ids, items)
        return done | accepted, jnp.where(accepted & ~done, proposal, index)

    done, index = _by_levels(attempt, blocks, data, acceptance, jnp.uint32(0))
    accepted = lambda: propose(index, blocks, data)[1]  # noqa: E731
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(accepted))
    # A loop of one turn, which XLA cannot know: otherwise it fuses the proposal into whatever reads the
    # values and computes it again for every axis of a stack of them.
    turns = jnp.all(done).astype(jnp.int32)
    return index, jax.lax.fori_loop(0, turns, lambda _, values: accepted(), empty)


def sum_over_rejected(cost: Callable, blocks: jax.Array, data, index: jax.Array, acceptance: float):
    """For every block the sum of `cost` over the proposals that it rejected.

    Args:
      cost: (proposal number uint32[], blocks uint32[k], data) -> f32[k].
      blocks, data, acceptance: as for `first_accepted`.
      index: uint32[k], rejected proposals of each block.

    Returns:
      f32[k].
    """

    def attempt(proposal, ids, items, done, total):
        index, data = items
        rejected = ~done & (proposal < index)
        total += jnp.where(rejected, cost(proposal, ids, data), 0.0)
        return done | (proposal + 1 >= index), total

    return _by_levels(attempt, blocks, (index, data), acceptance, jnp.float32(0))[1]


def _by_levels(attempt: Callable, blocks: jax.Array, data, acceptance: float, start_value):
    """Proposals in turn until every block is done, in ever smaller arrays.

    Args:
      attempt: (proposal, blocks, data, done bool[k], value [k]) -> (done, value).
      start_value: value of every block before its first proposal.

    Returns:
      (done, value) of all blocks.
    """
    # Passes before a compaction: gathering costs about as much as one proposal.
    passes = max(1, math.ceil(math.log(0.12) / math.log1p(-acceptance)))

    def until_all_done(ids, items, start, state):
        return jax.lax.while_loop(
            lambda carry: ~jnp.all(carry[1][0]),
            lambda carry: (carry[0] + np.uint32(1), attempt(carry[0], ids, items, *carry[1])),
            (jnp.uint32(start), state),
        )[1]

    def solve(ids, items, state, start):
        """(done, value) with every block done but those that found no room."""
        size = ids.shape[0]
        if size <= _SMALLEST:
            return until_all_done(ids, items, start, state)
        state = jax.lax.fori_loop(
            start,
            start + passes,
            lambda proposal, state: attempt(proposal.astype(jnp.uint32), ids, items, *state),
            state,
            unroll=passes <= _UNROLL,
        )
        expected = size * (1 - acceptance) ** passes
        room = min(size, math.ceil(expected + 8 * math.sqrt(expected) + 16))
        (rest,) = jnp.nonzero(~state[0], size=room, fill_value=size)
        gather = lambda a: a.at[rest].get(mode="fill", fill_value=0)  # noqa: E731
        state_of_rest = (rest >= size, gather(state[1]))
        found = solve(gather(ids), jax.tree.map(gather, items), state_of_rest, start + passes)
        return jax.tree.map(lambda a, b: a.at[rest].set(b, mode="drop"), state, found)

    fresh = jnp.full(blocks.shape, start_value)
    done, value = solve(blocks, data, (jnp.zeros(blocks.shape, bool), fresh), 0)
    # A block without room anywhere starts over here: what rejected it once rejects it again.
    return until_all_done(blocks, data, 0, (done, jnp.where(done, value, fresh)))
