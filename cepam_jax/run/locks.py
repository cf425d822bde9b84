"""One process at a time in a work directory."""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path

from cepam_jax.errors import WorkdirInUseError
from cepam_jax.files import naming

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "lock.json"
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Lock:
    """A work directory's lock, held from here to `release`.

    The system's lock on an open file, which ends with the process however it ends: nothing that a killed
    process leaves behind is in the way of the next. The file says who holds it, for the message.

    Raises:
      WorkdirInUseError: names the process that holds it.
      OSError: the directory cannot be written to.
    """

    def __init__(self, workdir: Path):
        path = self._path = Path(workdir) / NAME
        self._file = _open(path)
        try:
            self._take(path, workdir)
            self.check()
        except BaseException:
            self.release()
            raise

    def _take(self, path, workdir):
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks on this system")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise WorkdirInUseError(
                    f"{workdir} is in use by {_holder(path)}. Wait until it has ended, or take another."
                ) from None
            print(
                f"{workdir}: its file system has no locks ({error.strerror}); see to it that no other "
                f"process trains there at the same time",
                file=sys.stderr,
            )
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with naming(path):
            os.ftruncate(self._file, 0)
            os.write(self._file, (json.dumps(holder) + "\n").encode())

    def check(self) -> None:
        """Raises WorkdirInUseError if the file was deleted or replaced: another process may hold that one."""
        mine, there = os.fstat(self._file), None
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self._path, follow_symlinks=False)
        if there is None or not os.path.samestat(mine, there):
            raise WorkdirInUseError(
                f"{self._path} was {'deleted' if there is None else 'replaced'} while this process trained "
                f"there: another may do so too. This one has stopped; the checkpoints before are kept."
            )

    def release(self) -> None:
        """Lets others in; may be called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open(path):
    # A link would have another file overwritten.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(error.errno, "A lock cannot be a symbolic link; delete it", str(path)) from None
        if error.errno != errno.EMFILE:
            raise
        # A sweep holds a lock for each of its runs: hundreds, where a process may open 1,024 files.
        import resource  # noqa: PLC0415  absent on Windows

        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        return os.open(path, flags, 0o644)


def _holder(path) -> str:
    holder = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        holder = json.loads(path.read_text())
    if not isinstance(holder, dict) or not {"pid", "host", "since"} <= holder.keys():
        return "another process"
    mine = holder["pid"] == os.getpid() and holder["host"] == socket.gethostname()
    who = "this process" if mine else f"process {holder['pid']}"
    return f"{who} on {holder['host']}, since {holder['since']}"
