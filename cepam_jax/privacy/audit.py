"""Audits: is the error's law what the accountant assumes, and what can an adversary really tell?

`exactness` tests a mechanism's error against its stated law. `membership_scores` plays a game: an update
is a canary (a chosen vector) of the largest allowed norm, or zero; the adversary scores what it sees. From
the scores `jax_privacy` computes a lower bound on epsilon that holds with a stated confidence. A lower bound
above the accountant's epsilon is a bug, in the mechanism or in the accounting; below it, it proves nothing
but that this attack is no better.

Source of the game: Nasr, Song, Thakurta, Papernot, Carlini: Adversary Instantiation: Lower Bounds for
Differentially Private Machine Learning (arXiv 2101.04535).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.extras import need
from cepam_jax.mechanisms import Keys, Knobs, Mechanism, counter, latents

ADVERSARIES = ("decoded_updates", "server")
_LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=math.sqrt(0.5)),
    "uniform": stats.uniform(-math.sqrt(3), math.sqrt(12)),
}


class Finding(NamedTuple):
    """One test of an audit.

    Attributes:
      test: what is tested, in words.
      p_value: probability of a result at least as extreme if the mechanism is as stated.
    """

    test: str
    p_value: float


def exactness(mechanism: Mechanism, knobs: Knobs, size: int, seed: int = 0) -> list[Finding]:
    """Tests the error x_hat - reference(x): its law, its variance, independence of x and of neighbours.

    Args:
      mechanism: whose `about.law` is "gaussian", "laplace" or "uniform" (one coordinate of a scalar cell).
      knobs: the knobs to audit with; the inputs range from far below to far above the error.
      size: number of coordinates.
      seed: seed of inputs and keys.

    Returns:
      Findings. Under the stated law every p-value is uniform: reject if the least is below the chosen
      false-alarm rate divided by their number.

    Raises:
      ConfigError: the mechanism states no law.
    """
    law = mechanism.about.law
    if law not in _LAWS:
        raise ConfigError(f"{mechanism.about.name} states no law of its error (about.law is {law!r})")
    assert mechanism.variance  # what has a law has a variance
    keys = Keys(jax.random.key(2 * seed + 1), jax.random.key(2 * seed + 2))
    random = np.random.default_rng(seed)
    unit = float(np.sqrt(np.max(np.asarray(mechanism.variance(jnp.zeros(8), knobs)))))
    x = (random.normal(size=size) * unit * random.choice([0.01, 0.3, 1.0, 30.0], size)).astype(np.float32)
    message = jax.jit(mechanism.encode)(keys, jnp.asarray(x), knobs)
    decoded = np.asarray(jax.jit(mechanism.decode)(keys.shared, message, knobs), np.float64)
    reference = np.asarray(mechanism.reference(jnp.asarray(x), knobs), np.float64)
    error = (decoded - reference) / unit
    kurtosis = float(_LAWS[law].stats("k")) + 3
    variance_z = (np.mean(error**2) - 1) / math.sqrt((kurtosis - 1) / size)
    findings = [
        Finding("law (Kolmogorov-Smirnov)", stats.kstest(error, _LAWS[law].cdf).pvalue),
        Finding("variance", 2 * stats.norm.sf(abs(variance_z))),
    ]
    for name, other in (("x", np.sign(x)), ("|x|", np.abs(x) > np.median(np.abs(x)))):
        groups = [error[other == value] for value in np.unique(other)]
        for kind, parts in (("error", groups), ("|error|", [np.abs(group) for group in groups])):
            p = stats.ks_2samp(parts[0], parts[-1]).pvalue
            findings.append(Finding(f"{kind} against {name}", p))
    for lag in range(1, max(2, mechanism.about.block)):
        for kind, values in (("error", error), ("|error|", np.abs(error) - np.abs(error).mean())):
            z = np.mean(values[lag:] * values[:-lag]) / np.mean(values**2) * math.sqrt(size - lag)
            findings.append(Finding(f"{kind}: neighbours at distance {lag}", 2 * stats.norm.sf(abs(z))))
    return [Finding(f.test, float(f.p_value)) for f in findings]


def cell_widths(mechanism: Mechanism, shared: jax.Array, length: int, knobs: Knobs) -> jax.Array:
    """Width of each coordinate's quantization cell in scalar LRSUQ, which the server knows.

    Args:
      mechanism: LRSUQ over Z1, or a chain that ends with it.
      shared: shared key of the client and round.
      length: number of coordinates.
      knobs: knobs of the mechanism, as numbers.

    Returns:
      f32[length], in units of the update.

    Raises:
      ConfigError: the mechanism has no layers over Z1.
    """
    code, tag = mechanism.code, mechanism.code.streams[0]
    scalar = code.kind == "lattice" and code.layer != "cell" and code.lattice == "Z1"
    if not scalar or tag is None or code.width is None:
        raise ConfigError(f"{mechanism.about.name} is no scalar LRSUQ: the server's cells are not known here")
    stream = counter.stream(code.key(shared), tag)
    word, _ = counter.words(stream, 0, jnp.arange(length, dtype=jnp.uint32))
    return latents.radius(word, latents.radius_table(code.layer, 1)) * np.float32(code.width({}, knobs))


def membership_scores(
    mechanism: Mechanism,
    knobs: Knobs,
    canary: ArrayLike,
    trials: int,
    adversary: str = "decoded_updates",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a membership game: the update is the canary, or zero.

    Args:
      mechanism: the mechanism to attack.
      knobs: knobs of the mechanism.
      canary: f32[d], an update of the largest allowed norm.
      trials: number of games of each kind.
      adversary: "decoded_updates" sees x_hat and scores its projection on the canary; "server" also knows the
        scale of every lattice cell (scalar LRSUQ), and with it which of the two updates is possible at all.
      seed: seed of the keys.

    Returns:
      (scores with the canary, scores without it), f64[trials] each.

    Raises:
      ConfigError: unknown adversary, or a mechanism whose cells are not known to `cell_widths`.
    """
    require_choice("adversary", adversary, ADVERSARIES)
    update = jnp.asarray(canary, jnp.float32)

    def play(number: jax.Array, x: jax.Array) -> jax.Array:
        """Score f32[] of one game, with keys of its own, in which the update is x f32[d]."""
        keys = Keys(
            jax.random.fold_in(jax.random.key(seed), 2 * number),
            jax.random.fold_in(jax.random.key(seed), 2 * number + 1),
        )
        seen = mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)
        if adversary == "decoded_updates":
            return jnp.dot(seen, update)
        half = cell_widths(mechanism, keys.shared, update.shape[0], knobs) / 2
        outside = lambda y: jnp.sum(jnp.abs(seen - y) > half * np.float32(1 + 1e-5))  # noqa: E731
        return (outside(0.0) - outside(update)).astype(jnp.float32)

    run = jax.jit(jax.vmap(play, in_axes=(0, None)))
    return (
        np.asarray(run(jnp.arange(trials), update), np.float64),
        np.asarray(run(jnp.arange(trials, 2 * trials), 0 * update), np.float64),
    )


def epsilon_lower_bound(
    with_canary: ArrayLike, without: ArrayLike, delta: float, significance: float = 0.05
) -> float:
    """Epsilon that the scores prove, except with probability `significance` (arXiv 2101.04535).

    Half of the games choose the threshold, the other half prove the bound.

    Args:
      with_canary: f64[trials], scores of games with the canary.
      without: f64[trials], scores of games without it.
      delta: the delta that goes with epsilon.
      significance: above 0 and below 0.5.

    Returns:
      A lower bound on epsilon.

    Raises:
      ConfigError: significance is out of range.
    """
    require(0 < significance < 0.5, "significance", significance, "above 0 and below .5")
    need("a bound from scores", "audit")
    from jax_privacy import auditing  # noqa: PLC0415  needed here alone, and installed with few

    auditor = auditing.CanaryScoreAuditor(with_canary, without)
    # A seed of its own: the auditor splits the games at random.
    strategy = auditing.Split(seed=0)
    return float(
        auditor.epsilon_clopper_pearson(significance, delta, one_sided=False, threshold_strategy=strategy)
    )
