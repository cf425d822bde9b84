"""How long it takes until a program does something: import, compilation, first round.

  python -m experiments.benchmarks.startup

"cold": nothing was ever compiled; "warm": an earlier process compiled the same round and JAX's persistent
cache kept it. Every figure is from a process of its own; medians.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from cepam_jax.errors import ConfigError
from experiments import cli
from experiments.benchmarks import workloads
from experiments.benchmarks.processes import ours
from experiments.tables import markdown


def define_flags():
    flags.DEFINE_list("models", ["mlp", "cnn2"], "Workloads.")
    flags.DEFINE_list("mechanisms", ["fedavg", "cepam Z1", "cepam E8"], "Mechanisms.")
    flags.DEFINE_integer("repeats", 3, "Processes for each figure.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


_STEPS = {"import_s": "import", "compile_s": "trace and compile", "first_round_s": "first round"}


def measure(model: str, mechanism: str) -> list[dict]:
    """Median seconds of each step, cold and warm."""
    found = {"cold": [], "warm": []}
    for _ in range(flags.FLAGS.repeats):
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            for state, runs in found.items():
                settings = (f"--model={model}", f"--mechanism={mechanism}", "--rounds=1")
                runs.append(ours(*settings, environment=environment))
                if "error" in runs[-1]:
                    raise ConfigError(f"{' '.join(settings)}, {state}: {runs[-1]['error']}")
    return [
        {
            "model": model,
            "mechanism": mechanism,
            "cache": state,
            **{step: float(np.median([run[step] for run in runs])) for step in _STEPS},
        }
        for state, runs in found.items()
    ]


def main():
    cli.choices("models", workloads.SHAPES)
    cli.choices("mechanisms", workloads.MECHANISMS)
    f = flags.FLAGS
    lines = [line for model in f.models for mechanism in f.mechanisms for line in measure(model, mechanism)]
    print(
        markdown(
            ["model", "mechanism", "cache", *(f"{name}, s" for name in _STEPS.values())],
            [
                [line["model"], line["mechanism"], line["cache"], *(f"{line[step]:.2f}" for step in _STEPS)]
                for line in lines
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps(lines, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
