"""Lattice symbols, conditioned on the randomness that client and server share.

One function describes a chunk of blocks for writing and for reading. Everything it computes with comes
from integers: random words of the shared key, scales and knobs of the message, and tables of the package.
"""

from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import acceptance, blocks, code_length, counter, exact, latents, lattices
from cepam_jax.mechanisms.base import Code
from cepam_jax.wire import integers

_CHUNK = 1 << 15  # coordinates coded together: small enough for the cache, large enough for numpy


class Model(NamedTuple):
    """What the symbols of one message are conditioned on; host numbers only.

    Attributes:
      code: of the mechanism.
      key: uint32[2 or 4], shared key of the symbols.
      width: scale of the lattice, or with layers per unit of the radius.
      scale: f64[d], scale of each coordinate.
    """

    code: Code
    key: np.ndarray
    width: float
    scale: np.ndarray

    @property
    def lattice(self) -> lattices.Lattice:
        return lattices.LATTICES[self.code.lattice]

    @property
    def layered(self) -> bool:
        return self.code.layer != "cell"


def coordinate_scales(scales, lengths) -> np.ndarray:
    """f64[d] from the scales of the message, int[segments] in eighths of an octave."""
    values = [exact.power_of_two(s / code_length.SCALES_PER_OCTAVE) for s in np.asarray(scales, np.int64)]
    return np.repeat(np.asarray(values, np.float64), lengths)


def most_tries(code: Code) -> int:
    """Proposals after which a block counts as an exception; probability e^-40 that one gets there."""
    return int(np.ceil(40 / lattices.acceptance(lattices.LATTICES[code.lattice], code.layer))) + 1


def chunks(first: int, last: int, n: int):
    """Ranges of blocks that are coded together."""
    step = max(1, _CHUNK // n)
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def _widths(model: Model, ids):
    """Scale of the lattice for every block; and the spare word of the layers' stream."""
    if not model.layered:
        return np.full(len(ids), model.width), None
    stream = counter.stream(model.key, model.code.streams[0])
    word, spare = counter.words(stream, 0, ids)
    radius = latents.radius(word, latents.radius_table(model.code.layer, model.lattice.dimension))
    return radius.astype(np.float64) * model.width, spare


def _centered(word):
    return word.view(np.int32).astype(np.float64) * 2.0**-32


def _boxes(model: Model, proposal: int, ids):
    """The dithers of a proposal, as `mechanisms.blocks.boxes` draws them."""
    n = model.lattice.dimension
    if model.code.streams[1] is None:
        return [np.zeros(len(ids)) for _ in range(n)]
    stream, pairs, found = counter.stream(model.key, model.code.streams[1]), (n + 1) // 2, []
    for pair in range(pairs):
        found += counter.words(stream, proposal * pairs + pair, ids)
    return [_centered(word) for word in found[:n]]


def independent(coder, model: Model, first: int, last: int, sent, values=None):
    """Symbols of blocks first to last - 1 whose axes do not depend on each other.

    Args:
      coder: Writer or Reader.
      model: of the message.
      first, last: blocks.
      sent: bool[coordinates of these blocks], which of them are coded.
      values: int64[same], symbols; None when reading.

    Returns:
      int64[same], 0 where nothing is sent.
    """
    n = model.lattice.dimension
    ids = np.arange(first, last, dtype=np.uint32)
    width, spare = _widths(model, ids)
    one_stream = n == 1 and model.layered  # the second word of the layers' stream is the dither
    dither = [_centered(spare)] if one_stream else _boxes(model, 0, ids)
    dither = np.stack(dither, 1).reshape(-1)[: len(sent)]
    width = np.repeat(width, n)[: len(sent)] / model.scale[first * n : first * n + len(sent)]
    found = np.zeros(len(sent), np.int64)
    if sent.all():
        at = slice(None)
    else:
        at = np.flatnonzero(sent)
    given = None if values is None else values[at]
    found[at] = integers.code(coder, dither[at] * width[at], width[at], model.code.family, given)
    return found


def dependent(coder, model: Model, ids, sent, values=None, index=None, forced=None):
    """Symbols and indices of blocks, as `mechanisms.acceptance` predicts them.

    Args:
      coder: Writer or Reader.
      model: of the message.
      ids: uint32[k], blocks.
      sent: bool[k, n], axes that are coded (only the update's last block lacks some).
      values: int64[k, n], symbols; None when reading.
      index: int64[k], accepted proposals; None when reading, or where nothing is rejected.
      forced: bool[k], blocks to be written as if their symbols were those that zero would get.

    Returns:
      (int64[k, n] symbols, int64[k] accepted proposals).
    """
    lat, layer, family = model.lattice, model.code.layer, model.code.family
    n, count = lat.dimension, len(ids)
    width, _ = _widths(model, ids)
    d = len(model.scale)
    coordinate = ids.astype(np.int64)[None, :] * n + np.arange(n)[:, None]
    scales = model.scale[np.minimum(coordinate, d - 1)] / width
    deviation = scales[0] * code_length.DEVIATION[family]
    integer, error = np.zeros((n, count)), np.zeros((n, count))
    accepted, at_zero = np.zeros(count, np.int64), np.zeros(count, bool)
    active, proposal, limit = np.arange(count), 0, most_tries(model.code) if model.layered else 1
    while active.size:
        if proposal > limit:
            raise WireError("the message's body is not one that a coder wrote (a block accepts nothing)")
        zero = np.zeros(len(active))
        box = lat.point([zero] * n, _boxes(model, proposal, ids[active]))
        point = lat.nearest([-v for v in box])
        suffered = [p + v for p, v in zip(lat.point(point, [zero] * n), box, strict=True)]
        same, other = acceptance.predict(
            lat, layer, acceptance.table_of(family), acceptance.norm(suffered, layer), deviation[active]
        )
        if model.layered:
            yes = coder.decide(same + other, None if index is None else index[active] == proposal)
        else:
            yes = np.ones(len(active), bool)
        who = active[yes]
        accepted[who] = proposal
        integer[:, who], error[:, who] = np.stack(point)[:, yes], np.stack(suffered)[:, yes]
        known = None
        if values is not None:
            known = ((values[who] == integer[:, who].T) | ~sent[who]).all(1) | forced[who]
        at_zero[who] = coder.decide(same[yes] / (same + other)[yes], known)
        active, proposal = active[~yes], proposal + 1
    found = np.rint(integer.T).astype(np.int64)
    rest = np.flatnonzero(~at_zero)
    if rest.size:
        given = None if values is None else (values[rest] - found[rest]).T.astype(np.float64)
        found[rest] += _deviations(coder, lat, family, error[:, rest], scales[:, rest], sent[rest].T, given)
    return np.where(sent, found, 0), accepted


def _deviations(coder, lat, family, error, scales, sent, values=None):
    """Deviations, not all zero, from the points that zero would get; axis by axis.

    Returns:
      int64[k, n].
    """
    count = error.shape[1]
    stays = {}
    for axis in lat.order:
        above, below = integers.sides(error[axis] / scales[axis], lat.spacing[axis] / scales[axis], family)
        stays[axis] = np.where(sent[axis], np.clip(1.0 - above - below, 0.0, 1.0), 1.0)
    later, product = {}, np.ones(count)  # that all axes after this one stay
    for axis in reversed(lat.order):
        later[axis] = product
        product = product * stays[axis]
    before, undecided = {}, np.ones(count, bool)
    for axis in lat.order:
        first, start = lat.residue(axis, error[axis], before)
        width = lat.spacing[axis] / scales[axis]
        center = start / scales[axis]
        above, below = integers.sides(center, width, family)
        # Somewhere a deviation must come: while none has, staying is less likely than the law says.
        moves = np.maximum(1.0 - stays[axis] * later[axis], acceptance.LEAST)
        zero = np.where(undecided, stays[axis] * (1.0 - later[axis]) / moves, 1.0 - above - below)
        at = np.flatnonzero(sent[axis])
        given = None
        if values is not None:
            given = np.rint((values[axis] - first) / lat.modulus[axis]).astype(np.int64)[at]
        k = np.zeros(count)
        j = integers.code(coder, center[at], width[at], family, given, zero[at])
        k[at] = first[at] + lat.modulus[axis] * j
        before[axis] = k
        undecided &= k == 0
    return np.stack([before[axis] for axis in range(lat.dimension)], 1).astype(np.int64)


def is_lattice_point(lat: lattices.Lattice, symbols, sent) -> np.ndarray:
    """bool[k]: whether int64[k, n] symbols name lattice points, as far as they are sent."""
    if not any(step > 1 for step in lat.modulus):
        return np.ones(len(symbols), bool)
    valid, before = np.ones(len(symbols), bool), {}
    for axis in lat.order:
        here = symbols[:, axis].astype(np.float64)
        first, _ = lat.residue(axis, np.zeros(len(symbols)), before)
        valid &= ~sent[:, axis] | (np.mod(here - first, lat.modulus[axis]) == 0)
        before[axis] = here
    return valid


def block_count(code: Code, d: int) -> int:
    """Blocks that d coordinates fill."""
    return blocks.count(lattices.LATTICES[code.lattice].dimension, d)
