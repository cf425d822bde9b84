"""Fashion-MNIST over 30 clients."""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    c.data.name = "fashion_mnist"
    return common.with_variant(c, variant, l1_clip_norm=100.0, laplace_gamma=10_000.0)
