"""Graphs over laboratories, and the nodes of a graph over its communities: data set-variant.

--config=configs/graphs.py:motifs-cepam_gaussian     made up, no files needed
--config=configs/graphs.py:proteins-fedavg           also mutag, nci1: is a molecule active, a protein an
enzyme?
"""

from configs import common

GRAPHS = ("motifs", "mutag", "proteins", "nci1")


def get_config(name="motifs-cepam_gaussian"):
    data, _, variant = name.partition("-")
    if data not in GRAPHS:
        raise ValueError(f"setting is {name!r}; it must be data-variant, with data of {', '.join(GRAPHS)}")
    c = common.defaults()
    c.data.name = data
    c.evaluation.batch_size = 64  # graphs are filled up to the largest
    c.task, c.model = "graph_classification", "gin"
    c.num_clients = 10
    return common.with_variant(c, variant or "cepam_gaussian", l1_clip_norm=20.0, laplace_gamma=1_000.0)
