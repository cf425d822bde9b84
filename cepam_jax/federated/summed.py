"""The secure sum of a round: integers of all participants are added up, and nothing of one of them is kept.

This is the ideal functionality, inside the compiled round: chunks and devices add up integers modulo 2^32, in
any order with the same result, and the server decodes the one sum that comes out. A message that does not
arrive is not added; a sum of fewer messages than the mechanism asks for is not opened, and the round leaves
the model as it was. What `Report` holds of single participants are metrics, as everywhere; the error of a
single message is the one that its mechanism states, as nobody decodes it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.federated import lengths, round_keys
from cepam_jax.federated.broadcast import Broadcast
from cepam_jax.federated.local import Trained
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.state import ClientArrays, Report, State, client_keys
from cepam_jax.federated.uplink import MECHANISM, VALID, failure_code, reported
from cepam_jax.mechanisms import About, Knobs
from cepam_jax.mechanisms.blocks import INVALID
from cepam_jax.wire.transmission import transmit


class Totals(NamedTuple):
    """What is added up.

    Attributes:
      symbols: int32[d], integers of the messages that arrived, modulo 2^32.
      dithers: int32[d], the dithers that belong to them.
    """

    symbols: jax.Array
    dithers: jax.Array


class Message(NamedTuple):
    """What one participant adds, and what is reported of it.

    Attributes:
      totals: its part of the sums; zeros where it did not arrive.
      arrived: f32[], 1 or 0.
      step_weight: f32[], what FedNova divided the update by.
      code: int32[], VALID, or who sent what cannot be added, and why.
      report: Report.
      local: what the client keeps for its next round; None: nothing.
    """

    totals: Totals
    arrived: jax.Array
    step_weight: jax.Array
    code: jax.Array
    report: Report
    local: Any


def check(plan: Plan) -> None:
    """Checks that a round asks of a secure sum nothing but the mean of all updates.

    Raises:
      ConfigError: what does not go with it, and why.
    """
    joint, facts = plan.mechanism.joint, plan.mechanism.about.summed
    if joint is None or facts is None:
        return
    why = _reason(plan)
    if why:
        raise ConfigError(f"the mechanism {plan.mechanism.about.name} shows the server one sum alone: {why}")
    least = facts.survivors or plan.per_round
    if not facts.colluders < least <= plan.per_round <= joint.most:
        raise ConfigError(
            f"{plan.mechanism.about.name}: sums of at least {least} messages of {plan.per_round} participants"
            f" (at most {joint.most}) are opened, {facts.colluders} of whom tell the server their noise: they"
            " must be fewer, and no more messages are asked for than are sent"
        )


def _reason(plan: Plan) -> str:
    """What a round asks for that needs single updates, and why; "" where it asks for nothing."""
    rule = plan.aggregator
    uneven = rule.public_weights is None or np.ptp(rule.public_weights(np.array([1, 2, 3]))) != 0
    found = (
        (
            rule.combine is not None,
            "a rule that compares updates, such as a median, needs single ones, as does an attack by them",
        ),
        (rule.per_tensor, "weights by error follow from single updates"),
        (
            rule.weights is not None,
            "weights by precision suppose noises that differ, and all clients share one step and one noise",
        ),
        (uneven, "one common step means equal weights; weigh all clients the same (aggregator 'mean')"),
        (plan.false_alarm is not None, "the norm of a single update cannot be checked"),
        (
            plan.ends != "slowest",
            "who is late follows from messages and times, not from chance alone",
        ),
        (
            plan.control.count_noise is not None,
            "clips that follow a count of the updates within them need a vote of each client",
        ),
        (
            plan.mechanism.joint is not None and plan.mechanism.joint.lost > 0 and plan.control.adaptive,
            "a rule that reads results spends its budget in every round, and where messages are lost some "
            "rounds have no result",
        ),
        (plan.quantize != "updates", "new weights in place of updates are not bounded"),
        (
            plan.mechanism.about.clip != "l2",
            "noise and modulus suppose updates that are clipped in L2: put clip('l2') before it",
        ),
    )
    return next((why for wrong, why in found if wrong), "")


def check_knobs(about: About, knobs: Knobs) -> None:
    """Checks that all clients of a secure sum have the same knobs.

    Args:
      about: of the mechanism.
      knobs: of all clients, arrays [clients].

    Raises:
      ConfigError: they differ.
    """
    for name in about.knobs if about.summed else ():
        each = np.asarray(getattr(knobs, name))
        if np.ptp(each) > 0:
            raise ConfigError(
                f"knob {name} is {each.min():g} to {each.max():g} over clients; it must be one for all:"
                " the messages of a secure sum share one step"
            )


def check_memory(about: About, remembers: bool) -> None:
    """Raises ConfigError where clients of a secure sum would remember what their messages lost."""
    if remembers and about.summed:
        raise ConfigError(
            "error feedback keeps what each message lost, and the mechanism "
            f"{about.name} shows one sum of all messages alone"
        )


def common_key(arrays: ClientArrays, state: State) -> jax.Array:
    """Key of what all participants of a round share: the rotation."""
    return round_keys.of_round(arrays.shared_key, state.round, round_keys.COMMON)


def start(plan: Plan) -> Totals:
    """Sums of no messages."""
    zeros = jnp.zeros(sum(plan.segments), jnp.int32)
    return Totals(zeros, zeros)


def _bits(plan: Plan, knobs: Knobs) -> jax.Array:
    """Bits of an integer in this round, int32[]; 0 where the knobs of clients differ, and with them steps."""
    joint = plan.mechanism.joint
    assert joint is not None
    used = [getattr(knobs, name) for name in plan.mechanism.about.knobs]
    same = jnp.all(jnp.stack([jnp.all(value == value[0]) for value in used]))
    first = jax.tree.map(lambda value: value[0], knobs)
    return jnp.where(same, joint.bits(first, plan.per_round, sum(plan.segments)), 0)


def send(
    plan: Plan,
    state: State,
    arrays: ClientArrays,
    knobs: Knobs,
    client,
    mask,
    trained: Trained,
    sent: Broadcast,
) -> Message:
    """Encodes one participant's update and makes it a part of the sums.

    Args:
      plan: of the round.
      state: before the round.
      arrays: of all clients.
      knobs: of all clients, for this round.
      client: int32[], its number.
      mask: f32[], 0 where the slot was filled up.
      trained: what local training left.
      sent: Broadcast of the round.
    """
    mechanism, joint, d = plan.mechanism, plan.mechanism.joint, sum(plan.segments)
    assert joint is not None
    assert mechanism.variance is not None
    _, keys = client_keys(arrays, state.round, client)
    bits = _bits(plan, knobs)
    own, update = jax.tree.map(lambda knob: knob[client], knobs), trained.update
    message = joint.encode(keys, common_key(arrays, state), plan.per_round, bits, update, own)
    size = jnp.int32(0)
    if plan.wire:
        message, size = transmit(mechanism, keys.shared, message, own, state.round, client)
    arrived = mask * _arrives(joint.lost, arrays, state, client)
    taken = arrived.astype(jnp.int32)
    totals = Totals(taken * message.symbols, taken * joint.dithers(keys.shared, d))
    code = jnp.where((message.symbols == INVALID).any(), failure_code(client, MECHANISM), VALID)
    code = jnp.where(jnp.isfinite(update).all(), code, client)
    clipped = mechanism.reference(update, own)
    length = lengths.counted(plan, sent.counted, lambda: mechanism.bits(keys.shared, message, own))
    report = reported(plan, arrays, client, trained, sent, (update, clipped), (length, size))
    report = report._replace(noise=d * jnp.mean(mechanism.variance(update, own)), weight=arrived)
    code = jnp.where(arrived > 0, code, VALID)  # nobody sees what did not arrive
    return Message(totals, arrived, trained.weight, code, report, trained.state)


def _arrives(lost: float, arrays: ClientArrays, state: State, client) -> jax.Array:
    """f32[], 1 where a client's message arrives: drawn for each client and round, whatever its update."""
    if lost == 0:
        return jnp.float32(1)
    key = round_keys.of_round(arrays.training_key, state.round, round_keys.LOST)
    return (jax.random.uniform(jax.random.fold_in(key, client)) >= lost).astype(jnp.float32)


def opened(plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, totals: Totals, arrived):
    """The mean of the updates that arrived and whether their sum was opened.

    Args:
      plan, state, arrays, knobs: as for `send`.
      totals: of all participants.
      arrived: f32[], how many messages did.

    Returns:
      f32[d], zeros where the sum is not opened, and bool[].
    """
    joint, facts = plan.mechanism.joint, plan.mechanism.about.summed
    assert joint is not None
    assert facts is not None
    first = jax.tree.map(lambda value: value[0], knobs)
    total = joint.decode(
        common_key(arrays, state),
        plan.per_round,
        arrived,
        *totals,
        _bits(plan, knobs),
        first,
        sum(plan.segments),
    )
    enough = arrived >= (facts.survivors or plan.per_round)
    return jnp.where(enough, total / jnp.maximum(arrived, 1.0), 0.0), enough
