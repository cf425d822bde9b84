"""The participants of a round over chunks and devices: who runs when, and what is added up or gathered.

Inside a chunk clients train under one vmap, chunk after chunk in a scan. With several devices each runs such
a scan over its share of the participants. A rule that streams needs sums alone, and memory for a chunk; a
rule that gathers needs all decoded updates.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cepam_jax.federated import gathering, links, poisson, summed, uplink
from cepam_jax.federated.broadcast import Broadcast
from cepam_jax.federated.plan import CLIENTS, Plan
from cepam_jax.federated.state import ClientArrays, Report, State, client_keys
from cepam_jax.federated.uplink import VALID, Sent
from cepam_jax.mechanisms import Knobs

# Updates with so many coordinates pass through the mechanism one after another, even where their clients
# trained under one vmap: one of them keeps every device busy, and messages, decoded updates and what
# lies between them take the memory of one client.
STREAMING_THRESHOLD = 2**20


class Sums(NamedTuple):
    """What is added up over participants.

    Attributes:
      update: f32[d], weighted decoded updates; f32[0] for rules that gather, and for secure sums.
      weight: f32[] or f32[tensors], weights.
      steps: f32[], what FedNova divided by, weighted.
      code: int32[], the smallest code of a participant.
      totals: of a secure sum; None without one.
    """

    update: jax.Array
    weight: jax.Array
    steps: jax.Array
    code: jax.Array
    totals: summed.Totals | None = None


class Kept(NamedTuple):
    """What is kept of each participant, leading axes [chunks, participants of a chunk].

    Attributes:
      report: Report.
      lost: f32[.., d] for error feedback, or None.
      local: the clients' own state, or None.
      decoded: f32[.., d] for rules that gather, or None.
    """

    report: Report
    lost: jax.Array | None
    local: Any
    decoded: jax.Array | None


class Arrived(NamedTuple):
    """What the server has after all participants.

    Attributes:
      aggregate: f32[d].
      aggregator: state of the rule.
      step_weight: f32[], mean of what FedNova divided by.
      code: int32[], VALID, or the first participant whose update could not be averaged, and why.
      report: Report, leading axis [participants].
      lost, local: as of `Kept`, leading axis [slots].
      opened: bool[], whether enough messages arrived for a secure sum to be opened; None without one.
    """

    aggregate: jax.Array
    aggregator: Any
    step_weight: jax.Array
    code: jax.Array
    report: Report
    lost: jax.Array | None
    local: Any
    opened: jax.Array | None = None


def over_participants(
    plan: Plan,
    state: State,
    arrays: ClientArrays,
    knobs: Knobs,
    slots,
    mask,
    sent: Broadcast,
    weights=None,
) -> Arrived:
    """Trains, sends and combines all participants of a round.

    Args:
      plan: of the round.
      state, arrays: before the round.
      knobs: of all clients.
      slots: int32[chunks, devices * per_chunk], participants; the last ones are filled up.
      mask: f32, the same shape, 0 where a slot was filled up.
      sent: Broadcast of the round.
      weights: f32[clients], for rules that weigh all clients before the round; else None.
    """

    def here(state, arrays, knobs, slots, mask, sent, weights):
        return _on_device(plan, state, arrays, knobs, slots, mask, sent, weights)

    if plan.mesh is not None:
        cut = P(None, CLIENTS)
        here = jax.shard_map(
            here,
            mesh=plan.mesh,
            in_specs=(P(), P(), P(), cut, cut, P(), P()),
            out_specs=Arrived._make([*[P()] * 5, cut, cut, P()]),
            check_vma=False,  # it asks for casts in every loop of every mechanism, to find nothing
        )
    return here(state, arrays, knobs, slots, mask, sent, weights)


def _on_device(plan, state, arrays, knobs, slots, mask, sent, weights) -> Arrived:
    """One device's participants, int32[chunks, per_chunk], and what all devices make of them together."""
    context = (plan, state, arrays, knobs, sent, weights)
    tensors = len(plan.segments) if plan.aggregator.per_tensor else None
    joint = plan.mechanism.joint
    added_up = plan.aggregator.streams and joint is None
    start = Sums(
        jnp.zeros_like(sent.flat) if added_up else jnp.zeros(0, jnp.float32),
        jnp.zeros(() if tensors is None else (tensors,), jnp.float32),
        jnp.float32(0),
        jnp.int32(VALID),
        summed.start(plan) if joint else None,
    )
    sums, kept = jax.lax.scan(lambda carry, chunk: _add_chunk(context, carry, chunk), start, (slots, mask))
    if plan.mesh is not None:
        code = jax.lax.pmin(sums.code, CLIENTS)
        sums = jax.lax.psum(sums._replace(code=jnp.int32(0)), CLIENTS)._replace(code=code)
    report = jax.tree.map(lambda a: gathering.in_order(plan, a), kept.report)
    if sums.totals is not None:
        aggregate, opened = summed.opened(plan, state, arrays, knobs, sums.totals, sums.weight)
        steps = sums.steps / jnp.maximum(sums.weight, 1.0)
        return Arrived(aggregate, state.aggregator, steps, sums.code, report, None, kept.local, opened)
    if plan.ends == "quorum":
        in_time = report.seconds <= links.end_of_round(arrays.links, report.seconds)
        report = report._replace(late=1 - in_time.astype(jnp.float32))
    if plan.aggregator.streams:
        total = poisson.expected_weight(plan, arrays) if plan.poisson else sums.weight
        if plan.false_alarm is not None or plan.ends != "slowest":  # nobody may be left
            total = jnp.maximum(total, 1e-30)
        aggregate = sums.update / per_coordinate(plan, total)
        came = jnp.mean(sums.weight if plan.poisson else total)
        step_weight = sums.steps / came
        if plan.poisson:  # perhaps nobody
            step_weight = jnp.where(came > 0, step_weight, 1.0)
        rule = state.aggregator
    else:
        known = gathering.facts_of(plan, state, arrays, knobs, report)
        aggregate, rule, report = gathering.gather(plan, state, arrays, knobs, kept.decoded, known, report)
        step_weight = sums.steps / jnp.maximum(sums.weight, 1e-30)
    return Arrived(aggregate, rule, step_weight, sums.code, report, kept.lost, kept.local)


def _add_chunk(context, carry: Sums, chunk):
    """The sums with one chunk of participants, int32[per_chunk] and their mask; Kept of each."""
    slots, mask = chunk
    plan = context[0]

    def add_participant(carry, participant):
        added, kept = _send(context, *participant)
        return _added(carry, added), kept

    if plan.per_chunk == 1:  # a vmap over one client would still pay for batched kernels
        trained = train(context, slots[0])
        carry, kept = add_participant(carry, (slots[0], mask[0], trained))
        return carry, jax.tree.map(lambda a: a[None], kept)
    trained = jax.vmap(lambda client: train(context, client))(slots)
    if sum(plan.segments) >= STREAMING_THRESHOLD:
        return jax.lax.scan(add_participant, carry, (slots, mask, trained))
    added, kept = jax.vmap(lambda *participant: _send(context, *participant))(slots, mask, trained)
    total = jax.tree.map(lambda a: a.sum(0), added)._replace(code=added.code.min())
    return _added(carry, total), kept


def _added(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)._replace(code=jnp.minimum(a.code, b.code))


def train(context, client):
    """Trained of one participant; its update holds what earlier messages lost.

    Args:
      context: (Plan, State, ClientArrays, Knobs of all clients, Broadcast, weights or None) of the round.
      client: int32[], its number.
    """
    plan, state, arrays, _, sent, _ = context
    client = _someone(plan, arrays, client)
    key, _ = client_keys(arrays, state.round, client)
    local = jax.tree.map(lambda a: a[client], state.local)
    trained = plan.local_update.run(sent.model, arrays, client, key, local, state.round)
    if state.memory is not None:
        trained = trained._replace(update=trained.update + state.memory[client])
    return trained


def _send(context, client, mask, trained) -> tuple[Sums, Kept]:
    """What one participant adds to the sums, and what is kept of it."""
    plan, state, arrays, knobs, broadcast, weights = context
    if plan.mechanism.joint:
        part = summed.send(plan, state, arrays, knobs, client, mask, trained, broadcast)
        none, steps = jnp.zeros(0, jnp.float32), part.arrived * part.step_weight
        sums = Sums(none, part.arrived, steps, part.code, part.totals)
        return sums, Kept(part.report, None, part.local, None)
    who = _someone(plan, arrays, client)
    sent: Sent = uplink.send(plan, state, arrays, knobs, who, trained, broadcast)
    if plan.poisson:
        sent = _if_present(sent, client, mask)
    if plan.aggregator.combine:
        counted = mask if sent.report.late is None else mask * (1 - sent.report.late)
        sums = Sums(jnp.zeros(0, jnp.float32), counted, counted * sent.step_weight, sent.code)
        return sums, Kept(sent.report, sent.lost, sent.local, sent.decoded)
    if weights is None:
        count = arrays.counts[client].astype(jnp.float32)
        weight = mask * plan.aggregator.weigh(count, sent.errors)
    else:
        weight = mask * weights[client]
    if sent.report.admitted is not None:  # what the server refuses is left out of the sum
        weight = weight * sent.report.admitted
    if sent.report.late is not None:
        weight = weight * (1 - sent.report.late)
    update = per_coordinate(plan, weight) * sent.decoded
    sums = Sums(update, weight, jnp.mean(weight) * sent.step_weight, sent.code)
    return sums, Kept(sent.report._replace(weight=jnp.mean(weight)), sent.lost, sent.local, None)


def _someone(plan: Plan, arrays: ClientArrays, client):
    """The client, or the last one in place of nobody."""
    return jnp.minimum(client, len(arrays.counts) - 1) if plan.poisson else client


def _if_present(sent: Sent, client, mask) -> Sent:
    """What arrived of a place under Poisson sampling: zeros that are valid, where nobody came."""
    report = jax.tree.map(lambda a: jnp.where(mask > 0, a, jnp.zeros_like(a)), sent.report)
    return sent._replace(
        decoded=jnp.where(mask > 0, sent.decoded, 0.0),
        errors=jnp.where(mask > 0, sent.errors, 0.0),
        step_weight=jnp.where(mask > 0, sent.step_weight, 0.0),
        code=jnp.where(mask > 0, sent.code, VALID),
        report=report._replace(client=client, present=mask),
    )


def per_coordinate(plan: Plan, weight):
    """A weight f32[], or f32[d] of weights f32[tensors]."""
    if not plan.aggregator.per_tensor:
        return weight
    return jnp.concatenate([jnp.full((n,), weight[i]) for i, n in enumerate(plan.segments)])
