"""What a program settles once, before JAX touches a device: processes, devices, compiled programs kept."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from cepam_jax.errors import require


def start(
    cpu_devices: int = 0,
    distributed: bool = False,
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
) -> None:
    """Call it first in a program; the experiment binaries do.

    Args:
      cpu_devices: devices that the CPU is divided into; 0: as JAX decides.
      distributed: whether this is one of several processes (`jax.distributed`), all of them given the same
        configuration.
      coordinator: "host:port" of process 0; by default what the cluster (Slurm, Kubernetes, Cloud TPU,
        Open MPI) says.
      num_processes: with `coordinator`, how many.
      process_id: with `coordinator`, which one this is.

    Raises:
      ConfigError: numbers that do not fit together.
    """
    keep_compiled()
    require(cpu_devices >= 0, "--cpu_devices", cpu_devices, "a number of at least 0")
    if cpu_devices:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    alone = "left out without --distributed: this process would train alone"
    for name, given in (
        ("coordinator", coordinator),
        ("num_processes", num_processes),
        ("process_id", process_id + 1),
    ):
        require(distributed or not given, f"--{name}", "given", alone)
    if not distributed:
        return
    if coordinator:
        require(num_processes >= 1, "--num_processes", num_processes, "at least 1 with --coordinator")
        inside = 0 <= process_id < num_processes
        require(inside, "--process_id", process_id, f"a number from 0 to {num_processes - 1}")
        jax.distributed.initialize(coordinator, num_processes, process_id)
    else:
        jax.distributed.initialize()


def keep_compiled() -> None:
    """Keeps compiled programs under the user's cache folder, so that the next start need not compile them.

    A directory that JAX was told of (JAX_COMPILATION_CACHE_DIR) has precedence.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cepam_jax" / _machine()
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # a home that does not exist or cannot be written to costs time, nothing else
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # By default only what took a second is kept: most of our programs take less, but there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _machine() -> str:
    """A name for processors that can run each other's code: homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
