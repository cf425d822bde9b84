"""Designs of LRSUQ's rejection loop, timed beside each other in one run.

  python -m experiments.benchmarks.rejection

  all      every block is tested until the slowest has accepted
  tiles    tiles of 1,024 blocks, each with a loop of its own
  once     a number of full passes, then one compaction, then a loop over what is left
  levels   the design in use: a few passes, compaction, and so on level by level

All find the same proposals. Times are medians of interleaved repeats, in nanoseconds a coordinate.
"""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import lattices, rejection, rsuq
from experiments import cli
from experiments.tables import markdown

_TILE = 1024


def _until_done(propose, ids, points, start, done):
    """Tests all given blocks until each has accepted: (index, values)."""
    zeros = [jnp.zeros(ids.shape, jnp.int32) for _ in points]

    def body(carry):
        proposal, done, index, values = carry
        accepted, found = propose(proposal, ids, points)
        take = accepted & ~done
        return (
            proposal + np.uint32(1),
            done | accepted,
            jnp.where(take, proposal, index),
            [jnp.where(take, a, b) for a, b in zip(found, values, strict=True)],
        )

    carry = (jnp.uint32(start), done, jnp.zeros(ids.shape, jnp.uint32), zeros)
    return jax.lax.while_loop(lambda c: ~c[1].all(), body, carry)[2:]


def every(propose, ids, points, acceptance):
    del acceptance
    return _until_done(propose, ids, points, 0, jnp.zeros(ids.shape, bool))


def tiles(propose, ids, points, acceptance):
    del acceptance
    fill = -ids.shape[0] % _TILE
    cut = lambda a: jnp.pad(a, (0, fill)).reshape(-1, _TILE)  # noqa: E731
    run = lambda item: _until_done(propose, *item, 0, jnp.zeros(_TILE, bool))  # noqa: E731
    index, values = jax.lax.map(run, (cut(ids), [cut(a) for a in points]))
    return jax.tree.map(lambda a: a.reshape(-1)[: ids.shape[0]], (index, values))


def once(propose, ids, points, acceptance):
    passes = max(1, math.ceil(math.log(0.05) / math.log1p(-acceptance)))
    size = ids.shape[0]
    done, index = jnp.zeros(ids.shape, bool), jnp.zeros(ids.shape, jnp.uint32)
    values = [jnp.zeros(ids.shape, jnp.int32) for _ in points]

    def attempt(proposal, carry):
        done, index, values = carry
        accepted, found = propose(proposal.astype(jnp.uint32), ids, points)
        take = accepted & ~done
        values = [jnp.where(take, a, b) for a, b in zip(found, values, strict=True)]
        return done | accepted, jnp.where(take, proposal.astype(jnp.uint32), index), values

    done, index, values = jax.lax.fori_loop(0, passes, attempt, (done, index, values))
    room = min(size, math.ceil(size * (1 - acceptance) ** passes * 1.2 + 1000))
    (rest,) = jnp.nonzero(~done, size=room, fill_value=size)
    gather = lambda a: a.at[rest].get(mode="fill", fill_value=0)  # noqa: E731
    found = _until_done(propose, gather(ids), [gather(a) for a in points], passes, rest >= size)
    return jax.tree.map(lambda a, b: a.at[rest].set(b, mode="drop"), (index, values), found)


def levels(propose, ids, points, acceptance):
    return rejection.first_accepted(propose, ids, points, acceptance)


DESIGNS = {"all": every, "tiles": tiles, "once": once, "levels": levels}


def measure(name, size, repeats):
    """{design: nanoseconds a coordinate} for one lattice and a Gaussian target."""
    lat = lattices.lattice(name)
    acceptance = lattices.acceptance(lat, "gaussian")
    count = size // lat.dimension
    points = list(jax.random.normal(jax.random.key(0), (lat.dimension, count)))
    ids = jnp.arange(count, dtype=jnp.uint32)
    propose = rsuq.proposals(lat, "gaussian", jax.random.key(1))
    compiled = {
        design: jax.jit(lambda i, p, solve=solve: solve(propose, i, p, acceptance))
        for design, solve in DESIGNS.items()
    }
    results = {design: jax.block_until_ready(solve(ids, points)) for design, solve in compiled.items()}
    for design, found in results.items():
        if not bool((found[0] == results["levels"][0]).all()):
            raise AssertionError(f"{design} and levels disagree on {name}")
    seconds = {design: [] for design in compiled}
    for _ in range(repeats):
        for design, solve in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(solve(ids, points))
            seconds[design].append(time.perf_counter() - start)
    return {design: float(np.median(times)) / size * 1e9 for design, times in seconds.items()}


def define_flags():
    flags.DEFINE_list("lattices", ["Z2", "Z3", "D4", "E8"], "Lattices.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("repeats", 5, "Rounds; the median counts.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def main():
    for name in flags.FLAGS.lattices:
        require_choice("--lattices", name, lattices.LATTICES)
    found = {name: measure(name, flags.FLAGS.size, flags.FLAGS.repeats) for name in flags.FLAGS.lattices}
    size = flags.FLAGS.size
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {size} coordinates, nanoseconds a coordinate\n")
    rows = [[name, *(f"{times[design]:.1f}" for design in DESIGNS)] for name, times in found.items()]
    print(markdown(["lattice", *DESIGNS], rows))
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
