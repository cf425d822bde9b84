"""Graphs: the label of each, and the labels of the nodes of one."""

import jax
import numpy as np

from cepam_jax import models
from cepam_jax.data import graphs as data_sets  # noqa: F401  the data sets of these tasks
from cepam_jax.errors import DatasetError
from cepam_jax.models.graphs import Graphs
from cepam_jax.tasks.base import Task, register
from cepam_jax.tasks.classification import classification
from cepam_jax.tasks.networks import network

_COUNTS = ("node_count", "edge_count")


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
    example = Graphs(
        np.zeros((*shapes["nodes"], kinds), np.float32),
        np.zeros(shapes["edges"], np.uint16),
        *(np.zeros((), np.int32),) * 2,
    )
    task = classification(network(module, example), inputs="graphs", labels="label")

    def with_graphs(function):
        def call(model, batch, *more):
            return function(model, {"graphs": graphs_of(batch), "label": batch["label"]}, *more)

        return call

    return task._replace(loss=with_graphs(task.loss), evaluate=with_graphs(task.evaluate))
