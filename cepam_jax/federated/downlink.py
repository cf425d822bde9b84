"""The contract of a downlink: how the model of the server reaches the clients of a round.

Both sides remember the model as clients have it; the server's own model stays exact. What is sent follows
from the released models and from randomness of its own, so a downlink releases nothing that the models do
not (post-processing): no epsilon is spent on it.

Two memories are in use, and they are one. The server may send the difference between its model w_t and the
model h_{t-1} that clients hold, so that h_t = h_{t-1} + Q(w_t - h_{t-1}). Or it may send the change of its
model and what was lost so far (error feedback): h_t = h_{t-1} + Q(w_t - w_{t-1} + e_t), with e_{t+1} =
w_t - w_{t-1} + e_t - Q(...). Where e_t = w_{t-1} - h_{t-1}, both code the same vector, and e_{t+1} =
w_t - h_t: by induction they are the same for ever, up to rounding. A test runs both. The first needs no
memory but h.

With memory the loss goes on only where a message brings clients nearer: |x - Q(x)| < |x|. An unbiased
quantizer of few bits does not (one bit for each of d coordinates has an error of up to sqrt(d) |x|), and its
errors would grow from round to round. So the server, which knows both x and Q(x), multiplies Q(x) by the
number that fits best, <x, Q(x)> / |Q(x)|^2, and sends that number too (32 bits): then |x - a Q(x)| <= |x|,
whatever Q is.

Sources: Gruntkowska, Tyurin, Richtárik: EF21-P and Friends: Improved Theoretical Communication Complexity for
Distributed Optimization with Bidirectional Compression, arXiv 2209.15218, for the difference against what
clients hold; Philippenko, Dieuleveut: Preserved Central Model for Faster Bidirectional Compression in
Distributed Settings, arXiv 2102.12528, for a server that keeps its own model; Mishchenko, Gorbunov, Takáč,
Richtárik: Distributed Learning with Compressed Gradient Differences, arXiv 1901.09269, for the same on the
way up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Keys, Knobs, Mechanism, build
from cepam_jax.mechanisms.configured import FIELD_OF_KNOB, fields_of_steps, rules_of_steps
from cepam_jax.mechanisms.registry import CONFIGURABLE
from cepam_jax.mechanisms.transforms import l2_norm
from cepam_jax.wire.transmission import transmit

FLOAT_BITS = 32
_TO_ALL = 0  # the number that the header of a broadcast names in place of a client


class Size(NamedTuple):
    """Of one message.

    Attributes:
      bits: f32[], ideal code length.
      bytes: int32[], real length; 0 unless it was packed.
    """

    bits: jax.Array
    bytes: jax.Array


class Downlink(NamedTuple):
    """How the model reaches the clients.

    Attributes:
      initialize: flat model f32[d] -> state. Clients hold that model: in round 0 nothing is sent.
      send: (state, flat model f32[d], Keys of the round, its number int32[], whether messages are packed into
        bytes) -> (what clients have from now on f32[d], state, Size of the message, the same for all).
    """

    initialize: Callable[[jax.Array], Any]
    send: Callable[[Any, jax.Array, Keys, Any, bool], tuple[jax.Array, Any, Size]]


def compressed(mechanism: Mechanism, knobs: Knobs, fitted: bool = True) -> Downlink:
    """The difference from what clients hold goes through a mechanism; what it loses is sent with the next.

    Args:
      mechanism: codes the difference f32[d].
      knobs: its knobs.
      fitted: whether what was decoded is multiplied by the number that fits best, which costs 32 bits.
        Without it a mechanism whose error may exceed what it codes drives clients away from the model.
    """

    def send(received, model, keys, number, wire):
        difference = model - received
        message, size = mechanism.encode(keys, difference, knobs), jnp.int32(0)
        if wire:
            message, size = transmit(
                mechanism, keys.shared, message, knobs, jnp.asarray(number, jnp.int32), jnp.int32(_TO_ALL)
            )
        bits = mechanism.bits(keys.shared, message, knobs)
        change = mechanism.decode(keys.shared, message, knobs)
        if fitted:
            change = best_factor(difference, change) * change
            bits, size = bits + FLOAT_BITS, size + (FLOAT_BITS // 8 if wire else 0)
        received = received + change
        return received, received, Size(bits, size)

    return Downlink(jnp.asarray, send)


def best_factor(wanted, found) -> jax.Array:
    """f32[], the number a for which |wanted - a found| is least, of vectors f32[d]; 0 where found is 0."""
    norm = l2_norm(found)  # without it squares of small numbers would vanish
    unit = found / jnp.where(norm > 0, norm, 1.0)
    return jnp.where(norm == 0, 0.0, jnp.sum(wanted * unit) / jnp.where(norm > 0, norm, 1.0))


_STEPS = {"bits": 4, "rounding": "deterministic", "threshold": "mse"}
settings.declare(
    "downlink",
    {
        "name": settings.choice(
            "none",
            "Which mechanism codes the difference between the server's model and the one that clients hold.",
            CONFIGURABLE,
            "none",
        ),
        **fields_of_steps(_STEPS),
        "fitted": settings.boolean(
            True, "Whether what is decoded is multiplied by the number that fits best (32 bits more)."
        ),
        "start": settings.choice(
            "sent",
            "How a client comes to the model before training: it is sent in full, or follows from a public "
            "seed at no cost.",
            ("sent", "seed"),
        ),
    },
    "How the model reaches the clients: by default in full, 32 bits a number.",
)


def _steps_of(fields) -> Any:
    """What builds the downlink's mechanism: its own fields, and those of the uplink that it has none of."""
    found = settings.section(fields, "mechanism")
    found.update(settings.section(fields, "downlink"))
    found.clip, found.scales = "none", "own"
    return found


@settings.rule
def _rules(fields):
    name = fields["downlink.name"]
    yield (
        fields["downlink.start"] == "sent" or not fields["init"],
        "downlink.start",
        "'sent' where config.init names a run to begin with: its model follows from no seed",
    )
    if name == "none":
        why = "where config.downlink.name is 'none': nobody reads it"
        yield from settings.unread(fields, "downlink", why, read=("downlink.name", "downlink.start"))
        return
    yield from rules_of_steps(fields, "downlink")
    steps = _steps_of(fields)
    yield (
        name != "sdq" or steps.rate != "sigma",
        "downlink.rate",
        "'step' or 'bits': a broadcast has no gamma",
    )
    try:
        noisy = set(build(steps, ((1,),)).about.knobs) - set(FIELD_OF_KNOB)
    except ConfigError as error:
        yield False, "downlink.name", f"one that can be built from config.downlink: {error}"
    yield (
        not noisy,
        "downlink.name",
        "'none' or a mechanism without noise and without a clip, such as 'clipped', 'rounding', 'sdq' or "
        "'k_level': nothing private is in a broadcast, so there is nothing to hide (from Python "
        "federated.compressed takes any mechanism)",
    )


def of_config(config, shapes: tuple[tuple[int, ...], ...]) -> Downlink | None:
    """The downlink of a configuration; None where the model is sent in full.

    Args:
      config: valid configuration.
      shapes: of the model's tensors, parameters first, then statistics.
    """
    if config.downlink.name == "none":
        return None
    steps = _steps_of(settings.flat(config))
    given = {name: jnp.float32(getattr(steps, name)) for name in FIELD_OF_KNOB if name != "gamma"}
    return compressed(build(steps, shapes), Knobs(**given), config.downlink.fitted)
