"""What a guarantee depends on: the facts of a federation, checked field by field."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms.joint import Summed
from cepam_jax.privacy.releases import halving

RELATIONS = ("add_remove", "replace")
SAMPLINGS = ("all", "fixed", "poisson")
AGGREGATIONS = ("weighted_sum", "function", "unstated")
LAWS: tuple[str | None, ...] = (None, "gaussian", "laplace")
NORMS: tuple[str | None, ...] = (None, "l2", "l1")
UNITS = ("client", "example")


class Phase(NamedTuple):
    """Rounds with the same noise and the same bounds.

    Attributes:
      rounds: number of rounds.
      outsiders: f64[clients], standard deviation of the noise against those without the shared key, in units
        of the update.
      server: f64[clients], standard deviation of the private noise alone.
      clip: f64[clients], the bounds of these rounds; None: those of the federation.
      weights: f64[clients], the weights of these rounds, up to a common factor; None: those of the
        federation. They are public and follow from nothing that was released.
      least_ratios: where earlier results set the weights of these rounds: (deviations f64[clients], that of
        client k) -> f64[clients], the least w_j / w_k that any results may lead to; at most 1 for equal
        deviations. Then no weights are read.
    """

    rounds: int
    outsiders: np.ndarray
    server: np.ndarray
    clip: np.ndarray | None = None
    weights: np.ndarray | None = None
    least_ratios: Callable[[np.ndarray, float], np.ndarray] | None = None


class Federation(NamedTuple):
    """The facts that a guarantee depends on.

    Attributes:
      outsiders: law of the noise against those without the shared key, "gaussian", "laplace" or None.
      server: law of the private noise alone, "gaussian", "laplace" or None.
      norm: the norm that is bounded, "l2", "l1" or None.
      clip: f64[clients], the bound of that norm; at example level how far one example moves the update.
      phases: the noise over the rounds.
      weights: f64[clients], weights of the aggregation, up to a common factor; used under "weighted_sum".
      relation: "add_remove" or "replace".
      sampling: "all" clients every round, "fixed" (per_round drawn without replacement) or "poisson" (each
        with probability per_round / clients). Only participants add noise.
      per_round: participants (expected number under "poisson").
      independent_coordinates: whether everybody sends all coordinates. With random masks a client can
        count on its own noise alone.
      aggregation: how the result depends on the clients: "weighted_sum" of decoded updates with public
        weights; "function", any function of decoded updates and public facts; "unstated": nothing is known,
        and nothing is guaranteed.
      summable: whether a client's noise stays in the sum, whatever the mechanism does after it was added.
      hidden: whether nothing public but the model depends on who was drawn.
      fresh: whether the noise of a round is independent of what was sent in earlier rounds; False where
        clients remember what was lost.
      refused: reasons why no theorem covers this federation, whoever looks; empty if one does.
      not_covered: what else reaches the adversary or shapes the result, in words.
      unit: "client" or "example".
      budget: of a federation whose rounds' noise earlier results set: every round divides all noises of the
        one phase by a common factor f, and the sum of f^2 stays at or below this number, whatever is
        released. None: the noise of all rounds is that of their phases, chosen beforehand.
      most: of a budget: what f^2 of a round is at most, whatever is released; None: nothing is known.
      counted: where each round also publishes how many updates were within their clips: the server's noise on
        that count over how far a client that is replaced by zero moves it. The votes reach the server as
        they are. None: nothing is counted.
      central: whether the server adds the noise, to the sum alone: of the variance that the noises of all
        participants, `Phase.outsiders`, would have together. Clients then send their updates without noise,
        and know nothing of the server's.
      summed: facts of a secure sum, which is all that the server sees of a round; None: it sees each message.
      filled: under Poisson sampling, the number of clients whose noise the sum has in every round, each with
        the largest weighted noise of all, whoever takes part: the server adds what is missing. 0: it does
        not, and only participants add noise.
      overflow: under Poisson sampling, the probability that a round of these has more participants than
        places, and is not released.
    """

    outsiders: str | None
    server: str | None
    norm: str | None
    clip: np.ndarray
    phases: tuple[Phase, ...]
    weights: np.ndarray
    relation: str = "add_remove"
    sampling: str = "all"
    per_round: int = 0
    independent_coordinates: bool = True
    aggregation: str = "unstated"
    summable: bool = False
    hidden: bool = False
    fresh: bool = False
    refused: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    unit: str = "client"
    budget: float | None = None
    most: float | None = None
    counted: float | None = None
    central: bool = False
    summed: Summed | None = None
    filled: int = 0
    overflow: float = 0.0


def check(federation: Federation) -> None:
    """Checks every field, so that nothing is accounted for as something else.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    clients = len(np.atleast_1d(federation.clip))
    for name, choices in (
        ("relation", RELATIONS),
        ("sampling", SAMPLINGS),
        ("aggregation", AGGREGATIONS),
        ("unit", UNITS),
    ):
        require_choice(name, getattr(federation, name), choices)
    for name, allowed in (("outsiders", LAWS), ("server", LAWS), ("norm", NORMS)):
        require(getattr(federation, name) in allowed, name, getattr(federation, name), f"one of {allowed}")
    _check_numbers("clip", federation.clip, clients, positive=True)
    _check_numbers("weights", federation.weights, clients, positive=True)
    require(len(federation.phases) > 0, "phases", federation.phases, "at least one")
    for phase in federation.phases:
        whole = isinstance(phase.rounds, (int, np.integer)) and phase.rounds >= 1
        require(whole, "rounds of a phase", phase.rounds, "a whole number of at least 1")
        _check_numbers("outsiders of a phase", phase.outsiders, clients, positive=False)
        _check_numbers("server of a phase", phase.server, clients, positive=False)
        _check_numbers("clip of a phase", bounds(federation, phase), clients, positive=True)
        if phase.weights is not None:
            _check_numbers("weights of a phase", phase.weights, clients, positive=False)
    if federation.budget is not None:
        fits = np.isfinite(federation.budget) and federation.budget > 0
        require(bool(fits), "budget", federation.budget, "positive and finite")
        require(len(federation.phases) == 1, "phases", federation.phases, "one, where there is a budget")
    if federation.most is not None:
        fits = np.isfinite(federation.most) and federation.most > 0 and federation.budget is not None
        require(bool(fits), "most", federation.most, "positive and finite, of a budget")
    if federation.counted is not None:
        fits = np.isfinite(federation.counted) and federation.counted > 0
        require(bool(fits), "counted", federation.counted, "positive and finite")
        require(federation.budget is None, "budget", federation.budget, "None, where updates are counted")
    if federation.filled:
        require_choice("sampling where the server fills up noise", federation.sampling, ("poisson",))
    require(0 <= federation.overflow <= 1, "overflow", federation.overflow, "a probability")
    if federation.sampling != "all":
        inside = 0 < federation.per_round <= clients
        require(inside, "per_round", federation.per_round, f"above 0 and at most {clients}, the clients")
    if federation.summed is not None:
        _check_sum(federation.summed, clients if federation.sampling == "all" else federation.per_round)


def _check_sum(summed: Summed, participants: int) -> None:
    """Raises ConfigError unless some noise is left in every sum that is opened."""
    fewest = summed.survivors or participants
    require(0 < fewest <= participants, "survivors", fewest, f"0, or at most {participants} participants")
    fits = 0 <= summed.colluders < fewest
    require(fits, "colluders", summed.colluders, f"below {fewest}, the fewest messages that are opened")


def _check_numbers(name: str, values: ArrayLike, clients: int, positive: bool) -> None:
    """Raises ConfigError unless values are f64[clients], finite, and positive or at least not negative."""
    values = np.asarray(values, np.float64)
    require(values.shape == (clients,), f"shape of {name}", values.shape, f"({clients},), one per client")
    least = values.min()
    fits = np.isfinite(values).all() and (least > 0 if positive else least >= 0)
    require(bool(fits), name, values.tolist(), "finite and " + ("positive" if positive else "not negative"))


def bounds(federation: Federation, phase: Phase) -> np.ndarray:
    """f64[clients], the bound of each client in the rounds of a phase."""
    return np.asarray(federation.clip if phase.clip is None else phase.clip, np.float64)


def reach(federation: Federation) -> float:
    """How many times its clip a client moves what it sends: 1 or 2; with memories 2 under either relation."""
    return halving(federation.relation if federation.fresh else "replace")
