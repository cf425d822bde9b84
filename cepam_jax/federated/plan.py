"""What a round is made of: its parts, chosen before anything is compiled."""

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from cepam_jax.federated.aggregation.base import Aggregator
from cepam_jax.federated.control import Control, constant
from cepam_jax.federated.downlink import Downlink
from cepam_jax.federated.local import LocalUpdate
from cepam_jax.federated.lying import Attack
from cepam_jax.mechanisms import Mechanism
from cepam_jax.tasks.base import Task

CLIENTS = "clients"  # the axis of a mesh over which participants are spread


class Plan(NamedTuple):
    """The parts of a round; static.

    Attributes:
      local_update: what a participant does with its own examples.
      mechanism: encodes and decodes every update.
      aggregator: combines the decoded updates.
      server: optax optimizer fed with minus the aggregated update of the parameters.
      segments: lengths of the update's tensors, parameters first, then statistics.
      per_round: participants; places for them under Poisson sampling.
      per_chunk: participants under one vmap, on each device.
      control: sets the knobs of each round.
      task: whose statistics, if there are any, are projected after the server's step; None: nothing to
        project.
      downlink: how the model reaches the clients; None: as it is, 32 bits a coordinate.
      seeded: whether clients make the model before training themselves, from a public seed.
      quantize: "updates", or "weights": the client's new weights go through the mechanism.
      wire: whether every message is packed into bytes and unpacked again.
      attack: what the clients do that lie (`ClientArrays.liars`); None: nobody lies.
      false_alarm: probability with which the server refuses an honest message where nobody lies, at most;
        it checks norms then. None: it does not.
      pairs: whether it also refuses updates that are nearer to each other than their noises are (`pairs`);
        norms and pairs share the false alarm then.
      ends: what ends a round, one of `links.ENDS`; who is later is left out.
      mesh: devices over which the participants are spread, one axis `CLIENTS`; None: one device.
      server_noise: law of the noise that the server adds to the sum, "gaussian" or "laplace" (`central`);
        None: it adds none.
      poisson: expected number of participants that are drawn independently (`poisson`); 0: `per_round` of
        them are drawn.
      counts: whether rounds count the ideal lengths of messages at all (`lengths`).
    """

    local_update: LocalUpdate
    mechanism: Mechanism
    aggregator: Aggregator
    server: optax.GradientTransformation
    segments: tuple[int, ...]
    per_round: int
    per_chunk: int
    control: Control = constant()
    task: Task | None = None
    downlink: Downlink | None = None
    seeded: bool = False
    quantize: str = "updates"
    wire: bool = False
    attack: Attack | None = None
    false_alarm: float | None = None
    pairs: bool = False
    ends: str = "slowest"
    mesh: Mesh | None = None
    server_noise: str | None = None
    poisson: int = 0
    counts: bool = True

    @property
    def norm_alarm(self) -> float | None:
        """The share of the false alarm that the check of norms has; None: there is none."""
        return self.false_alarm / 2 if self.false_alarm is not None and self.pairs else self.false_alarm

    @property
    def devices(self) -> int:
        """Devices over which the participants are spread."""
        return 1 if self.mesh is None else self.mesh.devices.size

    @property
    def chunks(self) -> int:
        """Chunks of participants, one after another on each device."""
        return -(-self.per_round // (self.per_chunk * self.devices))
