"""Who takes part in a round."""

import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.federated import round_keys

settings.declare(
    "",
    {
        "num_clients": settings.integer(30, "Clients of the federation."),
        "clients_per_round": settings.integer(0, "A random subset of this size takes part; 0: all.", low=0),
        "clients_per_chunk": settings.integer(
            0, "Clients trained at the same time on a device; 0: one on a CPU, all elsewhere.", low=0
        ),
    },
)


SAMPLINGS = ("fixed", "poisson")
settings.declare(
    "participation",
    {
        "sampling": settings.choice(
            "fixed",
            "How clients are drawn: clients_per_round of them, or each by itself, so many in the mean.",
            SAMPLINGS,
        )
    },
    "Who takes part in a round.",
)


@settings.rule
def _rules(fields):
    clients, each = fields["num_clients"], fields["participation.sampling"] == "poisson"
    yield (
        not each or 0 < fields["clients_per_round"] < clients,
        "clients_per_round",
        f"the expected number, from 1 to {clients - 1}, where config.participation.sampling is 'poisson'",
    )
    plain = fields["byzantine.attack"] == "none" and not fields["byzantine.check"]
    asked = any(fields[f"needs.{name}"] for name in ("epsilon", "bits", "rate", "deadline", "clients"))
    yield (
        not each or (plain and not asked),
        "participation.sampling",
        "'fixed' with config.byzantine and config.needs, whose rules know how many take part",
    )
    yield (
        not each or fields["links.ends"] == "slowest",
        "links.ends",
        "'slowest' where config.participation.sampling is 'poisson': nobody else may be left out",
    )
    yield (
        not each or fields["mechanism.name"] != "secure_sum",
        "mechanism.name",
        "another than 'secure_sum', whose rounds know how many messages there are, where "
        "config.participation.sampling is 'poisson'",
    )
    yield (
        fields["clients_per_round"] <= clients,
        "clients_per_round",
        f"at most config.num_clients = {clients} (0: all)",
    )


def choose(key, num_clients: int, per_round: int):
    """Numbers of the clients that take part, int32[per_round].

    A uniformly random subset of fixed size without replacement, in increasing order; all clients
    when per_round equals num_clients.
    """
    if per_round == num_clients:
        return jnp.arange(num_clients, dtype=jnp.int32)
    return jnp.sort(jax.random.permutation(key, num_clients)[:per_round]).astype(jnp.int32)


def round_key(training_key, number):
    """Key of a round's draw of participants."""
    return round_keys.of_round(training_key, number, round_keys.PARTICIPANTS)
