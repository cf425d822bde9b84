"""What is compiled: one client's step and the server's round, both of the simulation's own code.

A client's step is what `federated.spread` does for one participant up to its message: broadcast, local
training, encoding. The server's round is `federated.rounds.make_round`, whose participants train nothing:
their messages have arrived. On both sides the knobs of a round come from the same compiled function, since a
message is bound to them to the bit.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from cepam_jax import mechanisms, wire
from cepam_jax.data.examples import checked
from cepam_jax.deploy.agreement import Agreement, read
from cepam_jax.deploy.envelope import Envelope, Refused
from cepam_jax.errors import DatasetError, WireError, require
from cepam_jax.federated import Links, LocalUpdate, Plan, State, Trained, make_round, spread, uplink
from cepam_jax.federated.broadcast import broadcast
from cepam_jax.federated.state import ClientArrays, GivenKeys, shared_key
from cepam_jax.mechanisms import Keys, Knobs, Message
from cepam_jax.run import build
from cepam_jax.tasks.base import check_examples

_RATE = 1e30  # bits per second of links that cost no time: who is late, the clock has said


class Common(NamedTuple):
    """What both sides compile and begin with.

    Attributes:
      plan: the parts of a round.
      start: State before the first round, on the host.
      knobs: of all clients at the start.
      knobs_of: (state of the rule, Knobs at the start, round) -> Knobs of all clients, compiled.
      coordinates: d.
      message: shapes of a message.
      scales: how many public scales there are.
      client_step, server_round: compiled when they are first called; see their makers.
      decodes: (shared key, Message, Knobs of its client) -> bool[], whether it decodes to numbers; likewise.
    """

    plan: Plan
    start: State
    knobs: Knobs
    knobs_of: Any
    coordinates: int
    message: Message
    scales: int
    client_step: Any
    server_round: Any
    decodes: Any

    @property
    def model_bytes(self) -> int:
        """Bytes of the model and the public scales as they are sent."""
        return 4 * (self.coordinates + self.scales)


def common(agreement: Agreement) -> Common:
    """The parts of an agreement; in one process those of the same agreement are compiled once."""
    return _common(agreement.text)


@functools.lru_cache(maxsize=4)
def _common(text: str) -> Common:
    agreement = read(text)
    config = agreement.config
    _, _, plan = agreement.parts()
    knobs = mechanisms.knobs_of(config)
    with jax.enable_x64(False):
        initialize = build.program(config, agreement.specification).initialize
        start = initialize(jax.random.key(config.seeds.model), knobs, None)
        keys = Keys(jax.random.key(0), jax.random.key(0))
        d, one = sum(plan.segments), jax.tree.map(lambda knob: knob[0], knobs)._replace(scale=start.scale)
        message = jax.eval_shape(plan.mechanism.encode, keys, jax.ShapeDtypeStruct((d,), jnp.float32), one)
    start = jax.tree.map(np.asarray, start)
    scales = 0 if start.scale is None else len(start.scale)
    steps = make_client_step(plan), make_server_round(plan), make_decodes(plan)
    return Common(plan, start, knobs, jax.jit(plan.control.knobs), d, message, scales, *steps)


def control_at(found: Common, number: int) -> Any:
    """State of the rule for knobs after so many rounds; it reads no results."""
    rule = found.plan.control
    state = rule.initialize(found.knobs) if rule.initialize else None
    for _ in range(number if rule.advance else 0):
        assert rule.advance is not None
        state = rule.advance(state)
    return state


def of_client(found: Common, knobs: Knobs, client: int, scale: Any) -> Knobs:
    """The knobs of one client in a round, on the host."""
    mine = jax.tree.map(lambda knob: np.asarray(knob)[client], knobs)
    return mine._replace(scale=None if scale is None else np.asarray(scale))


def client_arrays(agreement: Agreement, client: int, examples: dict[str, np.ndarray]) -> ClientArrays:
    """The arrays of a federation as one client knows it: its own examples, and of the others their number.

    Args:
      agreement: of all.
      client: its number.
      examples: its own, name -> array [its count, ...].

    Raises:
      DatasetError: they are not as many, or not of the shapes, that were agreed to.
    """
    counts, config = agreement.counts, agreement.config
    known = [name for name, _, _ in agreement.specification[1]]
    examples = {name: examples[name] for name in known if name in examples}
    for name, dtype, shape in agreement.specification[1]:
        array = examples.get(name)
        wanted = (int(counts[client]), *shape)
        if array is None or array.shape != wanted or str(array.dtype) != dtype:
            is_now = "absent" if array is None else f"{array.dtype}{list(array.shape)}"
            raise DatasetError(
                f"the examples' {name!r} is {is_now}; the agreement says {dtype}{list(wanted)} for client "
                f"{client}"
            )
    checked(f"client {client}'s examples", examples)
    check_examples(build.program(config, agreement.specification).task, examples, agreement.constants)
    # All clients' arrays are of one shape, so that they share one compiled program; padding is never drawn.
    most = int(counts.max())
    padded = {
        name: np.concatenate([array, np.zeros((most - len(array), *array.shape[1:]), array.dtype)])
        for name, array in examples.items()
    }
    rows = np.zeros((len(counts), most), np.int32)
    rows[client, : counts[client]] = np.arange(counts[client])
    return ClientArrays(
        examples=padded,
        constants=agreement.constants,
        rows=jnp.asarray(rows),
        counts=jnp.asarray(counts),
        steps=build.steps_of(config, counts),
        knobs=mechanisms.knobs_of(config),
        training_key=jax.random.key(0),  # neither is used: the round's keys are given
        shared_key=jax.random.key(0),
    )


def make_client_step(plan: Plan) -> Any:
    """Compiles (State, ClientArrays, Knobs, client, training key, Keys) -> (Message, loss, bool[] finite).

    Where training has not left numbers, zeros take their place, so that noise alone is sent: that a client's
    training diverged follows from its data, and nothing hides it.
    """

    def run(state: State, arrays: ClientArrays, knobs: Knobs, client, training, keys: Keys):
        clients = arrays.counts.shape[0]
        each = jax.tree.map(lambda key: jnp.broadcast_to(key, (clients,)), GivenKeys(training, keys))
        arrays = arrays._replace(keys=each)
        sent = broadcast(plan, state, arrays)
        trained = spread.train((plan, state, arrays, knobs, sent, None), client)
        made = uplink.encode(plan, state, arrays, knobs, client, trained, sent, silent=True)
        return made.message, trained.loss, made.finite

    return jax.jit(run)


def unpacked(found: Common, message: Envelope, shared: jax.Array, knobs: Knobs) -> Message:
    """The Message of an answer's body.

    Args:
      found: parts of the agreement.
      message: a client's answer.
      shared: the key of its round.
      knobs: that client's, by `of_client`.

    Raises:
      Refused: corrupt; it cannot be decoded, or not to numbers.
    """
    try:
        message_of = wire.unpack(message.body, found.plan.mechanism, shared, knobs, found.coordinates)
    except WireError as error:
        raise Refused("corrupt", f"client {message.client}: {error}") from None
    with jax.enable_x64(False):
        if found.decodes(shared, message_of, knobs):
            return message_of
    raise Refused("corrupt", f"client {message.client}: not finite")  # an honest one sends noise instead


def make_decodes(plan: Plan) -> Any:
    """Compiles (shared key, Message, Knobs) -> bool[], whether all that is decoded is finite."""

    def run(shared, message, knobs):
        return jnp.isfinite(plan.mechanism.decode(shared, message, knobs)).all()

    return jax.jit(run)


def make_server_round(plan: Plan) -> Any:
    """Compiles (State, ClientArrays) -> (State, RoundReport) of a round whose messages have arrived."""
    d = sum(plan.segments)

    def nothing(model, arrays, client, key, state, number) -> Trained:
        return Trained(jnp.zeros(d, jnp.float32), jnp.float32(0), jnp.float32(1), state)

    ends = plan.ends if plan.ends == "slowest" else "deadline"
    influence = plan.local_update.influence
    received = plan._replace(local_update=LocalUpdate(nothing, influence=influence), wire=False, ends=ends)
    return jax.jit(make_round(received))


def server_arrays(
    agreement: Agreement,
    found: Common,
    draws: jax.Array,
    shared: list[jax.Array | None],
    messages: list[Message | None],
) -> ClientArrays:
    """The arrays of a round as the server knows it.

    Args:
      agreement: of all.
      found: its parts.
      draws: key of who is drawn.
      shared: of each client, the round's shared key; None where it has not joined.
      messages: of each client, what arrived; None where nothing did.
    """
    counts, config = agreement.counts, agreement.config
    number = len(counts)
    empty = jax.tree.map(lambda part: np.zeros(part.shape, part.dtype), found.message)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *[empty if m is None else m for m in messages])
    nobody = jax.random.key(0)
    keys = jnp.stack([nobody if key is None else key for key in shared])
    unused = jnp.broadcast_to(nobody, (number,))
    links = None
    if config.links.ends != "slowest":
        never = np.array([np.inf if message is None else 0.0 for message in messages], np.float32)
        fast, zero = np.full(number, _RATE, np.float32), np.zeros(number, np.float32)
        links = Links(fast, fast, zero, never, np.float32(1), np.int32(1))
    return ClientArrays(
        examples=None,
        constants=None,
        rows=jnp.zeros((number, 1), jnp.int32),
        counts=jnp.asarray(counts),
        steps=build.steps_of(config, counts),
        knobs=mechanisms.knobs_of(config),
        training_key=draws,
        shared_key=shared_key(config.seeds.shared),
        links=links,
        keys=GivenKeys(unused, Keys(keys, unused)),
        messages=stacked,
    )


def flat_of(state: State) -> bytes:
    """The model of a State and its public scales, as bytes."""
    flat = np.asarray(ravel_pytree((state.params, state.statistics))[0], "<f4")
    scale = b"" if state.scale is None else np.asarray(state.scale, "<i4").tobytes()
    return flat.tobytes() + scale


def state_of(found: Common, data: bytes, number: int) -> State:
    """The State that a client trains on, from `flat_of` of the server's.

    Raises:
      ConfigError: another number of bytes.
    """
    require(len(data) == found.model_bytes, "bytes of a model", len(data), f"{found.model_bytes}")
    flat = np.frombuffer(data[: 4 * found.coordinates], "<f4")
    params, statistics = ravel_pytree((found.start.params, found.start.statistics))[1](jnp.asarray(flat))
    scale = jnp.asarray(np.frombuffer(data[4 * found.coordinates :], "<i4")) if found.scales else None
    return found.start._replace(
        params=params,
        statistics=statistics,
        round=jnp.int32(number),
        scale=scale,
        control=control_at(found, number),
    )


def arrays_of(state: State) -> dict[str, np.ndarray]:
    """A State for a file: name -> array."""
    return {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}


def of_arrays(found: Common, arrays: dict[str, np.ndarray]) -> State:
    """The State whose arrays these are."""
    leaves, tree = jax.tree.flatten(found.start)
    return jax.tree.unflatten(tree, [arrays[f"leaf{i}"] for i in range(len(leaves))])
