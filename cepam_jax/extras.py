"""What is installed: the quantizer needs little, training and data sets need more, and say so in one line.

`pip install cepam_jax` brings what `mechanisms`, `wire` and `theory` need; everything else is an extra.
"""

from importlib import util

from cepam_jax.errors import MissingExtraError

# Extra -> the modules that the package imports because of it; pyproject.toml says what brings them.
EXTRAS = {
    "train": ("dp_accounting", "flax", "matplotlib", "ml_collections", "optax", "orbax", "tqdm"),
    "data": ("networkx", "sklearn", "tensorflow_datasets"),
    "audit": ("jax_privacy",),
    "deploy": ("cryptography", "flwr"),
}


def need(who: str, extra: str, *modules: str) -> None:
    """Checks that modules of an extra are there, before any of them is imported.

    Args:
      who: what needs them, for the message.
      extra: its name.
      *modules: those that are needed; by default all of the extra.

    Raises:
      MissingExtraError: names those that are missing and the command that installs them.
    """
    missing = [name for name in modules or EXTRAS[extra] if util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{who} needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed. Install what it needs with\n"
            f'  pip install "cepam_jax[{extra}]"'
        )
