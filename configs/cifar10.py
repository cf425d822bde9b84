"""CIFAR-10 over 30 clients with CNN3, random crops and flips."""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    c.data.name = "cifar10"
    c.model = "cnn3"
    c.local.augment = "crop_flip"
    return common.with_variant(c, variant, l1_clip_norm=400.0, laplace_gamma=40_000.0)
