"""How far federated averaging is from the optimum, when every update carries CEPAM's noise.

Li, Huang, Yang, Wang, Zhang: On the Convergence of FedAvg on Non-IID Data (arXiv 1907.02189) bound the gap
without noise; CEPAM (arXiv 2601.10701, theorem 11) adds noise of a fixed second moment, d sigma_k^2 for
client k. docs/convergence.md has the proof of what is computed here. It matters what is noised:

  gradient_sum  the difference of weights over the round's first step; the server multiplies by that step, and
                so the noise: it fades with the step, and the gap falls as 1 / T
  difference    the difference of weights itself; the noise stays while the step falls, and the gap grows

A `Problem` states all assumptions; each bound refuses what is outside of its own, by name. Steps are public,
f64[rounds, local steps]. A round's model may be projected onto a ball that holds the minimizer.
"""

import dataclasses
import math

import numpy as np

from cepam_jax.errors import require, require_choice

RELEASES = ("gradient_sum", "difference")
_EQUAL = 1e-9  # relative difference of steps or weights that count as equal


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that the bounds depend on.

    Attributes:
      smoothness: L, of every client's loss F_k: its gradient is L-Lipschitz.
      weights: p_k, f64[clients], positive with sum 1; F = sum p_k F_k.
      dimension: d.
      sigmas: f64[clients], deviation of each client's noise per coordinate, in units of what is released.
      gradient_noise: s_k, f64[clients]; E|g - grad F_k|^2 <= s_k^2 for client k's stochastic gradients g.
      gradient_bound: G: no stochastic gradient of the run is longer, at any point that a client gets to.
      strong_convexity: mu, of every F_k; 0 if they are not strongly convex.
      heterogeneity: Gamma = F* - sum p_k F_k*.
      distance: |w_0 - w*|^2.
      local_steps: E.
      participants: clients drawn in each round; 0: all of them take part.
      replacement: whether they are drawn one by one, with probabilities p_k and a message for each draw; else
        a subset of a fixed size.
      release: one of `RELEASES`.
      clip: L2 norm to which what is released is clipped.
      momentum: of local or server steps.
      unbiased: whether a decoded message has the released vector as its mean, whatever that is.
    """

    smoothness: float
    weights: tuple[float, ...]
    dimension: int
    sigmas: tuple[float, ...]
    gradient_noise: tuple[float, ...]
    gradient_bound: float = math.inf
    strong_convexity: float = 0.0
    heterogeneity: float = 0.0
    distance: float = 0.0
    local_steps: int = 1
    participants: int = 0
    replacement: bool = False
    release: str = "gradient_sum"
    clip: float = math.inf
    momentum: float = 0.0
    unbiased: bool = True

    @property
    def clients(self) -> int:
        """N."""
        return len(self.weights)

    @property
    def condition(self) -> float:
        """kappa = L / mu."""
        return self.smoothness / self.strong_convexity

    @property
    def offset(self) -> float:
        """gamma = max(8 kappa, E) of the steps 2 / (mu (gamma + t))."""
        return max(8 * self.condition, float(self.local_steps))


def released_noise(problem: Problem) -> float:
    """S = E|aggregated noise|^2, in squared units of what is released.

    All clients: d sum p_k^2 sigma_k^2. K draws with replacement: d sum p_k sigma_k^2 / K. A subset of K:
    d mean(sigma_k^2) / K.
    """
    weights, squares = np.asarray(problem.weights), np.square(problem.sigmas)
    if not problem.participants:
        return float(problem.dimension * np.sum(weights**2 * squares))
    return float(problem.dimension * np.sum(weights * squares) / problem.participants)


def sampling_factor(problem: Problem) -> float:
    """c: E|mean of the drawn - mean of all|^2 <= c max|x_k|^2. 1/K or (N - K) / ((N - 1) K); 0 for all."""
    drawn, clients = problem.participants, problem.clients
    if not drawn:
        return 0.0
    if problem.replacement:
        return 1 / drawn
    return (clients - drawn) / ((clients - 1) * drawn) if clients > 1 else 0.0


def gradient_variance(problem: Problem) -> float:
    """V = sum p_k^2 s_k^2, of the mean of all clients' stochastic gradients."""
    return float(np.sum(np.square(problem.weights) * np.square(problem.gradient_noise)))


def decreasing_steps(problem: Problem, rounds: int) -> np.ndarray:
    """2 / (mu (gamma + t)) of 1907.02189 for the iterations t = 0, 1, ...: f64[rounds, E]."""
    _require_convex(problem)
    t = np.arange(rounds * problem.local_steps, dtype=float)
    return (2 / (problem.strong_convexity * (problem.offset + t))).reshape(rounds, problem.local_steps)


def longest(problem: Problem, steps: np.ndarray) -> np.ndarray:
    """Largest norm that a client can have to release in each round, f64[rounds]: what a clip must not cut."""
    moved = problem.gradient_bound * steps.sum(1)
    return moved / steps[:, 0] if problem.release == "gradient_sum" else moved


def check(problem: Problem, steps: np.ndarray, largest_step: float) -> np.ndarray:
    """The steps, if all assumptions that every bound needs are met.

    Args:
      problem: of the run.
      steps: f64[rounds, local steps].
      largest_step: that the bound allows.

    Raises:
      ConfigError: names the assumption that is not met.
    """
    steps = np.asarray(steps, float)
    clients, weights = problem.clients, np.asarray(problem.weights)
    require_choice("release", problem.release, RELEASES)
    require(problem.smoothness > 0, "smoothness", problem.smoothness, "positive: every F_k is L-smooth")
    require(
        clients > 0 and bool((weights > 0).all()) and abs(weights.sum() - 1) <= _EQUAL * clients,
        "weights",
        problem.weights,
        "positive numbers with sum 1",
    )
    for name in ("sigmas", "gradient_noise"):
        values = getattr(problem, name)
        fits = len(values) == clients and bool((np.asarray(values) >= 0).all())
        require(fits, name, values, f"{clients} numbers of at least 0, one for each client")
    require(0 <= problem.participants <= clients, "participants", problem.participants, f"at most {clients}")
    subset = problem.participants and not problem.replacement
    require(
        not subset or bool(np.allclose(weights, 1 / clients, rtol=_EQUAL)),
        "weights",
        problem.weights,
        "equal where a subset takes part: else its mean is biased",
    )
    require(
        not problem.momentum, "momentum", problem.momentum, "0: the proof follows single steps of plain SGD"
    )
    require(problem.unbiased, "unbiased", False, "True: the proof needs noise of mean zero")
    require(
        steps.ndim == 2 and steps.shape[1] == problem.local_steps,
        "shape of steps",
        steps.shape,
        f"(rounds, local_steps = {problem.local_steps})",
    )
    allowed = 0 < steps.min(initial=math.inf) and steps.max(initial=0) <= largest_step * (1 + _EQUAL)
    require(allowed, "steps", steps, f"positive and at most {largest_step:g}")
    bound = np.max(longest(problem, steps), initial=0.0) if math.isfinite(problem.clip) else 0.0
    require(
        problem.clip >= bound * (1 - _EQUAL),
        "clip",
        problem.clip,
        f"at least {bound:g}, the largest norm that can be released: a clip that acts makes updates biased",
    )
    return steps


def distances(problem: Problem, steps: np.ndarray) -> np.ndarray:
    """Bound of E|w - w*|^2 before the first round and after each: f64[rounds + 1], for any steps.

    The recursion of the proof, evaluated with no further loss. The first local step of a round is one exact
    step on F, from a common point; later ones pay for heterogeneity and for the drift of the clients.

    Raises:
      ConfigError: as for `check`; steps above 1 / (4 L), or 2 / (L + mu) with one local step.
    """
    _require_convex(problem)
    mu, smooth = problem.strong_convexity, problem.smoothness
    one = problem.local_steps == 1
    steps = check(problem, steps, 2 / (smooth + mu) if one else 1 / (4 * smooth))
    needs_bound = not one or problem.participants
    require(
        not needs_bound or math.isfinite(problem.gradient_bound),
        "gradient_bound",
        problem.gradient_bound,
        "finite, with several local steps or with a part of the clients",
    )
    variance, factor = gradient_variance(problem), sampling_factor(problem)
    square = problem.gradient_bound**2 if needs_bound else 0.0
    found = [problem.distance]
    for row, noise in zip(steps, _noise(problem, steps), strict=True):
        value, before = found[-1], 0.0
        for number, step in enumerate(row):
            if number == 0:
                value *= (1 - mu * step) ** 2
            else:
                value *= 1 - mu * step
                value += 6 * smooth * problem.heterogeneity * step**2 + 2 * before**2 * square
            value += step**2 * variance
            before += step
        found.append(value + factor * before**2 * square + noise)
    return np.array(found)


def gaps(problem: Problem, steps: np.ndarray) -> np.ndarray:
    """Bound of E F(w) - F*, as `distances`: L / 2 times it."""
    return problem.smoothness / 2 * distances(problem, steps)


def closed_form(problem: Problem, steps: np.ndarray) -> np.ndarray:
    """Bound of E F(w) - F* in the form of 1907.02189, before the first round and after each: f64[rounds + 1].

    kappa / (gamma + t) (2 B / mu + mu gamma / 2 |w_0 - w*|^2) after t iterations, with

      B = sum p_k^2 s_k^2 + 6 L Gamma + 8 (E - 1)^2 G^2 + C + (1 + (E - 1) / gamma)^2 S

    where C = 4 E^2 G^2 `sampling_factor` and S is `released_noise`. With S = 0 it is theorems 1 to 3 of
    1907.02189, which count iterations from 1.

    Raises:
      ConfigError: as for `check`; noise on differences; or steps other than `decreasing_steps`.
    """
    _require_convex(problem)
    steps = check(problem, steps, 1 / (4 * problem.smoothness))
    require(
        problem.release == "gradient_sum" or released_noise(problem) == 0,
        "release",
        problem.release,
        "'gradient_sum': noise on differences of weights does not fall with the step, and the gap grows",
    )
    constant = steps.size > 1 and bool(np.all(steps == steps.flat[0]))
    require(
        bool(np.allclose(steps, decreasing_steps(problem, len(steps)), rtol=_EQUAL)),
        "steps",
        "constant" if constant else steps,
        "decreasing as 2 / (mu (gamma + t)), as `decreasing_steps` gives them",
    )
    mu, gamma, local = problem.strong_convexity, problem.offset, problem.local_steps
    square = problem.gradient_bound**2 if local > 1 or problem.participants else 0.0
    total = gradient_variance(problem) + 6 * problem.smoothness * problem.heterogeneity
    total += (8 * (local - 1) ** 2 + 4 * local**2 * sampling_factor(problem)) * square
    total += (1 + (local - 1) / gamma) ** 2 * released_noise(problem)
    t = local * np.arange(len(steps) + 1)
    return problem.condition / (gamma + t) * (2 * total / mu + mu * gamma / 2 * problem.distance)


def floor(problem: Problem, step: float) -> float:
    """Limit of `gaps` for a constant step: where the bound stops falling."""
    steps = np.full((1, problem.local_steps), step)
    apart = [distances(dataclasses.replace(problem, distance=start), steps)[1] for start in (0.0, 1.0)]
    return problem.smoothness / 2 * apart[0] / (1 - (apart[1] - apart[0]))


def squared_gradients(problem: Problem, steps: np.ndarray, excess: float) -> np.ndarray:
    """Bound of the mean of E|grad F(w_t)|^2 over the rounds so far, weighted by their steps: f64[rounds].

    Convexity is not needed, one local step is.

    Args:
      problem: with local_steps = 1.
      steps: f64[rounds, 1].
      excess: F(w_0) less a lower bound of F.

    Raises:
      ConfigError: as for `check`; several local steps; steps above 1 / L.
    """
    require(problem.local_steps == 1, "local_steps", problem.local_steps, "1 where losses are not convex")
    steps = check(problem, steps, 1 / problem.smoothness)
    factor = sampling_factor(problem)
    extra = factor * problem.gradient_bound**2 if factor else 0.0
    each = steps[:, 0] ** 2 * (gradient_variance(problem) + extra) + _noise(problem, steps)
    return (2 * excess + problem.smoothness * np.cumsum(each)) / np.cumsum(steps[:, 0])


def _noise(problem: Problem, steps: np.ndarray) -> np.ndarray:
    """E|noise|^2 that each round adds to the model, f64[rounds]."""
    released = released_noise(problem)
    if problem.release == "gradient_sum":
        return steps[:, 0] ** 2 * released
    return np.full(len(steps), released)


def _require_convex(problem: Problem) -> None:
    """Raises ConfigError unless losses are strongly convex, with numbers that fit together."""
    mu, smooth = problem.strong_convexity, problem.smoothness
    require(0 < mu <= smooth, "strong_convexity", mu, f"positive and at most smoothness = {smooth:g}")
    require(
        problem.heterogeneity >= 0, "heterogeneity", problem.heterogeneity, "at least 0: F* >= sum p F_k*"
    )
    require(problem.distance >= 0, "distance", problem.distance, "a squared distance of at least 0")
