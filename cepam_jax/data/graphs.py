"""Graphs with a label each: molecules and proteins of the TU collection, and graphs that are made up here.

A graph is an example: its nodes and edges, filled up to those of the largest graph of the data set, and how
many of them are real. In memory an example takes nodes + 4 edges bytes or so of the largest graph (PROTEINS:
9 kB, and 10 MB for all of its 1,113 graphs).
"""

import shlex
from pathlib import Path

import numpy as np

from cepam_jax.data import sources
from cepam_jax.data.examples import Arrays, Examples, examples
from cepam_jax.errors import DataNotPreparedError, DatasetError, require

FOLDS = 10
COLLECTION = ("mutag", "proteins", "nci1")


def read(name: str, data_dir: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a data set's file.

    Args:
      name: of the data set.
      data_dir: holds NAME.npz, or a folder graphs with it.
      keys: arrays that it must have.

    Raises:
      DataNotPreparedError: it is not there, or damaged; says how to get it.
    """
    paths = [Path(data_dir, "graphs", f"{name}.npz"), Path(data_dir, f"{name}.npz")]
    out = shlex.quote(str(paths[0].parent))
    how = (
        f"Get the public files from {_ORIGIN[name]}, make {name}.npz of them with\n"
        f"  python -m experiments.prepare_graphs --name={name} --raw=FOLDER --out={out}\n"
        f"or point --config.data.dir to where it is."
    )
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataNotPreparedError(f"data set {name!r} is not under {data_dir!r} ({name}.npz). {how}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except Exception as error:  # whatever zip files and arrays make of damage
        why = f"{type(error).__name__}: {error}"
        raise DataNotPreparedError(f"{path} cannot be read ({why}). {how}") from error


_COLLECTED = "https://chrsmrrs.github.io/datasets (unpacked)"
_PLANETOID = "https://github.com/kimiyoung/planetoid (its folder data)"
_ORIGIN = {**dict.fromkeys(COLLECTION, _COLLECTED), "cora": _PLANETOID, "citeseer": _PLANETOID}


def padded(arrays: Arrays, name: str) -> tuple[dict[str, np.ndarray], int]:
    """Graphs in a row as arrays with a leading axis [graphs].

    Args:
      arrays: node_labels int[all nodes], edges int[all edges, 2] (numbered inside each graph, both
        directions), nodes_per_graph and edges_per_graph int[graphs], labels int[graphs].
      name: for messages.

    Returns:
      "nodes" uint8[graphs, most nodes], the kind of each node; "edges" uint16[graphs, most edges, 2], from
      and to; "node_count", "edge_count" and "label" int32[graphs]; and the number of kinds.

    Raises:
      DatasetError: they do not fit together; says how.
    """
    check_whole(name, arrays)
    kinds, edges = arrays["node_labels"], arrays["edges"]
    n, m, labels = (np.asarray(arrays[k], np.int64) for k in ("nodes_per_graph", "edges_per_graph", "labels"))
    if not (n.shape == m.shape == labels.shape and n.ndim == 1 and len(n)):
        raise DatasetError(f"{name}: numbers of nodes, edges and labels are not one for each graph")
    if kinds.shape != (n.sum(),) or edges.shape != (m.sum(), 2) or n.min() < 1 or m.min() < 0:
        raise DatasetError(
            f"{name}: {kinds.shape} nodes and {edges.shape} edges, where the graphs say "
            f"{n.sum()} and {m.sum()}"
        )
    graph_of_edge = np.repeat(np.arange(len(n)), m)
    if len(edges) and (edges.min() < 0 or (edges.max(1) >= n[graph_of_edge]).any()):
        raise DatasetError(f"{name}: an edge leads to a node that its graph does not have")
    if kinds.min() < 0 or kinds.max() > 255 or not 0 <= labels.min() <= labels.max() < 2**31:
        raise DatasetError(f"{name}: kinds of nodes must be from 0 to 255, labels from 0 and of 32 bits")
    if n.max() > 65_535:
        raise DatasetError(f"{name}: a graph has {n.max():,} nodes; 65,535 are the most")
    first = (np.cumsum(n) - n)[graph_of_edge][:, None]
    check_undirected(name, edges + first, int(n.sum()))
    most, most_links = int(n.max()), max(1, int(m.max()))
    nodes = np.zeros((len(n), most), np.uint8)
    nodes[np.arange(most) < n[:, None]] = kinds
    links = np.zeros((len(n), most_links, 2), np.uint16)
    links[np.arange(most_links) < m[:, None]] = edges
    found: dict[str, np.ndarray] = {"nodes": nodes, "edges": links, "label": labels.astype(np.int32)}
    found |= {"node_count": n.astype(np.int32), "edge_count": m.astype(np.int32)}
    return found, int(kinds.max()) + 1


def check_whole(name: str, arrays: Arrays) -> None:
    """DatasetError unless the arrays of a data set's file have whole numbers."""
    for key, array in arrays.items():
        if array.dtype.kind not in "iu":
            is_now = f"{array.dtype}{list(array.shape)}"
            raise DatasetError(f"{name}: {key} are {is_now}; they must be whole numbers")


def check_undirected(name: str, edges: np.ndarray, nodes: int) -> None:
    """Raises DatasetError unless edges lead both ways, once each, and to other nodes.

    Args:
      name: of the data set.
      edges: int[edges, 2], of nodes from 0 to nodes - 1.
      nodes: how many there are.
    """
    a, b = np.asarray(edges, np.int64).reshape(-1, 2).T
    forth, back = a * nodes + b, b * nodes + a
    if (a == b).any() or len(np.unique(forth)) < len(forth) or not np.isin(forth, back).all():
        raise DatasetError(
            f"{name}: every edge must be there once in each direction, and none from a node to itself"
        )


def folds_of(labels: np.ndarray) -> np.ndarray:
    """Which of ten folds each graph is held out in: every label in equal parts, by a fixed random order."""
    random = np.random.default_rng(0)
    fold = np.empty(len(labels), int)
    start = 0
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        fold[members] = (start + np.arange(len(members))) % FOLDS
        start += len(members)  # so that folds differ by one graph at most
    return fold


def classified(arrays: Arrays, name: str, fold: int) -> Examples:
    """Examples of `tasks.graphs.graph_classification`, a tenth of them held out.

    Args:
      arrays: as of `padded`.
      name: for messages.
      fold: which tenth, from 0 to 9.

    Raises:
      ConfigError: there is no such fold.
      DatasetError: the arrays do not fit together.
    """
    require(0 <= fold < FOLDS, "config.data.fold", fold, f"from 0 to {FOLDS - 1}, the tenth that is held out")
    whole, kinds = padded(arrays, name)
    test = folds_of(whole["label"]) == fold
    train, held_out = ({k: a[part] for k, a in whole.items()} for part in (~test, test))
    return examples(
        train,
        held_out,
        labels=train["label"],
        sizes=train["node_count"],
        num_classes=int(whole["label"].max()) + 1,
        node_kinds=kinds,
    )


def _collected(name):
    keys = ("node_labels", "edges", "nodes_per_graph", "edges_per_graph", "labels")

    def source(data_dir, *, data):
        return classified(read(name, data_dir, keys), name, data["fold"])

    return source


# Morris, Kriege, Bause, Kersting, Mutzel, Neumann: TUDataset: A collection of benchmark datasets for learning
# with graphs, arXiv 2007.08663.
sources.SOURCES |= {name: _collected(name) for name in COLLECTION}


@sources.register
def motifs(data_dir, *, data) -> Examples:
    """1,000 graphs made up here, no files needed: does a random tree hold a house or a ring of five?

    After BA-2Motifs (Luo, Cheng, Xu, Yu, Zong, Chen, Zhang: Parameterized Explainer for Graph Neural Network,
    arXiv 2011.04573), with recursive random trees of 6 to 24 nodes, all of one kind, in place of
    graphs of Barabasi and Albert. A house is a ring of five with one chord.
    """
    del data_dir
    random = np.random.default_rng(0)
    kinds, edges, n, m, labels = [], [], [], [], []
    for number in range(1000):
        tree, label = int(random.integers(6, 25)), number % 2
        parents = [(child, int(random.integers(0, child))) for child in range(1, tree)]
        ring = [(tree + i, tree + (i + 1) % 5) for i in range(5)]
        links = [*parents, *ring, (int(random.integers(0, tree)), tree)]
        if label:
            links.append((tree + 1, tree + 4))
        names = random.permutation(tree + 5)  # places tell nothing
        both = names[np.array([*links, *((b, a) for a, b in links)])]
        kinds.append(np.zeros(tree + 5, int))
        edges.append(both)
        n.append(tree + 5)
        m.append(len(both))
        labels.append(label)
    arrays = {
        "node_labels": np.concatenate(kinds),
        "edges": np.concatenate(edges),
        "nodes_per_graph": np.array(n),
        "edges_per_graph": np.array(m),
        "labels": np.array(labels),
    }
    return classified(arrays, "motifs", data["fold"])
