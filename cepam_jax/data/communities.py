"""Citation graphs cut into communities, one for each client; the edges between communities are lost.

A client's whole subgraph is one example: its nodes, the edges inside, and the labels of the nodes that count;
so a client has one training and one test example, which differ in these labels alone. Were a node the
example, what it gives would depend on its neighbours' features, and a clipped gradient of one would bound the
part of none.
"""

import numpy as np

from cepam_jax.data import sources
from cepam_jax.data.examples import Examples, examples
from cepam_jax.data.graphs import check_undirected, check_whole, read
from cepam_jax.errors import DatasetError, require
from cepam_jax.extras import need

CLIENTS = 5
# FederatedScope's split: so many nodes of each label are trained on, so many others are left for validation
# (and unused here), and the rest are for the test.
SPLITS = {"cora": (232, 542), "citeseer": (332, 665)}
_KEYS = ("feature_rows", "feature_cols", "shape", "labels", "edges")


def communities_of(edges: np.ndarray, nodes: int, parts: int) -> np.ndarray:
    """Which of a few parts each node is in: communities by Louvain's method, put together to equal parts.

    Blondel, Guillaume, Lambiotte, Lefebvre: Fast unfolding of communities in large networks, arXiv 0803.0476,
    by networkx with seed 0. The largest community comes first, each to the part with the fewest nodes so far.

    Args:
      edges: int[edges, 2].
      nodes: how many there are.
      parts: how many parts.

    Returns:
      int32[nodes], from 0 to parts - 1.
    """
    need("a graph over communities", "data", "networkx")
    import networkx as nx  # noqa: PLC0415  half a second, needed here alone

    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges.tolist())
    found = nx.community.louvain_communities(graph, seed=0)
    part, sizes = np.empty(nodes, np.int32), np.zeros(parts, int)
    for community in sorted(found, key=lambda c: (-len(c), min(c))):
        chosen = int(sizes.argmin())
        part[list(community)] = chosen
        sizes[chosen] += len(community)
    return part


def split_of(labels: np.ndarray, each: int, validation: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool[nodes] trained on, bool[nodes] tested), at random; nodes without a label (-1) are in neither.

    Args:
      labels: int[nodes].
      each: nodes of each label to train on, or all of a label that has fewer.
      validation: nodes to leave out.
      fold: seed of the split.
    """
    random = np.random.default_rng(fold)
    train, test = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        train[random.permutation(np.flatnonzero(labels == label))[:each]] = True
    test[random.permutation(np.flatnonzero(~train & (labels >= 0)))[validation:]] = True
    return train, test


def subgraphs(features, edges, labels, part, train, test) -> Examples:
    """Examples of `tasks.graphs.node_classification`: each part with its own nodes and the edges inside.

    Args:
      features: uint8[nodes, features].
      edges: int[edges, 2], both directions, without loops.
      labels: int[nodes].
      part: int[nodes], from 0 on.
      train, test: bool[nodes].

    Returns:
      One example for each part in both splits; "node" says which node of the whole graph each is, and the
      constants are the whole graph with all its edges.
    """
    parts = int(part.max()) + 1
    members = [np.flatnonzero(part == k) for k in range(parts)]
    place = np.empty(len(part), int)
    for mine in members:
        place[mine] = np.arange(len(mine))
    inside = [place[edges[(part[edges] == k).all(1)]] for k in range(parts)]
    most, longest = max(map(len, members)), max(1, *map(len, inside))
    shared = {
        "nodes": np.zeros((parts, most, features.shape[1]), np.uint8),
        "node": np.zeros((parts, most), np.int32),
        "edges": np.zeros((parts, longest, 2), np.int32),
        "node_count": np.array([len(mine) for mine in members], np.int32),
        "edge_count": np.array([len(links) for links in inside], np.int32),
    }
    counted = {name: np.full((parts, most), -1, np.int32) for name in ("train", "test")}
    for k, (mine, links) in enumerate(zip(members, inside, strict=True)):
        shared["nodes"][k, : len(mine)], shared["node"][k, : len(mine)] = features[mine], mine
        shared["edges"][k, : len(links)] = links
        for name, counts in (("train", train), ("test", test)):
            counted[name][k, : len(mine)] = np.where(counts[mine], labels[mine], -1)
    return examples(
        {**shared, "labels": counted["train"]},
        {**shared, "labels": counted["test"]},
        {"nodes": features, "edges": edges.astype(np.int32)},
        owners=np.arange(parts),
        test_owners=np.arange(parts),
        num_classes=int(labels.max()) + 1,
    )


def _planetoid(name, parts):
    def source(data_dir, *, data):
        fold = data["fold"]
        arrays = read(name, data_dir, _KEYS)
        check_whole(name, arrays)
        rows, cols, labels, edges = (np.asarray(arrays[key]) for key in (*_KEYS[:2], "labels", "edges"))
        if (
            arrays["shape"].shape != (2,)
            or edges.ndim != 2
            or edges.shape[1] != 2
            or rows.shape != cols.shape
        ):
            raise DatasetError(f"{name}: shape must be two numbers, edges pairs, features rows and columns")
        nodes, width = (int(size) for size in arrays["shape"])
        inside = labels.shape == (nodes,) and labels.min() >= -1 and labels.max() >= 0
        inside = inside and all(a.size and a.min() >= 0 for a in (rows, cols, edges))
        if not (inside and rows.max() < nodes and cols.max() < width and edges.max() < nodes):
            raise DatasetError(
                f"{name}: labels, features or edges are of other nodes than the {nodes} there are"
            )
        require(0 <= fold < 2**31, "config.data.fold", fold, "from 0 on: the seed of the split")
        check_undirected(name, edges, nodes)
        features = np.zeros((nodes, width), np.uint8)
        features[rows, cols] = 1
        part = np.zeros(nodes, np.int32) if parts == 1 else communities_of(edges, nodes, parts)
        train, test = split_of(labels, *SPLITS[name], fold)
        if not test.any():
            raise DatasetError(
                f"{name}: {np.sum(labels >= 0)} nodes have a label, {train.sum()} of them are trained on and "
                f"{SPLITS[name][1]} left out: none is left for the test"
            )
        return subgraphs(features, edges, labels, part, train, test)

    return source


# Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, arXiv 1603.08861. One
# client holds the whole graph of a name ending in "_whole".
sources.SOURCES |= {name: _planetoid(name, CLIENTS) for name in SPLITS}
sources.SOURCES |= {f"{name}_whole": _planetoid(name, 1) for name in SPLITS}
