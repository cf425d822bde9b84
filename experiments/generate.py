"""Lets a trained model of characters write: how it goes on from a prompt.

python -m experiments.generate --run=/tmp/shakespeare --prompt="But, soft! " --length=300 --temperature=0.8
"""

from absl import flags

from cepam_jax.errors import ConfigError
from cepam_jax.run import finished
from cepam_jax.tasks import generation, language
from experiments import cli


def define_flags():
    flags.DEFINE_string("run", None, "Work directory of a run of the task next_character.", required=True)
    flags.DEFINE_string("prompt", "\n", "The beginning.")
    flags.DEFINE_integer("length", 300, "Characters that are added.")
    flags.DEFINE_float("temperature", 0.8, "0: always the most likely character; larger: more daring.")
    flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)


def main():
    f = flags.FLAGS
    found = finished.load(f.run)
    if found.config.task != "next_character":
        raise ConfigError(
            f"--run is {f.run!r}, a run of the task {found.config.task!r}; it must be one of 'next_character'"
        )
    net = language.network_of(found.config, found.data.specification)
    context = dict(found.data.specification[0])["context"]
    print(generation.generate(net, found.model, context, f.prompt, f.length, f.temperature, f.seed))


if __name__ == "__main__":
    cli.run(main, define_flags)
