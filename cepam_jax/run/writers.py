"""Where the lines of metrics.jsonl are written a second time, such as TensorBoard.

A writer is made by a function (work directory, rounds done) of the registry. A fork registers its own:

  @WRITERS.function
  def my_service(workdir, done):
      return Writer(write=..., close=...)
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.registry import Registry


class Writer(NamedTuple):
    """Takes the lines of one run.

    Attributes:
      write: a line of metrics.jsonl, as a dictionary -> None.
      close: () -> None; nothing is written after it.
    """

    write: Callable[[dict], None]
    close: Callable[[], None]


# Name -> function (work directory, rounds done) -> Writer.
WRITERS: Registry = Registry("writer")

settings.declare(
    "",
    {
        "writer": settings.choice(
            "none",
            "Where metrics are written beside metrics.jsonl; tensorboard: an event file.",
            WRITERS,
            "none",
            compiled=False,
            resumable=True,
        )
    },
)


@WRITERS.function
def tensorboard(workdir: Path, done: int) -> Writer:
    """An event file under `workdir`/tensorboard, without TensorFlow; one scalar for each number of a line.

    Args:
      workdir: of the run.
      done: rounds done; what an interrupted run wrote of later rounds is no longer shown.

    Raises:
      ConfigError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError(
            "config.writer is 'tensorboard', which needs the package tensorboardX: pip install tensorboardX"
        ) from error
    # The name of an event file has whole seconds alone: without the suffix a run continued within a second of
    # its start would overwrite what the start wrote. Readers take the files in the order of their names.
    events = SummaryWriter(
        str(workdir / "tensorboard"),
        purge_step=done + 1 if done else None,
        filename_suffix=f".{time.time_ns():020d}",
    )

    def write(line):
        for name, value in scalars(line).items():
            events.add_scalar(name, value, line["round"])
        events.flush()

    return Writer(write, events.close)


def scalars(line: dict, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line but for the round, by names with slashes where it is nested."""
    numbers = {}
    for name, value in line.items():
        if isinstance(value, dict):
            numbers |= scalars(value, f"{prefix}{name}/")
        elif name != "round" and isinstance(value, (int, float)) and math.isfinite(value):
            numbers[prefix + name] = float(value)
    return numbers
