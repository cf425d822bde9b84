"""Graph networks and tasks: order and padding do not count, edges between clients are lost."""

import os
import pickle
import warnings
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.flatten_util import ravel_pytree

from cepam_jax import models
from cepam_jax.data import communities, graphs, sources
from cepam_jax.data.examples import number_of
from cepam_jax.errors import ConfigError, DataNotPreparedError, DatasetError
from cepam_jax.federated.local import batch_of
from cepam_jax.models.graphs import GCN, GIN, Graphs
from cepam_jax.run import build, training
from cepam_jax.run.config import validate
from cepam_jax.tasks import TASKS
from configs import common
from configs.graphs import get_config
from experiments import prepare_graphs

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def graphs_dir() -> str:
    """A folder with graphs/*.npz: $CEPAM_GRAPHS_DIR, or shared/ beside the checkout."""
    path = Path(os.environ.get("CEPAM_GRAPHS_DIR", ROOT.parent / "shared/data"))
    if not list(path.glob("graphs/*.npz")):
        skip(f"NO GRAPHS under {path}/graphs: set CEPAM_GRAPHS_DIR to test MUTAG, Cora and others")
    return str(path)


def skip(message):
    """Loudly: with a warning that stands at the end."""
    warnings.warn(message, stacklevel=1)
    pytest.skip(message)


def need_networkx():
    if util.find_spec("networkx") is None:
        skip("NO NETWORKX: communities are not tested; pip install -r requirements.txt")


def random_graphs(seed=0, batch=3, nodes=9, features=4, edges=24):
    """Graphs of different sizes, with padding that is not zero anywhere."""
    random = np.random.default_rng(seed)
    node_count = random.integers(4, nodes + 1, batch)
    pairs = random.integers(0, node_count[:, None, None], (batch, edges, 2))
    edge_count = random.integers(5, edges + 1, batch)
    x = random.normal(size=(batch, nodes, features)).astype(np.float32)
    return Graphs(x, pairs.astype(np.uint16), node_count.astype(np.int32), edge_count.astype(np.int32))


MODULES = [GIN(3, width=8, layers=2), GCN(3, width=8)]


def outputs_of(module, found, params=None):
    """(outputs, parameters) with parameters that are not zero anywhere."""
    found = jax.tree.map(jnp.asarray, found)
    if params is None:
        params = jax.jit(module.init)(jax.random.key(0), found)
        flat, unflatten = ravel_pytree(params)
        params = unflatten(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))
    return np.asarray(jax.jit(module.apply)(params, found)), params


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_the_order_of_nodes_and_edges_does_not_count(module):
    found = random_graphs()
    before, params = outputs_of(module, found)
    random = np.random.default_rng(1)
    x, edges = found.features.copy(), found.edges.copy()
    orders = []
    for k, (n, m) in enumerate(zip(found.node_count, found.edge_count, strict=True)):
        order = random.permutation(n)  # old number -> new number
        x[k, order] = found.features[k, :n]
        edges[k, :m] = order[found.edges[k, random.permutation(m)]]
        orders.append(order)
    after, _ = outputs_of(module, found._replace(features=x, edges=edges), params)
    if before.ndim == 2:
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    else:  # outputs of nodes move with them
        for k, order in enumerate(orders):
            np.testing.assert_allclose(after[k, order], before[k, : len(order)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_padding_never_counts(module):
    """Other values where nothing is real, more padding, and other graphs in the batch change nothing."""
    found = random_graphs()
    before, params = outputs_of(module, found)
    real = np.arange(9) < found.node_count[:, None]
    x = np.where(real[..., None], found.features, 7.0).astype(np.float32)
    longer = Graphs(
        np.pad(x, ((0, 0), (0, 5), (0, 0)), constant_values=-3),
        np.pad(found.edges, ((0, 0), (0, 4), (0, 0)), constant_values=2),
        found.node_count,
        found.edge_count,
    )
    after, _ = outputs_of(module, longer, params)
    each = [jax.tree.map(lambda a, k=k: a[k : k + 1], longer) for k in range(3)]
    alone = [outputs_of(module, one, params)[0] for one in each]
    for other in (after, np.concatenate(alone)):
        if before.ndim == 2:
            np.testing.assert_allclose(other, before, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_allclose(other[:, :9][real], before[real], rtol=1e-4, atol=1e-5)

    def total(x):
        out = module.apply(params, found._replace(features=x))
        return (out if before.ndim == 2 else out[real]).sum()

    assert np.abs(np.asarray(jax.jit(jax.grad(total))(jnp.asarray(x)))[~real]).max() == 0
    # The twin: padding edges that count would be noticed.
    wrong, _ = outputs_of(module, longer._replace(edge_count=longer.edge_count + 4), params)
    moved = wrong if before.ndim == 2 else wrong[:, :9]
    assert np.abs(moved - before).max() > 1e-2


def test_the_layers_are_those_of_the_papers():
    """Against dense matrices: A x W of Kipf and Welling, and the sums of Xu et al."""
    found = random_graphs(batch=1, nodes=6)
    n, m = int(found.node_count[0]), int(found.edge_count[0])
    adjacency = np.zeros((n, n))
    np.add.at(adjacency, (found.edges[0, :m, 1].astype(int), found.edges[0, :m, 0].astype(int)), 1)
    x = found.features[0, :n]
    out, params = outputs_of(MODULES[1], found)
    p = jax.tree.map(np.asarray, params["params"])
    inside = adjacency + np.eye(n)
    scale = 1 / np.sqrt(inside.sum(1))
    a = scale[:, None] * inside * scale
    hidden = np.maximum(a @ x @ p["Dense_0"]["kernel"] + p["bias_8"], 0)
    np.testing.assert_allclose(
        out[0, :n], a @ hidden @ p["Dense_1"]["kernel"] + p["bias_3"], rtol=1e-4, atol=1e-5
    )
    out, params = outputs_of(MODULES[0], found)
    p = jax.tree.map(np.asarray, params["params"])
    h, seen = x, []
    for layer in range(2):
        h = (1 + p[f"epsilon_{layer}"]) * h + adjacency @ h
        for dense in (f"Dense_{2 * layer}", f"Dense_{2 * layer + 1}"):
            h = np.maximum(h @ p[dense]["kernel"] + p[dense]["bias"], 0)
        seen.append(np.log1p(h.sum(0)))
    logits = np.concatenate(seen) @ p["Dense_4"]["kernel"] + p["Dense_4"]["bias"]
    np.testing.assert_allclose(out[0], logits, rtol=1e-4, atol=1e-5)


def of_fold(name, fold, folder=""):
    return sources.load_examples(name, folder, (("data", (("fold", fold),)),))


def test_made_up_graphs_are_what_they_say_and_folds_cut_them():
    every = [of_fold("motifs", fold) for fold in range(10)]
    assert sum(number_of(data.test) for data in every) == 1000
    data = every[0]
    assert np.bincount(data.test["label"]).tolist() == [50, 50]
    for part in (data.train, data.test):
        n, m = part["node_count"], part["edge_count"]
        # A tree of n - 5 nodes, a ring of five, a bridge; a house has a chord more.
        assert (m == 2 * (n - 6 + 5 + 1 + part["label"])).all()
    assert (data.sizes == data.train["node_count"]).all()
    with pytest.raises(ConfigError, match="config.data.fold is 10; it must be from 0 to 9"):
        of_fold("motifs", 10)


def two_rings():
    """Nodes 0-3 and 4-7 are rings, joined by an edge; features say who is who."""
    links = [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [(0, 4)]
    edges = np.array([*links, *((b, a) for a, b in links)])
    part = np.repeat([0, 1], 4)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, -1])
    train = np.array([1, 1, 0, 0, 1, 0, 0, 0], bool)
    test = np.array([0, 0, 1, 1, 0, 1, 1, 0], bool)
    return communities.subgraphs(np.eye(8, dtype=np.uint8), edges, labels, part, train, test)


def node_task(data, model="gcn_plain"):
    """(the task, its functions compiled, a model)."""
    config = get_config("cora-fedavg")
    config.model = model
    task = TASKS["node_classification"](config, data.specification)
    compiled = task._replace(loss=jax.jit(task.loss), evaluate=jax.jit(task.evaluate))
    return compiled, jax.jit(task.initialize)(jax.random.key(0))


def test_edges_between_clients_are_lost_and_whole_graphs_keep_them():
    data = two_rings()
    assert data.train["edge_count"].tolist() == [8, 8] and len(data.constants["edges"]) == 18
    assert (data.train["labels"] >= 0).sum() == 3 and (data.test["labels"] >= 0).sum() == 4
    task, model = node_task(data)
    batch = {name: jnp.asarray(a) for name, a in data.train.items()}
    other = dict(batch, nodes=batch["nodes"].at[1].set(5))

    def loss_of_the_first(batch):
        return task.loss(model, batch_of(batch, jnp.array([0])), data.constants, jax.random.key(0))[0]

    assert loss_of_the_first(batch) == loss_of_the_first(other)  # not even across the bridge
    # The twin: with the bridge inside one client what is beyond it is seen.
    features, everywhere = np.eye(8, dtype=np.uint8), np.ones(8, bool)
    one_part, labels = np.zeros(8, int), np.arange(8) % 2
    whole = communities.subgraphs(features, data.constants["edges"], labels, one_part, everywhere, everywhere)
    task, model = node_task(whole)
    batch = {name: jnp.asarray(a) for name, a in whole.train.items()}
    changed = dict(batch, nodes=batch["nodes"].at[0, 4].set(5))
    found, moved = (task.evaluate(model, one, whole.constants) for one in (batch, changed))
    assert found["loss"] != moved["loss"]
    # In one part nothing is lost: both accuracies are the same.
    assert found["accuracy"] == found["whole_accuracy"] and found["nodes"] == 8


@pytest.mark.parametrize("model", ["gcn_plain", "gcn"])
def test_laws_of_node_classification(model):
    """The laws of tests/test_tasks.py, on a graph that needs no files."""
    data = two_rings()
    task, start = node_task(data, model)
    batch = {name: jnp.asarray(a) for name, a in data.test.items()}
    if model == "gcn":  # dropout draws from the key
        drawn = [float(task.loss(start, batch, data.constants, jax.random.key(k))[0]) for k in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        return
    singles = [batch_of(batch, jnp.array([k])) for k in range(2)]
    whole = task.evaluate(start, batch, data.constants)
    each = [task.evaluate(start, one, data.constants) for one in singles]
    for name, values in whole.items():
        expected = np.concatenate([one[name] for one in each])
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    metrics = task.summarize({name: np.asarray(v).sum(0) for name, v in whole.items()}, 2.0)
    assert set(task.formats) <= set(metrics) and 0 <= metrics["accuracy"] <= 1
    losses = [task.loss(start, one, data.constants, jax.random.key(1))[0] for one in singles]
    joint = task.loss(start, batch, data.constants, jax.random.key(1))[0]
    np.testing.assert_allclose(joint, np.mean(losses), rtol=1e-5)


def test_communities_are_of_one_size_and_deterministic():
    need_networkx()
    random = np.random.default_rng(0)
    block = np.arange(120) // 12
    near = (block[:, None] == block) & (random.random((120, 120)) < 0.6)
    far = random.random((120, 120)) < 0.01
    edges = np.argwhere(np.triu(near | far, 1))
    part = communities.communities_of(edges, 120, 5)
    assert (
        np.bincount(part).tolist() == [24] * 5 and (part == communities.communities_of(edges, 120, 5)).all()
    )
    assert all(len(set(part[block == k])) == 1 for k in range(10))  # what belongs together is together
    train, test = communities.split_of(np.array([0] * 50 + [1] * 50 + [-1] * 20), 30, 10, fold=1)
    assert train.sum() == 60 and test.sum() == 30 and not (train & test).any() and not test[100:].any()


def planetoid(folder, **changes):
    arrays = {
        "feature_rows": np.arange(6),
        "feature_cols": np.arange(6) % 3,
        "shape": np.array([6, 3]),
        "labels": np.arange(6) % 2,
        "edges": np.array([[0, 1], [1, 0]]),
    }
    np.savez(folder / "cora.npz", **(arrays | changes))


def test_files_that_are_missing_damaged_or_wrong_are_named(tmp_path):
    for name in ("mutag", "cora"):
        with pytest.raises(
            DataNotPreparedError, match=f"(?s){name}.npz.*https://.*prepare_graphs --name={name}"
        ):
            sources.load_examples(name, str(tmp_path))
    (tmp_path / "mutag.npz").write_bytes(b"no zip file")
    with pytest.raises(DataNotPreparedError, match="mutag.npz cannot be read"):
        sources.load_examples("mutag", str(tmp_path))
    planetoid(tmp_path, edges=np.array([[0, 6]]))
    with pytest.raises(DatasetError, match="'cora': cora: labels, features or edges are of other nodes than"):
        sources.load_examples("cora", str(tmp_path))
    for changes, message in (
        ({"edges": np.array([[0, 1]])}, "once in each direction"),
        ({"feature_rows": np.arange(6.0)}, "feature_rows are float64.6.; they must be whole numbers"),
        ({}, "6 nodes have a label, 6 of them are trained on and 542 left out: none is left for the test"),
    ):
        planetoid(tmp_path, **changes)
        with pytest.raises(DatasetError, match=message):
            sources.load_examples("cora", str(tmp_path))
    good = dict(np.load(tmp_path / "cora.npz"))
    del good["labels"]
    np.savez(tmp_path / "cora.npz", **good)
    with pytest.raises(DataNotPreparedError, match="cannot be read .KeyError"):
        sources.load_examples("cora", str(tmp_path))


GOOD = {
    "node_labels": np.array([0, 1, 0, 2, 1]),
    "edges": np.array([[0, 1], [1, 0], [0, 2], [2, 0]]),
    "nodes_per_graph": np.array([2, 3]),
    "edges_per_graph": np.array([2, 2]),
    "labels": np.array([0, 1]),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.array([[0, 1], [1, 0], [0, 3], [2, 0]])}, "an edge leads to a node"),
        ({"nodes_per_graph": np.array([2, 2])}, "5,.* nodes"),
        ({"labels": np.array([0])}, "not one for each graph"),
        ({"labels": np.array([0, -1])}, "labels from 0"),
        ({"labels": np.array([0, 2**32])}, "of 32 bits"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64.2.; they must be whole numbers"),
        ({"edges": np.array([[0, 1], [0, 1], [0, 2], [2, 0]])}, "once in each direction"),
        ({"edges": np.array([[0, 1], [1, 0], [0, 2], [1, 2]])}, "once in each direction"),
        ({"edges": np.array([[1, 1], [1, 1], [0, 2], [2, 0]])}, "none from a node to itself"),
        ({"node_labels": np.array([0, 1, 0, 300, 1])}, "from 0 to 255"),
    ],
)
def test_graphs_that_do_not_fit_together_are_named(changes, message):
    with pytest.raises(DatasetError, match=message):
        graphs.padded(GOOD | changes, "made up")


def test_the_collection_s_format_is_read(tmp_path):
    """Files as the collection has them, written here from arrays, come back as these arrays."""
    first = np.repeat([0, 2], GOOD["edges_per_graph"])
    lines = {
        "A": [f"{a + 1}, {b + 1}" for a, b in GOOD["edges"] + first[:, None]],
        "graph_indicator": [1, 1, 2, 2, 2],
        "graph_labels": [-1, 1],
        "node_labels": GOOD["node_labels"],
    }
    for name, each in lines.items():
        (tmp_path / f"TINY_{name}.txt").write_text("\n".join(map(str, each)) + "\n")
    found = prepare_graphs.collected(tmp_path, "TINY")
    for key, array in GOOD.items():
        np.testing.assert_array_equal(found[key], array)


def test_files_of_the_collection_that_were_cut_are_not_prepared():
    """At the end of a line, so that each is a file like another."""
    with pytest.raises(DataNotPreparedError, match=r"\(2, 5, 4\) graphs, nodes and edges, the published"):
        prepare_graphs.check("mutag", GOOD, Path("raw"))
    with pytest.raises(DataNotPreparedError, match="whole files: mutag: .*not one for each graph"):
        prepare_graphs.check("mutag", GOOD | {"labels": np.array([0])}, Path("raw"))
    cora = {"shape": np.array([2708, 1433]), "labels": np.append(np.zeros(2707, int), -1)}
    with pytest.raises(DataNotPreparedError, match=r"\(2708, 2707\) nodes and labelled nodes"):
        prepare_graphs.check("cora", cora, Path("raw"))


def test_some_motifs_that_are_held_out_repeat_one_that_is_trained_on():
    """As docs/graphs.md says: of the first fold 7 of 100."""
    nx = pytest.importorskip("networkx")

    def drawn(arrays):
        for edges, count in zip(arrays["edges"], arrays["edge_count"], strict=True):
            graph = nx.Graph(edges[:count].tolist())
            yield tuple(sorted(dict(graph.degree).values())), graph

    data, known = sources.load_examples("motifs"), {}
    for degrees, graph in drawn(data.train):
        known.setdefault(degrees, []).append(graph)
    repeated = [any(nx.is_isomorphic(g, other) for other in known.get(d, ())) for d, g in drawn(data.test)]
    assert sum(repeated) == 7 and len(repeated) == 100


def test_weights_by_examples_are_refused_where_every_client_has_one():
    config = get_config("cora-fedavg")
    config.aggregator = "examples"
    with pytest.raises(ConfigError, match="config.aggregator is 'examples'; it must be another where"):
        validate(config)


def test_what_is_no_array_is_not_unpickled(tmp_path):
    (tmp_path / "ind.cora.test.index").write_text("0\n1\n")
    (tmp_path / "ind.cora.allx").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="does not hold posix.getcwd"):
        prepare_graphs.citations(tmp_path, "cora")


def test_graphs_in_a_row_come_back():
    found, kinds = graphs.padded(GOOD, "made up")
    assert kinds == 3 and found["nodes"].tolist() == [[0, 1, 0], [0, 2, 1]]
    assert found["edges"][1, :2].tolist() == [[0, 2], [2, 0]] and found["edge_count"].tolist() == [2, 2]


def test_a_model_for_other_inputs_is_refused():
    data = sources.load_examples("motifs")
    for model, fits in (("mlp", "gin"), ("gcn", "gin")):
        config = get_config("motifs-fedavg")
        config.model = model
        with pytest.raises(ConfigError, match=f"'{model}'; it must be a model for graphs: '{fits}'"):
            build.program(config, data.specification)
    config.model, config.task = "gin", "node_classification"
    with pytest.raises(DatasetError, match="'node_classification', but the data set's examples are"):
        build.program(config, data.specification)
    with pytest.raises(ConfigError, match="a model for nodes: 'gcn', 'gcn_plain'"):
        node_task(two_rings(), "gin")


def test_as_many_classes_as_hidden_units():
    """A bias was named by its width, and the logits of the last layer would have been cut off at zero."""
    graphs = random_graphs()
    params = GCN(8, width=8).init(jax.random.key(0), graphs)
    assert {"bias_8", "bias_8_last"} <= set(params["params"])
    assert (np.asarray(GCN(8, width=8).apply(params, graphs)) < 0).any()


@pytest.mark.parametrize(
    ("module", "features", "parameters"),
    [(models.build("gin", 2, "graph"), 7, 5733), (models.build("gcn", 7, "node"), 1433, 92231)],
)
def test_parameters(module, features, parameters):
    one = jnp.ones(1, jnp.int32)
    like = Graphs(jnp.zeros((1, 3, features)), jnp.zeros((1, 2, 2), int), one, one)
    params = jax.eval_shape(module.init, jax.random.key(0), like)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("variant", common.VARIANTS)
@pytest.mark.parametrize("data", ["motifs", "proteins", "cora"])
def test_every_variant_is_a_valid_configuration(data, variant):
    validate(get_config(f"{data}-{variant}"))
    with pytest.raises(ValueError, match="it must be data-variant"):
        get_config("karate-fedavg")


def test_laboratories_by_size_train_with_bytes_and_partial_participation(tmp_path):
    config = get_config("motifs-cepam_gaussian")
    changes = {"rounds": 2, "eval_every": 2, "wire": True, "clients_per_round": 3, "local.steps": 2}
    config.update_from_flattened_dict(changes | {"partition.kind": "by_size"})
    lines = training.train(config, tmp_path / "run", progress=False)
    assert [line["round"] for line in lines] == [0, 2] and lines[-1]["uplink_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "number", "nodes", "edges", "kinds"),
    [("mutag", 188, 17.93, 19.79, 7), ("proteins", 1113, 39.06, 72.82, 3), ("nci1", 4110, 29.87, 32.30, 37)],
)
def test_published_counts_of_the_collection(name, number, nodes, edges, kinds):
    data = of_fold(name, 3, graphs_dir())
    keys = ("node_count", "edge_count", "label")
    both = {key: np.concatenate([data.train[key], data.test[key]]) for key in keys}
    assert len(both["label"]) == number and abs(number_of(data.test) - number / 10) <= 1
    assert both["node_count"].mean() == pytest.approx(nodes, abs=0.005)
    assert both["edge_count"].mean() / 2 == pytest.approx(edges, abs=0.005)
    assert dict(data.facts) == {"num_classes": 2, "node_kinds": kinds}


@pytest.mark.parametrize(
    ("name", "nodes", "labelled", "edges"), [("cora", 2708, 2708, 5278), ("citeseer", 3327, 3312, 4552)]
)
def test_published_counts_of_the_citation_graphs(name, nodes, labelled, edges):
    folder = graphs_dir()
    need_networkx()
    data = sources.load_examples(name, folder)
    whole = sources.load_examples(f"{name}_whole", folder)
    assert data.train["node_count"].sum() == nodes and np.ptp(data.train["node_count"]) <= 2
    assert len(data.constants["edges"]) == 2 * edges == whole.train["edge_count"][0]
    lost = 1 - data.train["edge_count"].sum() / (2 * edges)
    assert 0.03 < lost < 0.15
    counted = [(data.train["labels"] >= 0).sum(), (data.test["labels"] >= 0).sum()]
    assert counted[0] + communities.SPLITS[name][1] + counted[1] == labelled
    for part in ("train", "test"):  # the same nodes count, wherever they are
        assert (getattr(whole, part)["labels"] >= 0).sum() == (getattr(data, part)["labels"] >= 0).sum()
    other = of_fold(name, 1, folder)
    assert (other.train["edges"] == data.train["edges"]).all()
    assert (other.train["labels"] != data.train["labels"]).any()
