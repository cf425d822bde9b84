"""Makes a file for a small device of a finished run, and says how large and how good it is.

  python -m experiments.export --run=/tmp/mnist --format=packed --rate=2.4
  python -m experiments.export --run=/tmp/mnist --format=onnx --bits=4
  python -m experiments.export --run=/tmp/shakespeare --format=packed --rate=2.4 --refine=200

Formats: `onnx` and `jax` (of `jax.export`), with weights of --bits, and `packed`, which also codes them by
how frequent they are and which cepam_jax/export/loader.py turns into ONNX by itself. The metrics are those of
the file, which is read back and run.
"""

from pathlib import Path

from absl import flags

from cepam_jax.errors import ConfigError, require_choice
from cepam_jax.export import formats, predictor
from cepam_jax.export.quantize import Setting
from cepam_jax.mechanisms.clip_thresholds import THRESHOLDS
from cepam_jax.run import finished
from experiments import cli, exported
from experiments.tables import markdown


def define_flags():
    flags.DEFINE_string("run", None, "Work directory of a finished run.", required=True)
    flags.DEFINE_string("format", "onnx", f"One of {', '.join(formats.FORMATS)}.")
    flags.DEFINE_integer("bits", 4, "Of a weight: 8, 4, 3 or 2.")
    flags.DEFINE_string("clip", "mse", f"Where weights are cut off: one of {', '.join(THRESHOLDS)}.")
    flags.DEFINE_float("prune", 0.0, "Share of each array's weights that becomes zero.")
    flags.DEFINE_float(
        "rate", 0.0, "Bits for each weight after entropy coding, in place of --bits and --clip."
    )
    flags.DEFINE_integer(
        "refine", 0, "Steps that a model of text is trained on as it is rounded, on what it writes itself."
    )
    flags.DEFINE_string("out", "", "The file; by default exported/model.FORMAT in the run's work directory.")
    flags.DEFINE_bool("judge", True, "Read the file back, and measure the task's metrics with it.")


def setting_of_flags() -> Setting:
    """ConfigError where flags contradict each other or are not allowed."""
    f = flags.FLAGS
    given = [name for name in ("bits", "clip") if f[name].present]
    if f.rate and given:
        raise ConfigError(f"--rate is {f.rate:g} and --{given[0]} is given too; give one of them")
    setting = Setting(f.bits, f.clip, f.prune, f.rate, f.refine)
    setting.check()
    return setting


def unfinished(run: finished.Finished) -> None:
    """ConfigError unless the run has done all its rounds, or may have ended because its epsilon was spent."""
    may_stop = run.config.privacy.target_epsilon and not run.config.privacy.calibrate
    if run.round < run.config.rounds and not may_stop:
        raise ConfigError(
            f"--run is {flags.FLAGS.run!r}, which was saved after round {run.round} of {run.config.rounds}; "
            f"it must be a finished run: continue it with experiments.train"
        )


def main():
    f = flags.FLAGS
    require_choice("--format", f.format, formats.FORMATS)
    setting = setting_of_flags()
    if f.judge and f.format != "jax":
        exported.need_runtime()
    run = finished.load(f.run)
    unfinished(run)
    trained = predictor.predictor(run.config, run.data, run.model)
    model = formats.exporter(trained, graph=f.format != "jax")
    data = formats.export(model, setting, f.format)
    path = Path(f.out).expanduser() if f.out else Path(f.run).expanduser() / f"exported/model.{f.format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"{path}: {len(data):,} bytes, {model.float32_bytes / len(data):.1f} times smaller than float32")
    if f.judge:
        rows = []
        for name, call in {
            "as trained": exported.trained(trained),
            "the file": exported.opened(path.read_bytes(), f.format),
        }.items():
            found = exported.metrics(run, trained, call)
            rows.append([name, *(f"{value:.4f}" for value in found.values())])
        print(markdown(["", *found], rows))


if __name__ == "__main__":
    cli.run(main, define_flags)
