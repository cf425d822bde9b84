"""How much noise a client counts on in a released weighted sum, over how far it moves that sum."""

import numpy as np

from cepam_jax.privacy.federation import Federation, Phase, bounds

# Where a weight has vanished in 32 bits it is taken for the least that they hold: the client then moves the
# sum less than is counted.
_LEAST_WEIGHT = float(np.finfo(np.float32).tiny)


def multipliers(federation: Federation, phase: Phase) -> np.ndarray:
    """z_k = sqrt(sum_j w_j^2 sigma_j^2) / (w_k C_k) in a round of a phase with client k, at least.

    The sum goes over the participants; the others of a drawn round may be those with the least noise.

    Args:
      federation: whose updates are summed with public weights.
      phase: its noise, its bounds and its weights; or the least ratios of weights, where earlier results set
        the weights.

    Returns:
      f64[clients].
    """
    deviation = np.asarray(phase.outsiders, np.float64)
    if phase.least_ratios is not None:
        return np.sqrt(_least_over_weights(federation, phase, deviation)) / bounds(federation, phase)
    weights = np.asarray(federation.weights if phase.weights is None else phase.weights, np.float64)
    total = _noise_of_participants(np.square(weights * deviation), federation)
    return np.sqrt(total) / (np.maximum(weights, _LEAST_WEIGHT) * bounds(federation, phase))


def _least_over_weights(federation: Federation, phase: Phase, deviation: np.ndarray) -> np.ndarray:
    """For each client the least of sum_j (w_j / w_k)^2 sigma_j^2 over all weights that may be applied.

    Args:
      federation: who is drawn.
      phase: with least ratios.
      deviation: f64[clients], sigma.

    Returns:
      f64[clients].
    """
    assert phase.least_ratios is not None
    own_noises, first, kind = np.unique(deviation, return_index=True, return_inverse=True)
    found = np.zeros(len(own_noises))
    for number, own in enumerate(own_noises):
        spread = np.square(phase.least_ratios(deviation, float(own)) * deviation)
        client = first[number]
        others = np.delete(spread, client)
        if federation.sampling != "all":
            drawn = federation.per_round - 1
            others = np.partition(others, drawn - 1)[:drawn] if drawn else others[:0]
        found[number] = deviation[client] ** 2 + others.sum()  # w_k / w_k is 1
    return found[kind]


def _noise_of_participants(spread: np.ndarray, federation: Federation) -> np.ndarray:
    """For each client the least variance of the weighted noise in a round in which it takes part.

    Args:
      spread: f64[clients], w_j^2 sigma_j^2.
      federation: under fixed-size sampling the others that are drawn may be those with the least noise.

    Returns:
      f64[clients].
    """
    if federation.sampling == "all":
        return np.full(spread.shape, spread.sum())
    if federation.sampling == "poisson":  # others may not come, and the server fills up
        return np.full(spread.shape, spread.max() * federation.filled)
    others, ranks = federation.per_round - 1, np.argsort(np.argsort(spread, kind="stable"), kind="stable")
    least = np.sort(spread)
    # Without itself: a client among the quietest makes room for the next one.
    with_itself, next_one = least[:others].sum(), least[min(others, len(least) - 1)]
    return spread + np.where(ranks < others, with_itself - spread + next_one, with_itself)
