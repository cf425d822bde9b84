"""Audits: is the error's law what the accountant assumes, and what can an adversary really tell?

`exactness` tests a mechanism's error against its stated law. `membership_scores` plays a game: an update
is a canary of the largest allowed norm, or zero; the adversary scores what it sees. From the scores
`jax_privacy` computes a lower bound on epsilon that holds with a stated confidence. A lower bound above
the accountant's epsilon is a bug, in the mechanism or in the accounting; below it, it proves nothing but
that this attack is no better.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax_privacy import auditing
from scipy import stats

from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.mechanisms import Keys, Knobs, Mechanism, counter, latents

ADVERSARIES = ("decoded_updates", "server")
_LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=math.sqrt(0.5)),
    "uniform": stats.uniform(-math.sqrt(3), math.sqrt(12)),
}


class Finding(NamedTuple):
    """One test of an audit: its p-value if the mechanism is as stated."""

    test: str
    p_value: float


def exactness(mechanism: Mechanism, knobs: Knobs, size: int, seed: int = 0) -> list[Finding]:
    """Tests the error x_hat - reference(x): its law, its variance, independence of x and of neighbours.

    Args:
      mechanism: whose `about.law` is "gaussian", "laplace" or "uniform" (one coordinate of a scalar cell).
      knobs: to audit; the inputs range from far below to far above the error.
      size: coordinates.
      seed: of inputs and keys.

    Returns:
      Findings. Under the stated law every p-value is uniform: reject if the least is below the chosen
      false-alarm rate divided by their number.

    Raises:
      ConfigError: the mechanism states no law.
    """
    law = mechanism.about.law
    if law not in _LAWS:
        raise ConfigError(f"{mechanism.about.name} states no law of its error (about.law is {law!r})")
    keys = Keys(jax.random.key(2 * seed + 1), jax.random.key(2 * seed + 2))
    random = np.random.default_rng(seed)
    unit = float(np.sqrt(np.max(np.asarray(mechanism.variance(jnp.zeros(8), knobs)))))
    x = (random.normal(size=size) * unit * random.choice([0.01, 0.3, 1.0, 30.0], size)).astype(np.float32)
    message = jax.jit(mechanism.encode)(keys, jnp.asarray(x), knobs)
    found = np.asarray(jax.jit(mechanism.decode)(keys.shared, message, knobs), np.float64)
    reference = np.asarray(mechanism.reference(jnp.asarray(x), knobs), np.float64)
    error = (found - reference) / unit
    kurtosis = float(_LAWS[law].stats("k")) + 3
    variance_z = (np.mean(error**2) - 1) / math.sqrt((kurtosis - 1) / size)
    findings = [
        Finding("law (Kolmogorov-Smirnov)", stats.kstest(error, _LAWS[law].cdf).pvalue),
        Finding("variance", 2 * stats.norm.sf(abs(variance_z))),
    ]
    for name, other in (("x", np.sign(x)), ("|x|", np.abs(x) > np.median(np.abs(x)))):
        parts = [error[other == value] for value in np.unique(other)]
        for kind, values in (("error", parts), ("|error|", [np.abs(p) for p in parts])):
            p = stats.ks_2samp(values[0], values[-1]).pvalue
            findings.append(Finding(f"{kind} against {name}", p))
    for lag in range(1, max(2, mechanism.about.block)):
        for kind, values in (("error", error), ("|error|", np.abs(error) - np.abs(error).mean())):
            z = np.mean(values[lag:] * values[:-lag]) / np.mean(values**2) * math.sqrt(size - lag)
            findings.append(Finding(f"{kind}: neighbours at distance {lag}", 2 * stats.norm.sf(abs(z))))
    return [Finding(f.test, float(f.p_value)) for f in findings]


def cell_widths(mechanism: Mechanism, shared, length: int, knobs: Knobs):
    """f32[length]: width of each coordinate's cell, which the server knows, of scalar LRSUQ.

    Raises:
      ConfigError: the mechanism has no layers over Z1.
    """
    code = mechanism.code
    if code.kind != "lattice" or code.layer == "cell" or code.lattice != "Z1":
        raise ConfigError(f"{mechanism.about.name} is no scalar LRSUQ: the server's cells are not known here")
    stream = counter.stream(code.key(shared), code.streams[0])
    word, _ = counter.words(stream, 0, jnp.arange(length, dtype=jnp.uint32))
    return latents.radius(word, latents.radius_table(code.layer, 1)) * np.float32(code.width({}, knobs))


def membership_scores(
    mechanism: Mechanism,
    knobs: Knobs,
    canary,
    trials: int,
    adversary: str = "decoded_updates",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a membership game: the update is the canary, or zero.

    Args:
      mechanism: to attack.
      knobs: of the mechanism.
      canary: f32[d], an update of the largest allowed norm.
      trials: games of each kind.
      adversary: "decoded_updates" sees x_hat and scores its projection on the canary; "server" also knows the
        scale of every lattice cell (scalar LRSUQ), and with it which of the two updates is possible at all.
      seed: of the keys.

    Returns:
      (scores with the canary, scores without it), f64[trials] each.
    """
    require_choice("adversary", adversary, ADVERSARIES)
    canary = jnp.asarray(canary, jnp.float32)

    def play(number, x):
        keys = Keys(
            jax.random.fold_in(jax.random.key(seed), 2 * number),
            jax.random.fold_in(jax.random.key(seed), 2 * number + 1),
        )
        seen = mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)
        if adversary == "decoded_updates":
            return jnp.dot(seen, canary)
        half = cell_widths(mechanism, keys.shared, canary.shape[0], knobs) / 2
        outside = lambda y: jnp.sum(jnp.abs(seen - y) > half * np.float32(1 + 1e-5))  # noqa: E731
        return (outside(0.0) - outside(canary)).astype(jnp.float32)

    run = jax.jit(jax.vmap(play, in_axes=(0, None)))
    return (
        np.asarray(run(jnp.arange(trials), canary), np.float64),
        np.asarray(run(jnp.arange(trials, 2 * trials), 0 * canary), np.float64),
    )


def epsilon_lower_bound(with_canary, without, delta: float, significance: float = 0.05) -> float:
    """Epsilon that the scores prove, except with probability `significance` (2101.04535).

    Half of the games choose the threshold, the other half prove the bound.
    """
    require(0 < significance < 0.5, "significance", significance, "above 0 and below .5")
    auditor = auditing.CanaryScoreAuditor(with_canary, without)
    # A seed of its own: the auditor splits the games at random.
    strategy = auditing.Split(seed=0)
    return float(
        auditor.epsilon_clopper_pearson(significance, delta, one_sided=False, threshold_strategy=strategy)
    )
