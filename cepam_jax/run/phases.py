"""From a ledger to the accountant's phases: the noise, bounds and weights that rounds applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import facts as public_facts
from cepam_jax.federated import poisson
from cepam_jax.mechanisms import Knobs
from cepam_jax.run.ledger import Entry, Ledger

if TYPE_CHECKING:
    from cepam_jax.run.guarantees import Facts


def of_ledger(facts: Facts, ledger: Ledger) -> tuple[privacy.Phase, ...]:
    """The noise that every client added, what bounded its update and what it was weighed by.

    Bounds are kept beside the noise: under a sum, a client counts on the noises of others as they are, while
    its own bound is what moved. Equal rounds are one phase.
    """
    found: list[privacy.Phase] = []
    for entry in ledger.entries:
        phase = of_knobs(facts, entry.knobs, entry.rounds)._replace(
            weights=_weights(facts, entry), least_ratios=facts.aggregator.least_ratios
        )
        if found and _alike(found[-1], phase):
            found[-1] = found[-1]._replace(rounds=found[-1].rounds + phase.rounds)
        else:
            found.append(phase)
    return tuple(found)


def of_knobs(facts: Facts, knobs: Knobs, rounds: int = 1) -> privacy.Phase:
    """The noise and bounds of rounds with these knobs, without weights of their own."""
    applied = facts.clip if knobs.clip is None else knobs.clip
    bounds = np.broadcast_to(np.asarray(applied, np.float64), facts.clip.shape)
    stated = facts.influence is not None and facts.influence.bound is not None
    # A bound as 32 bits hold it is the one that was set.
    same = stated or np.all(np.isclose(facts.clip, bounds, rtol=1e-6, atol=0))
    noises = (_deviation(facts, knobs, of) for of in (facts.hiding, facts.about.server))
    return privacy.Phase(rounds, *noises, None if same else bounds)


def _weights(facts: Facts, entry: Entry) -> np.ndarray | None:
    """f64[clients], weights that follow from a round's knobs: as applied, or as planned before the run."""
    rule = facts.aggregator
    if entry.weights is not None and rule.weights is None:
        raise ConfigError("the ledger was made by other parts than these: its rounds weighed clients")
    if rule.weights is None or rule.initialize is not None:
        return None
    weights = entry.weights
    if weights is None:
        with jax.enable_x64(False):
            knobs = jax.tree.map(jnp.asarray, entry.knobs)
            weights = public_facts.stated_weights(rule, facts.about, facts.counts, knobs)
    return np.broadcast_to(np.asarray(weights, np.float64), facts.clip.shape)


def _alike(a: privacy.Phase, b: privacy.Phase) -> bool:
    """Whether noise, bounds and weights are the same."""
    pairs = [(a.outsiders, b.outsiders), (a.server, b.server), (a.clip, b.clip), (a.weights, b.weights)]
    return all(x is y if x is None or y is None else np.array_equal(x, y) for x, y in pairs)


def _deviation(facts, knobs, noise) -> np.ndarray:
    """Standard deviation of one kind of noise, f64[clients]; zeros where there is none."""
    shape = facts.clip.shape
    if noise is None:
        return np.zeros(shape)
    return np.broadcast_to(np.asarray(noise.deviation(knobs), np.float64), shape)


def places_of(facts: Facts, ledger: Ledger) -> dict[str, Any]:
    """What the accountant must know of places under Poisson sampling."""
    if not facts.poisson:
        return {}
    clients = len(facts.counts)
    filled = poisson.places(clients, facts.per_round) if facts.central else 0
    return {"filled": filled, "overflow": ledger.rounds * poisson.overflow(clients, facts.per_round)}
