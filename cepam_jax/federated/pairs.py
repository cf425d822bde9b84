"""Two honest updates are never near each other, for their noises are not: what the server does with others.

Decoded updates of two honest clients are x_j + n_j and x_k + n_k with independent noises of a known law. The
squared distance has the mean |x_j - x_k|^2 + d (sigma_j^2 + sigma_k^2), and the more coordinates there are,
the nearer to it it lies. Whatever x_j and x_k are, it is at least c d (sigma_j^2 + sigma_k^2) but with a
stated probability, the false alarm: for Gaussian noise it is (sigma_j^2 + sigma_k^2) times a noncentral
chi-squared variable of d degrees of freedom, which is at least as large, in law, as a central one. c d is
that one's quantile.

Liars who all send the same, or nearly so, are nearer. Fung, Yoon, Beschastnikh: Mitigating Sybils in
Federated Learning Poisoning, arXiv 1808.04866, weighs updates down that are alike; here what honest noise can
do decides, with its stated probability. Of each pair that is too near at least one lies, and the server does
without both: while there are such pairs among those that are left, the nearest one goes. So no more honest
updates go than lies do, and no pair that is left is too near. But a liar may send what an honest client sent,
and be refused together with it: f liars silence f honest clients of their choice.

What that leaves to liars: for f lies v_k, |sum v_k|^2 = f sum |v_k|^2 - sum over pairs |v_j - v_k|^2. With
norms that pass the other check, |v_k|^2 <= C^2 + (1 + a) d sigma^2, their mean is at most
sqrt(C^2 + d sigma^2 (1 / f + a + (1 - c)(f - 1) / f)) long instead of sqrt(C^2 + (1 + a) d sigma^2): 1 / f
is what the mean of f honest noises has, too, and a + 1 - c falls like sqrt(log(1 / false alarm) / d). Honest
noises average out over rounds, and lies need not.

Laplace noise: norms are L1 there, and a lie may have few coordinates that are large, far from all others at
no price. The check is refused.
"""

import math

import jax
import jax.numpy as jnp
from scipy import special

from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation import distances
from cepam_jax.mechanisms import About

_LEAST = 0.1  # c below which the check is refused
_ROUNDING = 1e-5  # of two squared norms: what their distance from inner products may err by


def check(about: About, part: float) -> None:
    """Checks that a mechanism's noise keeps honest updates apart; `admission.check` has passed.

    Args:
      about: of the mechanism.
      part: c, by `least`.

    Raises:
      ConfigError: it adds none, or none that could be seen.
    """
    asked = "the server is to check pairs (config.byzantine.pairs), but "
    if about.outsiders is None:
        raise ConfigError(
            f"{asked}the mechanism {about.name} adds no noise: nothing keeps two honest updates apart"
        )
    if about.outsiders.law != "gaussian":
        raise ConfigError(
            f"{asked}the noise of {about.name} is not Gaussian: where L1 norms are bounded, one large "
            "coordinate keeps two lies apart at no price"
        )
    if part < _LEAST:
        raise ConfigError(
            f"{asked}in so few coordinates honest updates may be as near as {part:.2g} of the usual squared "
            "distance, so that it would see next to nothing"
        )


def least(d: int, participants: int, false_alarm: float) -> float:
    """c of the module's text: how near two honest updates come, as part of the distance of their noises.

    Args:
      d: coordinates.
      participants: of a round.
      false_alarm: probability with which an honest message is nearer to any other honest one of its round, at
        most.

    Returns:
      Between 0 and 1.
    """
    each = false_alarm / max(1, participants - 1)
    return float(special.gammaincinv(d / 2, each)) * 2 / d


def longest_mean(most: float, noise: float, part: float, lies: int) -> float:
    """How long the mean of lies may be that pass both checks, by the module's text.

    Args:
      most: the longest norm that passes.
      noise: d sigma^2, of each.
      part: c; 0: pairs are not checked.
      lies: f.
    """
    return math.sqrt(max(0.0, most**2 - part * noise * (lies - 1) / lies))


def kept(products, noise, taken, part: float) -> jax.Array:
    """bool[n], which updates are left when none of them is too near to another.

    Where updates are more than sqrt(c d) 300 sigma long, distances in 32-bit floats do not show the noise,
    and nobody is refused.

    Args:
      products: f32[n, n], inner products of the decoded updates; finite.
      noise: f32[n], d sigma_k^2 of each.
      taken: bool[n], which there are; None: all.
      part: c, by `least`.
    """
    n = len(products)
    square = jnp.diagonal(products)
    apart = distances.squared_distances(products) + _ROUNDING * (square[:, None] + square[None, :])
    allowed = part * (noise[:, None] + noise[None, :])
    # How near, of what is allowed; a pair that is not too near never counts.
    near = jnp.where(
        (apart < allowed) & ~jnp.eye(n, dtype=bool), apart / jnp.maximum(allowed, 1e-30), jnp.inf
    )

    def nearest(left):
        among = jnp.where(left[:, None] & left[None, :], near, jnp.inf)
        place = jnp.argmin(among)
        return jnp.stack([place // n, place % n]), jnp.isfinite(among.ravel()[place])

    def go(carry):
        left, (pair, _) = carry
        left = left.at[pair].set(False)
        return left, nearest(left)

    start = jnp.ones(n, bool) if taken is None else taken
    left, _ = jax.lax.while_loop(lambda carry: carry[1][1], go, (start, nearest(start)))
    return left


def cover(key, lies, noise, part: float, d: int) -> jax.Array:
    """f32[n, d], noise that liars agree upon, such that lies which are alike pass: as short as it may be.

    It adds up to nothing over the liars, so it costs them nothing in a mean; of a single one it is zero.

    Args:
      key: of the liars.
      lies: bool[n].
      noise: f32[n], d sigma_k^2 that the server believes to be in each update.
      part: c.
      d: coordinates.
    """
    n = len(lies)
    drawn = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(key, n + k), (d,)))(jnp.arange(n))
    drawn = jnp.where(lies[:, None], drawn * jnp.sqrt(part * noise / d)[:, None], 0.0)
    drawn = jnp.where(lies[:, None], drawn - drawn.sum(0) / jnp.maximum(lies.sum(), 1), 0.0)
    pair = lies[:, None] & lies[None, :] & ~jnp.eye(n, dtype=bool)
    allowed = part * (noise[:, None] + noise[None, :])
    apart = distances.squared_distances(distances.gram(drawn))
    enough = jnp.where(pair, apart / jnp.maximum(allowed, 1e-30), jnp.inf).min()
    return drawn * jnp.sqrt(jnp.where(jnp.isfinite(enough), 1.001 / jnp.maximum(enough, 1e-30), 0.0))
