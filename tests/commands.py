"""Commands of experiments, run in the process of the tests, which has imported and compiled much already."""

import contextlib
import runpy
import sys
import warnings
from typing import NamedTuple

from absl import app, flags, logging
from conftest import ROOT


@contextlib.contextmanager
def flags_of_a_command():
    """absl keeps flags in one object for the whole process: afterwards those of the command are gone.

    Those of libraries that the command imported stay, because a library is imported only once.
    """
    app.define_help_flags()  # once in a process, so not among the flags of one command
    before, parsed, verbosity = set(flags.FLAGS), flags.FLAGS.is_parsed(), logging.get_verbosity()
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            module = flags.FLAGS.find_module_defining_flag(name)
            if name.startswith("config.") or module.startswith(("experiments.", str(ROOT))):
                delattr(flags.FLAGS, name)
        if not parsed:
            flags.FLAGS.unparse_flags()
        logging.set_verbosity(verbosity)


def code_of(module: str, given: list[str], monkeypatch) -> int:
    """The code that `python -m module flags` ends with."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [module, *given])
    try:
        with flags_of_a_command(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules.*", RuntimeWarning)  # tests import some
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # of ml_collections
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    return 0


def run_here(arguments: list[str], monkeypatch) -> None:
    """`python -m module flags`, given from "-m" on; AssertionError where it would end with another code."""
    code = code_of(arguments[1], arguments[2:], monkeypatch)
    assert code == 0, f"exit code {code}"


class Done(NamedTuple):
    """As `subprocess.run` returns it."""

    returncode: int
    stdout: str
    stderr: str


def called(module: str, *given: str, monkeypatch, capsys) -> Done:
    """`python -m module flags`, and what it said."""
    capsys.readouterr()
    return Done(code_of(module, list(given), monkeypatch), *capsys.readouterr())
