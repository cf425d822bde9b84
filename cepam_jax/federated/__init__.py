"""One round: broadcast, local training, messages, aggregation, step, control. Start with `rounds`."""

from cepam_jax.extras import need

need("cepam_jax.federated", "train", "flax", "optax")

from cepam_jax.federated.aggregation import (
    AGGREGATORS,
    Aggregator,
    Facts,
    Public,
    Published,
    precision,
    robust,
)
from cepam_jax.federated.attacks import ATTACKS, Attack, Seen
from cepam_jax.federated.byzantine import Byzantine
from cepam_jax.federated.control import (
    CONTROLS,
    Control,
    Measured,
    Released,
    constant,
    greedy,
    plateau,
    quantile_clip,
    scheduled,
    signal_to_noise,
)
from cepam_jax.federated.downlink import Downlink, Size, compressed
from cepam_jax.federated.links import Links
from cepam_jax.federated.local import Influence, LocalTraining, LocalUpdate, Trained, make_local_update
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.rounds import initial_state, make_round
from cepam_jax.federated.state import ClientArrays, Report, RoundReport, State, root_key, shared_key

__all__ = [
    "AGGREGATORS",
    "ATTACKS",
    "CONTROLS",
    "Aggregator",
    "Attack",
    "Byzantine",
    "ClientArrays",
    "Control",
    "Downlink",
    "Facts",
    "Influence",
    "Links",
    "LocalTraining",
    "LocalUpdate",
    "Measured",
    "Plan",
    "Public",
    "Published",
    "Released",
    "Report",
    "RoundReport",
    "Seen",
    "Size",
    "State",
    "Trained",
    "compressed",
    "constant",
    "greedy",
    "initial_state",
    "make_local_update",
    "make_round",
    "plateau",
    "precision",
    "quantile_clip",
    "robust",
    "root_key",
    "scheduled",
    "shared_key",
    "signal_to_noise",
]
