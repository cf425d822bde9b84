"""The papers' experiments: binaries that train, measure and draw into files."""

import os

# Nothing here opens a window. A notebook's variable would name a backend that need not be installed.
os.environ["MPLBACKEND"] = "agg"
