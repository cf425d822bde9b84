"""Where a run begins: at random, or with the model of another run; its work directory keeps a note of it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cepam_jax import files, settings
from cepam_jax.errors import CheckpointDamagedError, CheckpointMismatchError, ConfigError, require
from cepam_jax.run import checkpoints, finished
from cepam_jax.tasks.base import Model, Task

settings.declare(
    "",
    {
        "init": settings.text(
            "",
            "Work directory of a run with whose model training begins; empty: the model is initialized.",
            "a path",
            compiled=False,
        )
    },
)
_NOTE = "initial.json"


class Origin(NamedTuple):
    """The model that a run began with.

    Attributes:
      run: work directory of the run that made it.
      round: of that run.
      digest: SHA-256 of the model, in hexadecimal digits.
    """

    run: str
    round: int
    digest: str

    @property
    def words(self) -> tuple[int, ...]:
        """Two words of 32 bits, by which keys differ from those of runs that began otherwise."""
        return int(self.digest[:8], 16), int(self.digest[8:16], 16)

    def write(self, workdir: Path) -> None:
        """Keeps the note in a work directory; OSError names the path."""
        note = self._asdict() | {"record": self._record()}
        files.write(workdir / _NOTE, json.dumps(note, indent=2) + "\n")

    @classmethod
    def read(cls, note: dict) -> "Origin":
        """What `write` kept; ValueError, TypeError or AttributeError if it is not as it was written."""
        fields = dict(note)
        record = fields.pop("record", None)
        found = cls(**fields)
        if not re.fullmatch("[0-9a-f]{64}", found.digest):
            raise ValueError(f"its digest is {found.digest!r}")
        if record is not None and record != found._record():  # notes of an earlier state have none
            raise ValueError("it was altered")
        return found

    def _record(self) -> str:
        """SHA-256 of the fields: an altered digest would let the run go on with other noise, unseen."""
        return hashlib.sha256(json.dumps(self._asdict(), sort_keys=True).encode()).hexdigest()


def of_config(config, task: Task, workdir: Path) -> tuple[Origin | None, Model | None]:
    """(where a run began or begins, the whole Model to begin with); None where it is initialized.

    Of a run that has a checkpoint the model is None too: it goes on from there.

    Args:
      config: valid configuration.
      task: what the run learns.
      workdir: of the run.

    Raises:
      ConfigError: config.init is not a run with a model for this task; names what differs.
      CheckpointMismatchError: the run in workdir began with another model than is there now.
      CheckpointDamagedError: the run in workdir has lost the note on what it began with.
    """
    if not config.init:
        return None, None
    same = Path(config.init).expanduser().resolve() == workdir.resolve()
    require(not same, "config.init", config.init, "another directory than that of the run itself")
    known = _known(workdir)
    store = checkpoints.Checkpoints(workdir / "checkpoints")
    if store.rounds():
        # Of a run that began otherwise the note is not missed: that it is another run is said later.
        if known is None and (store.config() or {}).get("init") == config.init:
            raise CheckpointDamagedError(
                f"{workdir} has lost its {_NOTE}, which says what the run began with and which noise it "
                f"goes on with. Nothing was changed. Put it back, or delete {workdir} to train again from "
                f"the beginning."
            )
        return known, None
    found = finished.load(config.init, "config.init")
    _check_alike(config.init, found.model, task)
    origin = Origin(
        str(Path(config.init).expanduser().resolve()), found.round, checkpoints.digest(found.model)
    )
    if known is not None and known.digest != origin.digest:
        raise CheckpointMismatchError(
            f"{workdir} began with the model of {known.run} after round {known.round}, and {config.init} "
            f"holds another one now, after round {found.round}. Use another --workdir; nothing was changed."
        )
    return origin, found.model


def _known(workdir: Path) -> Origin | None:
    """The note in a work directory, or None; CheckpointDamagedError if it cannot be read."""
    try:
        return Origin.read(json.loads((workdir / _NOTE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointDamagedError(f"{workdir / _NOTE} cannot be read ({error})") from error


def _check_alike(run: str, model: Model, task: Task) -> None:
    """ConfigError unless a whole Model is one of this task; names what differs."""
    mine = jax.eval_shape(task.initialize, jax.random.key(0))
    mine = mine if task.whole is None else jax.eval_shape(task.whole, mine)
    theirs, ours = (_described(tree) for tree in (model, mine))
    wrong = [
        *(f"{path} is missing there" for path in ours.keys() - theirs.keys()),
        *(f"{path} is not in this model" for path in theirs.keys() - ours.keys()),
        *(
            f"{path} is {theirs[path]} there and {ours[path]} here"
            for path in ours.keys() & theirs.keys()
            if ours[path] != theirs[path]
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"config.init is {run!r}, whose model is another one: {'; '.join(sorted(wrong)[:3])}{more}"
        )


def _described(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }
