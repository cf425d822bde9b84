"""MNIST over 30 clients: the papers' setting with a larger client learning rate."""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    return common.with_variant(c, variant, l1_clip_norm=100.0, laplace_gamma=10_000.0)
