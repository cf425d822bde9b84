"""What the experiment binaries share: devices, compiled programs kept, errors as one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from cepam_jax import runtime
from cepam_jax.errors import (
    CheckpointMismatchError,
    ConfigError,
    DataNotPreparedError,
    NonFiniteUpdateError,
    WireError,
    require_choice,
)

_EXPECTED = (CheckpointMismatchError, ConfigError, DataNotPreparedError, NonFiniteUpdateError, WireError)


def numbers(flag: str, kind: type = float) -> list:
    """The value of a list flag as numbers; ConfigError names the flag and what is wrong."""
    values = flags.FLAGS[flag].value
    try:
        return [kind(value) for value in values]
    except ValueError as error:
        raise ConfigError(f"--{flag} is {values}; it must be numbers: {error}") from error


def choices(flag: str, allowed) -> None:
    """Checks every value of a list flag; ConfigError names the flag and what is allowed."""
    for value in flags.FLAGS[flag].value:
        require_choice(f"--{flag}", value, allowed)


def choice(flag: str, allowed) -> None:
    """Checks the value of a flag; ConfigError names the flag and what is allowed."""
    require_choice(f"--{flag}", flags.FLAGS[flag].value, allowed)


def _define_runtime_flags():
    flags.DEFINE_integer("cpu_devices", 0, "Devices that the CPU is divided into; 0: as JAX decides (one).")
    flags.DEFINE_bool("distributed", False, "One of several processes, as a cluster started them.")
    flags.DEFINE_string("coordinator", "", "host:port of process 0, where no cluster says it.")
    flags.DEFINE_integer("num_processes", 0, "Processes, with --coordinator.")
    flags.DEFINE_integer("process_id", -1, "Number of this process, with --coordinator.")


def _apply(smoke: dict) -> None:
    """Sets the flags of a small version, but for those that the command line gives."""
    for name, value in smoke.items():
        if name.startswith("config."):
            overridden = config_flags.get_override_values(flags.FLAGS["config"])
            if name.removeprefix("config.") not in overridden:
                flags.FLAGS.config.update_from_flattened_dict({name.removeprefix("config."): value})
        elif not flags.FLAGS[name].present:
            flags.FLAGS[name].value = value


def run(
    main: Callable[[], None], define_flags: Callable[[], None] | None = None, smoke: dict | None = None
) -> None:
    """Parses flags and calls `main`; a user's mistake ends with its message and exit code 1.

    Args:
      main: the binary.
      define_flags: defines its flags; not at import, so that modules with flags of the same name
        can be imported together.
      smoke: values of flags (and of fields, as "config.field") for a small version, if the binary has one.
    """
    if define_flags:
        define_flags()
    _define_runtime_flags()

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.ERROR)  # libraries' notes would tear the progress bar
        f = flags.FLAGS
        try:
            if smoke and f.smoke:
                _apply(smoke)
            runtime.start(f.cpu_devices, f.distributed, f.coordinator, f.num_processes, f.process_id)
            main()
        except OSError as error:
            if "Configuration is not available" not in str(error):
                raise
            print(f"ConfigError: {str(error).splitlines()[-1].strip()}", file=sys.stderr)
            sys.exit(1)
        except _EXPECTED as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
            hint = " ".join(str(error).replace("\\n", " ").replace("\\", "").replace("'", "").split())
            print(f"ConfigError: no such configuration field: {hint}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=parse)
