"""The data of a run: a digest in its work directory, checked when the run goes on.

A folder of data may be prepared anew, and a data set of one's own may change, under one name. A run that went
on with other examples would be no run of either, and its report would speak of one of them.
"""

import hashlib
from pathlib import Path

import numpy as np

from cepam_jax import files
from cepam_jax.data.examples import Examples
from cepam_jax.errors import CheckpointMismatchError
from cepam_jax.run.checkpoints import begun

_NAME = "data.sha256"


def digest(data: Examples) -> str:
    """SHA-256 of the examples, their labels and owners, as hexadecimal digits.

    Constants are left out: they follow from the examples, and may be rounded otherwise on another machine.
    """
    found = hashlib.sha256()
    others = {name: getattr(data, name) for name in ("labels", "owners", "test_owners", "sizes")}
    for part in (data.train, data.test, others):
        for name in sorted(part):
            if part[name] is not None:
                array = np.ascontiguousarray(part[name])
                found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                found.update(array.tobytes())
    return found.hexdigest()


class Held:
    """Examples that are told from others by their digest: a name may come to stand for other ones."""

    def __init__(self, data: Examples, found: str):
        self.data, self.digest = data, found

    def __eq__(self, other) -> bool:
        return isinstance(other, Held) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def check(found: str, workdir: Path) -> None:
    """Checks that examples with this digest are those of the run in a work directory, if there is one.

    Raises:
      CheckpointMismatchError: the run there has other examples.
    """
    path = workdir / _NAME
    if begun(workdir) and path.is_file() and path.read_text().strip() != found:
        raise CheckpointMismatchError(
            f"{workdir} holds a run on other examples than these: their digest is not that of its {_NAME}. "
            "Use the data of that run, or another --workdir; nothing was changed."
        )


def write(found: str, workdir: Path) -> None:
    """Keeps the digest of a run's examples; OSError names the path."""
    files.write(workdir / _NAME, found + "\n")
