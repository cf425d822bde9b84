"""What a run costs when many runs (seeds, gammas) are one compiled sweep, beside runs one by one.

  python -m experiments.benchmarks.sweeps --cpu_devices=2

One block of rounds on the embedded digits for each way of arranging the same runs; all ways take turns, and
medians count. With several devices runs are spread over them, which a single small run could not use.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.run import build
from cepam_jax.run.devices import CLIENTS, RUNS, Layout, put
from configs import digits
from experiments import cli
from experiments.tables import markdown
from experiments.timing import interleaved


def define_flags():
    flags.DEFINE_integer("runs", 4, "Runs.")
    flags.DEFINE_integer("rounds", 5, "Rounds of a block.")
    flags.DEFINE_string("model", "mlp", "Model.")
    flags.DEFINE_integer("repeats", 5, "Repetitions; the median counts.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def arrangement(config, runs: int, layout: Layout):
    """All runs' blocks as a call without arguments."""
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    compiled = build.program(config, data.specification, layout)
    split = build.split_of(config, data)
    owners = build.test_owners(config, data, split)
    train, constants, test = (
        put(part, layout.mesh) for part in (data.train, data.constants, build.tested(data))
    )
    states, federations = [], []
    for number in range(runs):
        config.seeds.training = number
        states.append(compiled.initialize(jax.random.key(number), mechanisms.knobs_of(config)))
        federations.append(build.client_arrays(config, split))

    def whole(arrays):
        return arrays._replace(examples=train, constants=constants)

    if layout.axis == CLIENTS:
        placed = [
            (put(state, layout.mesh), whole(put(arrays, layout.mesh)))
            for state, arrays in zip(states, federations, strict=True)
        ]
        mine, stop = put((owners, np.int32(config.rounds)), layout.mesh)
        return lambda: [compiled.block(state, arrays, test, mine, stop) for state, arrays in placed]

    def stack(trees):
        return put(jax.tree.map(lambda *a: jnp.stack(a), *trees), layout.mesh, RUNS)

    state, arrays = stack(states), whole(stack(federations))
    each, stops = stack([(owners, np.int32(config.rounds))] * runs)
    return lambda: compiled.block(state, arrays, test, each, stops)


def main():
    f = flags.FLAGS
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"rounds": f.rounds, "eval_every": f.rounds, "model": f.model})
    present = min(len(jax.devices()), f.runs)
    ways = {
        "one by one": Layout(CLIENTS, 1),
        "a sweep, in turn": Layout(RUNS, 1),
        "a sweep, under one vmap": Layout(RUNS, 1, f.runs),
    }
    if present > 1:
        while f.runs % present:
            present -= 1
        ways[f"one by one, clients over {present} devices"] = Layout(CLIENTS, present)
        ways[f"a sweep, runs over {present} devices"] = Layout(RUNS, present)
    found = interleaved({way: arrangement(config, f.runs, layout) for way, layout in ways.items()}, f.repeats)
    base = found["one by one"]
    print(f"{f.runs} runs of {f.rounds} rounds, {f.model} on digits, {jax.devices()[0].device_kind}\n")
    print(
        markdown(
            ["arrangement", "ms per run and round", "one by one over this"],
            [
                [way, f"{1e3 * seconds / f.runs / f.rounds:.3f}", f"{base / seconds:.2f}"]
                for way, seconds in found.items()
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps({**found, "runs": f.runs, "rounds": f.rounds}, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
