"""The contract of an aggregator: how the server combines decoded updates, and what that means for privacy.

There are two kinds. A rule that streams gives a weight to each client, or to each tensor of each client; the
round adds up weight * update chunk by chunk and divides by the sum of the weights, so that no more than a
chunk of updates exists at a time. A rule that gathers, such as a median, sees all decoded updates of a round
at once:

  streaming   weigh(examples, errors) -> weight          memory: a chunk of updates
  gathering   combine(state, updates, facts) -> (aggregate, state)
                                                          memory: participants x d floats; with several
                                                          devices and a coordinatewise rule, that divided by
                                                          the devices

Laws, each tested for every registered rule: the aggregate of equal updates is that update; the order of the
participants does not matter, up to rounding; one device and several give the same, up to rounding.

What a rule means for privacy is part of it. A rule that states nothing has no guarantee: neither an
adversary's view of the model nor the bound on one client's influence follows from the other parts of a run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax import settings
from cepam_jax.registry import Registry


class Facts(NamedTuple):
    """What a gathering rule may know of the participants beside their decoded updates; all of it public.

    Attributes:
      client: int32[participants], their numbers.
      examples: f32[participants], how many examples each has.
    """

    client: jax.Array
    examples: jax.Array


class Aggregator(NamedTuple):
    """A rule; it has either `weigh` or `combine`.

    Attributes:
      weigh: (examples of the client f32[], mean squared error of each of its tensors f32[tensors]) ->
        f32[] or f32[tensors].
      combine: (state, decoded updates f32[participants, c], Facts) -> (f32[c], state). c is d, or less for a
        coordinatewise rule, which is given some of the coordinates at a time.
      per_tensor: whether weights differ from tensor to tensor; then each client sends one float per tensor
        more.
      coordinatewise: whether a coordinate of the result depends on that coordinate of the updates alone; such
        a rule has no state.
      initialize: d -> state; None: the rule has none.
      public_weights: for a weighted sum of decoded updates whose weights everybody may know: numbers of
        examples int[clients] -> f64[clients], the weights up to a common factor. None for other rules.
      post_processing: whether the result follows from decoded updates and public facts alone, for a rule that
        is no such sum. Weights that follow from errors do not: an error is a function of the update itself.
      refused: why nothing can be guaranteed, for a rule that states neither.
      exposes: what shapes the result without noise, or is revealed by it, in words.
    """

    weigh: Callable | None = None
    combine: Callable[[Any, jax.Array, Facts], tuple[jax.Array, Any]] | None = None
    per_tensor: bool = False
    coordinatewise: bool = False
    initialize: Callable[[int], Any] | None = None
    public_weights: Callable[[np.ndarray], np.ndarray] | None = None
    post_processing: bool = False
    refused: str = ""
    exposes: tuple[str, ...] = ()


# Name -> Aggregator: the choices of config.aggregator.
AGGREGATORS: Registry = Registry("aggregator")

settings.declare(
    "", {"aggregator": settings.choice("mean", "How the server combines decoded updates.", AGGREGATORS)}
)
