"""One federated round as one pure function, in the order of the paper.

  broadcast        every participant k receives the global model w
  local training   x_k  = local update(w, data of k)
  send             x^_k = decode(encode(clip(x_k)))
  aggregate        x    = sum_k a_k x^_k / sum_k a_k, or another rule; perhaps noise of the server's
  step             w   <- server optimizer(w, x)
  control          the knobs of the next round, from what was released

Each step is a room with a contract of its own: `downlink`, `local`, `uplink`, `aggregation`, `control`; who
runs when is said in `spread`. With error feedback (Karimireddy, Rebjock, Stich, Jaggi: Error Feedback Fixes
SignSGD and other Gradient Compression Schemes, arXiv 1901.09847) a client adds to x_k what earlier rounds
lost of its updates.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from cepam_jax.federated import aggregation, central, counting, facts, lengths, participation, poisson, summed
from cepam_jax.federated.broadcast import Broadcast, behind_after, behind_at_start, broadcast
from cepam_jax.federated.control import Measured, Released
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.spread import Arrived, over_participants
from cepam_jax.federated.state import ClientArrays, RoundReport, State
from cepam_jax.federated.uplink import (
    DOWNLINK,
    LOCAL,
    MECHANISM,
    MODEL,
    OVERFLOW,
    VALID,
    failure,
    failure_code,
    public_scales,
)
from cepam_jax.mechanisms import Knobs, code_length
from cepam_jax.tasks.base import Model

__all__ = [
    "DOWNLINK",
    "LOCAL",
    "MECHANISM",
    "MODEL",
    "OVERFLOW",
    "Plan",
    "failure",
    "initial_state",
    "make_round",
    "public_scales",
]


def make_round(plan: Plan) -> Callable[..., tuple[State, RoundReport]]:
    """Builds (State, ClientArrays, counted=None) -> (State, RoundReport).

    With `counted` bool[], a round counts the ideal lengths of its messages only where it is true.
    """
    aggregation.check(plan.aggregator)
    central.check(plan)
    summed.check(plan)
    facts.check(plan)
    poisson.check(plan)

    def run_round(state: State, arrays: ClientArrays, counted: jax.Array | None = None):
        draw = participation.round_key(arrays.training_key, state.round)
        clients, overflow = _drawn(plan, draw, arrays.counts.shape[0])
        knobs = plan.control.knobs(state.control, arrays.knobs, state.round)
        sent = broadcast(plan, state, arrays)._replace(counted=counted)
        slots, mask = _slots(plan, clients, arrays.counts.shape[0])
        weights = weigh(plan, state, arrays, knobs)
        arrived = over_participants(plan, state, arrays, knobs, slots, mask, sent, weights)
        noised = central.added(plan, state.round, arrays, knobs, arrived.aggregate, arrived.report)
        arrived = observe(plan, state, arrays, knobs, weights, arrived._replace(aggregate=noised))
        if plan.poisson:
            arrived = arrived._replace(code=jnp.where(overflow, failure_code(0, OVERFLOW), arrived.code))
        anybody, arrived = somebody(plan, arrived)
        after = step(plan, state, arrived, knobs, slots)
        if plan.ends != "slowest" or arrived.opened is not None:
            after = unchanged_without(anybody, state, after)
        if plan.downlink is not None:
            after = after._replace(downlink=sent.downlink, behind=behind_after(sent, clients))
        after = after._replace(control=control(plan, state, after, arrived, arrays, knobs, anybody))
        kept, report = _if_valid(state, after, arrived, knobs, sent)
        measured = lengths.which(plan, counted)
        return kept, report._replace(weights=weights, opened=arrived.opened, counted=measured)

    return run_round


def weigh(plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs):
    """f32[clients], for rules that weigh all clients before the round by what is public; else None."""
    if plan.aggregator.weights is None:
        return None
    return plan.aggregator.weights(state.aggregator, facts.public(plan, arrays.counts, knobs))


def observe(plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, weights, arrived) -> Arrived:
    """What arrived, with the state of a rule that learns from the released aggregate."""
    if plan.aggregator.observe is None:
        return arrived
    known, clients = facts.public(plan, arrays.counts, knobs), arrived.report.client
    published = aggregation.Published(
        arrived.aggregate, weights[clients], known.deviation[clients], known.limit
    )
    return arrived._replace(aggregator=plan.aggregator.observe(state.aggregator, published))


def somebody(plan: Plan, arrived: Arrived) -> tuple[Any, Arrived]:
    """(Whether there is an aggregate bool[], what arrived); where nobody was in time it is zero."""
    if arrived.opened is not None:  # of a secure sum that is not opened the aggregate is zero
        return arrived.opened, arrived
    if plan.ends == "slowest":
        return jnp.bool_(True), arrived
    assert arrived.report.late is not None
    anybody = jnp.any(arrived.report.late == 0)
    return anybody, arrived._replace(aggregate=jnp.where(anybody, arrived.aggregate, 0.0))


def unchanged_without(anybody, state: State, after: State) -> State:
    """The state after a round; where nobody was in time, with the model and all that goes by it as before."""
    names = ("params", "server", "statistics", "scale", "aggregator")
    found = {
        name: jax.tree.map(lambda new, old: jnp.where(anybody, new, old), getattr(after, name), before)
        for name in names
        if (before := getattr(state, name)) is not None
    }
    return after._replace(**found)


def step(plan: Plan, state: State, arrived: Arrived, knobs: Knobs, slots) -> State:
    """The server's step with the aggregate; what clients keep goes where they find it."""
    unravel = ravel_pytree((state.params, state.statistics))[1]
    descent, _ = unravel(-arrived.step_weight * arrived.aggregate)
    change, server = plan.server.update(descent, state.server, state.params)
    return state._replace(
        params=optax.apply_updates(state.params, change),
        statistics=_averaged(plan, state, unravel(arrived.aggregate)[1], arrived.step_weight),
        server=server,
        round=state.round + 1,
        memory=_scattered(state.memory, arrived.lost, slots),
        local=_scattered(state.local, arrived.local, slots),
        scale=_scales(plan, state, arrived, knobs),
        aggregator=arrived.aggregator,
    )


def _averaged(plan, state, change, step_weight):
    """The model's statistics plus their participants' mean change, within their range."""
    if state.statistics is None:
        return None
    moved = jax.tree.map(lambda old, delta: old + step_weight * delta, state.statistics, change)
    return moved if plan.task is None or plan.task.project is None else plan.task.project(moved)


def _scattered(before, kept, slots):
    """What all clients keep, [clients, ...], with what the participants keep from now on."""
    return jax.tree.map(
        lambda old, new: old.at[slots.reshape(-1)].set(new.reshape(slots.size, *old.shape[1:])), before, kept
    )


def _scales(plan, state, arrived: Arrived, knobs):
    """What all may know of the next updates' scales, for coders whose scales are public."""
    if state.scale is None:
        return None
    about = plan.mechanism.about
    private = about.server.deviation(knobs) if about.server else 0.0
    # What the server added, or what outsiders face; the error of a dither or of rounding is not subtracted.
    sigmas = about.outsiders.deviation(knobs) if about.outsiders else 0.0
    sigmas = knobs.sigma if plan.server_noise else sigmas
    family, late = plan.mechanism.code.family, arrived.report.late
    averaged = plan.per_round if late is None else jnp.maximum(plan.per_round - late.sum(), 1.0)
    if plan.poisson:  # the sum over those who came, or filled up to all places, over its expected number
        averaged = plan.poisson**2 / plan.per_round if plan.server_noise else plan.poisson
    return public_scales(arrived.aggregate, plan.segments, sigmas, family, averaged, private)


def control(
    plan: Plan, state: State, after: State, arrived: Arrived, arrays: ClientArrays, knobs: Knobs, anybody
):
    """State of the control rule after the round; where nobody was in time there is no result to read."""
    rule, mine = plan.control, state.control
    if rule.advance:
        mine = rule.advance(mine)
    if rule.observe:
        noise = facts.noise_of_sum(plan, arrays.counts, knobs, arrived.report)
        within = jnp.float32(jnp.nan)
        if rule.count_noise is not None:
            key = counting.key_of(arrays.training_key, state.round)
            within = counting.share_within(arrived.report, knobs, rule.count_noise, key, arrays.liars)
        seen = rule.observe(mine, Released(after.round, arrived.aggregate, after.params, noise, within))
        mine = jax.tree.map(lambda new, old: jnp.where(anybody, new, old), seen, mine)
    if rule.watch:
        loss, examples = arrived.report.loss, arrays.counts.astype(jnp.float32)
        of_participants = examples[arrived.report.client]
        mine = rule.watch(mine, Measured(after.round, loss, of_participants, examples))
    return mine


def _if_valid(state: State, after: State, arrived: Arrived, knobs: Knobs, sent: Broadcast):
    """The state after a round that is valid, else the one before it with what was wrong; RoundReport."""
    code = arrived.code
    finite = _finite((after.params, after.server, after.statistics, after.control, after.aggregator))
    broken = failure_code(np.int32(0), MODEL)
    code = jnp.where((code == VALID) & ~finite, broken, code)
    if state.behind is not None:  # what clients make of a broken broadcast says nothing about them
        broken = failure_code(np.int32(0), DOWNLINK)
        code = jnp.where(jnp.isfinite(sent.flat).all() | ~_finite(state.params), code, broken)
    failed = code < VALID
    kept = jax.tree.map(lambda a, b: jnp.where(failed, b, a), after, state)
    kept = kept._replace(invalid_client=jnp.where(failed, code, state.invalid_client))
    return kept, RoundReport(~failed, arrived.report, knobs, sent.message.bits)


def _finite(tree):
    """Whether all floating-point leaves are finite, bool[]."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _drawn(plan: Plan, key, number: int):
    """(int32[per_round], the clients that take part; whether more came than there are places)."""
    if plan.poisson:
        return poisson.choose(key, number, plan.poisson, plan.per_round)
    return participation.choose(key, number, plan.per_round), False


def _slots(plan: Plan, clients, number: int):
    """Participants as int32[chunks, devices * per_chunk], and f32 of 0 where the last chunk is filled up.

    Places that stay empty under Poisson sampling have the number of clients in place of one, and 0.
    """
    width = plan.devices * plan.per_chunk
    fill = plan.chunks * width - plan.per_round
    if plan.poisson:
        slots = jnp.pad(clients, (0, fill), constant_values=number).reshape(plan.chunks, width)
        return slots, (slots < number).astype(jnp.float32)
    slots = jnp.pad(clients, (0, fill), mode="edge").reshape(plan.chunks, width)
    mask = jnp.pad(jnp.ones(plan.per_round, jnp.float32), (0, fill)).reshape(plan.chunks, width)
    return slots, mask


def initial_state(
    plan: Plan, model: Model, knobs: Knobs, num_clients: int, remembers: bool, clip_bound
) -> State:
    """The state before the first round.

    Args:
      plan: of the rounds.
      model: as the task initialized it.
      knobs: of all clients, at the start.
      num_clients: how many they are.
      remembers: whether clients keep what their messages lost (error feedback).
      clip_bound: f32[], bound on an update's norm: before anything is known, what the public scales follow
        from.
    """
    d, scale = sum(plan.segments), None
    summed.check_memory(plan.mechanism.about, remembers)
    if "scale" in plan.mechanism.about.knobs:  # the bound, spread evenly over all coordinates
        octaves = jnp.log2(clip_bound / math.sqrt(d))
        scale = jnp.round(code_length.SCALES_PER_OCTAVE * octaves).astype(jnp.int32)
        scale = jnp.full(len(plan.segments), scale)
    return State(
        params=model.params,
        server=plan.server.init(model.params),
        round=jnp.int32(0),
        invalid_client=jnp.int32(-1),
        memory=jnp.zeros((num_clients, d), jnp.float32) if remembers else None,
        scale=scale,
        statistics=model.statistics,
        frozen=model.frozen,
        local=plan.local_update.initialize(num_clients, model) if plan.local_update.initialize else None,
        aggregator=plan.aggregator.initialize(d) if plan.aggregator.initialize else None,
        control=plan.control.initialize(knobs) if plan.control.initialize else None,
        downlink=plan.downlink.initialize(ravel_pytree((model.params, model.statistics))[0])
        if plan.downlink
        else None,
        behind=behind_at_start(plan, num_clients),
    )
