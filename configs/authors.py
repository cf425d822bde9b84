"""The settings of the CEPAM papers' own experiments (2501.12046), by name: data-model-updates-variant.

  --config=configs/authors.py:mnist-mlp-weights-cepam_gaussian
  --config=configs/authors.py:cifar10-cnn3-gradient-noise_gaussian

30 clients with equal random shares, all taking part, 15 local iterations, 80 rounds, momentum .5, clip
norm 1, lattice scale .001. "weights": local SGD with rate .01; "gradient": the mean gradient at the
global weights, server rate .3. sigma = clip norm / gamma lies between .001 and .01 in the papers; the
default here is .01. The papers hold out 10,000 training images for validation; here all are trained on.
"""

from configs import common

DATA = ("digits", "mnist", "fashion_mnist", "cifar10")
MODELS = ("linear", "mlp", "cnn2", "cnn3")
UPDATES = ("weights", "gradient")


def get_config(name="mnist-mlp-weights-cepam_gaussian"):
    parts = name.split("-")
    allowed = (DATA, MODELS, UPDATES, tuple(common.VARIANTS))
    if len(parts) != len(allowed):
        choices = "-".join("(" + "|".join(names) + ")" for names in allowed)
        raise ValueError(f"setting is {name!r}; it must be data-model-updates-variant: {choices}")
    for part, choices in zip(parts, allowed, strict=True):
        if part not in choices:
            raise ValueError(f"setting is {name!r}: {part!r} must be one of {', '.join(choices)}")
    data, model, updates, variant = parts
    c = common.defaults()
    c.data.name, c.model = data, model
    c.local.update_kind = updates
    c.local.learning_rate = 0.01
    c.server.learning_rate = 1.0 if updates == "weights" else 0.3
    c.mechanism.gamma = 100.0
    c.mechanism.step = 0.001
    if data == "cifar10":
        c.local.augment = "crop_flip"
    # The papers clip in the L2 norm whatever the law of the noise; b = .1 of the clip norm for Laplace noise.
    c = common.with_variant(c, variant, l1_clip_norm=1.0, laplace_gamma=10.0)
    return c
