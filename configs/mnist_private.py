"""MNIST with 60,000 clients of one image each, epsilon 3 at delta 1e-5 against the released model.

  --config=configs/mnist_private.py:server_sdq       the server adds the noise
  --config=configs/mnist_private.py:cepam_gaussian   clients quantize by LRSUQ; the server fills up the noise

Each client comes to a round by itself, with probability 1/20, and sends one gradient: client and example are
the same, and so are their guarantees. Rates, clip and rounds were tuned on 5,000 training images held out
(docs/privacy.md), which no epsilon covers.
"""

from cepam_jax.run import guarantees
from configs import common

CLIENTS = 60_000
VARIANTS = ("server_sdq", "cepam_gaussian", "cepam_rotated")
# Server's learning rate by target: with more noise a smaller one.
RATES = {1.0: 4.0, 3.0: 8.0, 8.0: 8.0}


def get_config(variant="server_sdq"):
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    c = common.defaults()
    c.data.name, c.model, c.num_clients = "mnist", "cnn_tanh", CLIENTS
    c.participation.sampling, c.clients_per_round, c.clients_per_chunk = "poisson", CLIENTS // 20, 125
    c.rounds, c.eval_every = 100, 20
    c.local.update_kind, c.local.steps, c.local.batch_size, c.local.momentum = "gradient", 1, 1, 0.0
    c.server.learning_rate, c.server.momentum, c.server.noise = RATES[3.0], 0.9, True
    c.mechanism.clip_norm, c.privacy.target_epsilon = 0.1, 3.0
    c = common.with_variant(c, variant, l1_clip_norm=1.0, laplace_gamma=1.0)
    c.mechanism.rate, c.server.noise = "step", True
    return c


def with_step(c, counts, times: float):
    """The configuration with the step of its lattice in units of what each client's share of the noise is.

    Args:
      c: with a target epsilon.
      counts: int[clients], examples of each client.
      times: step over sigma.
    """
    c.mechanism.step = times * c.mechanism.clip_norm / guarantees.calibrated(c, counts).mechanism.gamma
    return c
