"""Graphs: the label of each, and the labels of the nodes of one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import models, settings
from cepam_jax.data import communities, graphs  # noqa: F401  the data sets of these tasks
from cepam_jax.errors import DatasetError
from cepam_jax.models.graphs import Graphs
from cepam_jax.tasks.base import Sums, Task, register
from cepam_jax.tasks.classification import check_labels, classification, cross_entropy
from cepam_jax.tasks.networks import network

_COUNTS = ("node_count", "edge_count")


@settings.rule
def _rules(fields):
    """A client of a citation graph has one example, whatever it is trained on."""
    yield (
        fields["task"] != "node_classification" or fields.get("aggregator") != "examples",
        "aggregator",
        "another where config.task is 'node_classification': every client has one example, its subgraph, so "
        "that 'examples' would weigh all alike, as 'mean' does",
    )


def _shapes(task: str, specification, wanted: dict[str, int], facts: tuple[str, ...]) -> dict:
    """Name -> shape of one example's arrays.

    Args:
      task: its name, for the message.
      specification: of the examples.
      wanted: name -> number of axes of one example.
      facts: names of those that are needed.

    Raises:
      DatasetError: an array or a fact is missing, or has other axes.
    """
    known, arrays, _ = specification
    shapes = {name: shape for name, _, shape in arrays}
    fits = all(
        len(shapes.get(name, "no")) == axes if name in shapes else False for name, axes in wanted.items()
    )
    if not fits or any(fact not in dict(known) for fact in facts):
        raise DatasetError(
            f"config.task is {task!r}, but the data set's examples are {sorted(shapes)}; it needs "
            f"{', '.join(sorted(wanted))} and the facts {', '.join(facts)}"
        )
    return shapes


def _zeros(features: tuple[int, ...], edges: tuple[int, ...]) -> Graphs:
    """One graph of these shapes, as `network` takes an example."""
    arrays: Any = (np.zeros(features, np.float32), np.zeros(edges, np.uint16), np.int32(0), np.int32(0))
    return Graphs(*arrays)


@register
def graph_classification(config, specification) -> Task:
    """Which label a graph has, by `config.model`, a model for graphs.

    Args:
      config: settings; read is model.
      specification: of examples as `data.graphs.padded` makes them, with the facts "num_classes" and
        "node_kinds".

    Raises:
      DatasetError: the examples are no labelled graphs.
      ConfigError: the model is for other inputs.
    """
    wanted = {"nodes": 1, "edges": 2, "node_count": 0, "edge_count": 0, "label": 0}
    shapes = _shapes("graph_classification", specification, wanted, ("num_classes", "node_kinds"))
    facts = dict(specification[0])
    kinds = facts["node_kinds"]

    def graphs_of(batch):
        return Graphs(
            jax.nn.one_hot(batch["nodes"], kinds), batch["edges"], *(batch[name] for name in _COUNTS)
        )

    module = models.build(config.model, facts["num_classes"], "graph")
    example = _zeros((*shapes["nodes"], kinds), shapes["edges"])
    task = classification(network(module, example), inputs="graphs", labels="label")

    def with_graphs(function):
        def call(model, batch, *more):
            return function(model, {"graphs": graphs_of(batch), "label": batch["label"]}, *more)

        return call

    def check(examples, constants):  # what the task takes are not the examples' own arrays
        del constants
        check_labels(np.asarray(examples["label"]), "label", facts["num_classes"])

    return task._replace(loss=with_graphs(task.loss), evaluate=with_graphs(task.evaluate), check=check)


@register
def node_classification(config, specification) -> Task:
    """The labels of a graph's nodes, by `config.model`, a model for nodes.

    An example is a client's whole subgraph, and its loss is the mean over the nodes that count. Metrics are
    over all nodes that count: "loss" and "accuracy" see them within their clients' subgraphs, as the clients
    can, and "whole_accuracy" within the whole graph, whose edges between clients nobody has. Training never
    sees the whole graph.

    Args:
      config: settings; read is model.
      specification: of examples as `data.communities.subgraphs` makes them, with the whole graph as the
        constants "nodes" and "edges", and the fact "num_classes".

    Raises:
      DatasetError: the examples are no such subgraphs.
      ConfigError: the model is for other inputs.
    """
    wanted = {"nodes": 2, "node": 1, "edges": 2, "node_count": 0, "edge_count": 0, "labels": 1}
    shapes = _shapes("node_classification", specification, wanted, ("num_classes",))
    if {name for name, _, _ in specification[2]} != {"nodes", "edges"}:
        raise DatasetError("config.task is 'node_classification', which needs the whole graph as constants")

    def graphs_of(batch):
        return Graphs(batch["nodes"].astype(jnp.float32), batch["edges"], *(batch[name] for name in _COUNTS))

    def whole_of(constants):
        counts = (jnp.array([constants[name].shape[0]], jnp.int32) for name in ("nodes", "edges"))
        return Graphs(constants["nodes"].astype(jnp.float32)[None], constants["edges"][None], *counts)

    module = models.build(config.model, dict(specification[0])["num_classes"], "node")
    example = _zeros(shapes["nodes"], shapes["edges"])
    net = network(module, example)

    def losses(logits, labels):
        """f32[batch, nodes], and f32[batch, nodes], 1 where a node counts."""
        counts = (labels >= 0).astype(jnp.float32)
        return counts * cross_entropy(logits, jnp.maximum(labels, 0)), counts

    def loss(model, batch, constants, key):
        logits, statistics = net.apply(model, graphs_of(batch), key)
        each, counts = losses(logits, batch["labels"])
        return (each.sum(-1) / jnp.maximum(1, counts.sum(-1))).mean(), statistics

    def evaluate(model, batch, constants):
        logits, _ = net.apply(model, graphs_of(batch), None)
        whole, _ = net.apply(model, whole_of(constants), None)
        each, counts = losses(logits, batch["labels"])
        right = (answers.argmax(-1) == batch["labels"] for answers in (logits, whole[0][batch["node"]]))
        own, among_all = ((counts * hit).sum(-1) for hit in right)
        return {"loss": each.sum(-1), "accuracy": own, "whole_accuracy": among_all, "nodes": counts.sum(-1)}

    return Task(
        net.initialize,
        loss,
        evaluate,
        over_nodes,
        "accuracy",
        higher_is_better=True,
        formats={"loss": ".3f", "accuracy": ".3f", "whole_accuracy": ".3f"},
        project=net.project,
    )


def over_nodes(sums: Sums, count: float) -> dict[str, float]:
    """Means over the nodes that count, not over the `count` subgraphs; NaN where none does."""
    del count
    nodes = float(sums["nodes"])
    return {
        name: float(total) / nodes if nodes else float("nan")
        for name, total in sums.items()
        if name != "nodes"
    }
