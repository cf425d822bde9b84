"""Data sets that TFDS prepared, read without TensorFlow."""

from pathlib import Path
from typing import Any

from cepam_jax.errors import DataNotPreparedError
from cepam_jax.extras import need


def prepared(name: str, data_dir: str, splits: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """The examples of each split of a data set that TFDS prepared, read without TensorFlow.

    Raises:
      DataNotPreparedError: it is not under data_dir, or cannot be read; the message says how to get it.
    """
    # Asked first: without a network TFDS retries a download for minutes before it gives up.
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
            source = tfds.data_source(name, split=split, data_dir=data_dir)
            found.append(list(source.__getitems__(range(len(source)))))
        except Exception as error:
            raise DataNotPreparedError(
                f"data set {name!r} under {data_dir!r} cannot be read ({error}). TensorFlow-free "
                f"reading needs the array_record format. Prepare it again, with a network:\n"
                f"  rm -r {Path(data_dir, name)}; pip install tensorflow\n"
                f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
                f"data_dir={data_dir!r}).download_and_prepare(file_format='array_record')\""
            ) from error
    return found
