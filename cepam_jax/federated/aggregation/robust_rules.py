"""The robust rules by name: their options, and what each does with inner products or coordinates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cepam_jax.federated.aggregation import coordinates, distances
from cepam_jax.federated.aggregation.base import Facts


class Options(NamedTuple):
    """Settings of robust rules.

    Attributes:
      tolerated: f, how many of a round's updates may be lies.
      before: what is done before the rule: "none"; "mixing", each update becomes the mean of its n - f
        nearest; "bucketing", random groups of `bucket` are averaged.
      bucket: updates of a group.
      smoothing: nu of the geometric median, an L2 length in units of the update.
      iterations: steps of the geometric median and of centered clipping.
      radius: of centered clipping, an L2 length in units of the update.
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
      by_gram: (inner products [n, n], Facts, Options) -> weights f32[n], or None. What the facts say is of
        the rows that are left after mixing.
      by_coordinate: (updates f32[n, c], Facts, Options) -> f32[c], or None.
      least: f -> the smallest number of updates with which f lies can be borne.
      from_last: whether the last aggregate is the last row of the inner products.
    """

    by_gram: Callable | None = None
    by_coordinate: Callable | None = None
    least: Callable[[int], int] = lambda tolerated: 2 * tolerated + 1
    from_last: bool = False


def _worth(facts: Facts):
    """f32[n], what each row is worth in a mean, 0 for what is left out; None: all the same."""
    if facts.taken is None:
        return facts.preference
    return facts.taken * (1.0 if facts.preference is None else facts.preference)


def _krum(products, facts, options):
    return distances.krum_weights(distances.squared_distances(products), options.tolerated, facts.taken)


def _multi_krum(products, facts, options):
    apart = distances.squared_distances(products)
    return distances.multi_krum_weights(apart, options.tolerated, facts.preference, facts.taken)


def _smallest_diameter(products, facts, options):
    apart = distances.squared_distances(products)
    return distances.smallest_diameter_weights(apart, options.tolerated, facts.preference, facts.taken)


def _geometric_median(products, facts, options):
    worth = _worth(facts)
    pull = None if worth is None else jnp.sqrt(worth)
    return distances.geometric_median_weights(products, options.smoothing, options.iterations, pull)


def _centered_clipping(products, facts, options):
    radius = options.radius
    if options.noise == "known":  # |x^ - v|^2 is the distance without noise and d sigma^2 more, in the mean
        radius = jnp.sqrt(radius**2 + facts.noise)
    return distances.centered_clipping_weights(products, radius, options.iterations, _worth(facts))


def _trimmed(updates, facts, options):
    return coordinates.trimmed_mean(updates, options.tolerated, facts.preference, facts.taken)


def _median(updates, facts, options):
    worth = None if facts.preference is None else jnp.sqrt(facts.preference)
    return coordinates.coordinate_median(updates, worth, facts.taken)


RULES: dict[str, Rule] = {
    "median": Rule(by_coordinate=_median),
    "trimmed_mean": Rule(by_coordinate=_trimmed),
    "krum": Rule(by_gram=_krum, least=lambda f: 2 * f + 3),
    "multi_krum": Rule(by_gram=_multi_krum, least=lambda f: 2 * f + 3),
    "smallest_diameter": Rule(by_gram=_smallest_diameter),
    "geometric_median": Rule(by_gram=_geometric_median),
    "centered_clipping": Rule(by_gram=_centered_clipping, from_last=True),
}
# Rules that are the mean where nothing is to be tolerated.
MEANS = ("trimmed_mean", "multi_krum", "smallest_diameter")
# Rules that measure distances between updates, not to a centre: these use them without noise.
BETWEEN = ("krum", "multi_krum", "smallest_diameter")
