"""Ctrl-C and SIGTERM during a run: they end it between two blocks at the latest, and lose nothing."""

import contextlib
from collections.abc import Iterator

_interrupts: list[KeyboardInterrupt] = []
_saving: list[bool] = []


def interrupt(stop: KeyboardInterrupt) -> None:
    """Raises the error, now or at the block's end; for handlers of signals.

    An exception that a handler raises is lost where it meets a callback of JAX or a destructor, which print
    it and go on: it is raised again after the block. While a checkpoint is written it waits; a second one
    does not.
    """
    _interrupts.append(stop)
    if not _saving or len(_interrupts) > 1:
        raise stop


def check_interrupt() -> None:
    """Raises what `interrupt` was called with, once."""
    if _interrupts:
        stop = _interrupts[0]
        forget_interrupt()
        raise stop


def forget_interrupt() -> None:
    """As if `interrupt` had not been called."""
    _interrupts.clear()


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """While a checkpoint is written: threads that write it would outlive an exception."""
    _saving.append(True)
    try:
        yield
    finally:
        _saving.clear()
