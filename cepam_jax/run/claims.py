"""Which run a work directory belongs to."""

import json
from pathlib import Path

from cepam_jax import settings
from cepam_jax.errors import CheckpointDamagedError, CheckpointMismatchError
from cepam_jax.run.checkpoints import Checkpoints


def check_claim(workdir: Path, config: dict, may_change: tuple[str, ...], store: Checkpoints) -> str:
    """Checks that a work directory is new, or that of the same run; writes nothing.

    Args:
      workdir: of the run.
      config: nested dictionary.
      may_change: fields that do not alter rounds already done.
      store: its checkpoints, which hold the configuration too, in case config.json is lost or altered.

    Returns:
      What is wrong with config.json and will be mended by writing it again, in words; "" if nothing is.

    Raises:
      CheckpointMismatchError: names the first field that differs from the run in the directory.
      CheckpointDamagedError: config.json is lost or cannot be read, and no checkpoint holds a configuration.
    """
    path = Path(workdir) / "config.json"
    saved = store.config()
    found, wrong = [] if saved is None else [saved], ""
    try:
        claimed = json.loads(path.read_bytes())
        if isinstance(claimed, dict) and claimed:
            found.append(claimed)
        else:
            wrong = "is an empty object" if claimed == {} else "is not an object"
    except FileNotFoundError:
        wrong = "is lost" if store.rounds() else ""
    except (ValueError, RecursionError) as error:
        wrong = f"is not JSON ({error})"
    if wrong and not found:
        raise CheckpointDamagedError(
            f"{path} {wrong}, and no checkpoint says which run this directory holds. Put an intact copy "
            f"there, or delete {workdir} to train again from the beginning."
        )
    now = flatten(config)
    usual = flatten(json.loads(settings.defaults().to_json()))  # a field that is newer than the run
    for before in map(flatten, found):
        for field in sorted(before.keys() | now.keys()):
            old, new = (tree.get(field, usual.get(field, "absent")) for tree in (before, now))
            if field not in may_change and old != new:
                raise CheckpointMismatchError(
                    f"{workdir} holds a run with config.{field} = {old!r}, this one has {new!r}. "
                    f"Use another --workdir, or delete that one to start over."
                )
    return wrong and f"config.json {wrong}; it is written again"


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one with dotted names; sequences as lists."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, (tuple, list)) else value
    return flat
