"""The count of participants whose update was within its clip, with the server's noise.

A vote is 1/2 for an update within the clip and -1/2 for one beyond it; an update of zeros has the vote 0, as
somebody has who is not there: it counts half on each side. So a client that is replaced by zero moves the sum
of votes by 1/2 at most, one that is replaced by another by 1. Whoever lies votes -1/2, whatever its update:
with the clip the noise grows.

The votes reach the server as they are; its noise hides them from those alone who see what it publishes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.federated import round_keys
from cepam_jax.federated.state import Report
from cepam_jax.mechanisms import Knobs

_DRAWS = 4  # normal numbers of 32 bits that are added up: one ends at some 5 deviations, their sum at 10
_FINENESS = 64  # the count is published to a part of its noise: finer words would tell how it was rounded
_LEAST = 2.0**-14  # noise for each participant: its 128th part is then a part of any count in 32 bits

VOTE_BITS = 1  # that a participant sends more


def check(noise: Any, participants: int) -> None:
    """Raises ConfigError unless this is the deviation of a noise that 32 bits hold beside a count."""
    number = isinstance(noise, (int, float)) and not isinstance(noise, bool)
    least = participants * _LEAST
    allowed = f"a number of at least {least:.2g}: beside the count of {participants} less is lost in 32 bits"
    require(number and least <= noise < math.inf, "count_noise", noise, allowed)


def votes(report: Report, clip: jax.Array, lies: jax.Array | None = None) -> jax.Array:
    """f32[participants], the vote of each.

    Args:
      report: of the participants, with the norms of their updates before clipping.
      clip: f32[participants], the clips of the round.
      lies: bool[participants], who lies; None: nobody.
    """
    found = jnp.where(report.norm <= clip, np.float32(0.5), np.float32(-0.5))
    found = jnp.where(report.norm > 0, found, 0)
    return found if lies is None else jnp.where(lies, np.float32(-0.5), found)


def share_within(
    report: Report, knobs: Knobs, noise: float, key: jax.Array, lies: jax.Array | None = None
) -> jax.Array:
    """f32[], the part of the participants within their clips, with noise on their count; about 0 to 1.

    Args:
      report: of the participants.
      knobs: of all clients in this round.
      noise: deviation of the noise, in participants.
      key: of the server's noise in this round.
      lies: bool[clients], who lies; None: nobody.
    """
    clients, participants = report.client, report.client.shape[0]
    count = jnp.sum(votes(report, knobs.clip[clients], None if lies is None else lies[clients]))
    drawn = jnp.sum(jax.random.normal(key, (_DRAWS,), jnp.float32)) * np.float32(_DRAWS**-0.5)
    grid = np.float32(2.0 ** math.floor(math.log2(noise)) / _FINENESS)
    count = jnp.round((count + np.float32(noise) * drawn) / grid) * grid
    return count / participants + np.float32(0.5)


def key_of(training_key: jax.Array, number: jax.Array) -> jax.Array:
    """Key of the server's noise in a round int32[]."""
    return round_keys.of_round(training_key, number, round_keys.COUNT)
