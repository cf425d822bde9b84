"""Updates of clients along runs of FedAvg, for figures that ask what messages of them cost."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cepam_jax import tasks
from cepam_jax.data import sources
from cepam_jax.federated import make_local_update
from cepam_jax.run import build
from configs import cifar10, digits, graphs, hospitals, mnist, shakespeare


class Setting(NamedTuple):
    """Data and model, and when updates are taken.

    Attributes:
      config: (variant) -> configuration.
      model: the network; "" as the configuration says.
      clients: those who take part in each round: the first ones.
      taken: numbers of the rounds before which updates are taken.
      clip: norm to which updates are clipped before they are sent.
    """

    config: Callable
    model: str
    clients: int
    taken: tuple[int, ...]
    clip: float = 1.0


def _graphs(data: str):
    return lambda variant: graphs.get_config(f"{data}-{variant}")


SETTINGS = {
    "digits mlp": Setting(digits.get_config, "mlp", 10, (0, 5, 30)),
    "mnist mlp": Setting(mnist.get_config, "mlp", 10, (0, 5, 30)),
    "mnist cnn2": Setting(mnist.get_config, "cnn2", 10, (0, 5, 15)),
    "cifar10 cnn3": Setting(cifar10.get_config, "cnn3", 6, (0, 3)),
    "shakespeare": Setting(shakespeare.get_config, "", 6, (0, 5, 20)),
    "motifs": Setting(_graphs("motifs"), "", 10, (0, 5, 30)),
    "mutag": Setting(_graphs("mutag"), "", 10, (0, 5, 30)),
    "proteins": Setting(_graphs("proteins"), "", 10, (0, 5)),
    "cora": Setting(_graphs("cora"), "", 5, (0, 5, 30), 0.3),
    "hospitals": Setting(hospitals.get_config, "", 8, (0, 5, 30)),
}


class Taken(NamedTuple):
    """The updates of one round.

    Attributes:
      round: its number.
      updates: f32[clients, d], not clipped.
      names: paths of the tensors, in the order in which they lie in an update.
      shapes: their shapes.
    """

    round: int
    updates: jax.Array
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of the tensors."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def last_kernel(self) -> str:
        """Path of the network's last kernel."""
        return [name for name in self.names if name.endswith("kernel")][-1]


def updates(name: str, data_dir: str) -> Iterator[Taken]:
    """The updates of some rounds along a run of FedAvg with weights all alike.

    Args:
      name: one of `SETTINGS`.
      data_dir: as config.data.dir.
    """
    setting = SETTINGS[name]
    config = setting.config("fedavg")
    config.model, config.data.dir = setting.model or config.model, data_dir
    if config.partition.kind != "natural":
        config.num_clients = setting.clients
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    arrays = build.client_arrays(config, build.split_of(config, data))
    arrays = arrays._replace(examples=data.train, constants=data.constants)
    arrays = jax.tree.map(jnp.asarray, arrays)
    task = tasks.TASKS[config.task](config, data.specification)
    model = task.initialize(jax.random.key(0))
    paths, _ = jax.tree_util.tree_flatten_with_path(model.params)
    names = tuple("/".join(str(part.key) for part in path) for path, _ in paths)
    shapes = tuple(leaf.shape for _, leaf in paths)
    local_update = jax.jit(make_local_update(task, build.training_of(config)).run)
    flat, unravel = ravel_pytree(model.params)
    for number in range(max(setting.taken) + 1):
        found = []
        for k in range(setting.clients):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), k)
            start = model._replace(params=unravel(flat))
            found.append(local_update(start, arrays, k, key, None, number).update)
        found = jnp.stack(found)
        if number in setting.taken:
            yield Taken(number, found, names, shapes)
        flat = flat + found.mean(0)
