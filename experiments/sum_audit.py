"""The audit's game against sums: what does whoever sees the sum of many messages tell of one of them?

The real compiled round runs again and again, with a canary of norm 1 as the update of one client, or zero;
the others send what the adversary has chosen. Under a secure sum the adversary is the server, alone or with
colluders: it knows all dithers and sees the sum of the integers, and scores what it decodes of that, without
the colluders' messages. Where the server adds the noise, the adversary is given the released model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import mechanisms, privacy
from cepam_jax.errors import require
from cepam_jax.federated import summed
from cepam_jax.federated.state import client_keys
from cepam_jax.privacy import audit
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from configs import digits
from experiments import given_updates

DIMENSION = 16
_TOGETHER = 2000  # games under one vmap


def config_of(name: str, clients: int, sigma: float, colluders: int = 0, delta: float = 0.01):
    """One round of clients whose updates have norm 1 and bring noise of this deviation each.

    Args:
      name: "secure_sum", or a mechanism without noise of its own: then the server adds what they would have.
      clients: all of whom take part.
      sigma: deviation of a client's noise; a step of SDQ is as wide.
      colluders: of a secure sum.
      delta: of the accountant's epsilon.

    Raises:
      ConfigError: the parts do not go together.
    """
    config = digits.get_config("cepam_gaussian")
    config.num_clients, config.rounds, config.privacy.delta = clients, 1, delta
    config.mechanism.name, config.mechanism.gamma, config.mechanism.step = name, 1 / sigma, sigma
    config.server.noise = name != "secure_sum"
    config.mechanism.secure.colluders = colluders
    validate(config)
    return config


def adversary_of(config) -> str:
    """The strongest of `privacy.ADVERSARIES` from whom a configuration's sum hides a client."""
    if config.server.noise:
        return "released_model"
    return "server_and_colluders" if config.mechanism.secure.colluders else "server"


def claimed(config) -> float:
    """The accountant's epsilon of one round."""
    federation = guarantees.federation_of(config, np.ones(config.num_clients, int))
    rows = {row.adversary: row for row in privacy.report(federation, config.privacy.delta)}
    return float(rows[adversary_of(config)].epsilon.max())


def updates_of(clients: int) -> np.ndarray:
    """f32[clients, DIMENSION] of norm 1 in directions of their own; the first is the canary."""
    random = np.random.default_rng(0).normal(size=(clients, DIMENSION))
    return (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)


def scores(config, trials: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the game: (with the canary, without it), f64[trials] each.

    Args:
      config: of `config_of`.
      trials: games of each kind.
      seed: of all keys.
      noise: factor of the deviation that the rounds use instead of the configuration's: another than 1 is a
        fault that the audit should find.
    """
    clients = config.num_clients
    mechanism = mechanisms.build(config.mechanism, ((DIMENSION,),))
    knobs = mechanisms.knobs_of(config)
    knobs = knobs._replace(sigma=knobs.sigma * np.float32(noise))
    law = config.mechanism.target if config.server.noise else None
    run, start = given_updates.round_of(mechanism, knobs, clients, DIMENSION, law)
    updates = jnp.asarray(updates_of(clients))
    colluders = range(clients - config.mechanism.secure.colluders, clients)

    def play(number, canary):
        """Score f32[] of the game with the keys of this round, in which client 0 sends f32[DIMENSION]."""
        arrays = given_updates.arrays_of(updates.at[0].set(canary), knobs, seed)
        begin = start._replace(round=number)
        after, _ = run(begin, arrays)
        seen = after.params["w"] * clients
        for client in colluders:
            seen -= _part(mechanism, arrays, begin, knobs, client)
        return jnp.dot(seen, updates[0])

    games = jax.jit(jax.vmap(play, in_axes=(0, None)))

    def played(first, canary):
        numbers = np.arange(first, first + trials, dtype=np.int32)
        parts = [games(numbers[i : i + _TOGETHER], canary) for i in range(0, trials, _TOGETHER)]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    return played(0, updates[0]), played(trials, 0 * updates[0])


def _part(mechanism, arrays, state, knobs, client: int):
    """f32[d], what a colluder's message adds to what the server decodes: it tells its message."""
    joint, d = mechanism.joint, arrays.examples["update"].shape[1]
    clients, own = len(arrays.counts), jax.tree.map(lambda a: a[client], knobs)
    bits, common = joint.bits(own, clients, d), summed.common_key(arrays, state)
    _, keys = client_keys(arrays, state.round, client)
    symbols = joint.encode(keys, common, clients, bits, arrays.examples["update"][client], own).symbols
    dithers = joint.dithers(keys.shared, d)
    return joint.decode(common, clients, jnp.float32(1), symbols, dithers, bits, own, d)


def audited(config, trials: int, seed: int = 0, noise: float = 1.0, significance: float = 0.05) -> dict:
    """One row: what the game proves, and what the accountant claims.

    Args:
      config, trials, seed, noise: as for `scores`.
      significance: chance with which the lower bound is wrong.
    """
    require(trials >= 100, "--trials", trials, "at least 100")
    found = scores(config, trials, seed, noise)
    proved = audit.epsilon_lower_bound(*found, config.privacy.delta, significance)
    return {
        "mechanism": config.mechanism.name + (", noise by the server" if config.server.noise else ""),
        "clients": config.num_clients,
        "colluders": int(config.mechanism.secure.colluders),
        "adversary": adversary_of(config),
        "proved": proved,
        "claimed": claimed(config),
    }
