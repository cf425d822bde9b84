"""Makes the graph data sets' files from the public ones, which are downloaded by hand.

  python -m experiments.prepare_graphs --name=mutag --raw=MUTAG --out=FOLDER/graphs
  python -m experiments.prepare_graphs --name=cora --raw=planetoid/data --out=FOLDER/graphs

MUTAG, PROTEINS and NCI1: the unpacked folder of https://chrsmrrs.github.io/datasets (NAME_A.txt and others,
the format of 2007.08663). Cora and CiteSeer: the folder data of https://github.com/kimiyoung/planetoid
(ind.cora.x and others, 1603.08861). Then say --config.data.dir=FOLDER.
"""

import os
import pickle
from pathlib import Path

import numpy as np
from absl import flags

from cepam_jax.data.graphs import padded
from cepam_jax.errors import DataNotPreparedError, DatasetError
from experiments import cli

COLLECTION = {"mutag": "MUTAG", "proteins": "PROTEINS", "nci1": "NCI1"}
CITATIONS = ("cora", "citeseer")
# What the whole files have: graphs, nodes and edges in both directions; nodes and labelled ones. A file that
# was cut at the end of a line is a file like another.
PUBLISHED = {
    "mutag": (188, 3371, 7442),
    "proteins": (1113, 43471, 162088),
    "nci1": (4110, 122747, 265506),
    "cora": (2708, 2708),
    "citeseer": (3327, 3312),
}
# All that the pickled files of Planetoid are made of; anything else in a pickle is not loaded.
_ALLOWED = {
    ("collections", "defaultdict"),
    ("__builtin__", "list"),
    ("builtins", "list"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"a file of Planetoid does not hold {module}.{name}")
        if module == "numpy.core.multiarray":
            return getattr(np._core.multiarray, name)
        if module == "scipy.sparse.csr":
            module = "scipy.sparse"
        return super().find_class(module, name)


def collected(raw: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a data set in the format of the TU collection.

    Args:
      raw: folder with NAME_A.txt (pairs of nodes, from 1), NAME_graph_indicator.txt, NAME_graph_labels.txt
        and NAME_node_labels.txt.
      name: as the files have it.

    Returns:
      As `data.graphs.padded` takes them; labels and kinds are numbered from 0 in increasing order.
    """

    def numbers(what):
        return np.loadtxt(raw / f"{name}_{what}.txt", delimiter=",", dtype=np.int64, ndmin=1)

    graph = numbers("graph_indicator") - 1
    _, labels = np.unique(numbers("graph_labels"), return_inverse=True)
    _, kinds = np.unique(numbers("node_labels"), return_inverse=True)
    edges = numbers("A").reshape(-1, 2) - 1
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)  # both directions, once each
    edges = edges[edges[:, 0] != edges[:, 1]]
    of_graph = graph[edges[:, 0]]
    order = np.argsort(of_graph, kind="stable")
    nodes = np.bincount(graph, minlength=len(labels))
    first = np.cumsum(nodes) - nodes
    return {
        "node_labels": kinds.astype(np.uint8),
        "edges": (edges - first[of_graph][:, None])[order].astype(np.int32),
        "nodes_per_graph": nodes.astype(np.int32),
        "edges_per_graph": np.bincount(of_graph, minlength=len(labels)).astype(np.int32),
        "labels": labels.astype(np.int8),
    }


def citations(raw: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a citation graph in Planetoid's format.

    Args:
      raw: folder with ind.NAME.allx and others.
      name: "cora" or "citeseer".

    Returns:
      "feature_rows", "feature_cols" int32 (of ones), "shape" (nodes, features), "labels" int32[nodes], -1 for
      nodes of which the files say nothing, and "edges" int32[edges, 2], both directions, without loops.
    """

    def part(what):
        with (raw / f"ind.{name}.{what}").open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()

    numbers = np.loadtxt(raw / f"ind.{name}.test.index", dtype=np.int64)
    known, tested = part("allx").tocoo(), part("tx").tocoo()
    nodes = int(numbers.max()) + 1
    labels = np.full(nodes, -1, np.int32)
    for where, one_hot in ((np.arange(known.shape[0]), part("ally")), (numbers, part("ty"))):
        labels[where] = np.where(one_hot.sum(1) > 0, one_hot.argmax(1), -1)
    pairs = [(a, b) for a, others in part("graph").items() for b in others if a != b]
    edges = np.array(sorted({*pairs, *((b, a) for a, b in pairs)}), np.int32)
    rows = np.concatenate([known.row, numbers[tested.row]])
    return {
        "feature_rows": rows.astype(np.int32),
        "feature_cols": np.concatenate([known.col, tested.col]).astype(np.int32),
        "shape": np.array([nodes, known.shape[1]], np.int32),
        "labels": labels,
        "edges": edges,
    }


def check(name: str, arrays: dict[str, np.ndarray], raw: Path) -> None:
    """Raises DataNotPreparedError unless a data set has the published numbers of graphs, nodes and edges."""
    if name in COLLECTION:
        try:
            padded(arrays, name)
        except DatasetError as error:
            raise DataNotPreparedError(f"--raw={raw} does not hold whole files: {error}") from error
        found = tuple(len(arrays[key]) for key in ("labels", "node_labels", "edges"))
    else:
        found = (int(arrays["shape"][0]), int(np.sum(arrays["labels"] >= 0)))
    if found != PUBLISHED[name]:
        what = "graphs, nodes and edges" if name in COLLECTION else "nodes and labelled nodes"
        raise DataNotPreparedError(
            f"--raw={raw} does not hold the whole files of {name!r}: they have {found} {what}, "
            f"the published ones {PUBLISHED[name]}"
        )


def define_flags():
    flags.DEFINE_string("name", "mutag", f"Data set, of {', '.join((*COLLECTION, *CITATIONS))}.")
    flags.DEFINE_string("raw", None, "Folder of the public files.", required=True)
    flags.DEFINE_string("out", None, "Folder for NAME.npz.", required=True)


def main():
    f = flags.FLAGS
    cli.choice("name", (*COLLECTION, *CITATIONS))
    raw, out = Path(f.raw).expanduser(), Path(f.out).expanduser()
    try:
        arrays = citations(raw, f.name) if f.name in CITATIONS else collected(raw, COLLECTION[f.name])
    except (OSError, ValueError, LookupError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise DataNotPreparedError(
            f"--raw={raw} does not hold the public files of {f.name!r}: {error}"
        ) from error
    check(f.name, arrays, raw)
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f"{f.name}.tmp.npz"
    np.savez_compressed(unfinished, **arrays)
    os.replace(unfinished, out / f"{f.name}.npz")
    sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
    print(f"{out / f'{f.name}.npz'}: {sizes}")


if __name__ == "__main__":
    cli.run(main, define_flags)
