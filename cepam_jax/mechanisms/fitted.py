"""The law of each tensor's coordinates, chosen by the encoder: one of three, and its scale.

Updates differ. Where a client's examples leave most of a tensor alone (words that it does not use, units that
are off), a few coordinates are large and the rest are zero; steps of Adam are all about equally large. And
where noise is larger than the update, a law costs about E|X| s + sum of -ln P(X > |x|), integrated: there the
best scale follows from the mean square, elsewhere from the mean absolute value. So the encoder counts a
tensor's coordinates by size, and expects from a table what each law with each scale would cost, in the mean
over the shared randomness. What the scales cost themselves (`scale_code`) is counted too: a small tensor
takes the scale of its neighbour unless a better one is worth its bits.

The table and the choice are the encoder's own: the decoder is told what was chosen, and no number here need
be the same on two machines. A choice that turns out worse than what the mixture with the mean absolute value
as its scale costs on the symbols themselves is not taken (`chosen`), so that no message is longer than with
coding="mixture", but for the numbers of the laws.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import block_bits, code_length, latents, laws, scale_code

_STEPS = 4  # of sizes and scales, per octave
_SIZES = (-12, 15)  # octaves of |x| over the lattice's width that are told apart
_SCALES = (-20, 14)  # octaves of scales, likewise
_WIDTHS = (-4, 3)  # octaves of a layer's radius: all but one in a thousand
_ZERO = -40  # octaves of what counts as zero


@functools.cache
def _of_widths() -> np.ndarray:
    """Nats of a coordinate over the dither, f64[laws, sizes, scales], all in units of the cell's width."""
    low, high = _STEPS * (_SIZES[0] - _WIDTHS[1]), _STEPS * (_SIZES[1] - _WIDTHS[0])
    sizes = np.concatenate([[2.0**_ZERO], 2.0 ** (np.arange(low, high + 1) / _STEPS)])
    first, last = _STEPS * (_SCALES[0] - _WIDTHS[1]), _STEPS * (_SCALES[1] - _WIDTHS[0])
    scales = 2.0 ** (np.arange(first, last + 1) / _STEPS)[:, None]
    near = 2.0 ** -np.arange(1, 45, 1.0)
    found = np.zeros((len(laws.LAWS), len(sizes), len(scales)))
    for row, x in enumerate(sizes):
        # The cell's lower end is x - a, a from 0 to 1: closely where an end is near x or near zero.
        kinks = [0.0, 1.0, min(x, 1.0)]
        close = [np.clip(kink + sign * near, 0, 1) for kink in kinks for sign in (-1, 1)]
        points = np.unique(np.concatenate([np.linspace(0, 1, 33), *close]))
        for law, parts in enumerate(laws.PARTS):
            nats = laws.cell_nats_on_host(x - points + 0.5, 1.0, scales, tuple(parts))
            found[law, row] = np.trapezoid(nats, points, axis=1)
    return found


@functools.cache
def table(target: str) -> np.ndarray:
    """Nats of a coordinate, expected over layers and dithers.

    Args:
      target: law of the layers on Z1, one of `latents.TARGETS`.

    Returns:
      f32[laws, sizes, scales]: sizes of |x| (zero, then `_SIZES` in steps), scales (`_SCALES`), in units of
      the lattice's width at radius 1.
    """
    share = (np.arange(4096) + 0.5) / 4096
    octave = np.log2(latents.quantile(target, 1, share, 1 - share))
    steps = np.clip(np.rint(_STEPS * octave), _STEPS * _WIDTHS[0], _STEPS * _WIDTHS[1]).astype(int)
    of_widths, total = _of_widths(), 0.0
    sizes, scales = (_STEPS * (ends[1] - ends[0]) + 1 for ends in (_SIZES, _SCALES))
    for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
        start = _STEPS * _WIDTHS[1] - step
        rows = np.concatenate([[0], 1 + start + np.arange(sizes)])
        total = total + count / len(share) * of_widths[:, rows, start : start + scales]
    return np.asarray(total, np.float32)


def _counts(x: jax.Array, sent: jax.Array | None, width: jax.Array, lengths: Sequence[int]) -> jax.Array:
    """How many coordinates of each tensor have each size, f32[tensors, sizes].

    Args:
      x: f32[d], the update.
      sent: f32[d], 0 where a coordinate is not sent; None: all are.
      width: f32[], the unit of sizes.
      lengths: of the tensors.
    """
    sizes = _STEPS * (_SIZES[1] - _SIZES[0]) + 2
    place = jnp.round(_STEPS * jnp.log2(jnp.abs(x) / width)) - _STEPS * _SIZES[0] + 1
    # NaN (a width of NaN, or an invalid coordinate, which is listed) counts as zero.
    place = jnp.nan_to_num(jnp.clip(place, 0, sizes - 1), nan=0.0).astype(jnp.int32)
    base = jnp.concatenate([jnp.full((n,), sizes * i, jnp.int32) for i, n in enumerate(lengths)])
    ones = jnp.ones(x.shape, jnp.float32) if sent is None else (sent > 0).astype(jnp.float32)
    flat = jnp.zeros(sizes * len(lengths), jnp.float32).at[base + place].add(ones)
    return flat.reshape(len(lengths), sizes)


def choose(
    x: jax.Array, sent: jax.Array | None, width: jax.Array, lengths: Sequence[int], target: str
) -> tuple[jax.Array, jax.Array]:
    """The laws and scales with which a message is expected to be shortest, scales and laws included.

    Args:
      x: f32[d], the update.
      sent: f32[d], 0 where a coordinate is not sent; None: all are.
      width: f32[], scale of the lattice at radius 1, in units of the update.
      lengths: of the tensors, at least one.
      target: law of the layers.

    Returns:
      int32[tensors] scales in eighths of an octave, int32[tensors] laws.
    """
    expected = jnp.einsum("ts,lsj->tlj", _counts(x, sent, width, lengths), jnp.asarray(table(target)))
    expected = expected * np.float32(1 / np.log(2))
    order = scale_code.order(lengths)
    number, count = expected.shape[1:]
    step = 8 // _STEPS
    places = np.arange(count)
    apart = step * np.abs(places[:, None] - places[None, :])
    steps = scale_code.cost_of_step(apart.astype(np.float32), np)
    change = np.float32(scale_code.cost_of_change(number))
    same = np.float32(-np.log2(scale_code.SAME))

    def forward(best, costs):
        """The least bits up to the next tensor for each of its states, and those up to this one."""
        moved = jnp.min(jnp.min(best, 0)[:, None] + steps, 0) + change
        return jnp.minimum(best + same, moved[None]) + costs, best

    def backward(state, best):
        """The state of the tensor before, which is looked for on the best path alone."""
        place = state % count
        to_place = jnp.min(best, 0) + jnp.asarray(steps)[place]
        place_before = jnp.argmin(to_place)
        moved = jnp.argmin(best[:, place_before]) * count + place_before
        stays = best.reshape(-1)[state] + same <= to_place[place_before] + change
        before = jnp.where(stays, state, moved).astype(jnp.int32)
        return before, before

    best, earlier_best = jax.lax.scan(forward, expected[order[0]], expected[order[1:]])
    last = jnp.argmin(best.reshape(-1)).astype(jnp.int32)
    _, earlier = jax.lax.scan(backward, last, earlier_best, reverse=True)
    states = jnp.zeros(len(lengths), jnp.int32).at[order].set(jnp.append(earlier, last))
    unit = jnp.round(8 * jnp.log2(width))
    scale = unit + (states % count) * step + 8 * _SCALES[0]
    bounded = jnp.clip(scale, -scale_code.LARGEST_SCALE, scale_code.LARGEST_SCALE)
    scale = jnp.where(jnp.isnan(scale), scale_code.LARGEST_SCALE, bounded)
    return scale.astype(jnp.int32), states // count


def chosen(
    x: jax.Array,
    sent: jax.Array | None,
    width: jax.Array,
    lengths: Sequence[int],
    target: str,
    center: jax.Array,
    widths: jax.Array,
) -> dict[str, jax.Array]:
    """Side information of a message: laws and scales, with which it is not longer than with the mixture.

    Args:
      x: f32[d], the update.
      sent: f32[d], 0 where a coordinate is not sent; None: all are.
      width: f32[], scale of the lattice at radius 1, in units of the update.
      lengths: of the tensors.
      target: law of the layers.
      center: f32[d], lattice point plus dither of every coordinate; NaN where it is listed.
      widths: f32[d], scale of the lattice of every coordinate.

    Returns:
      {"scale": int32[tensors], in eighths of an octave, "law": int32[tensors], places in `laws.LAWS`}.
    """
    if not lengths:
        return {"scale": jnp.zeros(0, jnp.int32), "law": jnp.zeros(0, jnp.int32)}
    scale, law = choose(x, sent, width, lengths, target)
    plain = code_length.fit_scales(x, tuple(lengths), "mixture", sent), jnp.full_like(law, laws.MIXTURE)

    def bits(scale, law, family):
        symbols = block_bits.tensor_bits(center, widths, lengths, scale, family, sent)
        return symbols + scale_code.bits(scale, law, lengths, len(laws.LAWS))

    better = bits(scale, law, law) <= bits(*plain, "mixture")
    return {"scale": jnp.where(better, scale, plain[0]), "law": jnp.where(better, law, plain[1])}
