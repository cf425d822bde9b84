"""One participant's way up: its update becomes a message, perhaps bytes, and what the server makes of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from cepam_jax.federated import admission, central, counting, lengths, links
from cepam_jax.federated.local import Trained
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.state import ClientArrays, Report, State, client_keys
from cepam_jax.mechanisms import Knobs, Mechanism, code_length
from cepam_jax.mechanisms.transforms import l1_norm, l2_norm
from cepam_jax.wire.transmission import transmit

VALID = np.int32(2**31 - 1)  # the code of an update that can be averaged; all other codes are smaller

# Causes, in the order in which the first is reported; without one an invalid client is its number alone.
LOCAL, MECHANISM, MODEL, DOWNLINK, OVERFLOW = "local update", "mechanism", "model", "downlink", "overflow"
_CAUSES = (LOCAL, MECHANISM, MODEL, DOWNLINK, OVERFLOW)
_CLIENT_BITS = 28


class Sent(NamedTuple):
    """What arrived of one participant.

    Attributes:
      decoded: f32[d], the update as the server has it.
      errors: f32[tensors], mean squared error of each tensor against the clipped update.
      step_weight: f32[], what FedNova divided the update by.
      code: int32[], VALID, or who sent what could not be averaged, and why.
      report: Report.
      lost: f32[d], what error feedback keeps of it; None without.
      local: what the client keeps for its next round; None: nothing.
    """

    decoded: jax.Array
    errors: jax.Array
    step_weight: jax.Array
    code: jax.Array
    report: Report
    lost: jax.Array | None
    local: Any


def failure_code(client, cause: str):
    """One int32 for a client and a cause, as `State.invalid_client` holds it."""
    return client + np.int32(_CAUSES.index(cause) << _CLIENT_BITS)


def failure(code) -> tuple[int, str]:
    """Why a round was not applied, from `State.invalid_client`.

    Args:
      code: int32[], not negative.

    Returns:
      The client, and the cause: LOCAL, its update was NaN or infinite before it was encoded; MECHANISM, its
      update was finite, what the server decoded was not; MODEL, all decoded updates were finite, and the
      server's step led to a model that is not; DOWNLINK, the model was finite, and what clients decoded of it
      was not; OVERFLOW, more clients came under Poisson sampling than there are places (in the last three the
      client means nothing).
    """
    return int(code) % 2**_CLIENT_BITS, _CAUSES[int(code) >> _CLIENT_BITS]


def tensor_means(square, segments: tuple[int, ...]):
    """Mean of each tensor's part of a vector f32[d]: f32[tensors]."""
    stops = np.cumsum(segments)
    return jnp.stack([square[stop - n : stop].mean() for n, stop in zip(segments, stops, strict=True)])


class Encoded(NamedTuple):
    """What a client makes of its update.

    Attributes:
      message: mechanisms.Message.
      keys: it was encoded with.
      knobs: of this client, likewise.
      update: f32[d].
      finite: bool[], whether training left numbers.
      base: f32[d] or f32[], what is added before the mechanism.
    """

    message: Any
    keys: Any
    knobs: Knobs
    update: jax.Array
    finite: jax.Array
    base: Any


def encode(
    plan: Plan,
    state: State,
    arrays: ClientArrays,
    knobs: Knobs,
    client,
    trained: Trained,
    sent: Any,
    silent: bool,
) -> Encoded:
    """A participant's message; the arguments as for `send`.

    With `silent`, a client whose training diverged sends noise alone, which betrays nothing of it.
    """
    _, keys = client_keys(arrays, state.round, client)
    knobs = jax.tree.map(lambda knob: knob[client], knobs)._replace(scale=state.scale)
    update, finite = trained.update, jnp.isfinite(trained.update).all()
    if silent:
        update = jnp.where(finite, update, 0.0)
    base = sent.flat if plan.quantize == "weights" else 0.0
    return Encoded(plan.mechanism.encode(keys, base + update, knobs), keys, knobs, update, finite, base)


def send(
    plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, client, trained: Trained, sent: Any
) -> Sent:
    """Encodes, transmits, decodes and checks one participant's update.

    Args:
      plan: of the round.
      state: before the round.
      arrays: of all clients.
      knobs: of all clients, for this round.
      client: int32[], its number.
      trained: what local training left; its update holds the residual of error feedback already.
      sent: Broadcast of the round.
    """
    mechanism = plan.mechanism
    # Where norms are checked the round goes on, whoever's training diverged.
    silent = plan.false_alarm is not None
    made = encode(plan, state, arrays, knobs, client, trained, sent, silent)
    message, keys, knobs, update, finite, base = made
    if arrays.messages is not None:
        message = jax.tree.map(lambda part: part[client], arrays.messages)
    size = jnp.int32(0)
    if plan.wire:
        message, size = transmit(mechanism, keys.shared, message, knobs, state.round, client)
    decoded = mechanism.decode(keys.shared, message, knobs) - base
    if plan.server_noise is not None and mechanism.about.outsiders is None:
        # The server's noise is for the bound, which a quantizer's error may exceed.
        decoded = central.bounded(mechanism.about, decoded, knobs, bool(plan.poisson))
    clipped = mechanism.reference(base + update, knobs) - base
    code = jnp.where(jnp.isfinite(decoded).all(), VALID, failure_code(client, MECHANISM))
    code = jnp.where(jnp.isfinite(update).all(), code, client)
    error = jnp.square(decoded - clipped)
    taken, crafts = None, plan.attack is not None and plan.attack.craft is not None
    if crafts:  # what liars would have sent is never used; all are checked when the lies are known
        assert arrays.liars is not None
        code = jnp.where(arrays.liars[client], VALID, code)
    if plan.norm_alarm is not None and not crafts:
        limits = admission.limits(mechanism.about, knobs, decoded.shape[0], plan.norm_alarm)
        decoded, taken = admission.admitted(mechanism.about, decoded, limits)
    # An aggregator by errors needs one float per tensor of each client, a count one bit.
    extra_bits = 32 * len(plan.segments) if plan.aggregator.per_tensor else 0
    extra_bits += counting.VOTE_BITS if plan.control.count_noise is not None else 0

    def count():
        # A message of its own where few rounds count: the choice of laws is then made in those alone.
        own = message if sent.counted is None else mechanism.encode(keys, base + update, knobs)
        return mechanism.bits(keys.shared, own, knobs)

    bits = lengths.counted(plan, sent.counted, count) + extra_bits
    size = size + -(-extra_bits // 8) if plan.wire else jnp.int32(0)
    report = reported(plan, arrays, client, trained, sent, (update, clipped), (bits, size))
    report = report._replace(
        noise=jnp.sum(error),
        admitted=None if taken is None else taken.astype(jnp.float32),
        peak=_peak(mechanism, base + update),
    )
    received = decoded if report.late is None else decoded * (1 - report.late)
    lost, kept = None if state.memory is None else update - received, trained.state
    if plan.false_alarm is not None:  # of what is not finite nothing is kept
        before = jax.tree.map(lambda a: a[client], (state.memory, state.local))
        lost, kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (lost, kept), before)
    return Sent(decoded, tensor_means(error, plan.segments), trained.weight, code, report, lost, kept)


def reported(plan: Plan, arrays: ClientArrays, client, trained: Trained, sent: Any, updates, size) -> Report:
    """What is reported of a participant, whatever becomes of its message; its error is still to be added.

    Args:
      plan, arrays, client, trained, sent: as for `send`.
      updates: (the update f32[d] before clipping, and after it).
      size: (ideal code length f32[] of its message, real length int32[]).
    """
    measure = l1_norm if plan.mechanism.about.clip == "l1" else l2_norm
    (update, clipped), (bits, length) = updates, size
    seconds, late = _time_of(plan, arrays, client, sent.need, bits, length)
    return Report(
        client=client,
        loss=trained.loss,
        bits=bits,
        bytes=length,
        down_bits=sent.need.bits[client],
        down_bytes=sent.need.bytes[client],
        norm=measure(update),
        clipped_norm=measure(clipped),
        signal=jnp.sum(jnp.square(clipped)),
        noise=jnp.float32(0),
        weight=jnp.float32(1),
        lies=None if arrays.liars is None else arrays.liars[client].astype(jnp.float32),
        seconds=seconds,
        late=late,
    )


def _time_of(plan: Plan, arrays: ClientArrays, client, need, bits, size):
    """(seconds until a message arrives, f32 of 1 where that is after a deadline); None where not asked for.

    Under a quorum nobody is late before the last has sent: see `spread`.
    """
    if arrays.links is None:
        return None, None
    down, up = (need.bytes[client] * 8.0, size * 8.0) if plan.wire else (need.bits[client], bits)
    seconds = links.seconds(links.of_clients(arrays.links, client), up, down)
    if plan.ends == "slowest":
        return seconds, None
    in_time = (seconds <= arrays.links.deadline) | (plan.ends == "quorum")
    return seconds, 1 - in_time.astype(jnp.float32)


def _peak(mechanism: Mechanism, update) -> jax.Array | None:
    """f32[], `Report.peak` of what is coded, f32[d]; a clip, which shortens it, leaves that as it is."""
    code = mechanism.code
    if mechanism.about.mixes or code.kind != "lattice":
        return None
    segments = code.segments or update.shape
    means = tensor_means(jnp.abs(update), segments)
    squares = tensor_means(jnp.square(update), segments)
    return jnp.max(jnp.where(means > 0, jnp.sqrt(squares) / jnp.where(means > 0, means, 1), 0))


def public_scales(mean, segments, sigmas, family, per_round, private=0.0):
    """What all can know of the next updates' scales: those of the last aggregated update, less noise.

    Where noise of the clients' own comes before the quantizer, it is a part of what is coded.

    Args:
      mean: f32[d], aggregated update.
      segments: lengths of its tensors.
      sigmas: f32[clients] or f32[], deviation of each client's noise in the mean; 0: it has none.
      family: law of the coordinates that the coder assumes.
      per_round: clients that were averaged.
      private: f32[clients] or f32[], deviation of the noise that is added before the quantizer.

    Returns:
      int32[segments], in eighths of an octave.
    """
    spread = np.float32(code_length.DEVIATION[family])
    square = code_length.fit_scales(mean, segments, "gaussian").astype(jnp.float32)
    square = jnp.exp2(2 * square / code_length.SCALES_PER_OCTAVE)
    noise = jnp.mean(jnp.square(sigmas)) / per_round
    coded = jnp.maximum(square - noise, noise / 16) + jnp.mean(jnp.square(private))
    deviation = jnp.sqrt(coded) / spread
    return jnp.round(code_length.SCALES_PER_OCTAVE * jnp.log2(deviation)).astype(jnp.int32)


def flat_model(state: State) -> jax.Array:
    """Parameters and statistics of the global model as one vector f32[d], in the order of updates."""
    return ravel_pytree((state.params, state.statistics))[0]
