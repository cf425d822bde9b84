"""Which device does what: clients of one run, or whole runs, spread over the devices of all processes.

One run: every device trains its share of a round's clients, and the weighted sums are added up over
devices. Several runs: every device trains some of them, without exchange. In both cases each device
holds all images and the whole model.

A program of several processes calls `jax.distributed.initialize` before anything else (the experiment
binaries do, with --distributed); all processes then run the same code on the same configuration, and process
0 alone writes files.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cepam_jax import settings
from cepam_jax.errors import require
from cepam_jax.federated.plan import CLIENTS

RUNS = "runs"

settings.declare(
    "",
    {
        "devices": settings.integer(
            0,
            "A round's clients are spread over so many devices; 0: all.",
            low=0,
            compiled=False,
            resumable=True,
        )
    },
)


class Layout(NamedTuple):
    """What is spread over how many devices; static.

    Attributes:
      axis: `CLIENTS` or `RUNS`.
      devices: how many devices.
      together: runs under one vmap; runs of a device beyond take turns.
    """

    axis: str = CLIENTS
    devices: int = 1
    together: int = 1

    @property
    def mesh(self) -> Mesh | None:
        """The devices as a mesh of one axis; None for one device of one process."""
        if self.devices == 1 and jax.process_count() == 1:
            return None
        return _mesh(self.axis, self.devices)


ONE_DEVICE = Layout()


@functools.lru_cache
def _mesh(axis, count):
    return Mesh(np.array(jax.devices()[:count]), (axis,))


def count(wanted: int) -> int:
    """Devices to use, of all processes together.

    Args:
      wanted: config.devices; 0: all.

    Raises:
      ConfigError: there are not so many, or some would be left out although there are several processes.
    """
    present = len(jax.devices())
    if jax.process_count() > 1:
        require(wanted in (0, present), "config.devices", wanted, f"0 (all {present}) with several processes")
    require(0 <= wanted <= present, "config.devices", wanted, f"at most {present}, the devices at hand")
    return wanted or present


def at_once(asked: int, number: int, present: int, backend: str = "") -> int:
    """How many of a number of clients, or of runs, train at the same time on each device.

    Args:
      asked: what was asked for; 0: one on a CPU, all of the device's share elsewhere.
      number: of clients or runs together.
      present: devices over which they are spread.
      backend: of JAX; by default the one in use.
    """
    share = -(-number // present)  # of one device
    return min(asked or (1 if (backend or jax.default_backend()) == "cpu" else share), share)


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


# One function for all calls: a new one each time would be compiled each time.
_wrap_key = jax.jit(jax.random.wrap_key_data, static_argnames="impl")


def put(tree: Any, mesh: Mesh | None, axis: str | None = None) -> Any:
    """A tree of host arrays (the same in every process) as arrays of the mesh.

    Args:
      tree: arrays, typed PRNG keys too.
      mesh: from `Layout.mesh`; None: the default device.
      axis: the leading axis is cut along this axis of the mesh; None: every device holds everything.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def place(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(np.asarray(jax.random.key_data(leaf)))
            return _wrap_key(words, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def broadcast_text(text: str) -> str:
    """What text process 0 holds, in every process."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    length = int(broadcast(np.uint32([data.size]))[0])
    words = np.zeros(-(-length // 4), np.uint32)
    if is_main():
        words.view(np.uint8)[:length] = data
    return broadcast(words).view(np.uint8)[:length].tobytes().decode() if length else ""


def broadcast(tree: Any) -> Any:
    """What process 0 holds, in every process: host arrays of the same shapes.

    Args:
      tree: numpy arrays of 4 bytes per element; those of other processes count as shapes alone.
    """
    if jax.process_count() == 1:
        return tree
    mesh = _mesh(CLIENTS, len(jax.devices()))
    rows = NamedSharding(mesh, PartitionSpec(CLIENTS))
    add = jax.jit(lambda a: a.sum(0, dtype=a.dtype), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def one(leaf):
        # As integers, which sums of zeros leave as they are: f32 would lose the sign of a zero.
        leaf = np.asarray(leaf)
        words = np.frombuffer(leaf.tobytes(), np.uint32)

        def row(index):
            mine = is_main() and (index[0].start or 0) == 0
            return (words if mine else np.zeros_like(words))[None]

        shape = (mesh.devices.size, *words.shape)
        total = np.asarray(add(jax.make_array_from_callback(shape, rows, row)))
        return total.view(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(one, tree)
