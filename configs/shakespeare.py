"""Next characters of Romeo and Juliet, embedded: 22 speakers are the clients, 10 take part in a round.

All plays of tiny Shakespeare instead, with 202 speakers:

  --config=configs/shakespeare.py:cepam_gaussian --config.data.name=tiny_shakespeare --config.num_clients=202
"""

from configs import common


def get_config(variant="cepam_gaussian"):
    c = common.defaults()
    c.data.name, c.task, c.model = "shakespeare", "next_character", "transformer_tiny"
    c.partition.kind, c.num_clients, c.clients_per_round = "natural", 22, 10
    c.evaluation.clients, c.evaluation.batch_size = "test", 64
    c.local.optimizer, c.local.learning_rate, c.local.momentum = "adam", 3e-3, 0.0
    c.local.steps, c.local.batch_size = 20, 16
    c.mechanism.clip_norm, c.rounds, c.eval_every = 2.0, 60, 10
    return common.with_variant(c, variant, l1_clip_norm=500.0, laplace_gamma=35_000.0)
