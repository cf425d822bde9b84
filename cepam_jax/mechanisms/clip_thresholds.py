"""Where clipped uniform quantization cuts off: four rules for the clip threshold.

A threshold c balances two errors: what lies outside [-c, c] is cut off, and what lies inside is rounded, the
more coarsely the larger c is. Every rule takes rows f32[groups, size] of coordinates that share a threshold,
the bits B per coordinate and the kind of rounding, and returns one threshold for each row, f32[groups].

Sources: Bozorgasl and Chen: Communication-Efficient Federated Learning via Clipped Uniform Quantization
(arXiv 2405.13365); Sakr, Dai, Venkatesan, Zimmer, Dally, Khailany: Optimal Clipping and Magnitude-aware
Differentiation for Improved Quantization-aware Training (OCTAV, arXiv 2206.06501).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_ITERATIONS = 40  # the fixed point moves by less than 1e-6 after 20 on all inputs tried
_CANDIDATES, _BINS = 64, 1024  # of the search by divergence
_PERCENTILE = 99.9


def mse_threshold(rows: jax.Array, bits: jax.Array | float, rounding: str) -> jax.Array:
    """Least mean squared error: the fixed point of Newton's iteration (OCTAV, arXiv 2206.06501).

      c <- E[|x| 1(|x| > c)] / (a P(|x| <= c) + P(|x| > c))

    where a c^2 is the error of rounding: spacing^2 / 12 = c^2 / (3 (2^B - 1)^2) if deterministic, twice
    that if stochastic. (Bozorgasl and Chen write 4^-B for (2^B - 1)^-2, a grid of 2^B cells instead of 2^B
    levels.)

    Args:
      rows: f32[groups, size].
      bits: B, a number.
      rounding: "deterministic" or "stochastic".

    Returns:
      f32[groups].
    """
    size = jnp.abs(rows)
    intervals = 2.0 ** jnp.asarray(bits, jnp.float32) - 1
    inside_cost = (2.0 if rounding == "stochastic" else 1.0) / (3 * jnp.square(intervals))
    largest = size.max(1)
    scaled = size / jnp.where(largest > 0, largest, 1)[:, None]
    improve = partial(_improved, scaled, inside_cost)
    return largest * jax.lax.fori_loop(0, _ITERATIONS, improve, jnp.mean(scaled, 1))


def _improved(scaled: jax.Array, inside_cost: jax.Array, _, c: jax.Array) -> jax.Array:
    """One step of the iteration of `mse_threshold`.

    Args:
      scaled: f32[groups, size], magnitudes with largest 1 in each row.
      inside_cost: f32[], the factor a of the rounding error.
      c: f32[groups], thresholds before the step.

    Returns:
      f32[groups], at most 1.
    """
    outside = scaled > c[:, None]
    mass = jnp.mean(outside, 1, dtype=jnp.float32)
    cut = jnp.mean(jnp.where(outside, scaled, 0), 1)
    return jnp.minimum(cut / (inside_cost * (1 - mass) + mass), 1.0)


def kl_threshold(rows: jax.Array, bits: jax.Array | float, rounding: str) -> jax.Array:
    """Least Kullback-Leibler divergence between the histograms of |x| before and after quantization.

    Searched over 64 fractions of the largest magnitude with histograms of 1,024 bins, as common
    in post-training quantization.

    Args:
      rows: f32[groups, size].
      bits: B, a number.
      rounding: not used.

    Returns:
      f32[groups].
    """
    del rounding
    size = jnp.abs(rows)
    levels = 2.0 ** (jnp.asarray(bits, jnp.float32) - 1)
    return jax.vmap(partial(_kl_threshold_of_row, levels))(size, size.max(1))


def kl_threshold_by_sections(rows: jax.Array, bits: jax.Array | float, rounding: str) -> jax.Array:
    """`kl_threshold` by bisection: of an interval the third that looks worse is left out, again and again.

    That finds the least divergence where it falls and then rises, which it does of large tensors at few bits
    alone (`experiments/figures/thresholds.py`). Arguments and result as of `kl_threshold`.
    """
    del rounding
    size = jnp.abs(rows)
    levels = 2.0 ** (jnp.asarray(bits, jnp.float32) - 1)
    return jax.vmap(partial(_sections_of_row, levels))(size, size.max(1))


def _sections_of_row(levels: jax.Array, magnitudes: jax.Array, largest: jax.Array) -> jax.Array:
    """`kl_threshold_by_sections` of one row, as `_kl_threshold_of_row`."""
    divergence = partial(_divergence, _histogram(magnitudes, largest), levels)

    def narrower(_, ends):
        low, high = ends
        third = (high - low) // 3
        left = divergence(low + third) <= divergence(high - third)
        return jnp.where(left, low, low + third), jnp.where(left, high - third, high)

    turns = 11  # from 64 candidates to at most four
    low, _ = jax.lax.fori_loop(0, turns, narrower, (jnp.int32(0), jnp.int32(_CANDIDATES - 1)))
    last = jnp.minimum(low + jnp.arange(4), _CANDIDATES - 1)
    return largest * (last[jnp.argmin(jax.vmap(divergence)(last))] + 1) / _CANDIDATES


def _histogram(magnitudes: jax.Array, largest: jax.Array) -> jax.Array:
    """f32[_BINS], how many magnitudes f32[size] lie in each bin up to the largest f32[]."""
    slot = jnp.clip((magnitudes / jnp.where(largest > 0, largest, 1) * _BINS).astype(jnp.int32), 0, _BINS - 1)
    return jnp.zeros(_BINS, jnp.float32).at[slot].add(1.0)


def _kl_threshold_of_row(levels: jax.Array, magnitudes: jax.Array, largest: jax.Array) -> jax.Array:
    """`kl_threshold` of one row: f32[] from magnitudes f32[size] with this largest one f32[]."""
    counts = _histogram(magnitudes, largest)
    best = jnp.argmin(jax.vmap(partial(_divergence, counts, levels))(jnp.arange(_CANDIDATES)))
    return largest * (best + 1) / _CANDIDATES


def _divergence(counts: jax.Array, levels: jax.Array, candidate: jax.Array) -> jax.Array:
    """Divergence of the quantized histogram from the one before, for one threshold.

    Args:
      counts: f32[_BINS], histogram of the magnitudes.
      levels: f32[], number of levels on the positive side.
      candidate: int32[], the threshold is (candidate + 1) / _CANDIDATES of the largest magnitude.

    Returns:
      f32[], in nats times the number of coordinates.
    """
    bins = jnp.arange(_BINS)
    edge = (candidate + 1) * (_BINS // _CANDIDATES)
    inside = bins < edge
    p = jnp.where(inside, counts, 0)
    beyond = jnp.sum(counts) - jnp.sum(p)
    reference = p + jnp.where(bins == edge - 1, beyond, 0)
    cell = jnp.floor(bins * levels / edge).astype(jnp.int32)
    used = (p > 0).astype(jnp.float32)
    mass = jnp.zeros(_BINS, jnp.float32).at[cell].add(p, mode="drop")
    number = jnp.zeros(_BINS, jnp.float32).at[cell].add(used, mode="drop")
    q = jnp.where(used > 0, mass[cell] / jnp.maximum(number[cell], 1), 0)
    q = q / jnp.maximum(jnp.sum(q), 1) * jnp.sum(reference)
    terms = reference * (jnp.log(jnp.maximum(reference, 1e-9)) - jnp.log(jnp.maximum(q, 1e-9)))
    return jnp.sum(jnp.where(reference > 0, terms, 0))


def max_threshold(rows: jax.Array, bits: jax.Array | float, rounding: str) -> jax.Array:
    """The largest magnitude f32[groups] of rows f32[groups, size]: nothing is cut off."""
    del bits, rounding
    return jnp.max(jnp.abs(rows), 1)


def percentile_threshold(rows: jax.Array, bits: jax.Array | float, rounding: str) -> jax.Array:
    """The 99.9th percentile f32[groups] of the magnitudes of rows f32[groups, size]."""
    del bits, rounding
    return jnp.percentile(jnp.abs(rows), np.float32(_PERCENTILE), axis=1)


THRESHOLDS = {
    "mse": mse_threshold,
    "kl": kl_threshold,
    "max": max_threshold,
    "percentile": percentile_threshold,
}
