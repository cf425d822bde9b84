"""The data of a run: a digest in its work directory, checked when the run goes on.

A folder of data may be prepared anew, and a data set of one's own may change, under one name. A run that went
on with other examples would be no run of either, and its report would speak of one of them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cepam_jax import files
from cepam_jax.data.examples import Examples
from cepam_jax.errors import CheckpointDamagedError, CheckpointMismatchError
from cepam_jax.run.checkpoints import begun
from cepam_jax.run.progress import say

_NAME = "data.sha256"
_FORM = re.compile(r"([0-9a-f]{64})\n?([0-9a-f]{64})?\n?")  # earlier releases kept the first line alone


def digest(data: Examples) -> str:
    """Two lines of hexadecimal digits: SHA-256 of the examples, labels and owners, and of whole constants.

    Of constants that are no whole numbers only the shapes count: they may follow from the examples, by sums
    that another machine takes in another order, and no rounding makes these the same for sure.
    """
    others = {name: getattr(data, name) for name in ("labels", "owners", "test_owners", "sizes")}
    constants = {name: _whole(np.asarray(array)) for name, array in data.constants.items()}
    return f"{_of(data.train, data.test, others)}\n{_of(constants)}"


def _of(*parts: Mapping[str, np.ndarray | None]) -> str:
    found = hashlib.sha256()
    for part in parts:
        for name in sorted(part):
            if part[name] is not None:
                array = np.ascontiguousarray(part[name])
                found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                found.update(array.tobytes())
    return found.hexdigest()


def _whole(array: np.ndarray) -> np.ndarray:
    return np.array(array.shape, np.int64) if array.dtype.kind == "f" else array


class Held:
    """Examples that are told from others by their digest: a name may come to stand for other ones."""

    def __init__(self, data: Examples, found: str):
        self.data, self.digest = data, found

    def __eq__(self, other) -> bool:
        return isinstance(other, Held) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def check(found: str, workdir: Path, name: str = "--workdir") -> bool:
    """Checks that examples with this digest are those of the run in a work directory, if there is one.

    Args:
      found: of `digest`.
      workdir: of the run.
      name: what an error calls it.

    Returns:
      Whether that is known; not where the file is gone, as in runs of releases that kept none.

    Raises:
      CheckpointMismatchError: the run there has other examples.
      CheckpointDamagedError: the file is no digest.
    """
    path = workdir / _NAME
    if not begun(workdir):
        return True
    if not (path.exists() or path.is_symlink()):
        return False
    kept = _FORM.fullmatch(path.read_bytes().decode(errors="replace")) if path.is_file() else None
    if kept is None:
        raise CheckpointDamagedError(
            f"{path} is no digest of data: whether the run there has these examples, nobody can tell. Put it "
            f"back, remove it if you know that it has, or use another {name}; nothing was changed."
        )
    lines = zip(("examples", "constants of the data"), found.split(), kept.groups(), strict=True)
    for what, mine, theirs in lines:
        if mine != theirs and theirs is not None:
            raise CheckpointMismatchError(
                f"{workdir} holds a run on other {what} than these: their digest is not that of its {_NAME}. "
                f"Use the data of that run, or another {name}; nothing was changed."
            )
    return True


def warn(workdirs: Sequence[Path]) -> None:
    """Says of which runs `check` did not know whether they have these examples."""
    if workdirs:
        who = (
            f"{workdirs[0]} has" if len(workdirs) == 1 else f"{workdirs[0]} and {len(workdirs) - 1} more have"
        )
        say(
            f"{who} no {_NAME}, the digest of its examples: whether these are the ones that the run began "
            "with, nobody can tell"
        )


def write(found: str, workdir: Path) -> None:
    """Keeps the digest of a run's examples; OSError names the path."""
    files.write(workdir / _NAME, found + "\n")
