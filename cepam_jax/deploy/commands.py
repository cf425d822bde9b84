"""What the commands of a deployment have in common: logs, signals, configurations and data by name."""

import ast
import asyncio
import json
import runpy
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np

from cepam_jax.data import sources
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.errors import EXPECTED, ConfigError, DatasetError
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


def examples_of(agreement: Agreement, client: int, path: str) -> dict[str, np.ndarray]:
    """A client's training examples: of a .npz file, or, without one, its part of the configured data set.

    Raises:
      DatasetError: the file cannot be read.
    """
    if path:
        try:
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} is no .npz file of arrays: {error}") from error
    config = agreement.config
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    mine = build.split_of(config, data).client(client)
    return {name: array[mine] for name, array in data.train.items()}


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
