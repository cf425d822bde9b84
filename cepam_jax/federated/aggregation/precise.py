r"""Means weighed by precision: clients with more noise count less.

Model: the update of client k, as decoded, is mu + e_k + n_k per coordinate, with n_k its privacy noise of
standard deviation sigma_k, which is public, and e_k how clients differ, of standard deviation tau. Of all
unbiased means of these, weights w_k proportional to 1 / (tau^2 + sigma_k^2) have the least variance
(Gauss-Markov; Aitken: On Least Squares and Linear Combination of Observations, 1935; with tau it is the mean
of the random-effects model of DerSimonian and Laird: Meta-Analysis in Clinical Trials, 1986). A large tau
makes the mean plain, for every client then tells something that no other does; tau = 0 goes by the noise
alone. Numbers of examples do not enter: each client is one draw from the population of clients, noise does
not depend on how many examples it hides, and sizes of data sets need not be revealed.

**Privacy.** Let S be the participants of a round. The released sum is
x = sum_{j in S} w_j x^_j / sum_{j in S} w_j, and weights and S depend on no update of that round. With
(add/remove) or without its update client k moves x by at most w_k C_k / sum_S w, and the noise of x has
variance sum_{j in S} w_j^2 sigma_j^2 / (sum_S w)^2. The normalising sum cancels:

  z_k^2 = sum_{j in S} w_j^2 sigma_j^2 / (w_k C_k)^2 = sum_{j in S} r_kj^2 sigma_j^2 / C_k^2,
  r_kj = w_j / w_k = (tau^2 + sigma_k^2) / (tau^2 + sigma_j^2),

so a client has an epsilon of its own, from z_k. As j = k is one of the summands, z_k >= sigma_k / C_k: nobody
is worse protected than by its own noise. Where clients are drawn, S is unknown; the accountant takes, for
each k, the others with the least r_kj^2 sigma_j^2, which bounds z_k given any draw.

With a known tau, r_kj follows from the knobs, and the accountant counts the weights that the rounds applied.
An *estimated* tau follows from what earlier rounds released, so the rounds' noise multipliers are chosen by
earlier results, and what a ledger shows afterwards is no bound. Instead each summand is bounded for every
tau >= 0: r_kj is monotone in tau^2 between sigma_k^2 / sigma_j^2 (tau = 0) and 1 (tau to infinity), so

  r_kj >= min(1, sigma_k^2 / sigma_j^2).

Every round is then a Gaussian mechanism of at most the mu that this gives, whatever was released before,
which is what adaptive composition asks for (Dong, Roth, Su: Gaussian Differential Privacy, arXiv 1905.02383,
theorem 3.2 and corollary 3.3). With noises of two sizes the bound is attained, by tau = 0 for quiet clients
and by a large tau for loud ones. A client without noise has no guarantee, as before.

**Estimate.** In a sum of one round mu and tau cannot be told apart, and what differs between clients in every
round alike leaves no trace in differences of rounds. What is public limits tau: a clip allows a mean square
of L = mean C_k^2 / d per coordinate, of which mu^2 is a part, so tau^2 <= L - mu^2. Released aggregates A
give moments: E |A|^2 / d = mu^2 + q tau^2 + v, q = sum w^2 / (sum w)^2, v = sum w^2 sigma^2 / (sum w)^2, both
public. Together L - (|A|^2 / d - v) is in the mean at least (1 - q) tau^2, with equality where every update
is as long as its clip. The estimate is the ratio of the rounds' sums of both sides, each round counting the
less the more its noise blurs it and .9 times as much in each later one, with one pseudo-round at the start
that says tau^2 = L. It is an upper limit of tau, so it errs towards plain means: noise rather than the loss
of clients who are unlike others.
"""

import functools

import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import require
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator, Public, Published

_FORGETTING = 0.9  # of earlier rounds' part in an estimate, for each round

_EXPOSES = ("which client asked for how much noise, which its weight follows from (taken to be public)",)

settings.declare(
    "precision",
    {
        "tau": settings.not_negative(
            0.0,
            "Standard deviation per coordinate between clients' updates, in units of the update; "
            "0: estimated from released aggregates.",
        )
    },
    "Of the aggregator `precision`, which weighs a client by 1 / (tau^2 + sigma^2), sigma its noise.",
)


@settings.rule
def _rules(fields):
    """A spread that nobody uses is an error, and so is an estimate that nothing limits."""
    tau, used = fields["precision.tau"], fields["aggregator"] == "precision"
    yield (tau == 0 or used, "precision.tau", "0 unless config.aggregator is 'precision'")
    yield (
        not used or tau > 0 or fields["mechanism.clip"] != "none",
        "precision.tau",
        "positive where config.aggregator is 'precision' and config.mechanism.clip is 'none': nothing public "
        "limits the spread of updates then, and it cannot be estimated",
    )


def precision(tau: float = 0.0) -> Aggregator:
    """The mean of updates weighed by 1 / (tau^2 + sigma_k^2); see the module for what follows for privacy.

    Args:
      tau: standard deviation per coordinate between clients' updates, in units of the update; 0: estimated
        from what is released.

    Raises:
      ConfigError: tau is negative or no number that 32 bits hold.
    """
    field = settings.FIELDS["precision.tau"]
    require(field.test(tau), "tau of precision", tau, field.words())
    if tau:
        return Aggregator(
            weights=functools.partial(known_spread, float(tau)), configure=_of_config, exposes=_EXPOSES
        )
    return Aggregator(
        weights=_estimated,
        initialize=_pseudo_round,
        observe=_observe,
        least_ratios=least_ratios,
        needs_clip=True,
        configure=_of_config,
        exposes=_EXPOSES,
    )


def _of_config(config) -> Aggregator:
    return precision(float(config.precision.tau))


def relative_weights(tau, deviation):
    """f32[clients]: 1 / (tau^2 + sigma^2), as parts of the largest, which is 1.

    The ratio of square roots is squared, so that no square of a small or large number is lost. Equal noises
    give ones to the bit, and an infinite one 0.

    Args:
      tau: f32[], not negative.
      deviation: f32[clients], sigma.
    """
    total = jnp.hypot(tau, deviation)
    # Where neither spread nor noise is left, as much as can be is known of those clients.
    ratio = jnp.where(total > 0, jnp.min(total) / jnp.where(total > 0, total, 1.0), 1.0)
    return jnp.square(ratio)


def known_spread(tau: float, state, public: Public):
    """The weights of a round for a known spread; a ledger keeps this name with tau."""
    del state
    return relative_weights(jnp.float32(tau), public.deviation)


def _pseudo_round(d: int):
    del d
    return jnp.ones(2, jnp.float32)


def _estimated(state, public: Public):
    return relative_weights(spread(state, public.limit), public.deviation)


def spread(state, limit):
    """f32[], the estimate of tau.

    Args:
      state: f32[2], sums over rounds of what is left of the limit, and of 1 - q, as of `_observe`.
      limit: f32[], the largest mean square of a coordinate that clips allow.
    """
    return jnp.sqrt(limit * jnp.clip(state[0] / state[1], 0.0, 1.0))


def _observe(state, published: Published):
    """The sums with one round more, in units of the limit; the pseudo-round's part is not forgotten."""
    share = published.weights / jnp.sum(published.weights)
    concentration = jnp.sum(jnp.square(share))
    noise = jnp.sum(jnp.square(share * published.deviation)) / published.limit
    moment = jnp.mean(jnp.square(published.aggregate)) / published.limit
    # |A|^2 / d has a deviation of v sqrt(2 / d) from the noise alone.
    trust = 1 / (1 + 2 * jnp.square(noise) / published.aggregate.size)
    found = trust * jnp.stack([1 - (moment - noise), 1 - concentration])
    return 1 + _FORGETTING * (state - 1) + found


def least_ratios(deviations: np.ndarray, own: float) -> np.ndarray:
    """The least w_j / w_k over all tau >= 0: min(1, sigma_k^2 / sigma_j^2).

    Args:
      deviations: f64[clients], sigma_j.
      own: sigma_k.

    Returns:
      f64[clients].
    """
    deviations = np.asarray(deviations, np.float64)
    quieter = deviations <= own
    return np.where(quieter, 1.0, own / np.where(quieter, 1.0, deviations)) ** 2


AGGREGATORS.register("precision", precision())
