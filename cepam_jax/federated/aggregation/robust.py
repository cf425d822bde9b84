"""Rules that bear some clients which lie: chosen by a configuration, or built from Python.

Each consists of functions in `coordinates` and `distances`, perhaps after a mixing of the updates, and
follows from decoded updates and public facts alone: so each client keeps the protection of its own noise, and
the noises of the others do not add to it, since none of these rules is a sum with known weights.

The law of a client's noise is known. A rule may use it (`noise="known"`): distances are those without noise,
estimated by subtracting d sigma_k^2 from each squared norm; means and medians prefer clients of little noise,
by 1 / (tau^2 + sigma_k^2) with tau^2 estimated from those distances; centered clipping allows each client its
own noise beyond the radius. Where all have the same noise and nothing is mixed before, that changes nothing
but the radius. A lie has no noise unless the server insists on it, so `noise="known"` belongs with its check.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.errors import require, require_choice
from cepam_jax.federated.aggregation import distances
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator, Facts
from cepam_jax.federated.aggregation.median import median
from cepam_jax.federated.aggregation.robust_rules import BETWEEN, MEANS, RULES, Options

MOST_SUBSETS = 200_000  # that minimum-diameter averaging compares
BEFORE = ("none", "mixing", "bucketing")
NOISE = ("ignored", "known")

settings.declare(
    "byzantine",
    {
        "tolerated": settings.integer(
            0, "f, how many lying updates of a round a robust aggregator is to bear.", low=0
        ),
        "before": settings.choice(
            "none",
            "What comes before a robust rule: the mean of each update's n - f nearest, or of random groups.",
            BEFORE,
        ),
        "bucket": settings.integer(2, "Updates in a group of bucketing.", low=1),
        "smoothing": settings.positive(
            0.1, "Least distance of the geometric median, an L2 length in units of the update."
        ),
        "iterations": settings.integer(3, "Steps of the geometric median and of centered clipping."),
        "radius": settings.positive(
            1.0, "Of centered clipping, an L2 length in units of the update; the noise adds to distances."
        ),
        "noise": settings.choice(
            "ignored", "Whether a robust rule uses the known law of each client's noise.", NOISE
        ),
    },
    "Clients that lie, and rules that bear them.",
)


def options_of(config) -> Options:
    """The settings of a configuration."""
    return Options(**{name: config.byzantine[name] for name in Options._fields})


@settings.rule
def _rules(fields):
    """The rule bears as many lies as are to be tolerated."""
    name, number = fields["aggregator"], fields["clients_per_round"] or fields["num_clients"]
    lies = fields["byzantine.attack"] != "none"
    yield (
        not lies or name not in MEANS or fields["byzantine.tolerated"] > 0,
        "byzantine.tolerated",
        f"positive where clients lie: {name} that tolerates none is the mean",
    )
    options = Options(**{field: fields[f"byzantine.{field}"] for field in Options._fields})
    if name not in RULES:
        for field in ("tolerated", "before", "noise"):
            default = Options._field_defaults[field]
            allowed = f"{default!r} unless config.aggregator is one of {', '.join(RULES)}"
            yield getattr(options, field) == default, f"byzantine.{field}", allowed
        return
    least = participants(name, options)
    yield (
        number >= least,
        "byzantine.tolerated",
        f"less: {name} bears {options.tolerated} lies among at least {least} updates a round"
        + (f" in groups of {options.bucket}" if options.before == "bucketing" else "")
        + f", and there are {number}",
    )
    few = name != "smallest_diameter" or distances.subsets(rows_of(number, options), options.tolerated)
    yield (
        few <= MOST_SUBSETS,
        "byzantine.tolerated",
        f"such that smallest_diameter compares at most {MOST_SUBSETS:,} sets (these are {int(few):,})",
    )


def rows_of(number: int, options: Options) -> int:
    """How many updates a rule is given of a round's, after bucketing."""
    return -(-number // options.bucket) if options.before == "bucketing" else number


def participants(name: str, options: Options) -> int:
    """The least number of updates a round among which a rule bears the lies that are to be tolerated."""
    rows = RULES[name].least(options.tolerated)
    if options.before == "bucketing":
        return (rows - 1) * options.bucket + 1
    return max(rows, 2 * options.tolerated + 1) if options.before == "mixing" else rows


def robust(name: str, **options: Any) -> Aggregator:
    """A robust rule as an aggregator.

    Args:
      name: one of RULES.
      **options: fields of `Options`. Nothing is tolerated unless `tolerated` says so, and then some rules are
        the mean.

    Raises:
      ConfigError: names the option that does not fit, and what would.
    """
    require_choice("name of a robust rule", name, tuple(RULES))
    for option in options:
        require(option in Options._fields, "option of a robust rule", option, ", ".join(Options._fields))
    chosen = Options(**options)
    require_choice("before", chosen.before, BEFORE)
    require_choice("noise", chosen.noise, NOISE)
    for option in ("smoothing", "radius"):
        value = getattr(chosen, option)
        require(value > 0 and math.isfinite(value), option, value, "positive and finite")
    for option, low in (("tolerated", 0), ("bucket", 1), ("iterations", 1)):
        value = getattr(chosen, option)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
        require(whole, option, value, f"a whole number of at least {low}")
    return _aggregator(name, chosen)


_MEDIAN = median()._replace(configure=lambda config: robust_of("median", config))


def _aggregator(name: str, options: Options) -> Aggregator:
    rule, least = RULES[name], participants(name, options)
    plain = rule.by_coordinate is not None and options.before == "none" and options.noise == "ignored"
    if name == "median" and plain:
        # With nothing to tolerate it is the registered rule, by which the ledgers of earlier runs name it.
        return _MEDIAN if least == 1 else _MEDIAN._replace(least=least)
    return Aggregator(
        combine=functools.partial(_combined, name, options),
        mix=None if plain else functools.partial(_mixed, name, options),
        coordinatewise=True,
        from_last=rule.from_last,
        initialize=jnp.zeros if rule.from_last else None,
        post_processing=True,
        configure=functools.partial(robust_of, name),
        least=least,
        leaves_out=True,
        needs_law=options.noise == "known",
        of_all=name == "smallest_diameter",
    )


def robust_of(name: str, config) -> Aggregator:
    """The rule with the settings of a configuration."""
    return _aggregator(name, options_of(config))


def _combined(name, options: Options, state, rows, facts: Facts):
    """(f32[c], state) of some coordinates of the updates, or of what `_mixed` made of them."""
    by_coordinate, options = RULES[name].by_coordinate, _left_to_tolerate(options, facts)
    if by_coordinate:
        return by_coordinate(rows, facts, options), state
    return rows[0], state  # the one combination


def _left_to_tolerate(options: Options, facts: Facts) -> Options:
    """The options with f less the lies that are gone already."""
    if facts.gone is None:
        return options
    left: Any = jnp.maximum(options.tolerated - facts.gone, 0)
    return options._replace(tolerated=left)


def _mixed(name, options: Options, products, facts: Facts):
    """(weights f32[m, n] or None, Facts of the m rows) of a rule, from the inner products of all updates."""
    rule, n = RULES[name], len(facts.client)
    options = _left_to_tolerate(options, facts)
    noise = jnp.zeros(n) if facts.noise is None else facts.noise
    known = options.noise == "known"
    # The last aggregate, where it is a row, has no noise of its own.
    whole = jnp.zeros(len(products)).at[:n].set(noise)
    clean = distances.without_noise(products, whole) if known else products
    first, taken = _before(options, clean[:n, :n], facts)
    if first is not None and rule.from_last:
        first = jnp.zeros((len(first) + 1, n + 1)).at[:-1, :n].set(first).at[-1, n].set(1.0)
    if first is not None:
        products, clean = (_turned(first, matrix) for matrix in (products, clean))
        whole = jnp.matmul(jnp.square(first), whole, precision=jax.lax.Precision.HIGHEST)
    rows = len(products) - rule.from_last
    facts = facts._replace(noise=whole[:rows], taken=taken)
    if known:
        facts = facts._replace(preference=_preference(options, clean[:rows, :rows], facts))
    if rule.by_gram is None:
        return first, facts
    weights = rule.by_gram(clean if known and name in BETWEEN else products, facts, options)
    if first is not None:
        weights = jnp.matmul(weights, first, precision=jax.lax.Precision.HIGHEST)
    return weights[None], facts


def _turned(mixing, products):
    """Inner products of the mixed updates."""
    high = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(mixing, products, precision=high), mixing.T, precision=high)


def _before(options: Options, products, facts: Facts):
    """(the mixing that comes before a rule f32[m, n], which rows are taken bool[m]); None: there is none."""
    taken = facts.taken
    if options.before == "mixing":
        apart = distances.squared_distances(products)
        return distances.nearest_mixing(apart, options.tolerated, taken), taken
    if options.before == "bucketing":
        mixing = distances.buckets(facts.key, len(products), options.bucket, taken)
        return mixing, None if taken is None else mixing.sum(1) > 0
    return None, taken


def _preference(options: Options, products, facts: Facts):
    """f32[n], 1 / (d tau^2 + d sigma_k^2), times their mean: what each update is worth in a mean.

    d tau^2 is half of a typical squared distance without noise: of the pairs in order, that in the middle of
    the share that two honest updates make up, if all others are farther apart.
    """
    n, noise = len(products), facts.noise
    assert noise is not None
    apart = distances.squared_distances(products)
    if facts.taken is not None:
        apart = jnp.where(facts.taken[:, None] & facts.taken[None, :], apart, jnp.inf)
    pairs = apart[jnp.triu_indices(n, 1)]
    honest = n - options.tolerated - (0 if facts.gone is None else 2 * facts.gone)
    if facts.taken is not None:
        honest = jnp.minimum(honest, facts.taken.sum())
    honest = jnp.maximum(2, honest)
    share = honest * (honest - 1) / max(1, n * (n - 1))
    spread = jnp.maximum(jnp.quantile(pairs, share / 2, method="lower"), 0.0) / 2 if n > 1 else 0.0
    spread = jnp.where(jnp.isfinite(spread), spread, 0.0)  # fewer than two are left
    # With neither noise nor spread all are worth the same.
    total = spread + noise + 1e-20
    return total.mean() / total


for _name in RULES:
    # Without a configuration the radius is as wide as in ByzFL, and centered clipping takes one step.
    _steps = 1 if _name == "centered_clipping" else 3
    AGGREGATORS.register(_name, _aggregator(_name, Options(radius=100.0, iterations=_steps)))
