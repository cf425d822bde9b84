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

from cepam_jax import mechanisms
from cepam_jax.federated import (
    ClientArrays,
    LocalUpdate,
    Plan,
    Trained,
    aggregation,
    byzantine,
    control,
    initial_state,
    links,
    make_round,
    poisson,
)
from cepam_jax.privacy import audit, report
from cepam_jax.run import build, guarantees
from cepam_jax.tasks import Model

COORDINATES = 8
SIGNIFICANCE = 1e-5


def _chosen(momentum, model, arrays, client, key, state, number):
    """What the adversary has chosen for this client, or the running mean of it."""
    update = arrays.examples["update"][arrays.rows[client, 0]]
    if momentum:
        update = momentum * state + (1 - momentum) * update
    return Trained(update, jnp.float32(0), jnp.float32(1), update if momentum else None)


def _momentum(clients, model):
    return jnp.zeros((clients, len(model.params["w"])))


def check(config) -> None:
    """Raises ConfigError where the parts of a configuration do not go together in a round."""
    _run(config, np.full(config.num_clients, 10), 1.0, COORDINATES)


def _run(config, counts, markers: float, d: int, seen=lambda state: state.params["w"]):
    """jitted (seed, canary f32[d] of the first client) -> what is seen of the state at the start and after
    every round, by default the model, f32[rounds + 1, d].
    """
    clients = config.num_clients
    mechanism = mechanisms.build(config.mechanism, ((d,),))
    momentum, attack = config.local.worker_momentum, byzantine.attack_of(config)
    expected = config.clients_per_round if config.participation.sampling == "poisson" else 0
    plan = Plan(
        local_update=LocalUpdate(functools.partial(_chosen, momentum), _momentum if momentum else None),
        mechanism=mechanism,
        aggregator=aggregation.of_config(config),
        server=optax.sgd(1.0),
        segments=(d,),
        per_round=poisson.places(clients, expected) if expected else config.clients_per_round or clients,
        per_chunk=1,
        control=control.for_updates(build.control_of(config), d),
        attack=attack,
        false_alarm=config.byzantine.false_alarm if config.byzantine.check else None,
        poisson=expected,
        server_noise=config.mechanism.target if config.server.noise else None,
        ends=config.links.ends,
    )
    # The first client is honest: a liar's own message is no business of the accountant's.
    liars = jnp.arange(clients) >= clients - config.byzantine.clients
    _, strength = byzantine.liars_of(config)
    one_round = make_round(plan)
    knobs = mechanisms.knobs_of(config)
    others = markers * jnp.eye(clients, d)
    known = links.of_config(config)

    def run(seed, canary):
        root = jax.random.key(seed)
        arrays = ClientArrays(
            examples={"update": others.at[0].set(canary)},
            constants={},
            rows=jnp.arange(clients, dtype=jnp.int32)[:, None],
            counts=jnp.asarray(counts, jnp.int32),
            steps=jnp.ones(clients, jnp.int32),
            knobs=knobs,
            training_key=jax.random.fold_in(root, 0),
            shared_key=jax.random.fold_in(root, 1),
            liars=None if attack is None else liars,
            strength=strength,
            links=known,
        )
        model, remembers = Model({"w": jnp.zeros(d)}), config.mechanism.error_feedback
        start = initial_state(plan, model, knobs, clients, remembers, knobs.clip[0])

        def step(state, _):
            state, _ = one_round(state, arrays)
            return state, seen(state)

        _, later = jax.lax.scan(step, start, length=config.rounds)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), seen(start), later)

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
    if per_round < clients and config.participation.sampling == "fixed":
        seen = moves[:, :, 1:clients] > markers / (2 * per_round)
        present = seen.sum(2) < per_round
    return np.sum(present * moves[:, :, 0] * np.array(precision), axis=1)


def printed(config, counts) -> float:
    """The report's epsilon of the first client against the released model."""
    return float(report(guarantees.federation_of(config, counts), config.privacy.delta)[0].epsilon[0])
