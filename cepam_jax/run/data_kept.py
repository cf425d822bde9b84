"""The data of a run: a digest in its work directory, checked when the run goes on.

A folder of data may be prepared anew, and a data set of one's own may change, under one name. A run that went
on with other examples would be no run of either, and its report would speak of one of them.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from cepam_jax import files
from cepam_jax.data.examples import Examples
from cepam_jax.errors import CheckpointMismatchError

_NAME = "data.sha256"


class _Same:
    """Examples by identity: arrays are not compared, nor hashed twice for runs of one sweep."""

    def __init__(self, data: Examples):
        self.data = data

    def __hash__(self) -> int:
        return id(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.data is self.data


def digest(data: Examples) -> str:
    """SHA-256 of the examples, their labels and owners, as hexadecimal digits.

    Constants are left out: they follow from the examples, and may be rounded otherwise on another machine.
    """
    return _digest(_Same(data))


@functools.lru_cache(maxsize=1)
def _digest(same: _Same) -> str:
    data, found = same.data, hashlib.sha256()
    others = {name: getattr(data, name) for name in ("labels", "owners", "test_owners", "sizes")}
    for part in (data.train, data.test, others):
        for name in sorted(part):
            if part[name] is not None:
                array = np.ascontiguousarray(part[name])
                found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                found.update(array.tobytes())
    return found.hexdigest()


def check(data: Examples, workdir: Path) -> str:
    """`digest` of the data, which are those of the run in a work directory, if there is one.

    Raises:
      CheckpointMismatchError: the run there has other examples.
    """
    now, path = digest(data), workdir / _NAME
    begun = (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir())
    if begun and path.is_file() and path.read_text().strip() != now:
        raise CheckpointMismatchError(
            f"{workdir} holds a run on other examples than these: their digest is not that of its {_NAME}. "
            "Use the data of that run, or another --workdir; nothing was changed."
        )
    return now


def write(found: str, workdir: Path) -> None:
    """Keeps what `check` found; OSError names the path."""
    files.write(workdir / _NAME, found + "\n")
