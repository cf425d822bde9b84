"""A file that is whole after a kill or a loss of power, and that its owner alone can read.

  32 bytes   SHA-256 of the rest
  4 bytes    length of the record
  n bytes    the record, JSON
  m bytes    arrays, as numpy.savez writes them

Written beside the old one, waited for until it is on the disk, and then put in its place. None but the newest
state will do: an older one would have forgotten an answer, or what was spent.
"""

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
    """Writes a state; returns when it is on the disk.

    Raises:
      OSError: it could not be written; what was there is as it was.
    """
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    text = json.dumps(record, sort_keys=True).encode()
    body = len(text).to_bytes(_LENGTH, "little") + text + packed.getvalue()
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with naming(temporary), os.fdopen(descriptor, "wb") as file:
        file.write(hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """(record, arrays); None if there is no file.

    Args:
      path: as for `save`.

    Raises:
      CheckpointDamagedError: there is a file, and it is not whole.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    body = data[_DIGEST:]
    if len(data) < _DIGEST + _LENGTH or hashlib.sha256(body).digest() != data[:_DIGEST]:
        raise CheckpointDamagedError(
            f"{path} is damaged, and nothing may take its place: an older copy would have forgotten what was "
            "sent; nothing changed"
        )
    stop = _LENGTH + int.from_bytes(body[:_LENGTH], "little")
    with np.load(io.BytesIO(body[stop:]), allow_pickle=False) as arrays:
        return json.loads(body[_LENGTH:stop]), dict(arrays)
