"""The contract of an aggregator: how the server combines decoded updates, and what that means for privacy.

There are two kinds. A rule that streams gives a weight to each client, or to each tensor of each client; the
round adds up weight * update chunk by chunk and divides by the sum of the weights, so that no more than a
chunk of updates exists at a time. It weighs a client when its update arrives, or all clients before the
round from what is public. A rule that gathers, such as a median, sees all decoded updates of a round at once:

  streaming   weigh(examples, errors) -> weight          memory: a chunk of updates
              weights(state, Public) -> weights          the same
  gathering   combine(state, updates, facts) -> (aggregate, state)
                                                          memory: participants x d floats; with several
                                                          devices and a coordinatewise rule, that divided by
                                                          the devices, and up to three copies of it. A rule
                                                          by distances is one, with `mix`

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
      noise: f32[participants], expected squared norm d sigma_k^2 of each one's noise against outsiders; 0 for
        mechanisms without noise.
      key: randomness of the round that everybody may know.
      taken: bool[participants], whose updates the server takes; the others are zeros, and to be left out.
        None: all are taken.
      gone: int32[], how many lies at least are among those that are not taken; None: nothing is known of it.
      preference: f32[rows], what `mix` found each row of the updates to be worth; None: it said nothing.
    """

    client: jax.Array
    examples: jax.Array
    noise: jax.Array | None = None
    key: jax.Array | None = None
    taken: jax.Array | None = None
    gone: jax.Array | None = None
    preference: jax.Array | None = None


class Public(NamedTuple):
    """What is public of all clients before a round: all that `Aggregator.weights` may read but its state.

    Attributes:
      examples: f32[clients], how many examples each has.
      deviation: f32[clients], standard deviation per coordinate of each client's noise against outsiders in
        this round, in units of the update; 0 for mechanisms without noise.
      limit: f32[], the largest mean square of a coordinate of an update that the clips allow, averaged over
        the clients: mean C^2 / d; infinity where the mechanism does not clip.
    """

    examples: jax.Array
    deviation: jax.Array
    limit: jax.Array


class Published(NamedTuple):
    """What a round has made public: all that `Aggregator.observe` may read but its state.

    Attributes:
      aggregate: f32[d], the released aggregate.
      weights: f32[participants], what the participants were weighed by.
      deviation: f32[participants], of their noise, as of `Public`.
      limit: f32[], as of `Public`.
    """

    aggregate: jax.Array
    weights: jax.Array
    deviation: jax.Array
    limit: jax.Array


class Aggregator(NamedTuple):
    """A rule; it has one of `weigh`, `weights` and `combine`.

    Attributes:
      weigh: (examples of the client f32[], mean squared error of each of its tensors f32[tensors]) ->
        f32[] or f32[tensors].
      combine: (state, decoded updates f32[participants, c], Facts) -> (f32[c], state). c is d, or less for a
        coordinatewise rule, which is given some of the coordinates at a time.
      mix: for a coordinatewise rule that needs distances: (inner products f32[n, n] of the updates, Facts) ->
        (f32[m, n] or None, Facts). `combine` is then given the m combinations of the updates with these
        weights instead of the updates (None: the updates), and these facts.
      from_last: for a rule with `mix`: whether the last aggregate counts as one more update, the last row;
        zeros before the first round. It is the rule's state.
      per_tensor: whether weights differ from tensor to tensor; then each client sends one float per tensor
        more.
      coordinatewise: whether a coordinate of the result depends on that coordinate of the updates alone, and
        on what `mix` made of all of them; such a rule has no state but the last aggregate.
      initialize: d -> state; None: the rule has none.
      public_weights: for a weighted sum of decoded updates whose weights everybody may know: numbers of
        examples int[clients] -> f64[clients], the weights up to a common factor. None for other rules.
      weights: (state, Public) -> f32[clients], the weights of a round up to a common factor, not negative and
        not all zero. They are public. The state is None for a rule that has none; then the weights follow
        from the facts of the round alone.
      observe: (state, Published) -> state, after each round; for rules with `weights` and a state.
      least_ratios: for a rule with `weights` and a state: (deviations f64[clients], deviation of one client
        f64) -> f64[clients], the least w_j / w_k that any state may lead to, for each j and that client k.
      needs_clip: whether it needs a limit to the updates' norms, a clip of the mechanism.
      needs_law: whether it uses the law of each update's whole error.
      least: the smallest number of participants with which the rule means anything.
      of_all: for a rule with `combine`: whether it tolerates the same number of lies however few updates are
        left, so that honest ones may not be refused along with lies.
      leaves_out: for a rule with `combine`: whether it leaves out what `Facts.taken` says.
      configure: config -> the rule with the settings of a configuration; None: it has no settings.
      post_processing: whether the result follows from decoded updates and public facts alone, for a rule that
        is no such sum. Weights that follow from errors do not: an error is a function of the update itself.
      refused: why nothing can be guaranteed, for a rule that states neither.
      exposes: what shapes the result without noise, or is revealed by it, in words.
    """

    weigh: Callable | None = None
    combine: Callable[[Any, jax.Array, Facts], tuple[jax.Array, Any]] | None = None
    mix: Callable[[jax.Array, Facts], tuple[jax.Array | None, Facts]] | None = None
    from_last: bool = False
    per_tensor: bool = False
    coordinatewise: bool = False
    initialize: Callable[[int], Any] | None = None
    public_weights: Callable[[np.ndarray], np.ndarray] | None = None
    weights: Callable[[Any, Public], jax.Array] | None = None
    observe: Callable[[Any, Published], Any] | None = None
    least_ratios: Callable[[np.ndarray, float], np.ndarray] | None = None
    needs_clip: bool = False
    least: int = 1
    leaves_out: bool = False
    of_all: bool = False
    needs_law: bool = False
    configure: Callable[[Any], "Aggregator"] | None = None
    post_processing: bool = False
    refused: str = ""
    exposes: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """Whether a weighted sum is all that it needs of the updates."""
        return self.combine is None


# Name -> Aggregator: the choices of config.aggregator.
AGGREGATORS: Registry = Registry("aggregator")

settings.declare(
    "", {"aggregator": settings.choice("mean", "How the server combines decoded updates.", AGGREGATORS)}
)
