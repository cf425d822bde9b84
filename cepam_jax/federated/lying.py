"""How liars put their messages together: what they know, and noise where the server would miss it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax.federated.admission import Limits
from cepam_jax.mechanisms.transforms import l2_norm
from cepam_jax.registry import Registry

_HALVINGS = 24  # of the search for how much noise a lie needs


class Seen(NamedTuple):
    """What liars know in a round.

    Attributes:
      updates: f32[n, d], decoded updates of all participants; those of liars are what they would have been.
      lies: bool[n], who lies.
      key: randomness of the liars.
      limits: norms between which the server takes each participant's update, f32[n] each; 0 and infinity: it
        does not look.
      norm: f32[d] -> f32[], the norm that it looks at.
      aggregate: f32[n, d] -> f32[d], what the server would make of such updates, its checks included.
      cover: f32[n, d], noise that liars add to what they craft, lest two of them are too near to each other
        (`pairs.cover`); None: the server does not look.
      alone: f32[d], where it looks, what the server makes of the honest updates without any lies; else None.
    """

    updates: jax.Array
    lies: jax.Array
    key: jax.Array
    limits: Limits
    norm: Callable[[jax.Array], jax.Array]
    aggregate: Callable[[jax.Array], jax.Array]
    cover: jax.Array | None = None
    alone: jax.Array | None = None


class Attack(NamedTuple):
    """An attack.

    Attributes:
      craft: (Seen, strength) -> f32[d] or f32[n, d], what the liars send; None: they send their updates.
      strength: the usual one; some attacks have none.
      turns_labels: whether liars train on examples with false labels.
    """

    craft: Callable[[Seen, jax.Array], jax.Array] | None = None
    strength: float = 1.0
    turns_labels: bool = False


# Name -> Attack: the choices of config.byzantine.attack.
ATTACKS: Registry = Registry("attack")


def lied(attack: Attack, seen: Seen, strength) -> jax.Array:
    """f32[n, d]: all updates with the liars' in place of theirs."""
    if attack.craft is None:
        return seen.updates
    return sent_by(seen, attack.craft(seen, strength))


def sent_by(seen: Seen, crafted, noise=None) -> jax.Array:
    """f32[n, d]: all updates, with what is crafted f32[d] or f32[n, d] in place of the liars'.

    Args:
      seen: what liars know.
      crafted: their lies.
      noise: `own_noise`, where it is drawn already.
    """
    crafted = jnp.broadcast_to(crafted, seen.updates.shape)
    hidden = _hidden(seen, crafted, own_noise(seen) if noise is None else noise)
    return jnp.where(seen.lies[:, None], hidden, seen.updates)


def own_noise(seen: Seen) -> jax.Array:
    """f32[n, d], what liars would add to lies that are too short: Gaussian, each liar's own."""
    n, d = seen.updates.shape
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(seen.key, k), (d,)))(jnp.arange(n))


def _hidden(seen: Seen, crafted, noise) -> jax.Array:
    """What is crafted, with noise where the server would miss it: a lie that is too short has none.

    The noise is scaled such that the whole has the least norm.
    """

    def one(lie, noise, least):
        goal = 1.0005 * least
        if seen.norm is l2_norm:
            scale = _to_length(lie, noise, goal)
        else:
            scale = least_scale(lambda x: seen.norm(lie + x * noise) >= goal, _enough(seen, lie, noise, goal))
        return jnp.where(seen.norm(lie) < least, lie + scale * noise, lie)

    return jax.vmap(one)(crafted, noise, seen.limits.least)


def _to_length(lie, noise, length):
    """f32[], the scale of noise that brings a lie to an L2 length, which it has not."""
    along, square = jnp.vdot(lie, noise), jnp.vdot(noise, noise)
    missing = jnp.maximum(jnp.square(length) - jnp.vdot(lie, lie), 0.0)
    root = jnp.sqrt(jnp.square(along) + square * missing)
    # Of the two forms that which does not subtract.
    return jnp.where(along > 0, missing / (along + root), (root - along) / square)


def _enough(seen: Seen, lie, noise, goal):
    """f32[], a scale that is enough, by the triangle inequality."""
    return (goal + seen.norm(lie)) / seen.norm(noise)


def least_scale(enough, most):
    """f32[], the least scale up to `most`, which is enough, by halving."""

    def halve(ends, _):
        low, high = ends
        middle = (low + high) / 2
        done = enough(middle)
        return (jnp.where(done, low, middle), jnp.where(done, middle, high)), None

    (_, scale), _ = jax.lax.scan(halve, (jnp.float32(0), most), length=_HALVINGS)
    return scale


def covered(seen: Seen, crafted) -> jax.Array:
    """What is crafted f32[d] or f32[n, d], with noise that keeps it apart where the server checks pairs."""
    return crafted if seen.cover is None else crafted + seen.cover
