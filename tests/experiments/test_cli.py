"""What the binaries say where a user, or the user's system, is at fault: one line."""

import errno
import gc
import os
import pwd
import signal
import subprocess
import sys
import time
import types

import pytest
from absl import flags

import experiments
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, DataNotPreparedError, WorkdirInUseError
from cepam_jax.run import runtime, training
from cepam_jax.run.metrics import read_lines
from experiments import cli

pytestmark = pytest.mark.compiled_fast

TRAIN = ("experiments.train", "--config.model=linear", "--config.local.steps=1", "--noprogress")


def said(action, capsys):
    """Exit code and what a binary's body that does this says on standard error."""
    with pytest.raises(SystemExit) as end, cli._one_line():
        action()
    return end.value.code, capsys.readouterr().err


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied", "/somewhere"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "configs/none.py"),
        ConfigError("config.rounds is 0; it must be more"),
        WorkdirInUseError("here is in use"),
    ],
)
def test_expected_errors_are_one_line(error, capsys):
    assert said(raising(error), capsys) == (1, f"{type(error).__name__}: {error}\n")


def test_faults_of_the_code_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), cli._one_line():
        raise ZeroDivisionError


def test_ctrl_c_and_sigterm_have_their_exit_codes(capsys):
    stop = KeyboardInterrupt()
    stop.add_note("a holds the run up to round 2 of 6; repeat to continue there")
    before = signal.getsignal(signal.SIGINT)
    try:
        assert said(raising(stop), capsys) == (130, f"Interrupted. {stop.__notes__[0]}\n")
        terminate = lambda: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        assert said(terminate, capsys) == (143, "Terminated.\n")
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


SIGNALS = [("SIGINT", "Interrupted", 130), ("SIGTERM", "Terminated", 143)]


@pytest.mark.parametrize(("number", "word", "code"), SIGNALS)
def test_a_signal_that_a_callback_swallows_still_ends_the_program(number, word, code, capsys):
    """As JAX's callback of the garbage collector does in the first seconds."""

    def callback(phase, info):
        if phase == "start":
            signal.raise_signal(getattr(signal, number))

    def action():
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)

    before = signal.getsignal(signal.SIGINT)
    try:
        assert said(action, capsys) == (code, f"{word}.\n")
    finally:
        signal.signal(signal.SIGINT, before)
    training.check_interrupt()  # nothing is left for the next run


@pytest.mark.parametrize(("number", "word", "code"), SIGNALS)
def test_a_program_stopped_in_its_imports_says_so(number, word, code, tmp_path, root):
    """A stand-in for JAX sends the signal when it is imported."""
    (tmp_path / "jax.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{number})\ntime.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-m", *TRAIN, f"--workdir={tmp_path / 'run'}"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, f"{word}. Nothing was trained yet\n")


def test_who_imports_the_experiments_keeps_their_handlers():
    assert signal.getsignal(signal.SIGINT) is not experiments.not_begun
    assert signal.getsignal(signal.SIGTERM) is not experiments.not_begun


@pytest.mark.parametrize(("number", "word", "code"), SIGNALS)
def test_a_stopped_process_says_where_it_can_be_continued(number, word, code, tmp_path, root):
    """The real binary, in the midst of its rounds."""
    command = [sys.executable, "-m", *TRAIN, f"--workdir={tmp_path}", "--config.rounds=1000000"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(read_lines(tmp_path / "metrics.jsonl")) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    _, text = process.communicate(timeout=100)
    assert process.returncode == code
    reached = read_lines(tmp_path / "metrics.jsonl")[-1]["round"]
    assert text.startswith(f"{word}. {tmp_path} holds the run up to round ") and text.count("\n") == 1
    assert int(text.split("up to round ")[1].split()[0]) in (reached, reached - 5)


def test_a_work_directory_that_cannot_be_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below/it"):
        with pytest.raises(ConfigError, match="it must be a directory, and .*file is a file"):
            cli._usable(str(tmp_path / path))
    with pytest.raises(ConfigError, match="--workdir is ''; it must be the path of a directory"):
        cli._usable("")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do everything
    with pytest.raises(ConfigError, match="it must be one that can be written to"):
        cli._usable(str(tmp_path / "new"))
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli._usable("~/new") == str(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_work_directory_is_not_where_we_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(["binary", "--workdir="])
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(cli, "_define_runtime_flags", lambda: None)
    monkeypatch.setattr(cli.app, "run", lambda body, flags_parser: body(["binary"]))
    with pytest.raises(SystemExit):
        cli.run((tmp_path / "written").touch)
    assert capsys.readouterr().err == "ConfigError: --workdir is ''; it must be the path of a directory\n"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/digits.py:nonsense", "variant is 'nonsense'; it must be one of fedavg, cepam_gaussian"),
        ("configs/authors.py:nonsense", "it must be data-model-updates-variant: (digits|mnist|"),
        ("configs/authors.py:digits-mlp-weights-x", "'x' must be one of fedavg"),
    ],
)
def test_a_wrong_variant_is_one_line_with_the_choices(config, message, root, capsys, monkeypatch):
    from ml_collections import config_flags  # noqa: PLC0415

    monkeypatch.chdir(root)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", "configs/digits.py", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(SystemExit):
        cli._parse(["binary", f"--config={config}"])
    text = capsys.readouterr().err
    assert text.startswith(f"ConfigError: --config={config}: ") and text.count("\n") == 1
    assert message in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.mechanism.gama=3", 'no such configuration field: gama Did you mean "gamma"'),
        ("--plugins=no_such_module", "--plugins names 'no_such_module', which cannot be imported"),
    ],
)
def test_a_wrong_argument_beside_the_default_configuration_is_one_line(
    argument, message, root, capsys, monkeypatch
):
    """Its fields are set as soon as the flag is defined, before any parser runs."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["binary", argument])
    with pytest.raises(SystemExit):
        cli.define_config("configs/digits.py", "")
    text = capsys.readouterr().err
    assert text.startswith("ConfigError: ") and message in text and text.count("\n") == 1
    assert "config" not in flags.FLAGS


def test_without_a_home_nothing_fails(monkeypatch, tmp_path):
    """A container's user: no HOME, no entry in the list of users."""

    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    sources._load.cache_clear()
    assert sources.load("digits").num_classes == 10
    with pytest.raises(DataNotPreparedError, match="is not prepared under '~/tensorflow_datasets'"):
        sources.load("mnist")
    changes = []
    settings = types.SimpleNamespace(jax_compilation_cache_dir=None, update=lambda *c: changes.append(c))
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "jax", types.SimpleNamespace(config=settings))
        runtime.keep_compiled()
    assert not changes
    with pytest.raises(ConfigError, match="--workdir is '~/x': Could not determine home directory"):
        cli._usable("~/x")


def test_a_notebooks_backend_is_not_needed(tmp_path, root):
    """The binaries in a notebook's cell; a picture drawn from Python where the backend is not installed."""
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    code = (
        "import sys, numpy as np; from cepam_jax.data import partition\n"
        "partition.plot(np.ones((2, 3)), sys.argv[1])\n"
        "import experiments, matplotlib.pyplot"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
