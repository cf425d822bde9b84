"""All decoded updates of a round at once: lies, the server's check of them, and a rule that gathers."""

import jax
import jax.numpy as jnp

from cepam_jax.federated import admission, pairs, round_keys
from cepam_jax.federated.aggregation.base import Aggregator, Facts
from cepam_jax.federated.aggregation.distances import gram
from cepam_jax.federated.lying import Seen, lied
from cepam_jax.federated.plan import CLIENTS, Plan
from cepam_jax.federated.state import ClientArrays, Report, State
from cepam_jax.mechanisms import Knobs

# Coordinates that a coordinatewise rule is given at a time: its copies, such as an order's, are no larger.
COORDINATES_AT_A_TIME = 2**16

_LARGEST = 1e30  # squared norm of an update, for rules by distances: sums of some are still finite


def in_order(plan: Plan, values):
    """[chunks, per_chunk, ...] of this device as [participants, ...] of all, in the order of their slots."""
    if plan.mesh is not None:
        values = jax.lax.all_gather(values, CLIENTS, axis=1, tiled=True)
    return values.reshape(-1, *values.shape[2:])[: plan.per_round]


def facts_of(plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, report: Report) -> Facts:
    """What a rule may know of the participants of a Report."""
    about, d, clients = plan.mechanism.about, sum(plan.segments), report.client
    taken = None if report.admitted is None else report.admitted > 0
    if report.late is not None:
        taken = (report.late == 0) & (True if taken is None else taken)
    deviation = about.outsiders.deviation(knobs) if about.outsiders else 0.0
    each = jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), arrays.counts.shape)[clients]
    return Facts(
        client=clients,
        examples=arrays.counts[clients].astype(jnp.float32),
        noise=d * jnp.square(each),
        key=round_keys.of_round(arrays.shared_key, state.round, round_keys.PUBLIC),
        taken=taken,
    )


def gather(
    plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, decoded, facts: Facts, report: Report
):
    """(aggregate f32[d], state of the rule, Report) from decoded updates f32[chunks, per_chunk, d].

    With several devices each has the updates of its own participants. A coordinatewise rule is given all
    participants' values of a share of the coordinates on each device; another rule, and one that is lied to,
    all updates on each.
    """
    rule, last, apart = plan.aggregator, state.aggregator, apart_of(plan)
    if plan.attack is not None and plan.attack.craft is not None:
        updates, taken = _lied(plan, state, arrays, knobs, in_order(plan, decoded), facts)
        if taken is not None:
            facts = facts._replace(taken=taken)
            report = report._replace(admitted=taken.astype(jnp.float32))
        return _of_all(rule, last, updates, facts, report, apart)
    if not rule.coordinatewise:
        return _of_all(rule, last, in_order(plan, decoded), facts, report, apart)
    d = decoded.shape[-1]
    if plan.mesh is None:
        return _of_all(rule, last, decoded.reshape(-1, d)[: plan.per_round], facts, report, apart)
    # Each device is given all participants' values of its share of the coordinates, and no more.
    share = -(-d // plan.devices)
    padded = jnp.pad(decoded, ((0, 0), (0, 0), (0, share * plan.devices - d)))
    mine = jax.lax.all_to_all(padded, CLIENTS, split_axis=2, concat_axis=1, tiled=True)
    mine = mine.reshape(-1, share)[: plan.per_round]
    if rule.from_last:
        whole = jnp.pad(last, (0, share * plan.devices - d))
        last = jax.lax.dynamic_slice(whole, (jax.lax.axis_index(CLIENTS) * share,), (share,))
    part, _, left = combined(rule, last, mine, facts, CLIENTS, apart)
    aggregate = jax.lax.all_gather(part, CLIENTS, tiled=True)[:d]
    last = aggregate if rule.from_last else state.aggregator
    return aggregate, last, _told(report, left, apart)


def apart_of(plan: Plan) -> float | None:
    """How near two honest updates of a round come, as part of their noises' mean squared distance.

    None: the server does not look.
    """
    if not plan.pairs:
        return None
    assert plan.norm_alarm is not None
    return pairs.least(sum(plan.segments), plan.per_round, plan.norm_alarm)


def _of_all(rule: Aggregator, last, updates, facts: Facts, report: Report, apart):
    """(aggregate, state of the rule, Report) of all updates, whole."""
    aggregate, last, left = combined(rule, last, updates, facts, apart=apart)
    return aggregate, last, _told(report, left, apart)


def _told(report: Report, left, apart: float | None) -> Report:
    """The Report, which says whom a check of pairs refused."""
    if apart is None:
        return report
    assert report.admitted is not None  # norms are checked, too
    late = 0.0 if report.late is None else report.late  # who is late is not refused
    return report._replace(admitted=report.admitted * jnp.maximum(left, late))


def combined(
    rule: Aggregator, last, updates, facts: Facts, axis: str | None = None, apart: float | None = None
):
    """(aggregate f32[c], state, who is left bool[participants] or None) of a rule on some or all coordinates.

    Args:
      rule: that gathers.
      last: its state; for a rule that begins from the last aggregate, these coordinates of it.
      updates: f32[participants, c].
      facts: of the participants.
      axis: of the devices that hold the other coordinates; None: these are all.
      apart: how near two honest updates come (`pairs.least`); None: the server does not look.
    """
    assert rule.combine is not None
    mixing, n = None, len(updates)
    if rule.mix is not None or apart is not None:
        # What is not finite, or too large for its square, is left out: it may not hide all distances.
        usable = _usable(updates, axis)
        updates = jnp.where(usable[:, None], updates, 0.0)
        facts = facts._replace(taken=usable if facts.taken is None else usable & facts.taken)
        if rule.from_last:
            updates = jnp.concatenate([updates, last[None]])
        products = _summed(updates)
        products = products if axis is None else jax.lax.psum(products, axis)
        if apart is not None:
            assert facts.noise is not None and facts.taken is not None
            left = pairs.kept(products[:n, :n], facts.noise, facts.taken, apart)
            # Of each pair that is gone at least one lied: so many fewer are left to tolerate.
            gone = (facts.taken.sum() - left.sum()) // 2
            facts, rows = facts._replace(taken=left, gone=gone), jnp.ones(len(updates), bool).at[:n].set(left)
            updates = jnp.where(rows[:, None], updates, 0.0)
            products = jnp.where(rows[:, None] & rows[None, :], products, 0.0)
    taken = facts.taken
    if not rule.coordinatewise:
        return *rule.combine(last, updates, facts), taken
    if rule.mix is not None:
        mixing, facts = rule.mix(products, facts)
    aggregate = _by_coordinates(rule, mixing, updates, facts)
    return aggregate, aggregate if rule.from_last else last, taken


def _usable(updates, axis):
    """bool[participants], whose squared norm is a number that others can be added to."""
    square = jnp.square(updates).sum(1)
    return (square if axis is None else jax.lax.psum(square, axis)) <= _LARGEST


def _parts(c: int) -> int:
    return -(-c // COORDINATES_AT_A_TIME)


def _piece(updates, part):
    """(part of the coordinates f32[n, COORDINATES_AT_A_TIME], where it begins); the last begins earlier."""
    n, c = updates.shape
    start = jnp.minimum(part * COORDINATES_AT_A_TIME, c - COORDINATES_AT_A_TIME)
    return jax.lax.dynamic_slice(updates, (0, start), (n, COORDINATES_AT_A_TIME)), start


def _summed(updates):
    """Inner products f32[n, n], added up over parts of the coordinates."""
    n, c = updates.shape
    if c <= COORDINATES_AT_A_TIME:
        return gram(updates)

    def add(total, part):
        piece, start = _piece(updates, part)
        new = start + jnp.arange(COORDINATES_AT_A_TIME) >= part * COORDINATES_AT_A_TIME
        return total + gram(jnp.where(new, piece, 0.0)), None

    return jax.lax.scan(add, jnp.zeros((n, n), jnp.float32), jnp.arange(_parts(c)))[0]


def _by_coordinates(rule, mixing, updates, facts):
    """A coordinatewise rule on f32[participants, c], mixed before, some coordinates at a time."""

    def one(piece):
        if mixing is not None:
            piece = jnp.matmul(mixing, piece, precision=jax.lax.Precision.HIGHEST)
        return rule.combine(None, piece, facts)[0]

    c = updates.shape[1]
    if c <= COORDINATES_AT_A_TIME:
        return one(updates)
    parts = _parts(c)
    results = jax.lax.map(lambda part: one(_piece(updates, part)[0]), jnp.arange(parts))
    last = c - (parts - 1) * COORDINATES_AT_A_TIME  # the last piece begins earlier, and overlaps
    return jnp.concatenate([results[:-1].reshape(-1), results[-1, -last:]])


def _lied(plan: Plan, state: State, arrays: ClientArrays, knobs: Knobs, updates, facts: Facts):
    """(updates f32[participants, d] with those of liars, zeros for what the server refuses; who is taken)."""
    about, alarm, clients = plan.mechanism.about, plan.norm_alarm, facts.client
    apart, d = apart_of(plan), updates.shape[1]
    assert plan.attack is not None and arrays.liars is not None
    limits = admission.Limits(jnp.zeros(len(clients)), jnp.full(len(clients), jnp.inf))
    if alarm is not None:
        mine = jax.tree.map(lambda knob: knob[clients], knobs)
        limits = admission.limits(about, mine, d, alarm)

    def take(sent):
        if alarm is None:
            return sent, None
        return jax.vmap(lambda one, *limit: admission.admitted(about, one, admission.Limits(*limit)))(
            sent, *limits
        )

    def aggregate(sent):
        sent, taken = take(sent)
        return combined(plan.aggregator, state.aggregator, sent, facts._replace(taken=taken), apart=apart)[0]

    lies = arrays.liars[clients]
    key = round_keys.of_round(arrays.training_key, state.round, round_keys.LIARS)
    seen = Seen(
        updates=updates,
        lies=lies,
        key=key,
        limits=limits,
        norm=admission.norm_of(about),
        aggregate=aggregate,
    )
    if apart is not None:
        seen = seen._replace(
            cover=pairs.cover(key, lies, facts.noise, apart, d),
            alone=aggregate(jnp.where(lies[:, None], jnp.nan, updates)),
        )
    return take(lied(plan.attack, seen, arrays.strength))
