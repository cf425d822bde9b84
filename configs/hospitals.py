"""Breast tumours over 8 hospitals of different size and case mix: embedded, seconds."""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    c.data.name, c.task, c.model = "hospitals", "binary_outcome", "mlp"
    c.partition.kind, c.num_clients = "natural", 8
    c.evaluation.clients = "test"
    c.rounds = 40
    return common.with_variant(c, variant, l1_clip_norm=10.0, laplace_gamma=500.0)
