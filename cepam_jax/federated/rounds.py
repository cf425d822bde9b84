"""One federated round as one pure function.

  for each participant k:   x_k  = local update(w, data of k)
                            x^_k = decode(encode(clip(x_k)))
  w <- server optimizer(w, sum_k a_k x^_k / sum_k a_k)

With error feedback (1901.09847) a client adds to x_k what earlier rounds lost of its updates.

Clients run in chunks: inside a chunk under vmap, chunk after chunk in a scan. Memory follows the
chunk, not the number of clients. With several devices each runs such a scan over its share of the clients,
and only the sums over clients are exchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cepam_jax.federated import participation
from cepam_jax.federated.aggregators import Aggregator
from cepam_jax.federated.clients import Images
from cepam_jax.federated.devices import CLIENTS
from cepam_jax.mechanisms import Keys, Knobs, Mechanism, code_length
from cepam_jax.mechanisms.transforms import l1_norm, l2_norm
from cepam_jax.wire.transmission import transmit

_NO_CLIENT = np.uint32(2**32 - 1)  # where a key is for the whole round, in place of a client


class State(NamedTuple):
    """All that a run carries from round to round, and all that a checkpoint holds.

    Attributes:
      params: pytree of f32, the global model.
      server: state of the server optimizer.
      round: int32[], rounds done.
      invalid_client: int32[], -1, or the client whose update could not be averaged (the first of them), with
        the cause in the upper bits: `failure` takes it apart. The round that met it was not applied: `round`
        and `params` are those before it.
      memory: f32[clients, d], what each client's messages have lost so far; None without error
        feedback. Takes the memory of that many updates.
      scale: int32[tensors], scales of the last aggregated update, for coders whose scales are public;
        None for others.
    """

    params: Any
    server: Any
    round: jax.Array
    invalid_client: jax.Array
    memory: jax.Array | None
    scale: jax.Array | None = None


class Federation(NamedTuple):
    """Arrays that describe one federation; nothing here is compiled in.

    Attributes:
      data: training images of all clients.
      rows: int32[clients, capacity], examples of each client, padded.
      counts: int32[clients], examples of each client.
      steps: int32[clients], local steps of each client.
      knobs: of each client, arrays with leading axis [clients] (or None).
      training_key: batches, participation, dropout, private noise.
      shared_key: shared randomness.
    """

    data: Images
    rows: jax.Array
    counts: jax.Array
    steps: jax.Array
    knobs: Knobs
    training_key: jax.Array
    shared_key: jax.Array


class RoundMetrics(NamedTuple):
    """Of one round; means are over participants.

    Attributes:
      train_loss: mean loss of local training.
      bits: sum of the messages' ideal code lengths.
      bytes: sum of the messages' real lengths; 0 unless they were packed.
      norm: mean norm of the update before clipping (L1 if the clip is an L1 clip, else L2).
      clipped_norm: mean norm after clipping.
      signal, noise: sums of squares of clipped updates and of errors.
      ran: 1.0, or 0.0 where the round was not carried out.
    """

    train_loss: jax.Array
    bits: jax.Array
    bytes: jax.Array
    norm: jax.Array
    clipped_norm: jax.Array
    signal: jax.Array
    noise: jax.Array
    ran: jax.Array


def client_keys(federation: Federation, round_number, client) -> tuple[jax.Array, Keys]:
    """(training key, mechanism keys) of one client in one round, never used twice."""
    training = jax.random.fold_in(jax.random.fold_in(federation.training_key, round_number), client)
    shared = jax.random.fold_in(jax.random.fold_in(federation.shared_key, round_number), client)
    return jax.random.fold_in(training, 1), Keys(shared, jax.random.fold_in(training, 2))


class Plan(NamedTuple):
    """What a round is made of; static.

    Attributes:
      local_update: from `clients.make_local_update`.
      mechanism: encodes and decodes every update.
      aggregator: weighs the decoded updates.
      server: optax optimizer fed with minus the aggregated update.
      segments: lengths of the update's tensors.
      per_round: participants.
      per_chunk: participants under one vmap, on each device.
      quantize: "updates", or "weights": the client's new weights go through the mechanism.
      schedule: (Knobs of all clients, round) -> Knobs; None: they stay.
      wire: whether every message is packed into bytes and unpacked again.
      mesh: devices over which the participants are spread, one axis `CLIENTS`; None: one device.
    """

    local_update: Callable
    mechanism: Mechanism
    aggregator: Aggregator
    server: optax.GradientTransformation
    segments: tuple[int, ...]
    per_round: int
    per_chunk: int
    quantize: str = "updates"
    schedule: Callable | None = None
    wire: bool = False
    mesh: Mesh | None = None


class _Sums(NamedTuple):
    """What is added up over clients: weighted updates, weights, weighted step weights, metrics."""

    update: jax.Array
    weight: jax.Array
    steps: jax.Array
    metrics: RoundMetrics


def public_scales(mean, segments, sigmas, family, per_round, private=0.0):
    """What all can know of the next updates' scales: those of the last aggregated update, less noise.

    Where noise of the clients' own comes before the quantizer, it is a part of what is coded.

    Args:
      mean: f32[d], aggregated update.
      segments: lengths of its tensors.
      sigmas: f32[clients], deviation of each client's noise.
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


_VALID = np.int32(2**31 - 1)  # where the number of an invalid client would be

# Causes, in the order in which the first is reported; without one an invalid client is its number alone.
LOCAL, MECHANISM, MODEL = "local update", "mechanism", "model"
_CAUSES = (LOCAL, MECHANISM, MODEL)
_CLIENT_BITS = 28


def failure(code) -> tuple[int, str]:
    """Why a round was not applied, from `State.invalid_client`.

    Args:
      code: int32[], not negative.

    Returns:
      The client, and the cause: LOCAL, its update was NaN or infinite before it was encoded; MECHANISM, its
      update was finite, what the server decoded was not; MODEL, all decoded updates were finite, and the
      server's step led to a model that is not (then the client means nothing).
    """
    return int(code) % 2**_CLIENT_BITS, _CAUSES[int(code) >> _CLIENT_BITS]


def _coded(client, cause):
    return client + np.int32(_CAUSES.index(cause) << _CLIENT_BITS)


def _finite(tree):
    """Whether all floating-point leaves are finite, bool[]."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


# Updates with so many coordinates pass through the mechanism one after another, even where their clients
# trained under one vmap: one of them keeps every device busy, and messages, decoded updates and what
# lies between them take the memory of one client.
STREAMED = 2**20


def make_round(plan: Plan) -> Callable:
    """Builds (State, Federation) -> (State, RoundMetrics)."""
    mechanism, per_round, per_chunk = plan.mechanism, plan.per_round, plan.per_chunk
    devices = 1 if plan.mesh is None else plan.mesh.devices.size
    chunks = -(-per_round // (per_chunk * devices))
    measure = l1_norm if mechanism.about.clip == "l1" else l2_norm
    tensors = len(plan.segments)
    # An aggregator by errors needs one float per tensor of each client.
    extra_bits = 32 * tensors if plan.aggregator.per_tensor else 0

    def per_coordinate(weight):
        if not plan.aggregator.per_tensor:
            return weight
        return jnp.concatenate([jnp.full((n,), weight[i]) for i, n in enumerate(plan.segments)])

    def tensor_means(square):
        stops = np.cumsum(plan.segments)
        return jnp.stack([square[b - n : b].mean() for n, b in zip(plan.segments, stops, strict=True)])

    def train(state, federation, client):
        train_key, _ = client_keys(federation, state.round, client)
        of_client = (federation.rows[client], federation.counts[client], federation.steps[client])
        update, loss, step_weight = plan.local_update(state.params, federation.data, *of_client, train_key)
        if state.memory is not None:
            update += state.memory[client]
        return update, loss, step_weight

    def send(state, federation, knobs, client, here, trained):
        """What one client's update adds to the sums; why not, or _VALID; what was lost."""
        update, loss, step_weight = trained
        _, keys = client_keys(federation, state.round, client)
        knobs = jax.tree.map(lambda knob: knob[client], knobs)._replace(scale=state.scale)
        base = ravel_pytree(state.params)[0] if plan.quantize == "weights" else 0.0
        message = mechanism.encode(keys, base + update, knobs)
        size = jnp.int32(0)
        if plan.wire:
            message, size = transmit(mechanism, keys.shared, message, knobs, state.round, client)
        decoded = mechanism.decode(keys.shared, message, knobs) - base
        clipped = mechanism.reference(base + update, knobs) - base
        code = jnp.where(jnp.isfinite(decoded).all(), _VALID, _coded(client, MECHANISM))
        code = jnp.where(jnp.isfinite(update).all(), code, client)
        error = jnp.square(decoded - clipped)
        count = federation.counts[client].astype(jnp.float32)
        weight = here * plan.aggregator.weigh(count, tensor_means(error))
        metrics = RoundMetrics(
            train_loss=here * loss / per_round,
            bits=here * (mechanism.bits(keys.shared, message, knobs) + extra_bits),
            bytes=here * (size + extra_bits // 8 if plan.wire else 0.0),
            norm=here * measure(update) / per_round,
            clipped_norm=here * measure(clipped) / per_round,
            signal=here * jnp.sum(jnp.square(clipped)),
            noise=here * jnp.sum(error),
            ran=here / per_round,
        )
        sums = _Sums(per_coordinate(weight) * decoded, weight, jnp.mean(weight) * step_weight, metrics)
        lost = None if state.memory is None else update - decoded
        return sums, code, lost

    def add(carry, sums, invalid):
        return jax.tree.map(jnp.add, carry[0], sums), jnp.minimum(carry[1], invalid)

    def add_chunk(state, federation, knobs, carry, chunk):
        clients, here = chunk

        def add_client(carry, one):
            sums, invalid, lost = send(state, federation, knobs, *one)
            return add(carry, sums, invalid), lost

        if per_chunk == 1:  # a vmap over one client would still pay for batched kernels
            trained = train(state, federation, clients[0])
            carry, lost = add_client(carry, (clients[0], here[0], trained))
            return carry, jax.tree.map(lambda a: a[None], lost)
        trained = jax.vmap(train, (None, None, 0))(state, federation, clients)
        if sum(plan.segments) >= STREAMED:
            return jax.lax.scan(add_client, carry, (clients, here, trained))
        sums, invalid, lost = jax.vmap(send, (None, None, None, 0, 0, 0))(
            state, federation, knobs, clients, here, trained
        )
        return add(carry, jax.tree.map(lambda a: a.sum(0), sums), invalid.min()), lost

    def over_clients(state, federation, knobs, clients, here):
        """Sums over the clients of one device, [chunks, per_chunk]; who was invalid; what was lost."""
        flat = ravel_pytree(state.params)[0]
        start = _Sums(
            jnp.zeros_like(flat),
            jnp.zeros((tensors,) if plan.aggregator.per_tensor else (), jnp.float32),
            jnp.float32(0),
            RoundMetrics(*[jnp.float32(0)] * len(RoundMetrics._fields)),
        )
        return jax.lax.scan(
            lambda carry, chunk: add_chunk(state, federation, knobs, carry, chunk),
            (start, _VALID),
            (clients, here),
        )

    def over_devices(*arguments):
        (sums, invalid), memory = over_clients(*arguments)
        return (jax.lax.psum(sums, CLIENTS), jax.lax.pmin(invalid, CLIENTS)), memory

    if plan.mesh is not None:
        cut = P(None, CLIENTS)
        run_clients = jax.shard_map(
            over_devices,
            mesh=plan.mesh,
            in_specs=(P(), P(), P(), cut, cut),
            out_specs=(P(), cut),
            check_vma=False,  # it asks for casts in every loop of every mechanism, to find nothing
        )
    else:
        run_clients = over_clients

    broken = _coded(np.int32(0), MODEL)

    def run_round(state: State, federation: Federation):
        number = state.round
        draw = jax.random.fold_in(jax.random.fold_in(federation.training_key, number), _NO_CLIENT)
        clients = participation.choose(draw, federation.counts.shape[0], per_round)
        knobs = federation.knobs if plan.schedule is None else plan.schedule(federation.knobs, number)
        slots = chunks * devices * per_chunk
        fill = slots - per_round  # the last chunk is filled up with weight 0
        clients = jnp.pad(clients, (0, fill), mode="edge").reshape(chunks, devices * per_chunk)
        here = jnp.pad(jnp.ones(per_round, jnp.float32), (0, fill)).reshape(chunks, devices * per_chunk)
        unravel = ravel_pytree(state.params)[1]
        (sums, invalid), memory = run_clients(state, federation, knobs, clients, here)
        step_weight = sums.steps / jnp.mean(sums.weight)
        mean = sums.update / per_coordinate(sums.weight)
        descent = unravel(-step_weight * mean)
        change, server_state = plan.server.update(descent, state.server, state.params)
        after = State(
            optax.apply_updates(state.params, change),
            server_state,
            number + 1,
            state.invalid_client,
            jax.tree.map(
                lambda old, new: old.at[clients.reshape(-1)].set(new.reshape(slots, -1)),
                state.memory,
                memory,
            ),
            None
            if state.scale is None
            else public_scales(
                mean,
                plan.segments,
                knobs.sigma,
                mechanism.code.family,
                per_round,
                mechanism.about.server.deviation(knobs) if mechanism.about.server else 0.0,
            ),
        )
        invalid = jnp.where((invalid == _VALID) & ~_finite((after.params, after.server)), broken, invalid)
        failed = invalid < _VALID
        state = jax.tree.map(lambda a, b: jnp.where(failed, b, a), after, state)
        state = state._replace(invalid_client=jnp.where(failed, invalid, state.invalid_client))
        return state, jax.tree.map(lambda a: jnp.where(failed, 0.0, a), sums.metrics)

    return run_round
