"""The median of decoded updates, coordinate by coordinate: the simplest rule that gathers."""

from cepam_jax.federated.aggregation.base import Aggregator
from cepam_jax.federated.aggregation.coordinates import coordinate_median


def median() -> Aggregator:
    """Each coordinate's median over the participants, the mean of the middle two of an even number.

    Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates, arXiv 1803.01498, section 4. It follows from decoded updates alone, so each client keeps the
    protection of its own noise; the noises of the others do not add to it, since a median is no sum.
    """
    return Aggregator(combine=_combined, coordinatewise=True, post_processing=True, leaves_out=True)


def _combined(state, updates, facts):
    return coordinate_median(updates, taken=facts.taken), state
