"""What a person sees while a run trains: a bar on a terminal, a line a minute in a pipe or a log file."""

import sys
import time

import tqdm

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Rounds done of all that are to be done; a context.

    Args:
      total, done: rounds.
      label: of the run.
      shown: whether anything is shown.
    """

    def __init__(self, total: int, done: int, label: str, shown: bool):
        self._lines = shown and not sys.stderr.isatty()
        self._total, self._done, self._label = total, done, label
        self._start = self._last = time.monotonic()
        self._first = done
        self._bar = tqdm.tqdm(
            total=total,
            initial=done,
            desc=label,
            unit="round",
            disable=not shown or self._lines,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, rounds: int, figures: str) -> None:
        """Adds rounds that were done; `figures` stand beside them."""
        self._done += rounds
        self._bar.update(rounds)
        self._bar.set_postfix_str(figures)
        now = time.monotonic()
        if self._lines and (now - self._last >= SECONDS_BETWEEN_LINES or self._done >= self._total):
            self._last = now
            say(f"{self._label}: round {self._done} of {self._total}, {self._rate(now)}; {figures}")

    def _rate(self, now) -> str:
        seconds = (now - self._start) / max(1, self._done - self._first)
        return f"{seconds:.3g} s a round"


def say(text: str) -> None:
    """One line on standard error, beside whatever bar is there."""
    tqdm.tqdm.write(text, file=sys.stderr)
