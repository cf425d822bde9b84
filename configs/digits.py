"""scikit-learn's digits over 10 clients: no files, no network, seconds."""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    c.data.name = "digits"
    c.num_clients = 10
    return common.with_variant(c, variant, l1_clip_norm=40.0, laplace_gamma=2_000.0)
