"""A file that is whole after a kill or a loss of power: the newest state, and the one before it.

  32 bytes   SHA-256 of the rest
  4 bytes    length of the record
  n bytes    the record, JSON
  m bytes    arrays, as numpy.savez writes them

Written beside the old one, waited for until it is on the disk, and then put in its place.
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cepam_jax.errors import CheckpointDamagedError
from cepam_jax.files import naming, sync

_DIGEST, _LENGTH = 32, 4


def save(path: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a state; returns when it is on the disk. The one before stays beside it, as `path`.before.

    Raises:
      OSError: it could not be written; what was there is as it was.
    """
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    text = json.dumps(record, sort_keys=True).encode()
    body = len(text).to_bytes(_LENGTH, "little") + text + packed.getvalue()
    temporary = path.with_name(path.name + ".tmp")
    with naming(temporary), temporary.open("wb") as file:
        file.write(hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    before = path.with_name(path.name + ".before")
    with contextlib.suppress(FileNotFoundError):
        before.unlink()
    with contextlib.suppress(FileNotFoundError):
        os.link(path, before)
    os.replace(temporary, path)
    sync(path.parent)


def load(path: Path, older: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray], bool] | None:
    """(record, arrays, whether the newest was damaged and this is the one before); None if there is none.

    Args:
      path: as for `save`.
      older: whether the one before will do. To a client it will not: it would have forgotten an answer.

    Raises:
      CheckpointDamagedError: there is one, and none that will do is whole.
    """
    before = path.with_name(path.name + ".before")
    found = [one for one in (path, before) if one.exists()]
    for place in found if older else [path] if path.exists() else []:
        data = place.read_bytes()
        body = data[_DIGEST:]
        if len(data) < _DIGEST + _LENGTH or hashlib.sha256(body).digest() != data[:_DIGEST]:
            continue
        stop = _LENGTH + int.from_bytes(body[:_LENGTH], "little")
        with np.load(io.BytesIO(body[stop:]), allow_pickle=False) as arrays:
            return json.loads(body[_LENGTH:stop]), dict(arrays), place != path
    if found:
        raise CheckpointDamagedError(
            f"{path} is lost or damaged, and nothing may take its place; nothing changed"
        )
    return None
