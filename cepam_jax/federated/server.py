"""The server's step: an optax optimizer that is fed with minus the aggregated update.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, arXiv
  2003.00295.
"""

import optax

from cepam_jax import settings
from cepam_jax.registry import Registry

# Name -> function (learning rate, momentum) -> optax optimizer.
OPTIMIZERS: Registry = Registry("server optimizer")
OPTIMIZERS.register("sgd", lambda rate, momentum: optax.sgd(rate, momentum or None))
OPTIMIZERS.register(
    "adam", lambda rate, momentum: optax.adam(rate, b2=0.99, eps=1e-3)
)  # 2003.00295, section 4
OPTIMIZERS.register("yogi", lambda rate, momentum: optax.yogi(rate, b2=0.99, eps=1e-3))
OPTIMIZERS.register("adagrad", lambda rate, momentum: optax.adagrad(rate, eps=1e-3))

settings.declare(
    "server",
    {
        "optimizer": settings.choice("sgd", "The server's optimizer.", OPTIMIZERS),
        "learning_rate": settings.positive(1.0, "Of the server."),
        "momentum": settings.below_one(0.0, "Of server sgd."),
    },
    "The server's step.",
)


@settings.rule
def _rules(fields):
    yield (
        fields["server.momentum"] == 0 or fields["server.optimizer"] == "sgd",
        "server.momentum",
        "0 unless config.server.optimizer is 'sgd'",
    )
