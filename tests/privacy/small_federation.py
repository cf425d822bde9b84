"""A federation small enough to be attacked: the real round, with updates that an adversary has chosen.

The first client sends a canary as long as the clip allows in every round, or (in the neighbouring world)
zero or minus the canary. The others send markers, each on a coordinate of its own, which tell the adversary
who took part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax.federated import guarantees, rounds
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.privacy import audit, report
from cepam_jax.run.build import _schedule
from cepam_jax.run.config import build_mechanism, knobs_of

COORDINATES = 8
SIGNIFICANCE = 1e-5


def _local_update(params, data, row, count, steps, key):
    """What the adversary has chosen for this client."""
    return data[row[0]], jnp.float32(0), jnp.float32(1)


def _run(config, counts, markers: float, d: int):
    """jitted (seed, canary f32[d] of the first client) -> model after every round, f32[rounds + 1, d]."""
    clients = config.num_clients
    mechanism = build_mechanism(config.mechanism, ((d,),))
    plan = rounds.Plan(
        local_update=_local_update,
        mechanism=mechanism,
        aggregator=AGGREGATORS[config.aggregator],
        server=optax.sgd(1.0),
        segments=(d,),
        per_round=config.clients_per_round or clients,
        per_chunk=1,
        schedule=_schedule(config),
    )
    one_round = rounds.make_round(plan)
    knobs = knobs_of(config)
    others = markers * jnp.eye(clients, d)

    def run(seed, canary):
        root = jax.random.key(seed)
        federation = rounds.Federation(
            data=others.at[0].set(canary),
            rows=jnp.arange(clients, dtype=jnp.int32)[:, None],
            counts=jnp.asarray(counts, jnp.int32),
            steps=jnp.ones(clients, jnp.int32),
            knobs=knobs,
            training_key=jax.random.fold_in(root, 0),
            shared_key=jax.random.fold_in(root, 1),
        )
        start = rounds.State(
            {"w": jnp.zeros(d)},
            plan.server.init({"w": jnp.zeros(d)}),
            jnp.int32(0),
            jnp.int32(-1),
            jnp.zeros((clients, d)) if config.mechanism.error_feedback else None,
            jnp.zeros(1, jnp.int32) if "scale" in mechanism.about.knobs else None,
        )

        def step(state, _):
            state, _ = one_round(state, federation)
            return state, state.params["w"]

        _, models = jax.lax.scan(step, start, length=config.rounds)
        return jnp.concatenate([jnp.zeros((1, d)), models])

    return jax.jit(jax.vmap(run, in_axes=(0, None)))


def lower_bound(config, counts, trials: int, markers: float = 1.0, coordinates: int = COORDINATES) -> float:
    """Epsilon of the first client that an attack on the models proves, except with chance `SIGNIFICANCE`.

    Args:
      config: valid configuration of few clients.
      counts: examples of each.
      trials: runs of each world.
      markers: norm of the others' updates.
      coordinates: d of an update, at least as many as clients if there are markers.
    """
    run = _run(config, np.asarray(counts), markers, coordinates)
    # Far beyond the clip: what a memory adds does not turn it.
    canary = jnp.zeros(coordinates).at[0].set(100 * config.mechanism.clip_norm)
    replaced = guarantees.federation_of(config, counts).relation == "replace"
    score = functools.partial(_score, config, counts, markers)
    with_canary = score(run(jnp.arange(trials), canary))
    without = score(run(jnp.arange(trials, 2 * trials), -canary if replaced else 0 * canary))
    return audit.epsilon_lower_bound(with_canary, without, config.privacy.delta, SIGNIFICANCE)


def _score(config, counts, markers, models) -> np.ndarray:
    """Where the models moved along the canary, in the rounds in which the first client seems to take part."""
    models = np.asarray(models, np.float64)
    moves = np.diff(models, axis=1)
    clients, per_round = config.num_clients, config.clients_per_round or config.num_clients
    precision = []
    for phase in guarantees.federation_of(config, counts).phases:
        precision += [1 / np.mean(phase.outsiders**2)] * phase.rounds
    present = 1.0
    if per_round < clients:
        seen = moves[:, :, 1:clients] > markers / (2 * per_round)
        present = seen.sum(2) < per_round
    return np.sum(present * moves[:, :, 0] * np.array(precision), axis=1)


def printed(config, counts) -> float:
    """The report's epsilon of the first client against the released model."""
    return float(report(guarantees.federation_of(config, counts), config.privacy.delta)[0].epsilon[0])
