"""The robust rules by name: their options, and what each does with inner products or coordinates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cepam_jax.federated.aggregation import coordinates, distances


class Options(NamedTuple):
    """Settings of robust rules.

    Attributes:
      tolerated: f, how many of a round's updates may be lies.
      before: what is done before the rule: "none"; "mixing", each update becomes the mean of its n - f
        nearest; "bucketing", random groups of `bucket` are averaged.
      bucket: updates of a group.
      smoothing: nu of the geometric median, in units of an update's norm.
      iterations: steps of the geometric median and of centered clipping.
      radius: of centered clipping, in units of an update's norm.
      noise: "ignored", or "known": the rule uses the law of the clients' noise.
    """

    tolerated: int = 0
    before: str = "none"
    bucket: int = 2
    smoothing: float = 0.1
    iterations: int = 3
    radius: float = 1.0
    noise: str = "ignored"


class Rule(NamedTuple):
    """One rule.

    Attributes:
      by_gram: (inner products [n, n], Facts, Options, preference) -> weights f32[n], or None.
      by_coordinate: (updates f32[n, c], Options, preference) -> f32[c], or None.
      least: f -> the smallest number of updates with which f lies can be borne.
      from_last: whether the last aggregate is the last row of the inner products.
    """

    by_gram: Callable | None = None
    by_coordinate: Callable | None = None
    least: Callable[[int], int] = lambda tolerated: 2 * tolerated + 1
    from_last: bool = False


def _krum(products, facts, options, preference):
    return distances.krum_weights(distances.squared_distances(products), options.tolerated)


def _multi_krum(products, facts, options, preference):
    apart = distances.squared_distances(products)
    return distances.multi_krum_weights(apart, options.tolerated, preference)


def _smallest_diameter(products, facts, options, preference):
    apart = distances.squared_distances(products)
    return distances.smallest_diameter_weights(apart, options.tolerated, preference)


def _geometric_median(products, facts, options, preference):
    pull = None if preference is None else jnp.sqrt(preference)
    return distances.geometric_median_weights(products, options.smoothing, options.iterations, pull)


def _centered_clipping(products, facts, options, preference):
    radius = options.radius
    if preference is not None:  # |x^ - v|^2 is the distance without noise and d sigma^2 more, in the mean
        radius = jnp.sqrt(radius**2 + facts.noise)
    return distances.centered_clipping_weights(products, radius, options.iterations, preference)


def _trimmed(updates, options, preference):
    return coordinates.trimmed_mean(updates, options.tolerated, preference)


def _median(updates, options, preference):
    return coordinates.coordinate_median(updates, None if preference is None else jnp.sqrt(preference))


RULES: dict[str, Rule] = {
    "median": Rule(by_coordinate=_median),
    "trimmed_mean": Rule(by_coordinate=_trimmed),
    "krum": Rule(by_gram=_krum, least=lambda f: 2 * f + 3),
    "multi_krum": Rule(by_gram=_multi_krum, least=lambda f: 2 * f + 3),
    "smallest_diameter": Rule(by_gram=_smallest_diameter),
    "geometric_median": Rule(by_gram=_geometric_median),
    "centered_clipping": Rule(by_gram=_centered_clipping, from_last=True),
}
# Rules that measure distances between updates, not to a centre: these use them without noise.
BETWEEN = ("krum", "multi_krum", "smallest_diameter")
