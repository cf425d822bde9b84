import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from scheduling import (  # noqa: F401  the hooks
    FILE,
    mode_of,
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
)

ROOT = Path(__file__).resolve().parents[1]


WITHOUT_PICTURE = ("cell_coder", "server", "tensors", "updates")
WITH_CLAIMS = (
    *("graphs", "rotated", "error_law", "scenario1", "scenario3", "gamma", "convergence", "adaptive_bits"),
    *("device", "links", "published", "modalities", "bell", "thresholds", "rounding", "trust"),
    *("few_bits", "collusion"),
)


def check_figure(name, folder):
    """What every figure leaves; its claims."""
    from experiments.output import VERDICTS  # noqa: PLC0415  imports jax, which reads the variables set below

    assert (folder / "table.md").read_text().strip()
    assert (folder / "data.jsonl").read_text().splitlines()
    assert json.loads((folder / "run.json").read_text())["figure"] == name
    claims = json.loads((folder / "claims.json").read_text())
    assert claims or name not in WITH_CLAIMS
    assert all(claim["verdict"] in VERDICTS and claim["trust"] for claim in claims)
    if name not in WITHOUT_PICTURE:
        assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figure.pdf").exists()
    return claims


# A worker beyond this frees its compiled programs: each keeps several MB, and thousands are compiled.
MEMORY = 1.2 * 2**30
_at_least = [MEMORY]


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free() -> None:
    """Lets go of every compiled program, and of what the project keeps for the next call."""
    import jax  # noqa: PLC0415  after the variables are set below

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("cepam_jax", "experiments"):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, unless it is asked
        ctypes.CDLL(None).malloc_trim(0)


_mode = [(False, True)]
# These options have XLA write machine code without MLIR, in two parts and not in 32. At the lowest level
# compiling then takes less than half the time. XLA has them as long as JAX is 0.10. Later ones end a process
# that is given a flag they do not know.
_OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
WITHOUT_MLIR = (
    {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 2} if _OLD else {}
)
_AS_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}
_of_users = []


def xla_flags(options: dict) -> str:
    """Options of a compiler as XLA_FLAGS has them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def without_mlir(on: bool) -> None:
    """From now on this process, and those that it starts, compile with `WITHOUT_MLIR`, or as users do.

    No setting of JAX reaches all programs of a process that runs already, so this stands where JAX asks for
    the options of one. Where JAX has no such place any more, tests take longer, and nothing else changes.
    """
    if not WITHOUT_MLIR:
        return
    flags = xla_flags(WITHOUT_MLIR)
    others = os.environ.get("XLA_FLAGS", "").replace(flags, "").strip()
    os.environ["XLA_FLAGS"] = f"{others} {flags}".strip() if on else others
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import compiler  # noqa: PLC0415  after the variables are set below

        if not _of_users:
            _of_users.append(compiler.get_compile_options)
            compiler.get_compile_options = _options


def _options(*args, **kwargs):
    options = _of_users[0](*args, **kwargs)
    known = dict(options.env_option_overrides)
    # Said either way: where XLA read its flags after they were set here, it has them for good.
    own = (_AS_USERS if _mode[0][1] else WITHOUT_MLIR) if WITHOUT_MLIR else {}
    options.env_option_overrides = list({**own, **known}.items())
    return options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tests marked `compiled_fast`: programs as XLA's own passes leave them; the others: as users have them.

    The former take two thirds of the time to compile, which is most of the time of a short run, and without
    MLIR one third. `compiled_fast(mlir=True)` keeps MLIR: a sweep's runs are those alone, to the bit, only
    with it. What was compiled the one way is let go of before the other begins, lest a test to the bit
    compares two compilers.
    """
    mode = mode_of(item)
    if mode[0] or "jax" in sys.modules:
        import jax  # noqa: PLC0415  after the variables are set below

        if _mode[0] != mode:
            free()
            jax.config.update("jax_disable_most_optimizations", mode[0])
            os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(mode[0]))  # of started processes
            without_mlir(not mode[1])
            _mode[0] = mode


@pytest.fixture
def called(monkeypatch, capsys):
    """called("experiments.x", "--flag=1", ...): a command in this process, its code and what it said."""
    import commands  # noqa: PLC0415  which needs what is above

    return functools.partial(commands.called, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing the partition is a good part of a run of a few rounds: an empty file stands for it."""
    monkeypatch.setattr("cepam_jax.data.partition.plot", lambda table, path: Path(path).touch())


@pytest.fixture(autouse=True)
def bounded_memory():
    """After a test that left a worker large. Programs that are needed again come from the cache on disk."""
    yield
    if "jax" in sys.modules and Path("/proc/self/statm").exists() and resident() > _at_least[0]:
        free()
        _at_least[0] = max(
            MEMORY, resident() + MEMORY / 4
        )  # what is alive would not be freed by asking again


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """The programs of a mechanism are not needed after its last test."""
    marks = [test and test.get_closest_marker("xdist_group") for test in (item, nextitem)]
    if marks[0] and "mechanisms.programs" in sys.modules and marks[0] != marks[1]:
        sys.modules["mechanisms.programs"].forget()
        if resident() > 0.75 * MEMORY:
            gc.collect()


def pytest_addoption(parser):
    parser.addoption("--memory", action="store_true", help="Say how large each worker grew.")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = _peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak", 0)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--memory"):
        peaks = _peaks or {"this process": _peak()}
        text = ", ".join(f"{name} {peak / 2**30:.2f} GB" for name, peak in sorted(peaks.items()))
        terminalreporter.write_line(f"peak memory: {text}")


_peaks = {}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _interruptible():
    """Lets processes that tests start be interrupted, also where this one was started in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """What one test or subprocess compiled, the others read, from a folder of this test run or the user's."""
    _interruptible()
    if not hasattr(config, "workerinput"):
        config.compilation_cache = tempfile.mkdtemp(prefix="cepam_jax_tests_")
        os.environ[FILE] = os.path.join(config.compilation_cache, "scopes.json")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(config.compilation_cache, "jax"))
        # The smallest are compiled most often; to read one takes a tenth of the time.
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_collection_finish(session):
    """What was imported stays; looking through it for garbage again and again takes a twentieth of a test."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    if hasattr(config, "compilation_cache"):
        shutil.rmtree(config.compilation_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def tfds_dir():
    """Prepared TFDS data sets: $CEPAM_TFDS_DIR, or shared/ beside the checkout."""
    path = Path(os.environ.get("CEPAM_TFDS_DIR", ROOT.parent / "shared/data/tfds"))
    if not path.is_dir():
        message = f"NO TFDS DATA under {path}: set CEPAM_TFDS_DIR to test MNIST and CIFAR-10"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return str(path)


@pytest.fixture(scope="session")
def root():
    return ROOT
