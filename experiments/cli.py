"""What the experiment binaries share: errors as one line, not a traceback."""

import sys
from collections.abc import Callable

from absl import app, logging

from cepam_jax.errors import (
    CheckpointMismatchError,
    ConfigError,
    DataNotPreparedError,
    NonFiniteUpdateError,
)

_EXPECTED = (CheckpointMismatchError, ConfigError, DataNotPreparedError, NonFiniteUpdateError)


def run(main: Callable[[], None]) -> None:
    """Parses flags and calls `main`; a user's mistake ends with its message and exit code 1."""

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.ERROR)  # libraries' notes would tear the progress bar
        try:
            main()
        except _EXPECTED as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)
