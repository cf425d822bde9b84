"""Data sets that TFDS prepared, read without TensorFlow."""

import shlex
from pathlib import Path
from typing import Any

from cepam_jax.errors import DataNotPreparedError
from cepam_jax.extras import need


def prepared(name: str, data_dir: str, splits: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """The examples of each split of a data set that TFDS prepared, read without TensorFlow.

    Raises:
      DataNotPreparedError: it is not under data_dir, or cannot be read; the message says how to get it.
    """
    # Asked first, as the answer to a data set that was never prepared.
    if not list(Path(data_dir, name).glob("*/dataset_info.json")):
        raise DataNotPreparedError(
            f"data set {name!r} is not prepared under {data_dir!r}. Prepare it once, with a network:\n"
            f"  pip install tensorflow\n"
            f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
            f"data_dir={data_dir!r}).download_and_prepare(file_format='array_record')\"\n"
            f"or point --config.data.dir (or TFDS_DATA_DIR) to where it is."
        )
    need(f"data set {name!r}", "data", "tensorflow_datasets")
    import tensorflow_datasets as tfds  # noqa: PLC0415  seconds, needed here alone

    found = []
    for split in splits:
        try:
            # No download: without a network TFDS retries for minutes, and what it gets needs TensorFlow.
            source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
            found.append(list(source.__getitems__(range(len(source)))))
        except Exception as error:
            folder = Path(data_dir, name)
            versions = ", ".join(sorted(path.parent.name for path in folder.glob("*/dataset_info.json")))
            aside = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}.unread')}"
            raise DataNotPreparedError(
                f"data set {name!r} under {data_dir!r}, versions {versions}, cannot be read ({error}). "
                f"Reading without TensorFlow needs the array_record format, of the version that this "
                f"tensorflow-datasets has. Prepare it again, with a network:\n"
                f"  {aside}; pip install tensorflow\n"
                f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
                f"data_dir={data_dir!r}).download_and_prepare(file_format='array_record')\""
            ) from error
    return found
