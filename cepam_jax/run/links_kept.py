"""The links of a run whose file may change: a copy in its work directory, checked when the run goes on.

Who is late decides what the model becomes, so a run that continues with other links would be another run.
"""

from pathlib import Path

import numpy as np

from cepam_jax import files
from cepam_jax.errors import CheckpointMismatchError
from cepam_jax.federated import links
from cepam_jax.run.checkpoints import begun

_COPY = "links.csv"
_COLUMNS = ("up", "down", "latency", "compute")


def text_of(config) -> str:
    """The links that come from a file, as a CSV file that gives the same numbers; "" for others."""
    if config.links.name != "file":
        return ""
    found = links.of_config(config)
    assert found is not None
    rows = zip(*(np.asarray(getattr(found, name)).tolist() for name in _COLUMNS), strict=True)
    return "\n".join([",".join(_COLUMNS), *(",".join(map(repr, row)) for row in rows)]) + "\n"


def check(config, workdir: Path) -> str:
    """`text_of` a configuration, which is that of the run in a work directory, if there is one.

    Raises:
      CheckpointMismatchError: the run there had other links.
      ConfigError: the file cannot be read.
    """
    text, path = text_of(config), workdir / _COPY
    if text and begun(workdir) and not path.is_file():
        raise CheckpointMismatchError(
            f"{workdir} holds a run whose {path.name}, the links that it began with, is gone: nobody knows "
            "whether they are those of the file now. Put it back, or use another --workdir; nothing was "
            "changed."
        )
    if text and path.is_file() and path.read_text() != text:
        raise CheckpointMismatchError(
            f"{workdir} holds a run on other links than {config.links.file} says now: its {path.name} has "
            "those of the run. Use another --workdir; nothing was changed."
        )
    return text


def write(text: str, workdir: Path) -> None:
    """Keeps what `check` found; OSError names the path."""
    if text:
        files.write(workdir / _COPY, text)
