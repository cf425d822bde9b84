"""Clipped uniform quantization (2405.13365): a range [-c, c] per tensor, 2^B levels in it.

Levels are -c + j * 2c / (2^B - 1), j = 0, ..., 2^B - 1. The clip threshold c balances two errors:
what lies outside is cut off, and what lies inside is rounded, the more coarsely the larger c is.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import blocks
from cepam_jax.mechanisms.base import About, Code, Mechanism, Message, check_vector
from cepam_jax.mechanisms.knobs import WHOLE_BITS, knob
from cepam_jax.mechanisms.stochastic import stochastic_round, stochastic_variance

ROUNDINGS = ("deterministic", "stochastic")
GRANULARITIES = ("model", "tensor", "channel")
_FLOAT_BITS = 32
_ITERATIONS = 40  # the fixed point moves by less than 1e-6 after 20 on all inputs tried
_CANDIDATES, _BINS = 64, 1024  # of the search by divergence
_PERCENTILE = 99.9


def mse_threshold(rows, bits, rounding: str):
    """Fixed point of the mean squared error (2405.13365; the iteration is Newton's, 2206.06501).

      c <- E[|x| 1(|x| > c)] / (a P(|x| <= c) + P(|x| > c))

    where a c^2 is the error of rounding: spacing^2 / 12 = c^2 / (3 (2^B - 1)^2) if deterministic, twice
    that if stochastic. (The paper writes 4^-B for (2^B - 1)^-2, a grid of 2^B cells instead of 2^B
    levels.)

    Args:
      rows: f32[groups, size].
      bits: B.
      rounding: "deterministic" or "stochastic".

    Returns:
      f32[groups].
    """
    size = jnp.abs(rows)
    intervals = 2.0 ** jnp.asarray(bits, jnp.float32) - 1
    inside_cost = (2.0 if rounding == "stochastic" else 1.0) / (3 * jnp.square(intervals))
    largest = size.max(1)
    scaled = size / jnp.where(largest > 0, largest, 1)[:, None]

    def improve(_, c):
        outside = scaled > c[:, None]
        mass = jnp.mean(outside, 1, dtype=jnp.float32)
        cut = jnp.mean(jnp.where(outside, scaled, 0), 1)
        return jnp.minimum(cut / (inside_cost * (1 - mass) + mass), 1.0)

    start = jnp.mean(scaled, 1)
    return largest * jax.lax.fori_loop(0, _ITERATIONS, improve, start)


def kl_threshold(rows, bits, rounding: str):
    """Least Kullback-Leibler divergence between the histograms of |x| before and after quantization.

    Searched over 64 fractions of the largest magnitude with histograms of 1,024 bins, as common
    in post-training quantization.
    """
    del rounding
    size = jnp.abs(rows)
    largest = size.max(1)
    levels = 2.0 ** (jnp.asarray(bits, jnp.float32) - 1)

    def one(values, top):
        slot = jnp.clip((values / jnp.where(top > 0, top, 1) * _BINS).astype(jnp.int32), 0, _BINS - 1)
        counts = jnp.zeros(_BINS, jnp.float32).at[slot].add(1.0)
        bins = jnp.arange(_BINS)

        def divergence(candidate):
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

        best = jnp.argmin(jax.vmap(divergence)(jnp.arange(_CANDIDATES)))
        return top * (best + 1) / _CANDIDATES

    return jax.vmap(one)(size, largest)


def max_threshold(rows, bits, rounding):
    """The largest magnitude: nothing is cut off."""
    del bits, rounding
    return jnp.max(jnp.abs(rows), 1)


def percentile_threshold(rows, bits, rounding):
    """The 99.9th percentile of the magnitudes."""
    del bits, rounding
    return jnp.percentile(jnp.abs(rows), np.float32(_PERCENTILE), axis=1)


THRESHOLDS = {
    "mse": mse_threshold,
    "kl": kl_threshold,
    "max": max_threshold,
    "percentile": percentile_threshold,
}


def clipped(
    rounding: str = "stochastic",
    threshold: str = "mse",
    granularity: str = "tensor",
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> Mechanism:
    """Clipped uniform quantization with `knobs.bits` = 1 to 8 bits per coordinate (2405.13365).

    Args:
      rounding: "deterministic" (to the nearest level: biased) or "stochastic" (to one of the two
        nearest, by private coin flips: unbiased inside the range).
      threshold: one of `THRESHOLDS`; "max" alone cuts nothing off.
      granularity: one range per "model", per "tensor" or per "channel" (last axis of a tensor).
      shapes: of the tensors that the update is made of; by default one vector.
    """
    require_choice("rounding", rounding, ROUNDINGS)
    require_choice("threshold", threshold, THRESHOLDS)
    require_choice("granularity", granularity, GRANULARITIES)

    def groups(d):
        """[(start, stop, channels)]: where each tensor lies and into how many rows it falls."""
        tensors = ((d,),) if shapes is None or granularity == "model" else shapes
        if shapes is not None:
            total = sum(int(np.prod(shape)) for shape in shapes)
            require(total == d, "shapes", shapes, f"shapes with {d} elements together, the length of x")
        found, start = [], 0
        for shape in tensors:
            size = int(np.prod(shape))
            channels = shape[-1] if granularity == "channel" and len(shape) > 1 else 1
            if size:
                found.append((start, start + size, channels))
            start += size
        return found

    def thresholds(x, knobs):
        """Per coordinate f32[d], and what is sent of them."""
        sent = []
        for start, stop, channels in groups(x.shape[0]):
            rows = x[start:stop].reshape(-1, channels).T
            sent.append(THRESHOLDS[threshold](rows, knob(knobs, "bits", WHOLE_BITS), rounding))
        return jnp.concatenate(sent) if sent else jnp.zeros(0, jnp.float32)

    def spread(sent, d):
        found, first = [jnp.zeros(0, jnp.float32)], 0
        for start, stop, channels in groups(d):
            repeats = (stop - start) // channels
            found.append(jnp.tile(sent[first : first + channels], repeats))
            first += channels
        return jnp.concatenate(found)

    def levels(knobs):
        return 2.0 ** knob(knobs, "bits", WHOLE_BITS) - 1

    def positions(x, c, knobs):
        """In units of the spacing, from the lowest level; and the spacing."""
        spacing = 2 * c / levels(knobs)
        position = (jnp.clip(x, -c, c) + c) / jnp.where(spacing > 0, spacing, 1)
        return jnp.clip(position, 0, levels(knobs)), spacing

    def encode(keys, x, knobs, weight=None):
        del weight
        check_vector(x)
        sent = thresholds(x, knobs)
        position, _ = positions(x, spread(sent, x.shape[0]), knobs)
        if rounding == "stochastic":
            level = stochastic_round(position, keys.private)
        else:
            level = jnp.round(position)
        level = jnp.minimum(level, levels(knobs))
        # An infinite coordinate must not come back as a clipped, finite one.
        symbols = blocks.integers(jnp.where(jnp.isfinite(x), level, jnp.nan))
        return Message(symbols, None, {"threshold": sent}, x.shape[0])

    def decode(shared, message, knobs):
        c = spread(message.side["threshold"], message.length)
        valid = message.symbols != blocks.INVALID
        value = jnp.where(valid, message.symbols.astype(jnp.float32), jnp.nan)
        return -c + 2 * c / levels(knobs) * value

    def bits(shared, message, knobs, weight=None):
        sent = message.length if weight is None else jnp.sum(weight)
        ranges = _FLOAT_BITS * message.side["threshold"].shape[0]
        return knob(knobs, "bits", WHOLE_BITS) * sent + ranges

    def variance(x, knobs):
        c = spread(thresholds(x, knobs), x.shape[0])
        position, spacing = positions(x, c, knobs)
        if rounding == "deterministic":
            nearest = jnp.minimum(jnp.round(position), levels(knobs)) * spacing - c
            return jnp.square(x - nearest)
        return jnp.square(x - jnp.clip(x, -c, c)) + stochastic_variance(position, spacing)

    return Mechanism(
        encode,
        decode,
        bits,
        lambda x, knobs: x,
        About(
            name=f"clipped-{rounding}-{threshold}-{granularity}",
            law="other",
            unbiased=rounding == "stochastic" and threshold == "max",
            randomness=("private",) if rounding == "stochastic" else (),
            knobs=("bits",),
            local=False,
        ),
        Code("levels", alphabet=lambda knobs: (0, 2 ** int(knobs.bits))),
        variance,
    )
