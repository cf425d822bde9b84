"""Losses on the embedded digits whose every constant is computed: for bounds that need them all.

Even against odd digits: each image is centred pixels and a constant 1, divided by the largest norm. Clients
have equally many images and weight 1/N. With x of norm at most 1, y = 1 or -1 and a regularizer
lambda / 2 |w|^2:

  ridge      (x.w - y)^2 / 2      the Hessian is constant
  logistic   log(1 + exp(-y x.w)) has curvature at most 1/4 along x
  bumpy      logistic, with lambda sum w_i^2 / (1 + w_i^2) for a regularizer: not convex, curvature 2 lambda

Constants are upper bounds by eigenvalues and norms, never estimates from runs. The model is projected onto a
ball around 0 of twice |w*| after each round, so that they hold wherever noise takes it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.data import sources
from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import Keys, Knobs, Mechanism
from cepam_jax.theory.convergence import Problem, longest

LOSSES = ("ridge", "logistic", "bumpy")
SPLITS = ("iid", "by label")
_CURVATURE = {"ridge": 1.0, "logistic": 0.25, "bumpy": 0.25}  # largest second derivative by x.w


class Clients(NamedTuple):
    """Who has what: x f64[N, n, d], y f64[N, n], and the loss.

    Attributes:
      loss: one of `LOSSES`.
      strength: lambda.
    """

    x: np.ndarray
    y: np.ndarray
    loss: str
    strength: float


def digits(loss: str, split: str, strength: float, clients: int = 10) -> Clients:
    """The training images, evenly over clients: shuffled, or in the order of their labels."""
    require_choice("loss", loss, LOSSES)
    require_choice("split", split, SPLITS)
    data = sources.load("digits")
    images, labels = data.train_images.reshape(len(data.train_labels), -1) / 255, data.train_labels
    x = np.c_[images - images.mean(0), np.ones(len(images))]
    x /= np.linalg.norm(x, axis=1).max()
    random = np.random.default_rng(0).permutation(len(x))
    order = random if split == "iid" else random[np.argsort(labels[random], kind="stable")]
    size = len(x) // clients
    chosen = order[: size * clients].reshape(clients, size)
    return Clients(x[chosen], np.where(labels[chosen] % 2, -1.0, 1.0), loss, strength)


def value(clients: Clients, w, xp=np):
    """F_k(w), [N]; xp is `numpy` or `jax.numpy`."""
    score = clients.x @ w
    if clients.loss == "ridge":
        fit = xp.square(score - clients.y) / 2
    else:
        fit = xp.logaddexp(0.0, -clients.y * score)
    return fit.mean(-1) + _penalty(clients, w, xp)


def _penalty(clients, w, xp):
    square = xp.square(w)
    return clients.strength * ((square / (1 + square)).sum() if clients.loss == "bumpy" else square.sum() / 2)


def gradient(loss: str, strength: float, x, y, w, xp=np):
    """Mean gradient [d] over examples x [n, d], y [n]."""
    score = x @ w
    slope = score - y if loss == "ridge" else -y / (1 + xp.exp(y * score))
    shrink = 2 * w / xp.square(1 + xp.square(w)) if loss == "bumpy" else w
    return slope @ x / x.shape[0] + strength * shrink


def minimum(clients: Clients) -> tuple[np.ndarray, float]:
    """(w*, F*) of the mean over clients, by Newton's method; ridge is solved by its first step."""
    flat = Clients(np.concatenate(clients.x)[None], np.concatenate(clients.y)[None], *clients[2:])
    x, y = flat.x[0], flat.y[0]
    w = np.zeros(x.shape[1])
    for _ in range(30):
        slope = gradient(flat.loss, flat.strength, x, y, w)
        if np.linalg.norm(slope) < 1e-13:
            break
        odds = 1 / (1 + np.exp(-(x @ w)))
        curve = np.ones(len(x)) if flat.loss == "ridge" else odds * (1 - odds)
        w = w - np.linalg.solve((x.T * curve) @ x / len(x) + flat.strength * np.eye(len(w)), slope)
    return w, float(value(flat, w)[0])


class Bounded(NamedTuple):
    """A loss with its constants.

    Attributes:
      clients: who has what.
      problem: all constants, without noise, for `local_steps` of at most `first_step`.
      best: w*; None for the loss that is not convex.
      least: F*, or a lower bound of it.
      radius: of the ball.
      first_step: no step is larger.
    """

    clients: Clients
    problem: Problem
    best: np.ndarray | None
    least: float
    radius: float
    first_step: float


def bounded(clients: Clients, local_steps: int = 1, batch: int = 0, participants: int = 0) -> Bounded:
    """The constants of a loss on these clients.

    Args:
      clients: from `digits`.
      local_steps: E.
      batch: examples of a stochastic gradient, drawn with replacement; 0: all, and no gradient noise.
      participants: clients drawn without replacement in each round; 0: all.
    """
    number, _, d = clients.x.shape
    curvature, strength, convex = _CURVATURE[clients.loss], clients.strength, clients.loss != "bumpy"
    moments = [np.linalg.eigvalsh(x.T @ x / len(x)) for x in clients.x]
    smooth = curvature * max(m[-1] for m in moments) + (1 if convex else 2) * strength
    norms = np.linalg.norm(clients.x, axis=2)
    if convex:
        strong = strength + (min(m[0] for m in moments) if clients.loss == "ridge" else 0.0)
        best, least = minimum(clients)
        own = [minimum(Clients(x[None], y[None], *clients[2:]))[1] for x, y in zip(*clients[:2], strict=True)]
        gamma, radius = least - float(np.mean(own)), 2 * float(np.linalg.norm(best))
        first = 2 / (strong * max(8 * smooth / strong, local_steps))
    else:
        strong, best, least, gamma, radius, first = 0.0, None, 0.0, 0.0, math.inf, 1 / smooth
    if convex:
        # A step up to 2 over an example's own smoothness brings no two points apart, so E steps from the ball
        # lead at most E steps times the largest gradient at 0 beyond it.
        longest_step = 2 / (curvature * norms.max() ** 2 + strength)
        require(first <= longest_step, "first step", first, f"at most {longest_step:g}, or G is no bound")
        at_zero = (1.0 if clients.loss == "ridge" else 0.5) * norms.max()
        reach = radius + (local_steps - 1) * first * at_zero
        fit = (norms.max() * reach + 1 if clients.loss == "ridge" else 1.0) * norms.max()
        largest = fit + strength * reach
    else:
        reach, largest = math.inf, norms.max() + strength * math.sqrt(d) * 3 * math.sqrt(3) / 8
    noise = [_spread(clients, k, reach) / math.sqrt(batch) if batch else 0.0 for k in range(number)]
    problem = Problem(
        smoothness=float(smooth),
        weights=(1 / number,) * number,
        dimension=d,
        sigmas=(0.0,) * number,
        gradient_noise=tuple(noise),
        gradient_bound=float(largest),
        strong_convexity=float(strong),
        heterogeneity=max(gamma, 0.0),
        distance=float(best @ best) if convex else 0.0,
        local_steps=local_steps,
        participants=participants,
    )
    return Bounded(clients, problem, best, least, radius, float(first))


def _spread(clients: Clients, k: int, reach: float) -> float:
    """Bound of the root of E|gradient of an example - gradient of F_k|^2 in the ball of radius `reach`.

    The regularizer is in both; what is left has a second moment of at most mean |x|^2 (slope at x.w)^2.
    """
    x, y = clients.x[k], clients.y[k]
    square = (x**2).sum(1)
    if clients.loss != "ridge":
        return float(np.sqrt(square.mean()))
    curve = np.linalg.eigvalsh((x.T * square) @ x / len(x))[-1]
    tilt = np.linalg.norm((square * y) @ x / len(x))
    return float(np.sqrt(curve * reach**2 + 2 * tilt * reach + square.mean()))


def with_noise(found: Bounded, sigma: float, steps: np.ndarray, release: str) -> Problem:
    """The problem with this noise of every client, and with a clip that is just too large to act."""
    noisy = dataclasses.replace(
        found.problem, sigmas=(sigma,) * found.problem.clients, release=release, clip=math.inf
    )
    return dataclasses.replace(noisy, clip=float(longest(noisy, steps).max()))


def descend(
    found: Bounded,
    problem: Problem,
    mechanism: Mechanism,
    steps: np.ndarray,
    batch: int,
    seeds: int,
    sigmas: tuple[float, ...] = (),
) -> np.ndarray:
    """Federated averaging from w = 0 through a mechanism: f32[seeds, rounds + 1, d], the models.

    Every message goes through `encode` and `decode` with keys of its own, for its client, round and seed.

    Args:
      found: the loss, of a problem without noise.
      problem: from `with_noise`.
      mechanism: with a clip, of which `problem.clip` is the knob.
      steps: f64[rounds, E].
      batch: as for `bounded`.
      seeds: runs.
      sigmas: in place of the problem's, then the result is f32[sigmas, seeds, rounds + 1, d]; one program.
    """
    several = jnp.asarray(sigmas or problem.sigmas[:1], jnp.float32)
    one = _one_run(found, problem, mechanism, batch)
    run = jax.jit(jax.vmap(jax.vmap(one, (0, None, None)), (0, None, 0)))
    keys = jax.random.split(jax.random.key(0), (len(several), seeds))
    models = np.asarray(run(keys, jnp.asarray(steps, jnp.float32), several))
    models = np.concatenate([np.zeros_like(models[:, :, :1]), models], 2)
    return models if sigmas else models[0]


def _one_run(found: Bounded, problem: Problem, mechanism: Mechanism, batch: int) -> Callable:
    """(key, steps f32[rounds, E], sigma f32[]) -> f32[rounds, d]."""
    x, y = (jnp.asarray(a, jnp.float32) for a in found.clients[:2])
    slope = partial(gradient, found.clients.loss, found.clients.strength, xp=jnp)
    sums, clip = problem.release == "gradient_sum", jnp.float32(problem.clip)

    def message(w, client, key, row, sigma):
        mine, local, knobs = (x[client], y[client]), w, Knobs(sigma=sigma, clip=clip)
        batch_key, shared, private = jax.random.split(key, 3)
        for number in range(problem.local_steps):
            examples = mine
            if batch:
                rows = jax.random.fold_in(batch_key, number)
                drawn = jax.random.randint(rows, (batch,), 0, mine[1].shape[0])
                examples = mine[0][drawn], mine[1][drawn]
            local = local - row[number] * slope(*examples, local)
        update = (local - w) / row[0] if sums else local - w
        return mechanism.decode(shared, mechanism.encode(Keys(shared, private), update, knobs), knobs)

    def one_round(sigma, w, inputs):
        key, row = inputs
        draw, key = jax.random.split(key)
        chosen = jnp.arange(problem.clients)
        if problem.participants:
            chosen = jax.random.permutation(draw, problem.clients)[: problem.participants]
        keys = jax.random.split(key, len(chosen))
        change = jax.vmap(message, (None, 0, 0, None, None))(w, chosen, keys, row, sigma).mean(0)
        w = w + (row[0] * change if sums else change)
        w = w * jnp.minimum(1.0, found.radius / jnp.maximum(jnp.linalg.norm(w), 1e-30))
        return w, w

    def run(key, steps, sigma):
        inputs = jax.random.split(key, len(steps)), steps
        return jax.lax.scan(partial(one_round, sigma), jnp.zeros(x.shape[2]), inputs)[1]

    return run


def excess(found: Bounded, models: np.ndarray) -> np.ndarray:
    """F(w) - F* in 64 bits for models [..., d]."""
    flat = np.asarray(models, np.float64).reshape(-1, models.shape[-1])
    values = np.array([value(found.clients, w).mean() for w in flat])
    return values.reshape(models.shape[:-1]) - found.least


def squared_slopes(found: Bounded, models: np.ndarray) -> np.ndarray:
    """|grad F(w)|^2 in 64 bits for models [..., d]."""
    flat = np.asarray(models, np.float64).reshape(-1, models.shape[-1])
    x, y = np.concatenate(found.clients.x), np.concatenate(found.clients.y)
    slopes = [gradient(found.clients.loss, found.clients.strength, x, y, w) for w in flat]
    return np.square(slopes).sum(-1).reshape(models.shape[:-1])
