"""What the commands of a deployment have in common: logs, signals, configurations and data by name."""

import ast
import asyncio
import contextlib
import ipaddress
import json
import runpy
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cepam_jax import files
from cepam_jax.data import sources
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.errors import EXPECTED, ConfigError, DatasetError, require
from cepam_jax.run import build

_BEGUN = time.monotonic()


def log(event: str, **values: Any) -> None:
    """A line of JSON on standard output: seconds since the start, the event, and what belongs to it."""
    line = {"seconds": round(time.monotonic() - _BEGUN, 3), "event": event, **values}
    print(json.dumps(line, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def config_of(name: str, changes: list[str]) -> Any:
    """A configuration from `file` or `file:variant`, with changes such as mechanism.gamma=30.

    Raises:
      ConfigError: there is no such file or field.
    """
    file, _, variant = name.partition(":")
    try:
        config = runpy.run_path(file)["get_config"](*([variant] if variant else []))
        config.update_from_flattened_dict(dict(map(_change, changes)))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"--config={name} {' '.join(changes)}: {error!r}") from error
    return config


def _change(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is no change; it must be field=value")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def address_of(name: str, text: str) -> tuple[str, int]:
    """(host, port) of an argument host:port, such as 127.0.0.1:7443 or [::1]:7443.

    Args:
      name: of the argument, for the message.
      text: what was given.

    Raises:
      ConfigError: it is none.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    good = bool(host) and port.isascii() and port.isdecimal() and int(port) < 2**16
    require(good, name, text, "host:port, such as 127.0.0.1:7443")
    return host, int(port)


def check_secrecy(host: str, tls: bool, insecure: bool, option: str) -> None:
    """That nobody does without TLS unawares.

    Args:
      host: that is dialled or listened at; loopback needs no TLS.
      tls: whether there is any.
      insecure: whether it was asked to do without.
      option: that brings TLS, for the message.

    Raises:
      ConfigError: there is none, and nobody has said that there is to be none.
    """
    if tls or _is_loopback(host):
        return
    if not insecure:
        raise ConfigError(
            f"{host} is not this machine, and without {option} messages can be read on the way: give "
            f"{option}, or --insecure where that is meant"
        )
    log(
        "insecure",
        host=host,
        means="no TLS: who is on the way reads models, messages and their lengths; lengths and integers of "
        "messages protect nobody",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


@contextlib.contextmanager
def leaving(path: Path, text: Callable[[], str]) -> Iterator[None]:
    """Writes a file when the block ends, however it ends; where both fail, the block's error is the one.

    Args:
      path: of the file.
      text: what is written then.

    Raises:
      OSError: it could not be written.
    """
    try:
        yield
    except BaseException:
        try:
            files.write(path, text())
        except OSError as error:
            log("unwritten", detail=str(error))
        raise
    files.write(path, text())


def examples_of(agreement: Agreement, client: int, path: str) -> dict[str, np.ndarray]:
    """A client's training examples: of a .npz file, or, without one, its part of the configured data set.

    Raises:
      ConfigError: the file's arrays do not belong together.
      DatasetError: the file cannot be read.
    """
    if path:
        return _read(path)
    config = agreement.config
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    mine = build.split_of(config, data).client(client)
    return {name: array[mine] for name, array in data.train.items()}


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it is one array")
        with found:
            arrays = dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is no .npz file of arrays: {error}") from error
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    good = len(set(lengths.values())) == 1 and None not in lengths.values()
    require(good, f"{path}, lengths of its arrays,", lengths, "one number for all, that of the examples")
    return arrays


async def _until_stopped(work: Coroutine) -> None:
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def end_with(work: Coroutine) -> None:
    """Runs it; SIGTERM and Ctrl-C end it and the process quietly, and what a user can mend is one line."""

    try:
        asyncio.run(_until_stopped(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        log("interrupted")
        sys.exit(130)
    except (*EXPECTED, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
