"""Rules that need the distances between updates, as weights that follow from one Gram matrix.

All of them give a combination of the updates whose weights depend on distances alone, so a server needs the
inner products f32[n, n] of n updates and no more: d may be cut into parts, or spread over devices. A rule
here takes the Gram matrix and gives weights f32[n] (or a matrix f32[m, n] of such weights, one row for each
of m mixed updates). Distances from a float32 Gram matrix err by about 5e-7 of the squared norms: where
updates are a hundred times longer than they are apart, by half a percent.

Sources are named at each function. Where papers differ in which neighbours they count, the definitions are
those of ByzFL (Guerraoui, Gupta, Pinot, Rouault, Stephan, González: ByzFL: Research Framework for Robust
Federated Learning, arXiv 2505.24802), against which the tests hold them.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

_TINY = 1e-30  # what a divisor is at least


def gram(updates) -> jax.Array:
    """Inner products f32[n, n] of updates f32[n, d], in full float32 also where a device would round."""
    return jnp.matmul(updates, updates.T, precision=jax.lax.Precision.HIGHEST)


def without_noise(products, noise) -> jax.Array:
    """Inner products f32[n, n] less what independent noises add to them in the mean: to the diagonal alone.

    With x^_k = x_k + n_k, E <n_j, n_k> = 0 for j != k and E |n_k|^2 = d sigma_k^2, so that the result is an
    unbiased estimate of <x_j, x_k>; so is what linear maps make of it, such as distances of mixed updates.

    Args:
      products: f32[n, n].
      noise: f32[n], d sigma_k^2 of each update.
    """
    return products - jnp.diag(noise)


def squared_distances(products) -> jax.Array:
    """Squared distances f32[n, n] from inner products; estimates `without_noise` may be negative."""
    square = jnp.diagonal(products)
    found = square[:, None] + square[None, :] - 2 * products
    return jnp.where(jnp.eye(len(products), dtype=bool), 0.0, found)


def _taken(n: int, taken):
    """(bool[n], how many int32[])."""
    taken = jnp.ones(n, bool) if taken is None else taken
    return taken, taken.sum()


def krum_scores(distances, tolerated: int, taken=None) -> jax.Array:
    """f32[n], the mean squared distance of each update to its n - f - 1 nearest others.

    Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent, NeurIPS 2017 (with n - f - 2 neighbours there, n - f - 1 in ByzFL and here).

    Args:
      distances: f32[n, n], squared.
      tolerated: f.
      taken: bool[n]; the others are left out, and n is the number of those that are taken. None: all are.

    Returns:
      f32[n], infinite for updates that are left out.
    """
    n = len(distances)
    taken, count = _taken(n, taken)
    pair = taken[:, None] & taken[None, :] & ~jnp.eye(n, dtype=bool)
    ordered = jnp.sort(jnp.where(pair, distances, jnp.inf), axis=1)
    near = jnp.arange(n) < jnp.maximum(count - tolerated - 1, 1)
    total = jnp.where(near & jnp.isfinite(ordered), ordered, 0.0).sum(1)
    return jnp.where(taken, total / jnp.maximum(count - tolerated - 1, 1), jnp.inf)


def _mean_of(chosen, preference):
    """Weights f32[n] of the mean over chosen updates; with a preference f32[n], weighed by it."""
    weights = chosen if preference is None else chosen * preference
    return weights / jnp.maximum(weights.sum(), _TINY)


def krum_weights(distances, tolerated: int, taken=None) -> jax.Array:
    """f32[n], one at the update with the smallest `krum_scores`; zeros where none is taken."""
    taken, count = _taken(len(distances), taken)
    best = jnp.argmin(krum_scores(distances, tolerated, taken))
    return jax.nn.one_hot(best, len(distances)) * (count > 0)


def multi_krum_weights(distances, tolerated: int, preference=None, taken=None) -> jax.Array:
    """f32[n], of the mean over the n - f updates with the smallest `krum_scores`.

    Args:
      distances: f32[n, n], squared.
      tolerated: f.
      preference: f32[n], weights within that mean; None: equal ones.
      taken: as for `krum_scores`.
    """
    n = len(distances)
    taken, count = _taken(n, taken)
    order = jnp.argsort(krum_scores(distances, tolerated, taken))
    chosen = (
        jnp.zeros(n).at[order].set((jnp.arange(n) < jnp.maximum(count - tolerated, 1)).astype(jnp.float32))
    )
    return _mean_of(chosen * taken, preference)


def subsets(n: int, tolerated: int) -> int:
    """How many sets `smallest_diameter_weights` compares."""
    return math.comb(n, tolerated)


def smallest_diameter_weights(distances, tolerated: int, preference=None, taken=None) -> jax.Array:
    """f32[n], of the mean over the n - f updates whose largest distance from each other is the smallest.

    Minimum-diameter averaging: El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault: Genuinely Distributed
    Byzantine Machine Learning, arXiv 1905.03853. All n over f sets are compared, so n must be small.

    Args:
      distances: f32[n, n], squared.
      tolerated: f.
      preference, taken: as for `multi_krum_weights`.
    """
    n = len(distances)
    taken, _ = _taken(n, taken)
    kept = np.ones((subsets(n, tolerated), n), bool)
    for row, left in enumerate(itertools.combinations(range(n), tolerated)):
        kept[row, list(left)] = False
    # In the order in which the kept ones are counted up, so that the first of equal sets is the same one.
    kept = kept[::-1]
    pair = taken[:, None] & taken[None, :] & ~jnp.eye(n, dtype=bool)

    def diameter(keeps):  # sets that hold all that is left out have the fewest others, and so the smallest
        return jnp.where(pair & keeps[:, None] & keeps[None, :], distances, -jnp.inf).max()

    found = jax.lax.map(diameter, jnp.asarray(kept), batch_size=64)
    found = jnp.where((jnp.asarray(kept) & taken).any(1), found, jnp.inf)
    best = jnp.asarray(kept)[jnp.argmin(found)] & taken
    return _mean_of(best.astype(jnp.float32), preference)


def _distance_to(products, weights):
    """f32[n], distance of each update to the combination of them with these weights f32[n]."""
    inner = jnp.matmul(products, weights, precision=jax.lax.Precision.HIGHEST)
    square = jnp.diagonal(products) - 2 * inner + jnp.dot(weights, inner)
    return jnp.sqrt(jnp.maximum(square, 0.0))


def geometric_median_weights(products, smoothing: float, iterations: int, preference=None) -> jax.Array:
    """f32[n], of the point near which the sum of distances to the updates is least.

    Smoothed Weiszfeld, from zero (Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning,
    arXiv 1912.13445): each step is the mean by 1 / max(smoothing, distance).

    Args:
      products: f32[n, n], inner products.
      smoothing: nu, the least distance that counts, in units of an update's norm.
      iterations: steps.
      preference: f32[n], what each distance is multiplied by, 0 for updates that are left out; None: one.
    """
    preference = jnp.ones(len(products)) if preference is None else preference

    def step(weights, _):
        pull = preference / jnp.maximum(smoothing, _distance_to(products, weights))
        return pull / jnp.maximum(pull.sum(), _TINY), None

    weights, _ = jax.lax.scan(step, jnp.zeros(len(products)), length=iterations)
    return weights


def centered_clipping_weights(products, radius, iterations: int, preference=None) -> jax.Array:
    """f32[n + 1], of v + mean of clip(x_k - v): updates drawn to a centre v, at most `radius` from it.

    Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, arXiv 2012.10333.

    Args:
      products: f32[n + 1, n + 1], inner products of the updates and, last, the centre, which is the last
        aggregate.
      radius: f32[] or f32[n].
      iterations: steps; the result of one is the centre of the next.
      preference: f32[n], weights of the mean, 0 for updates that are left out; None: equal ones.
    """
    n = len(products) - 1
    share = _mean_of(jnp.ones(n), preference)
    anybody = share.sum() > 0

    def step(centre, _):
        away = _distance_to(products, centre)[:n]
        pull = share * jnp.minimum(1.0, radius / jnp.maximum(away, _TINY))
        return jnp.append(pull, 0.0) + (1 - pull.sum()) * centre, None

    weights, _ = jax.lax.scan(step, jax.nn.one_hot(n, n + 1), length=iterations)
    return weights * anybody  # without any update the last aggregate is not applied again


def nearest_mixing(distances, tolerated: int, taken=None) -> jax.Array:
    """f32[n, n], whose rows give the mean of each update's n - f nearest, itself among them.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe for Optimal Byzantine
    ML under Heterogeneity, arXiv 2302.01772.

    Args:
      distances: f32[n, n], squared.
      tolerated: f.
      taken: bool[n]; the others are in no mean, and n is the number of those that are taken. None: all are.
    """
    n = len(distances)
    taken, count = _taken(n, taken)
    own_first = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, distances)
    order = jnp.argsort(jnp.where(taken[None, :], own_first, jnp.inf), axis=1)
    near = (jnp.arange(n) < jnp.maximum(count - tolerated, 1)).astype(jnp.float32)
    member = jnp.zeros((n, n)).at[jnp.arange(n)[:, None], order].set(near[None, :])
    return _rows_to_means(member, taken)


def _rows_to_means(member, taken):
    """Rows of 0 and 1, f32[m, n], as means over those that are taken; rows without any are zero."""
    member = member if taken is None else member * taken
    return member / jnp.maximum(member.sum(1, keepdims=True), 1.0)


def buckets(key, n: int, size: int, taken=None) -> jax.Array:
    """f32[ceil(n / size), n], whose rows give the means of random groups of `size` updates.

    The last group may be smaller. Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets
    via Bucketing, arXiv 2006.09365.

    Args:
      key: public randomness of the round.
      n: updates.
      size: s.
      taken: bool[n]; the others are in no mean. None: all are taken.
    """
    number = -(-n // size)
    place = jnp.argsort(jax.random.permutation(key, n)) // size
    return _rows_to_means(jax.nn.one_hot(place, number).T, taken)
