"""Checkpoints by orbax, and the check that a work directory belongs to this configuration."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from cepam_jax.errors import CheckpointMismatchError


class Checkpoints:
    """The last two checkpoints of a run; a kill at any moment leaves a complete one."""

    def __init__(self, directory: Path):
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=False,
                # This process alone reads and writes: no barrier with others, who never come here.
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=jax.process_index(),
                    active_processes={jax.process_index()},
                    barrier_sync_key_prefix="checkpoints",
                ),
            ),
        )

    def restore(self, template: Any) -> Any | None:
        """The newest state, in the structure of `template`; None if there is none yet."""
        step = self._manager.latest_step()
        if step is None:
            return None
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def save(self, step: int, state: Any) -> None:
        """Writes the state of round `step`; returns when it is on the disk."""
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def claim(workdir: Path, config: dict, may_change: tuple[str, ...]) -> None:
    """Writes the configuration into a new work directory, or checks it against the one there.

    Args:
      workdir: of the run.
      config: nested dictionary.
      may_change: fields that do not alter rounds already done.

    Raises:
      CheckpointMismatchError: names the first field that differs from the run in the directory.
    """
    path = Path(workdir) / "config.json"
    if path.exists():
        before = flatten(json.loads(path.read_text()))
        now = flatten(config)
        for field in sorted(before.keys() | now.keys()):
            old, new = before.get(field, "absent"), now.get(field, "absent")
            if field not in may_change and old != new:
                raise CheckpointMismatchError(
                    f"{workdir} holds a run with config.{field} = {old!r}, this one has {new!r}. "
                    f"Use another --workdir, or delete that one to start over."
                )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, path)


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one with dotted names; sequences as lists."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, (tuple, list)) else value
    return flat
