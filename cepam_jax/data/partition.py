"""Which client holds which example. Every example belongs to exactly one client."""

import functools
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError, is_number, is_whole, require, require_choice

WITHOUT_LABELS = ("iid", "quantity")  # kinds that read none


class Partition(NamedTuple):
    """Ragged client data as a padded table.

    Attributes:
      indices: int32[clients, most]: example numbers; row k counts up to counts[k], then repeats
        its first entry as padding.
      counts: int32[clients]: examples per client, each at least 1.
      holders: the most clients that hold examples of one owner; 1 where the data name no owners.
    """

    indices: np.ndarray
    counts: np.ndarray
    holders: int = 1

    def client(self, k: int) -> np.ndarray:
        """Example numbers of client k."""
        return self.indices[k, : self.counts[k]]


def partition(labels, kind: str, num_clients: int, seed: int, examples: int = 0, **options) -> Partition:
    """Splits examples over clients.

    Args:
      labels: int[examples]; the owners where the kind is "natural", the sizes where it is "by_size"; None
        where there are none.
      kind: one of `KINDS`.
      num_clients: K, at most the number of examples.
      seed: of this split alone.
      examples: their number, where labels are None.
      **options: `alpha`, `shards_per_client` or `exponent`, as the kind needs.

    Returns:
      A Partition in which every client has at least one example.

    Raises:
      ConfigError: impossible values.
    """
    require_choice("config.partition.kind", kind, KINDS)
    if labels is None and kind in WITHOUT_LABELS:
        labels = np.zeros(examples, np.int32)
    if labels is None:
        what = {"natural": "owners", "by_size": "sizes"}.get(kind, "labels")
        raise ConfigError(f"config.partition.kind is {kind!r}, but the data set has no {what}; use 'iid'")
    labels = np.asarray(labels)
    most = f"at least 1 and at most {len(labels)}, the examples"
    require(1 <= num_clients <= len(labels), "config.num_clients", num_clients, most)
    parts = KINDS[kind](labels, num_clients, np.random.default_rng(seed), **options)
    counts = np.array([len(part) for part in parts], np.int32)
    if counts.min() == 0:
        raise ConfigError(
            f"config.partition.kind {kind!r} leaves {np.sum(counts == 0)} of {num_clients} clients without "
            f"data; use fewer clients, a larger alpha or another seed"
        )
    indices = np.stack([np.concatenate([part, np.full(counts.max() - len(part), part[0])]) for part in parts])
    return Partition(indices.astype(np.int32), counts)


def _iid(labels, num_clients, rng):
    """Equal random shares (sizes differ by one at most)."""
    return np.array_split(rng.permutation(len(labels)), num_clients)


def _dirichlet(labels, num_clients, rng, alpha):
    """Each label's examples shared out by a draw from Dirichlet(alpha) (1909.06335).

    Redrawn, up to 100 times, while some client is empty.
    """
    require(is_number(alpha) and 0 < alpha < np.inf, "config.partition.alpha", alpha, "positive and finite")
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(100):
        parts: list = [[] for _ in range(num_clients)]
        for members in classes:
            shares = rng.dirichlet(np.full(num_clients, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(rng.permutation(members), cuts), strict=True):
                part.append(piece)
        parts = [np.concatenate(part) for part in parts]
        if min(map(len, parts)):
            break
    return parts


def _shards(labels, num_clients, rng, shards_per_client):
    """Sorted by label, cut into equal shards, `shards_per_client` to each client (1602.05629)."""
    require(
        is_whole(shards_per_client) and 1 <= shards_per_client <= len(labels) // num_clients,
        "config.partition.shards_per_client",
        shards_per_client,
        f"between 1 and {len(labels) // num_clients}, the examples per client",
    )
    number = num_clients * shards_per_client
    shuffled = rng.permutation(len(labels))  # so that shards of one label are random
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, number)
    order = rng.permutation(number).reshape(num_clients, shards_per_client)
    return [np.concatenate([shards[i] for i in row]) for row in order]


def _quantity(labels, num_clients, rng, exponent):
    """Random examples, sizes by a power law: client of rank k gets a share ~ k^-exponent."""
    good = is_number(exponent) and 0 <= exponent < np.inf
    require(good, "config.partition.exponent", exponent, "0 or more, and finite")
    shares = np.arange(1, num_clients + 1.0) ** -exponent
    # One example each first, the rest by share: nobody is empty however steep the law.
    spare = len(labels) - num_clients
    cuts = np.round(np.cumsum(shares / shares.sum()) * spare).astype(int) + np.arange(1, num_clients + 1)
    parts = np.split(rng.permutation(len(labels)), cuts[:-1])
    return [parts[i] for i in rng.permutation(num_clients)]


def _natural(owners, num_clients, rng):
    """To each owner what is theirs; of more owners than clients a random choice, in increasing order."""
    present, owner = np.unique(owners, return_inverse=True)
    most = f"at most {len(present)}, the owners in the data set"
    require(num_clients <= len(present), "config.num_clients", num_clients, most)
    order, sizes = np.argsort(owner, kind="stable"), np.bincount(owner)
    theirs = np.split(order, np.cumsum(sizes)[:-1])
    chosen = np.sort(rng.permutation(len(present))[:num_clients])
    return [theirs[k] for k in chosen]


def _by_size(sizes, num_clients, rng):
    """Sorted by size and cut into equal parts: the first client has the smallest examples."""
    shuffled = rng.permutation(len(sizes))  # so that which of one size lie on either side of a cut is random
    return np.array_split(shuffled[np.argsort(sizes[shuffled], kind="stable")], num_clients)


KINDS: dict[str, Callable[..., list]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "quantity": _quantity,
    "natural": _natural,
    "by_size": _by_size,
}
OPTIONS = {"dirichlet": "alpha", "shards": "shards_per_client", "quantity": "exponent"}

_FREE = {"compiled": False}
settings.declare(
    "partition",
    {
        "kind": settings.choice(
            "iid",
            "How examples are spread over clients; natural: each owner is a client; by_size: in the order of "
            "their sizes.",
            KINDS,
            **_FREE,
        ),
        "alpha": settings.positive(0.3, "Of dirichlet: smaller is more unequal.", **_FREE),
        "shards_per_client": settings.integer(
            2, "Of shards: pieces of sorted data for each client.", **_FREE
        ),
        "exponent": settings.not_negative(
            1.0, "Of quantity: the k-th client's size is proportional to k^-exponent.", **_FREE
        ),
    },
    "Who holds which examples.",
)


def of_config(config, labels, owners, examples: int, sizes=None) -> Partition:
    """The partition that a configuration asks for, of data with these labels, owners and sizes (or None)."""
    kind = config.partition.kind
    options = {OPTIONS[kind]: config.partition[OPTIONS[kind]]} if kind in OPTIONS else {}
    by = {"natural": owners, "by_size": sizes}.get(kind, labels)
    found = partition(by, kind, config.num_clients, config.seeds.partition, examples, **options)
    return found if owners is None else found._replace(holders=holders(found, owners))


def holders(split: Partition, owners: np.ndarray) -> int:
    """The most clients that hold examples of one owner.

    Args:
      split: who holds which example.
      owners: int[examples], whose each is.
    """
    clients = np.repeat(np.arange(len(split.counts)), split.counts)
    held = np.concatenate([split.client(k) for k in range(len(split.counts))])
    pairs = np.unique(np.stack([owners[held], clients]), axis=1)
    return int(np.unique(pairs[0], return_counts=True)[1].max())


def histogram(labels, split: Partition, num_classes: int) -> np.ndarray:
    """int[clients, classes]: how many examples of each label each client holds."""
    return np.stack(
        [
            np.bincount(np.asarray(labels)[split.client(k)], minlength=num_classes)
            for k in range(len(split.counts))
        ]
    )


def summary(table: np.ndarray) -> str:
    """A few lines on who holds what, from a `histogram`."""
    sizes = table.sum(axis=1)
    shares = table / sizes[:, None]
    overall = table.sum(axis=0) / table.sum()
    distance = 0.5 * np.abs(shares - overall).sum(axis=1)
    return (
        f"{len(table)} clients, {sizes.sum():,} examples: {sizes.min():,} to {sizes.max():,} a client "
        f"(median {np.median(sizes):,.0f})\n"
        f"labels a client holds: {(table > 0).sum(axis=1).min()} to {(table > 0).sum(axis=1).max()} "
        f"of {table.shape[1]}; distance to the overall label shares (total variation): "
        f"mean {distance.mean():.2f}, largest {distance.max():.2f}"
    )


def _figure():
    """matplotlib's Figure, also where a notebook's variable names a backend that is not installed here."""
    try:
        importlib.import_module("matplotlib")
    except ValueError:
        # The backend is for windows; nothing here opens one. What a failed import leaves behind goes with it.
        del os.environ["MPLBACKEND"]
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]
    return importlib.import_module("matplotlib.figure").Figure  # slow to import, and not needed to train


def plot(table: np.ndarray, path: Path) -> None:
    """Draws the label histogram of every client as a heat map (PNG)."""
    Path(path).write_bytes(_picture(table.tobytes(), table.dtype.str, table.shape))


@functools.lru_cache(maxsize=8)  # the runs of a sweep over anything but the seed have one partition
def _picture(words: bytes, kind: str, shape: tuple[int, int]) -> bytes:
    """The PNG of a table of numbers of this kind, given by its bytes."""
    Figure, table = _figure(), np.frombuffer(words, kind).reshape(shape)
    clients, classes = shape
    figure = Figure(figsize=(5, min(10, 2 + 0.16 * clients)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, cmap="Greys", aspect="auto", interpolation="nearest", vmin=0)
    axes.set(xlabel="label", ylabel="client", title="Examples held by each client")
    axes.set_xticks(range(classes))
    figure.colorbar(image, label="examples")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()
