"""Clients that lie: what they send instead of their updates, with knowledge of all honest ones.

An attack is crafted in the space of decoded updates. A liar knows the shared dither, so it can choose its
integers such that the server decodes what it wants, up to a cell of the quantizer; and it may know what the
honest clients sent. Both are the worst case, and the usual one of the literature. Bits and losses of a liar's
report are those of its honest message. Where the server refuses what has no noise, liars add noise.

A fork's attack is a function (Seen, strength) -> f32[n, d], registered with its usual strength.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cepam_jax.federated.lying import ATTACKS, Attack, Seen, covered, least_scale, own_noise, sent_by

_EVALUATIONS, _START, _GROWTH, _SHRINK = 20, 10.0, 2.0, 0.8  # of the line search, as in ByzFL
# Octaves of strength that are tried one after another: all there are, then around the best of these.
_COARSE = tuple(x / 2 for x in range(-8, 10))
_FINE = tuple(x / 8 for x in range(-3, 4))


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
    return covered(seen, -strength * honest_mean(seen))


def inner_product(seen: Seen, strength) -> jax.Array:
    """Inner product manipulation: a negative multiple of the honest mean.

    Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation, arXiv
    1903.03936.
    """
    return covered(seen, -strength * honest_mean(seen))


def little_is_enough(seen: Seen, strength) -> jax.Array:
    """The honest mean and some deviations more, in every coordinate.

    Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning, arXiv
    1902.06156.
    """
    return covered(seen, honest_mean(seen) + strength * honest_deviation(seen))


def mimic(seen: Seen, strength) -> jax.Array:
    """The update of the honest participant with the smallest number again: it counts many times.

    Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, arXiv
    2006.09365.
    """
    return seen.updates[jnp.argmax(~seen.lies)]


def evict(seen: Seen, strength) -> jax.Array:
    """Each liar sends the update of an honest participant of its own, exactly.

    A server that checks pairs then does without both. With more liars than honest ones they begin again.
    """
    number = jnp.cumsum(seen.lies) - 1
    honest = jnp.argsort(seen.lies, stable=True)  # those who do not lie come first
    return seen.updates[honest[number % jnp.maximum((~seen.lies).sum(), 1)]]


def evict_and_lie(seen: Seen, strength) -> jax.Array:
    """Every second liar evicts an honest participant, and the others do as in `little_is_enough`."""
    second = (jnp.cumsum(seen.lies) % 2 == 0)[:, None]
    cover = seen.cover
    if cover is not None:  # it adds up to nothing over those who lie
        mine = seen.lies[:, None] & ~second
        cover = cover - jnp.where(mine, cover, 0.0).sum(0) / jnp.maximum(mine.sum(), 1)
    return jnp.where(second, evict(seen, strength), little_is_enough(seen._replace(cover=cover), strength))


def gaussian(seen: Seen, strength) -> jax.Array:
    """Gaussian noise of this deviation, the same from all liars."""
    return covered(seen, strength * jax.random.normal(seen.key, seen.updates.shape[1:]))


def clip_abuse(seen: Seen, strength) -> jax.Array:
    """Against the honest mean, with a multiple of the largest honest norm: no clip is kept to."""
    norms = jnp.linalg.norm(seen.updates, axis=1)
    return covered(seen, -strength * jnp.where(seen.lies, 0.0, norms).max() * _direction(seen))


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
    if seen.cover is None:
        return -reach[:, None] * towards
    # Across the direction: then liars who get farther than others are not nearer to them.
    cover = seen.cover - jnp.outer(jnp.matmul(seen.cover, towards), towards)
    reach = jax.vmap(lambda most, one: _reach(seen, towards, most, one))(reach, cover)
    return cover - reach[:, None] * towards


def _reach(seen: Seen, towards, most, cover):
    """f32[], how far a liar gets with the noise that covers it, of `most` without."""
    longest = most * seen.norm(towards)
    return least_scale(lambda x: seen.norm(cover - x * towards) > longest, most)


def not_finite(seen: Seen, strength) -> jax.Array:
    """NaN: what a server that checks nothing passes on."""
    return jnp.full(seen.updates.shape[1:], jnp.nan)


def _direction(seen: Seen) -> jax.Array:
    mean = honest_mean(seen)
    return mean / jnp.maximum(jnp.linalg.norm(mean), 1e-30)


def _way(seen: Seen, craft) -> jax.Array:
    """f32[d], the direction in which lies go as they grow stronger; of length one."""
    moved = jnp.broadcast_to(craft(seen, 1.0) - craft(seen, 0.0), seen.updates.shape)
    total = jnp.where(seen.lies[:, None], moved, 0.0).sum(0)
    return total / jnp.maximum(jnp.linalg.norm(total), 1e-30)


def optimal(craft: Callable[[Seen, jax.Array], jax.Array]) -> Callable[[Seen, jax.Array], jax.Array]:
    """An attack with the strength that carries the aggregate farthest from the honest mean.

    The line search of ByzFL (arXiv 2505.24802; Shejwalkar, Houmansadr: Manipulating the Byzantine, NDSS
    2021): steps that double while they help, and then shrink. Where the server checks pairs, what counts is
    how far the aggregate is carried the way the lies go, from what it would be without any: a rule that is
    left with few updates is far from the honest mean by itself, and not in any direction for long, which
    would reward lies that are refused.
    """

    def crafted(seen: Seen, strength) -> jax.Array:
        del strength
        mean = honest_mean(seen)
        noise = own_noise(seen)  # the same at each strength
        alone, way = seen.alone, None if seen.alone is None else _way(seen, craft)

        def distance(x):
            found = seen.aggregate(sent_by(seen, craft(seen, x), noise))
            if alone is None or way is None:
                return jnp.linalg.norm(found - mean)
            return jnp.vdot(found - alone, way)

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


def directed(craft: Callable[[Seen, jax.Array], jax.Array]) -> Callable[[Seen, jax.Array], jax.Array]:
    """An attack with the strength that carries the aggregate farthest the way the lies go.

    `optimal` begins with a strong lie. Where the server refuses that, what is left may be farther from the
    honest mean than with no lie, by its noise alone, and the search stays there: its lies are refused in
    every round. A rule that takes one row is as far by the noise of an honest one. This search counts what is
    carried the way of the lies, of strengths from 1/16 to 23, each the last times the square root of two, and
    then of those around the best, each 9 % more than the last. It finds nothing stronger than 29.
    """

    def crafted(seen: Seen, strength) -> jax.Array:
        del strength
        mean, noise, way = honest_mean(seen), own_noise(seen), _way(seen, craft)

        def carried(x):
            found = seen.aggregate(sent_by(seen, craft(seen, x), noise))
            return jnp.nan_to_num(jnp.vdot(found - mean, way), nan=-jnp.inf)  # argmax takes NaN for the most

        best = jnp.float32(1)
        for steps in (_COARSE, _FINE):
            tried = best * jnp.exp2(jnp.array(steps, jnp.float32))
            best = tried[jnp.argmax(jax.lax.map(carried, tried))]
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
ATTACKS.register("directed_inner_product", Attack(directed(inner_product)))
ATTACKS.register("directed_little", Attack(directed(little_is_enough)))
ATTACKS.register("evict", Attack(evict))
ATTACKS.register("optimal_evicting", Attack(optimal(evict_and_lie)))
ATTACKS.register("dither_abuse", Attack(dither_abuse, 10.0))
ATTACKS.register("clip_abuse", Attack(clip_abuse, 100.0))
ATTACKS.register("not_finite", Attack(not_finite))
