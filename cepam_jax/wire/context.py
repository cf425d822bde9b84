"""What sender and receiver of a message know before it is sent."""

from typing import NamedTuple

import numpy as np

from cepam_jax.mechanisms.base import Knobs, Mechanism, Message


class Context(NamedTuple):
    """What sender and receiver know before the message, as values on the host.

    Attributes:
      mechanism: the mechanism that encoded the message.
      key: uint32[2 or 4], words of the shared key of the symbols.
      knobs: Knobs of numpy float32 values (or None).
      template: Message of arrays or shapes with the message's structure.
      round: number of the round, for the header.
      client: number of the client, for the header.
    """

    mechanism: Mechanism
    key: np.ndarray
    knobs: Knobs
    template: Message
    round: int = 0
    client: int = 0
