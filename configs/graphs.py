"""Graphs over laboratories, and the nodes of a graph over its communities: data set-variant.

  --config=configs/graphs.py:motifs-cepam_gaussian     made up, no files needed
  --config=configs/graphs.py:proteins-fedavg           also mutag, nci1: an enzyme? mutagenic? active?
  --config=configs/graphs.py:cora-fedavg               also citeseer: the field of a paper

"cora_whole" and "citeseer_whole" have one client with the whole graph.
"""

from configs import common

GRAPHS = ("motifs", "mutag", "proteins", "nci1")
NODES = ("cora", "citeseer", "cora_whole", "citeseer_whole")


def get_config(name="motifs-cepam_gaussian"):
    data, _, variant = name.partition("-")
    if data not in GRAPHS + NODES:
        known = ", ".join(GRAPHS + NODES)
        raise ValueError(f"setting is {name!r}; it must be data-variant, with data of {known}")
    c = common.defaults()
    c.data.name = data
    c.evaluation.batch_size = 64  # graphs are filled up to the largest
    if data in GRAPHS:
        c.task, c.model = "graph_classification", "gin"
        c.num_clients, c.rounds = 10, 40
        if data == "motifs":  # nodes of one kind: plain SGD stays where it begins
            c.local.optimizer, c.local.learning_rate, c.rounds = "adam", 0.003, 60
        if data in ("proteins", "nci1"):
            c.local.steps, c.local.learning_rate = 5, 0.03
    else:
        # A client's example is its whole subgraph; local training is FederatedScope's, but for weight decay.
        c.task, c.model = "node_classification", "gcn"
        c.partition.kind, c.evaluation.clients = "natural", "test"
        c.num_clients = 1 if data.endswith("_whole") else 5
        c.local.batch_size, c.local.steps = 1, 4
        c.local.learning_rate, c.local.momentum = 0.25, 0.0
        c.rounds, c.mechanism.clip_norm = 100, 0.3
    return common.with_variant(c, variant or "cepam_gaussian", l1_clip_norm=20.0, laplace_gamma=1_000.0)
