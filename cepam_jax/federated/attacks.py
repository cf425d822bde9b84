"""Clients that lie: what they send instead of their updates, with knowledge of all honest ones.

An attack is crafted in the space of decoded updates. A liar knows the shared dither, so it can choose its
integers such that the server decodes what it wants, up to a cell of the quantizer; and it may know what the
honest clients sent. Both are the worst case, and the usual one of the literature. Bits and losses of a liar's
report are those of its honest message. Where the server refuses what has no noise, liars add noise.

A fork's attack is a function (Seen, strength) -> f32[n, d], registered with its usual strength.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax.federated.admission import Limits
from cepam_jax.registry import Registry

_HALVINGS = 24  # of the search for how much noise a lie needs
_EVALUATIONS, _START, _GROWTH, _SHRINK = 20, 10.0, 2.0, 0.8  # of the line search, as in ByzFL


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
    return _sent(seen, attack.craft(seen, strength))


def _sent(seen: Seen, crafted) -> jax.Array:
    """f32[n, d]: all updates, with what is crafted f32[d] or f32[n, d] in place of the liars'."""
    crafted = jnp.broadcast_to(crafted, seen.updates.shape)
    if seen.cover is not None:
        crafted = crafted + seen.cover
    return jnp.where(seen.lies[:, None], _hidden(seen, crafted), seen.updates)


def _hidden(seen: Seen, crafted) -> jax.Array:
    """What is crafted, with noise where the server would miss it: a lie that is too short has none.

    The noise is Gaussian, each liar's own, and scaled such that the whole has the least norm.
    """

    def one(lie, number, least):
        noise = jax.random.normal(jax.random.fold_in(seen.key, number), lie.shape)
        goal = 1.0005 * least

        def halve(ends, _):
            low, high = ends
            middle = (low + high) / 2
            enough = seen.norm(lie + middle * noise) >= goal
            return (jnp.where(enough, low, middle), jnp.where(enough, middle, high)), None

        most = (goal + seen.norm(lie)) / seen.norm(noise)  # is enough, by the triangle inequality
        (_, scale), _ = jax.lax.scan(halve, (jnp.float32(0), most), length=_HALVINGS)
        return jnp.where(seen.norm(lie) < least, lie + scale * noise, lie)

    return jax.vmap(one)(crafted, jnp.arange(len(crafted)), seen.limits.least)


def honest_mean(seen: Seen) -> jax.Array:
    """f32[d], the mean of the honest updates; zeros where nobody is honest."""
    honest = ~seen.lies
    total = jnp.where(honest[:, None], seen.updates, 0.0).sum(0)
    return total / jnp.maximum(honest.sum(), 1)


def honest_deviation(seen: Seen) -> jax.Array:
    """f32[d], the deviation of each coordinate over the honest updates, with their number less one."""
    honest = ~seen.lies
    away = jnp.where(honest[:, None], seen.updates - honest_mean(seen), 0.0)
    return jnp.sqrt(jnp.square(away).sum(0) / jnp.maximum(honest.sum() - 1, 1))


def sign_flip(seen: Seen, strength) -> jax.Array:
    """Minus the honest mean."""
    return -strength * honest_mean(seen)


def inner_product(seen: Seen, strength) -> jax.Array:
    """Inner product manipulation: a negative multiple of the honest mean.

    Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation, arXiv
    1903.03936.
    """
    return -strength * honest_mean(seen)


def little_is_enough(seen: Seen, strength) -> jax.Array:
    """The honest mean and some deviations more, in every coordinate.

    Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning, arXiv
    1902.06156.
    """
    return honest_mean(seen) + strength * honest_deviation(seen)


def mimic(seen: Seen, strength) -> jax.Array:
    """The update of the honest participant with the smallest number again: it counts many times.

    Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, arXiv
    2006.09365.
    """
    return seen.updates[jnp.argmax(~seen.lies)]


def gaussian(seen: Seen, strength) -> jax.Array:
    """Gaussian noise of this deviation, the same from all liars."""
    return strength * jax.random.normal(seen.key, seen.updates.shape[1:])


def clip_abuse(seen: Seen, strength) -> jax.Array:
    """Against the honest mean, with a multiple of the largest honest norm: no clip is kept to."""
    norms = jnp.linalg.norm(seen.updates, axis=1)
    return -strength * jnp.where(seen.lies, 0.0, norms).max() * _direction(seen)


def dither_abuse(seen: Seen, strength) -> jax.Array:
    """Against the honest mean, as far as the server lets each liar go, and without any noise.

    A liar knows the shared dither, so what is decoded is what it wants. Where the server does not look at
    norms, `strength` times the largest honest one.
    """
    norms = jnp.linalg.norm(seen.updates, axis=1)
    usual = strength * jnp.where(seen.lies, 0.0, norms).max()
    towards = _direction(seen)
    whole = jnp.maximum(seen.norm(towards), 1e-30)
    reach = jnp.where(jnp.isfinite(seen.limits.most), 0.999 * seen.limits.most / whole, usual)
    if seen.cover is not None:
        reach = jax.vmap(lambda most, cover: _reach(seen, towards, most, cover))(reach, seen.cover)
    return -reach[:, None] * towards


def _reach(seen: Seen, towards, most, cover):
    """f32[], how far a liar gets with the noise that covers it, of `most` without."""

    def halve(ends, _):
        low, high = ends
        middle = (low + high) / 2
        passes = seen.norm(cover - middle * towards) <= most * seen.norm(towards)
        return (jnp.where(passes, middle, low), jnp.where(passes, high, middle)), None

    (reach, _), _ = jax.lax.scan(halve, (jnp.float32(0), most), length=_HALVINGS)
    return reach


def not_finite(seen: Seen, strength) -> jax.Array:
    """NaN: what a server that checks nothing passes on."""
    return jnp.full(seen.updates.shape[1:], jnp.nan)


def _direction(seen: Seen) -> jax.Array:
    mean = honest_mean(seen)
    return mean / jnp.maximum(jnp.linalg.norm(mean), 1e-30)


def optimal(craft: Callable[[Seen, jax.Array], jax.Array]) -> Callable[[Seen, jax.Array], jax.Array]:
    """An attack with the strength that carries the aggregate farthest from the honest mean.

    The line search of ByzFL (arXiv 2505.24802; Shejwalkar, Houmansadr: Manipulating the Byzantine, NDSS
    2021): steps that double while they help, and then shrink. Where the server checks pairs, it is the
    distance from what it would make of the honest updates alone: rules that are left with few updates are far
    from the honest mean by themselves, which would reward lies that are refused.
    """

    def crafted(seen: Seen, strength) -> jax.Array:
        del strength
        usual = honest_mean(seen) if seen.alone is None else seen.alone

        def distance(x):
            return jnp.linalg.norm(seen.aggregate(_sent(seen, craft(seen, x))) - usual)

        def step(carry, _):
            best, most, delta, grows = carry
            found = distance(best + delta)
            better = found > most
            tried = best + delta
            factor = jnp.where(grows & better, _GROWTH, _SHRINK)
            carry = (jnp.where(better, tried, best), jnp.where(better, found, most), delta * factor)
            return (*carry, grows & better), None

        zero = jnp.float32(0)
        start = (zero, distance(zero), jnp.float32(_START), jnp.bool_(True))
        (best, *_), _ = jax.lax.scan(step, start, length=_EVALUATIONS - 1)
        return craft(seen, best)

    return crafted


ATTACKS.register("sign_flip", Attack(sign_flip))
ATTACKS.register("label_flip", Attack(turns_labels=True))
ATTACKS.register("gaussian", Attack(gaussian))
ATTACKS.register("inner_product", Attack(inner_product, 2.0))
ATTACKS.register("little_is_enough", Attack(little_is_enough, 1.5))
ATTACKS.register("mimic", Attack(mimic))
ATTACKS.register("optimal_inner_product", Attack(optimal(inner_product)))
ATTACKS.register("optimal_little", Attack(optimal(little_is_enough)))
ATTACKS.register("dither_abuse", Attack(dither_abuse, 10.0))
ATTACKS.register("clip_abuse", Attack(clip_abuse, 100.0))
ATTACKS.register("not_finite", Attack(not_finite))
