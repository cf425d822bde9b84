"""The papers' experiments: binaries that train, measure and draw into files."""

import itertools
import os
import signal
import sys

# Nothing here opens a window. A notebook's variable would name a backend that need not be installed.
os.environ["MPLBACKEND"] = "agg"


def not_begun(number, frame):
    """Ctrl-C and SIGTERM while the imports go on, which take seconds; `cli` has handlers of its own."""
    what, code = {signal.SIGINT: ("Interrupted", 130), signal.SIGTERM: ("Terminated", 143)}[number]
    os.write(2, f"{what}. Nothing was trained yet\n".encode())
    os._exit(code)


def _is_program() -> bool:
    """Whether this is `python -m experiments...`; Python names the module in sys.argv only after this."""
    named = (name.split(".")[0] for flag, name in itertools.pairwise(sys.orig_argv) if flag == "-m")
    return sys.argv[:1] == ["-m"] and next(named, "") == "experiments"


if _is_program():
    for one in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(one) is not signal.SIG_IGN:  # as nohup and background jobs have it
            signal.signal(one, not_begun)
