"""Files that are replaced whole, kept under another name, and told apart by digests."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replaces a file's text; whoever looks, and a kill at any moment, finds the old or the new one.

    Raises:
      OSError: it names the path; what was there before is as it was.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == text.encode():
            return
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # on a disk that is full it is in the way
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the path in an OSError that names none, as those from writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def set_aside(path: Path, name: str) -> Path:
    """Renames a file or folder to `name` beside it, numbered if that is taken; returns where it is now."""
    first = path.with_name(name)
    aside, number = first, 1
    while os.path.lexists(aside):
        number += 1
        aside = first.with_name(f"{first.stem}_{number}{first.suffix}")
    os.replace(path, aside)
    return aside


def sync(folder: Path) -> None:
    """Waits until renames in a folder are on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """The folder by a name that orbax can handle: it takes brackets, stars and backslashes for patterns."""
    if not re.search(r"[][*?\\{}]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cepam_jax_") as temporary:
        alias = Path(temporary, "workdir")
        alias.symlink_to(folder, target_is_directory=True)
        yield alias
