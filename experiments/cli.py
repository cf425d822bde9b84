"""What the experiment binaries share: devices, compiled programs kept, errors as one line."""

import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from cepam_jax.errors import EXPECTED, ConfigError, require, require_choice
from cepam_jax.run import runtime, training
from cepam_jax.run.config import FIELDS
from experiments import not_begun

# What is defined here is shown by --help of the binary that asks for it.
flags.disclaim_key_flags()


_HELP = "--help shows the flags, --helpfull all of them."


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it before it kills."""


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


def fields_help() -> str:
    """Every declared setting with its default and what it does, for --help."""
    return "\n".join(f"{name} ({field.default!r}): {field.help}" for name, field in FIELDS.items())


def _define_runtime_flags():
    flags.DEFINE_integer("cpu_devices", 0, "Devices that the CPU is divided into; 0: as JAX decides (one).")
    flags.DEFINE_list("plugins", [], "Modules that register parts of your own, such as my_package.my_rule.")
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
            _end(f"FlagError: unexpected arguments: {' '.join(argv[1:])}\n{_HELP}", 1)
        logging.set_verbosity(logging.ERROR)  # libraries' notes would tear the progress bar
        f = flags.FLAGS
        with _one_line():
            if "config" in f:
                getattr(f.config, "keys", None)  # where a file could not be read, it says why when it is used
            if smoke and f.smoke:
                _apply(smoke)
            if "workdir" in f and (f.workdir or f["workdir"].present):
                f.workdir = _usable(f.workdir)
            runtime.start(f.cpu_devices, f.distributed, f.coordinator, f.num_processes, f.process_id)
            main()
            sys.stdout.flush()

    app.run(guarded, flags_parser=_parse)


def define_config(default: str, text: str):
    """The flag --config of a configuration file; plugins are imported before, for it may name their fields.

    Without --config on the command line the default's fields are set as soon as the flag is defined, so that
    what is wrong with them is found here and not by the parser.
    """
    with _in_one_line():
        _import_plugins(sys.argv)
        return config_flags.DEFINE_config_file("config", default, text)


def _parse(argv):
    """absl's parser."""
    with _in_one_line():
        _import_plugins(argv)
        return flags.FLAGS(argv)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """What absl and ml_collections say of flags in pages, in one line."""
    try:
        yield
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        hint = " ".join(str(error).replace("\\n", " ").replace("\\", "").replace("'", "").split())
        _end(f"ConfigError: no such configuration field: {hint}", 1)
    except OSError as error:
        _end(f"ConfigError: {str(error).strip().splitlines()[-1].strip()}", 1)
    except flags.Error as error:
        if "Traceback" not in str(error):
            _end(f"FlagError: {error}\n{_HELP}", 1)
        flag = re.search(r"flag (--\w+=.*?): ", str(error))
        cause = next(line for line in reversed(str(error).splitlines()) if line.strip())
        cause = re.sub(r"^[\w.]+(Error|Exception): ", "", cause.strip())
        _end(f"ConfigError: {flag[1] if flag else 'a flag'}: {cause}", 1)


def _import_plugins(argv) -> None:
    """Imports what --plugins names, before a configuration is made that may choose it."""
    flag = re.compile("--?plugins(=(.*))?")
    for number, argument in enumerate(argv[1:], 1):
        if match := flag.fullmatch(argument):
            names = match[2] if match[1] else "".join(argv[number + 1 : number + 2])
            for name in filter(None, names.split(",")):
                try:
                    importlib.import_module(name)
                except (ImportError, SyntaxError) as error:
                    _end(f"ConfigError: --plugins names {name!r}, which cannot be imported: {error}", 1)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What a user caused ends with one line: their mistakes, their system's refusals, Ctrl-C and SIGTERM."""

    def stop_here(number, frame):
        stop = _Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        training.interrupt(stop)

    def report(unraisable):
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            reported_by(unraisable)

    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop_here) or signal.SIG_DFL for number in signals}
    reported_by, sys.unraisablehook = sys.unraisablehook, report
    training.forget_interrupt()
    try:
        yield
        training.check_interrupt()
    except KeyboardInterrupt as stop:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # what follows takes a moment
        before.pop(signal.SIGINT, None)
        what, code = ("Terminated", 143) if isinstance(stop, _Terminated) else ("Interrupted", 130)
        _end(f"{what}. {' '.join(getattr(stop, '__notes__', ()))}", code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except EXPECTED as error:
        _end(f"{type(error).__name__}: {error}", 1)
    except OSError as error:
        if "Configuration is not available" in str(error):
            _end(f"ConfigError: {str(error).splitlines()[-1].strip()}", 1)
        _end(f"{type(error).__name__}: {error}", 1)
    finally:
        training.forget_interrupt()
        if sys.unraisablehook is report:
            sys.unraisablehook = reported_by
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if handler is not_begun else handler)


def _end(text: str, code: int) -> None:
    print(text.strip(), file=sys.stderr)
    sys.exit(code)


def _usable(workdir: str) -> str:
    """The path with ~ as the home directory; refused now where results could not be written later."""
    require(bool(workdir), "--workdir", workdir, "the path of a directory")  # not wherever we stand
    try:
        path = Path(workdir).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"--workdir is {workdir!r}: {error}") from error
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"--workdir is {workdir!r}; it must be a directory, and {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--workdir is {workdir!r}; it must be one that can be written to, and {there} cannot"
        )
    return str(path)
