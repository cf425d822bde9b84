"""Federated learning where one quantizer gives both compression and differential privacy.

  import cepam_jax as cepam

  cepam.mechanisms, cepam.wire         the quantizers and their messages as bytes: `pip install cepam_jax`
  cepam.Federation, cepam.clients, cepam.tasks, cepam.federated, cepam.privacy
                                       training in Python: `pip install "cepam_jax[train]"`
  cepam.defaults, cepam.train, cepam.train_many
                                       training from a configuration, into a work directory: the same

Names are imported when they are first used, so that the quantizer alone needs no library for training.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cepam_jax import federated, mechanisms, privacy, tasks, wire
    from cepam_jax.data.clients import clients
    from cepam_jax.run.config import defaults
    from cepam_jax.run.training import train, train_many
    from cepam_jax.simulation import Federation

__all__ = [
    "Federation",
    "clients",
    "defaults",
    "federated",
    "mechanisms",
    "privacy",
    "tasks",
    "train",
    "train_many",
    "wire",
]

# Name -> the module that defines it; every other name of `__all__` is a module itself.
_HOMES = {
    "Federation": "cepam_jax.simulation",
    "clients": "cepam_jax.data.clients",
    "defaults": "cepam_jax.run.config",
    "train": "cepam_jax.run.training",
    "train_many": "cepam_jax.run.training",
}


def __getattr__(name: str):
    """A public name, imported now; MissingExtraError says what to install where a library is missing."""
    if name not in __all__:
        raise AttributeError(f"module 'cepam_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = importlib.import_module(_HOMES.get(name, f"cepam_jax.{name}"))
    value = getattr(home, name) if name in _HOMES else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
