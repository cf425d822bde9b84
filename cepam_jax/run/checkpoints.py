"""Checkpoints by orbax, each with digests of all that it holds.

  checkpoints/<round>/default/       the state, as orbax writes it
  checkpoints/<round>/metrics.jsonl  the lines of the run up to this round
  checkpoints/<round>/record.json    the configuration, how far ledger.jsonl of the run goes, digests of files
                                     and state, and one of the record

A directory of the first release has no lines and no record: its states are taken as they are. One of 0.1 has
no ledger, and its states lack the fields that came later; after it, each checkpoint had a copy of the ledger.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cepam_jax.errors import CheckpointDamagedError
from cepam_jax.files import digests, naming, plain_path, set_aside, sync, write
from cepam_jax.run.ledger_file import Mark

KEPT = 2  # the newest, and one more in case that one is damaged
_STATE, _LINES, _LEDGER, _RECORD = "default", "metrics.jsonl", "ledger.jsonl", "record.json"
_EMPTY = Mark()
_FIRST_RELEASE = "_CHECKPOINT_METADATA"  # stands beside the state where the first release wrote it


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
      round: rounds done.
      state: host arrays, in the structure of the template.
      lines: text of metrics.jsonl up to this round.
      damaged: (round, what is wrong) of every newer checkpoint, newest first.
      ledger: how far ledger.jsonl goes up to this round, or its text in a checkpoint that has a copy; None
        where none was written.
    """

    round: int
    state: Any
    lines: str
    damaged: tuple[tuple[int, str], ...] = ()
    ledger: Mark | str | None = None


class Checkpoints:
    """The last two checkpoints of a run; a kill at any moment leaves them complete.

    Args:
      directory: of the checkpoints alone; made by the first `save`.
    """

    def __init__(self, directory: Path):
        self._directory = Path(directory).absolute()

    def rounds(self) -> list[int]:
        """Rounds of which there is a checkpoint, in increasing order.

        Raises:
          CheckpointDamagedError: the directory is none, as a link to a disk that is not mounted.
        """
        if not os.path.lexists(self._directory):
            return []
        if not self._directory.is_dir():
            raise CheckpointDamagedError(
                f"{self._directory} is not a directory, or a link to one that is not there. Nothing was "
                f"changed. Put the checkpoints back, or delete it to train again from the beginning."
            )
        names = (entry.name for entry in self._directory.iterdir())
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def seen(self) -> int:
        """The last round of which there is a checkpoint, intact or not, also one set aside; 0 if none."""
        aside = [] if not self._directory.is_dir() else self._directory.iterdir()
        found = (re.fullmatch(r"damaged_([0-9]+)(_[0-9]+)?", entry.name) for entry in aside)
        return max([0, *self.rounds(), *(int(match[1]) for match in found if match)])

    def config(self) -> dict | None:
        """The configuration that the newest intact record holds; None if there is none."""
        for number in reversed(self.rounds()):
            with contextlib.suppress(CheckpointDamagedError):
                record = self._record(number)
                if record is not None:
                    return record["config"]
        return None

    def newest(
        self, template: Any, lines_of: Callable[[int], str | None] = lambda number: None
    ) -> Checkpoint | None:
        """The newest intact checkpoint; None if there are none at all.

        Args:
          template: a State with the shapes and types that are expected.
          lines_of: round -> complete text of metrics.jsonl up to it, or None; for checkpoints of the first
            release, which hold no lines.

        Raises:
          CheckpointDamagedError: there are checkpoints, and all are damaged.
        """
        damaged = []
        for number in reversed(self.rounds()):
            try:
                return self._load(number, template, lines_of)._replace(damaged=tuple(damaged))
            except CheckpointDamagedError as error:
                damaged.append((number, str(error)))
        if not damaged:
            return None
        what = "; ".join(f"of round {number}: {why}" for number, why in damaged)
        raise CheckpointDamagedError(
            f"no checkpoint under {self._directory} is intact ({what}). Nothing was changed. Put an "
            f"intact copy there, or delete {self._directory.parent} to train again from the beginning."
        )

    def set_aside(self, number: int) -> Path:
        """Renames the checkpoint of a round, which is damaged; returns where it is now."""
        return set_aside(self._directory / str(number), f"damaged_{number}")

    def save(self, number: int, state: Any, config: dict, lines: str, ledger: Mark = _EMPTY) -> None:
        """Writes the checkpoint of a round, and removes those before the last two.

        Args:
          number: rounds done.
          state: host arrays.
          config: nested dictionary of plain values.
          lines: text of metrics.jsonl up to this round.
          ledger: how far ledger.jsonl goes up to this round.

        Raises:
          OSError: it could not be written; earlier checkpoints are as before.
        """
        if number in self.rounds():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = self._directory / f"unfinished_{number}"
        _remove(unfinished)
        unfinished.mkdir()
        try:
            with _quiet(), naming(unfinished), plain_path(unfinished) as path:
                _orbax().save(path / _STATE, args=ocp.args.StandardSave(state))
        except OSError:
            raise
        except Exception as error:  # whatever orbax and tensorstore make of a disk that is full
            why = _last_clause(error)
            raise OSError(
                f"the checkpoint of round {number} cannot be written to {unfinished}: {why}"
            ) from error
        write(unfinished / _LINES, lines)
        record = {"round": number, "config": config, "state": digest(state), "files": digests(unfinished)}
        record["ledger"] = ledger._asdict()
        record["record"] = _sha256(_canonical(record))
        write(unfinished / _RECORD, json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, self._directory / str(number))
        sync(self._directory)
        for old in self.rounds()[:-KEPT]:
            shutil.rmtree(self._directory / str(old))

    def clean(self) -> None:
        """Removes what a killed process left half written."""
        if self._directory.is_dir():
            for entry in self._directory.iterdir():
                if entry.name.startswith("unfinished_") or ".orbax-checkpoint-tmp" in entry.name:
                    _remove(entry)

    def _record(self, number) -> dict | None:
        """The record of a round's checkpoint; None where the first release wrote it."""
        folder = self._directory / str(number)
        if (folder / _FIRST_RELEASE).exists():
            # Where any has what the first release did not write, a record may have been deleted.
            folders = [self._directory / str(one) for one in self.rounds()]
            if not any((one / name).exists() for one in folders for name in (_RECORD, _LINES)):
                return None
        try:
            record = json.loads((folder / _RECORD).read_bytes())
            intact = record.pop("record") == _sha256(_canonical(record)) and record["round"] == number
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointDamagedError(f"{_RECORD} cannot be read") from error
        if not intact:
            raise CheckpointDamagedError(f"{_RECORD} was altered")
        return record

    def _load(self, number, template, lines_of):
        record, ledger = self._record(number), None
        if record is None:
            lines = lines_of(number)
            if lines is None:
                raise CheckpointDamagedError("the lines of metrics.jsonl up to there are not complete")
        else:
            folder = self._directory / str(number)
            found = digests(folder)  # before orbax reads them, which takes damage ill
            for name, expected in record["files"].items():
                if found.get(name) != expected:
                    what = "was altered" if name in found else "is lost"
                    raise CheckpointDamagedError(f"its {name} {what}")
            lines = (folder / _LINES).read_text()
            if "ledger" in record:
                ledger = Mark(**record["ledger"])._replace(refused=tuple(record["ledger"]["refused"]))
            elif _LEDGER in record["files"]:
                ledger = (folder / _LEDGER).read_text()
        state = self._state(number, template)
        if record is not None and digest(state) != record["state"]:
            raise CheckpointDamagedError("its state is not what was saved")
        if int(state.round) != number:
            raise CheckpointDamagedError(f"its state is that of round {int(state.round)}")
        return Checkpoint(number, state, lines, ledger=ledger)

    def _state(self, number, template):
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)._asdict()
        try:
            with plain_path(self._directory / str(number)) as path:
                # A field of a later release is not in an older state; where it is empty, none is missed.
                saved = set(_orbax().metadata(path / _STATE).item_metadata)
                asked = {name: part for name, part in shapes.items() if part is not None or name in saved}
                found = _orbax().restore(path / _STATE, args=ocp.args.StandardRestore(asked))
            return template._replace(**jax.tree.map(np.asarray, found))
        except Exception as error:  # damage shows in many ways; the cause is kept
            raise CheckpointDamagedError(f"its state cannot be read ({type(error).__name__})") from error


def begun(workdir: Path) -> bool:
    """Whether a work directory holds a run of which something is saved."""
    return (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir())


def _remove(path: Path) -> None:
    """Removes a folder, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _orbax() -> ocp.Checkpointer:
    """Writes and reads states in this process alone, without a barrier with others, who never come here."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="checkpoints",
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged: of one full disk orbax's threads and event loops print a hundred lines.

    After a failure tensorstore's threads may still report, at any later time, to loops that orbax closed.
    """
    before, hook = logging.root.manager.disable, sys.unraisablehook

    def late(report):
        if str(report.exc_value) != "Event loop is closed":
            hook(report)

    logging.disable(logging.CRITICAL)
    sys.unraisablehook = late
    try:
        yield
        sys.unraisablehook = hook
    finally:
        logging.disable(before)


def _last_clause(error: Exception) -> str:
    """What tensorstore says at the end, behind the long names of all files concerned."""
    first = (str(error).splitlines() or [""])[0]
    return re.split(r" \[\w+=", first)[0].rsplit(": ", 1)[-1] or type(error).__name__


def digest(state: Any) -> str:
    """SHA-256 of the names, types, shapes and bytes of a tree's arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(tree: dict) -> str:
    return json.dumps(tree, sort_keys=True)
