"""What a round takes and gives: the state, the clients' arrays, and what is reported of each participant."""

from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.tasks.base import Model


class Behind(NamedTuple):
    """What clients have not received of a compressed downlink, arrays [clients].

    Attributes:
      bits: f32, ideal code length of the messages that each has missed, at most that of a full model.
      bytes: int32, their real length likewise; 0 unless messages are packed.
    """

    bits: jax.Array
    bytes: jax.Array


class State(NamedTuple):
    """All that a run carries from round to round, and all that a checkpoint holds.

    Attributes:
      params: pytree of f32, the global model's parameters.
      server: state of the server optimizer.
      round: int32[], rounds done.
      invalid_client: int32[], -1, or the client whose update could not be averaged (the first of them), with
        the cause in the upper bits: `rounds.failure` takes it apart. The round that met it was not applied:
        `round` and `params` are those before it.
      memory: f32[clients, d], the residual of error feedback: what each client's messages have lost so far;
        None without it. Takes the memory of that many updates.
      scale: int32[tensors], scales of the last aggregated update, for coders whose scales are public;
        None for others.
      statistics, frozen: of the global model, as `tasks.Model` says.
      local: what clients carry from round to round, leading axis [clients]; None: nothing.
      aggregator, control, downlink: states of these parts; None where they have none.
      behind: what clients lack of a compressed downlink; None without one.
    """

    params: Any
    server: Any
    round: jax.Array
    invalid_client: jax.Array
    memory: jax.Array | None = None
    scale: jax.Array | None = None
    statistics: Any = None
    frozen: Any = None
    local: Any = None
    aggregator: Any = None
    control: Any = None
    downlink: Any = None
    behind: Behind | None = None

    @property
    def model(self) -> Model:
        """The global model."""
        return Model(self.params, self.statistics, self.frozen)


class GivenKeys(NamedTuple):
    """The keys of one round that somebody else has drawn, arrays of keys [clients].

    Attributes:
      training: of batches and dropout.
      mechanism: shared and private, of each client's message.
    """

    training: jax.Array
    mechanism: Keys


class ClientArrays(NamedTuple):
    """Arrays that describe one federation; nothing here is compiled in.

    Attributes:
      examples: training examples of all clients, name -> array [examples, ...].
      constants: arrays that every batch is seen with.
      rows: int32[clients, capacity], examples of each client, padded.
      counts: int32[clients], examples of each client.
      steps: int32[clients], local steps of each client.
      knobs: of each client, arrays with leading axis [clients] (or None).
      training_key: batches, participation, dropout, private noise.
      shared_key: shared randomness.
      liars: bool[clients], who lies; None: nobody.
      strength: f32[], of their attack; None: nobody lies.
      links: of all clients, `links.Links`; None: not known.
      keys: of all clients in this round; None: they follow from the two above.
      messages: what each client sent in this round (mechanisms.Message, leading axis [clients]), where others
        have encoded it; None: the round does.
    """

    examples: Any
    constants: Any
    rows: jax.Array
    counts: jax.Array
    steps: jax.Array
    knobs: Knobs
    training_key: jax.Array
    shared_key: jax.Array
    liars: jax.Array | None = None
    strength: jax.Array | None = None
    links: Any = None
    keys: GivenKeys | None = None
    messages: Any = None


class Report(NamedTuple):
    """Of one participant in one round.

    Attributes:
      client: int32[], its number.
      loss: mean loss of local training.
      bits: ideal code length of its message; NaN in a round that does not count (`RoundReport.counted`).
      bytes: real length of its message; 0 unless it was packed.
      down_bits: ideal code length of what the server sent it: what it lacked, or a full model.
      down_bytes: real length likewise; 0 unless messages are packed.
      norm: norm of the update before clipping (L1 if the clip is an L1 clip, else L2).
      clipped_norm: norm after clipping.
      signal, noise: sums of squares of the clipped update and of the error.
      weight: mean over tensors of the weight that the aggregation gave it; 1 for rules that gather.
      lies: 1 where the participant lied, else 0; None where nobody may.
      admitted: 0 where the server refused its update, else 1; None where it does not check.
      seconds: from the beginning of the round to the arrival of its message; None where links are not known.
      late: 1 where the round had ended before that, else 0; None where the slowest ends it.
      present: 0 for a place that stayed empty under Poisson sampling, where nothing else means anything, else
        1; None where there are none.
      peak: largest root mean square of a tensor that is coded over its mean absolute value, which the limits
        to bits of messages depend on; None where coordinates are mixed, or not coded on a lattice.
    """

    client: jax.Array
    loss: jax.Array
    bits: jax.Array
    bytes: jax.Array
    down_bits: jax.Array
    down_bytes: jax.Array
    norm: jax.Array
    clipped_norm: jax.Array
    signal: jax.Array
    noise: jax.Array
    weight: jax.Array
    lies: jax.Array | None = None
    admitted: jax.Array | None = None
    seconds: jax.Array | None = None
    late: jax.Array | None = None
    present: jax.Array | None = None
    peak: jax.Array | None = None


class RoundReport(NamedTuple):
    """Of one round.

    Attributes:
      ran: bool[], whether it was carried out and applied; if not, nothing else here means anything.
      participants: Report, leading axis [participants].
      knobs: Knobs of all clients as they were applied, leading axis [clients]: what the accountant reads.
      downlink_bits: f32[], ideal code length of the round's broadcast; a client that lacks more is sent more
        (`Report.down_bits`).
      weights: f32[clients], up to a common factor, of a rule that weighs all clients before the round; None
        for other rules.
      opened: bool[], whether enough messages arrived for a secure sum to be opened: the model is as it was
        where it was not. The participants' weights say who arrived. None without a secure sum.
      counted: bool[], whether `Report.bits` was counted in the round; None where it is in all.
    """

    ran: jax.Array
    participants: Report
    knobs: Knobs
    downlink_bits: jax.Array
    weights: jax.Array | None = None
    opened: jax.Array | None = None
    counted: jax.Array | None = None


def client_keys(arrays: ClientArrays, round_number, client) -> tuple[jax.Array, Keys]:
    """(training key, mechanism keys) of one client in one round, never used twice."""
    if arrays.keys is not None:
        return arrays.keys.training[client], jax.tree.map(lambda key: key[client], arrays.keys.mechanism)
    training = jax.random.fold_in(jax.random.fold_in(arrays.training_key, round_number), client)
    shared = jax.random.fold_in(jax.random.fold_in(arrays.shared_key, round_number), client)
    return jax.random.fold_in(training, 1), Keys(shared, jax.random.fold_in(training, 2))


def shared_key(seed: int) -> jax.Array:
    """Root of the shared randomness.

    Set apart from the training key: with equal seeds, whoever knows a client's shared key would
    otherwise know its private key, which is folded out of the same root.
    """
    return jax.random.fold_in(root_key(seed), np.uint32(0x53484152))


def root_key(seed: int) -> jax.Array:
    """Root of a seed's randomness, of Threefry whatever generator JAX has by default.

    The noise of every round and client is folded out of it, and there is a generator (`unsafe_rbg`) whose
    fold_in gives round 1 of client 0 what it gives round 0 of client 1.
    """
    return jax.random.key(seed, impl="threefry2x32")
