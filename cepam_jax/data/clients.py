"""The clients of a federation that is put together in Python: arrays, and who holds which example."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.data import examples as example_sets
from cepam_jax.data import partition as partitions
from cepam_jax.data.examples import Arrays, Examples, number_of
from cepam_jax.data.partition import Partition
from cepam_jax.errors import ConfigError, DatasetError, is_whole, require, require_choice


class Clients(NamedTuple):
    """Examples and whose they are; all on the host.

    Attributes:
      examples: name -> array [examples, ...].
      split: who holds which of them.
      constants: arrays that every batch is seen with, without a leading axis.
      owners: name of each client, where the examples have owners; None: they are numbered.
      kind: of the partition, one of `partition.KINDS`.
    """

    examples: Arrays
    split: Partition
    constants: Arrays
    owners: np.ndarray | None = None
    kind: str = "iid"

    @property
    def number(self) -> int:
        """How many clients there are."""
        return len(self.split.counts)

    @property
    def holders(self) -> np.ndarray:
        """int32[examples], which client holds each example."""
        holder = np.full(number_of(self.examples), self.number, np.int32)
        for client in range(self.number):
            holder[self.split.client(client)] = client
        return holder

    def client_of(self, owners) -> np.ndarray:
        """int32[examples]: which client each owner is; `number` where it is none.

        Raises:
          ConfigError: the clients have no owners.
        """
        if self.owners is None:
            raise ConfigError("owners are given, but these clients have none: cepam.clients(owners=...)")
        known = {owner: client for client, owner in enumerate(self.owners.tolist())}
        return np.array([known.get(owner, self.number) for owner in np.asarray(owners).tolist()], np.int32)

    def owners_of(self, examples: Arrays, owners) -> np.ndarray:
        """int32[examples], which client owns each of some other examples.

        Raises:
          ConfigError: as for `client_of`; no owner is a client's, as where their type is another one.
        """
        found, number = self.client_of(owners), number_of(examples)
        require(found.shape == (number,), "shape of owners", found.shape, f"({number},), one per example")
        assert self.owners is not None
        few = np.unique(owners)[:3].tolist()
        some = bool((found < self.number).any())
        require(some, "owners", few, f"those of clients, such as {self.owners[:3].tolist()}")
        return found


def clients(
    examples: Mapping[str, Any],
    owners: Any = None,
    partition: str = "",
    number: int = 0,
    labels: Any = None,
    constants: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Clients:
    """Clients that hold these examples.

    Args:
      examples: name -> array [examples, ...], of NumPy or JAX. 64-bit numbers become 32-bit ones.
      owners: [examples], whose each example is: integers or strings. Each owner is a client, in sorted order.
      partition: without owners, how the examples are spread; one of `partition.KINDS`, by default "iid".
      number: without owners, how many clients there are.
      labels: int[examples], by which the kinds "dirichlet" and "shards" divide, and for "by_size" the sizes;
        "iid" and "quantity" read none.
      constants: arrays that every batch is seen with, such as the mean of the inputs.
      seed: of the partition alone.
      **options: `alpha`, `shards_per_client` or `exponent`, as the kind needs.

    Raises:
      DatasetError: an array does not fit; names it.
      ConfigError: owners and a partition, or neither; impossible values.
    """
    if not isinstance(examples, Mapping):
        raise DatasetError(f"examples are a {type(examples).__name__}; they must be a dictionary of arrays")
    for name, value in (("number", number), ("seed", seed)):
        fits = is_whole(value) and value >= 0
        require(fits, name, value, "a whole number of at least 0")
    if (owners is None) == (number == 0):
        raise ConfigError("clients(...) needs either owners=, one per example, or number=, of clients")
    arrays = arrays_of(examples)
    if owners is not None:
        if partition not in ("", "natural") or options:
            raise ConfigError("clients(owners=...) has each owner as a client; leave partition= out")
        names, labels = _owners(owners, len(next(iter(arrays.values()), ())))
        kind, number = "natural", len(names)
    else:
        names, kind = None, partition or "iid"
        require_choice("partition", kind, sorted(partitions.KINDS.keys() - {"natural"}))
        labels = None if labels is None else np.asarray(labels)
        needed = partitions.OPTIONS.get(kind)
        if options.keys() != ({needed} if needed else set()):
            raise ConfigError(
                f"clients(partition={kind!r}) takes {f'the option {needed}=' if needed else 'no options'}; "
                f"given are: {', '.join(sorted(options)) or 'none'}"
            )
        if labels is None and kind not in partitions.WITHOUT_LABELS:
            raise ConfigError(f"clients(partition={kind!r}) needs labels=, a whole number for each example")
    whole = Examples(arrays, arrays, arrays_of(constants or {}), labels=labels)
    checked = example_sets.check(whole)
    split = partitions.partition(checked.labels, kind, number, seed, number_of(checked.train), **options)
    return Clients(checked.train, split, checked.constants, names, kind)


def arrays_of(given: Mapping[str, Any]) -> Arrays:
    """Arrays of JAX as those of NumPy; everything else as it is, to be checked."""
    return {name: np.asarray(a) if isinstance(a, jax.Array) else a for name, a in given.items()}


def _owners(owners, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(the different owners in sorted order, int32[examples] which of them each example's is)."""
    owners = np.asarray(owners)
    if owners.shape != (number,) or owners.dtype.kind not in "iuSU":
        raise DatasetError(
            f"owners are {owners.dtype}{list(owners.shape)}; they must be {number} integers or strings, one "
            f"per example"
        )
    names, owner = np.unique(owners, return_inverse=True)
    return names, owner.astype(np.int32)
