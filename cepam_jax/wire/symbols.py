"""Lattice symbols, conditioned on the randomness that client and server share.

One function describes a chunk of blocks for writing and for reading. Everything it computes with comes
from integers: random words of the shared key, scales and knobs of the message, and tables of the package.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import acceptance, code_length, counter, exact, latents, lattices, laws
from cepam_jax.mechanisms.base import Code
from cepam_jax.wire import deviations, integers
from cepam_jax.wire.coder import Coder

_CHUNK = 1 << 15  # coordinates coded together: small enough for the cache, large enough for numpy


class Model(NamedTuple):
    """What the symbols of one message are conditioned on, as numbers on the host.

    Attributes:
      code: how the mechanism's symbols are distributed.
      key: uint32[2 or 4], shared key of the symbols.
      width: scale of the lattice in units of the update; with layers, that scale per unit of the radius.
      scale: f64[d], scale of each coordinate in units of the update.
      law: int8[d], place of each coordinate's law in `laws.LAWS`; None where all have the code's family.
    """

    code: Code
    key: np.ndarray
    width: float
    scale: np.ndarray
    law: np.ndarray | None = None

    @property
    def lattice(self) -> lattices.Lattice:
        """The lattice of the symbols."""
        return lattices.LATTICES[self.code.lattice]

    @property
    def layered(self) -> bool:
        """Whether the scale of the lattice is random, as with LRSUQ."""
        return self.code.layer != "cell"

    def stream(self, number: int) -> counter.Words:
        """The shared stream of the layers (number 0) or of the dithers (number 1)."""
        tag = self.code.streams[number]
        assert tag is not None
        return counter.stream(self.key, tag)


def coordinate_scales(scales: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Scale of each coordinate in units of the update.

    Args:
      scales: int[segments], scales of the message in eighths of an octave.
      lengths: lengths of the segments, summing to d.

    Returns:
      f64[d].
    """
    values = [exact.power_of_two(s / code_length.SCALES_PER_OCTAVE) for s in np.asarray(scales, np.int64)]
    return np.repeat(np.asarray(values, np.float64), lengths)


def chunks(first: int, last: int, n: int) -> list[tuple[int, int]]:
    """Which blocks are coded together: blocks `first` to `last - 1`, of n coordinates each, in ranges.

    Returns:
      Numbers (first, last + 1) of the blocks of each range.
    """
    step = max(1, _CHUNK // n)
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def _widths(model: Model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale of the lattice for every block, and the spare word of the layers' stream.

    Args:
      model: model of the message.
      ids: uint32[k], numbers of the blocks.

    Returns:
      f64[k] in units of the update; uint32[k], or zeros where there are no layers.
    """
    if not model.layered:
        return np.full(len(ids), model.width), np.zeros(len(ids), np.uint32)
    word, spare = counter.words(model.stream(0), 0, ids)
    radius = latents.radius(word, latents.radius_table(model.code.layer, model.lattice.dimension))
    return radius.astype(np.float64) * model.width, spare


def _centered(word: np.ndarray) -> np.ndarray:
    """`mechanisms.counter.centered` on the host: uint32[k] words as f64[k] in [-1/2, 1/2]."""
    return word.view(np.int32).astype(np.float64) * 2.0**-32


def _dither_samples(model: Model, proposal: int | np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """The dithers of a proposal of blocks uint32[k], n arrays f64[k], as `blocks.dither_samples` has them."""
    n = model.lattice.dimension
    if model.code.streams[1] is None:
        return [np.zeros(len(ids)) for _ in range(n)]
    stream, pairs = model.stream(1), (n + 1) // 2
    words: list[np.ndarray] = []
    for pair in range(pairs):
        words += counter.words(stream, proposal * pairs + pair, ids)
    return [_centered(word) for word in words[:n]]


def zero_at(
    model: Model, proposal: int | np.ndarray, ids: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a proposal would do to blocks of zeros.

    Args:
      model: model of the message.
      proposal: number of the proposal, or int64[k], one for each block.
      ids: uint32[k], numbers of the blocks.

    Returns:
      The integers that name the nearest lattice point, and the error of zero in units of the lattice's scale:
      n arrays f64[k] each.
    """
    lat = model.lattice
    origin = [np.zeros(len(ids))] * lat.dimension
    dither = lat.point(origin, _dither_samples(model, proposal, ids))
    integer = lat.nearest([-v for v in dither])
    return integer, [p + v for p, v in zip(lat.point(integer, origin), dither, strict=True)]


def independent(
    coder: Coder, model: Model, first: int, last: int, sent: np.ndarray, values: np.ndarray | None = None
) -> np.ndarray:
    """Symbols of blocks first to last - 1 whose axes do not depend on each other.

    Args:
      coder: Writer or Reader.
      model: model of the message.
      first: number of the first block.
      last: number of the block after the last one.
      sent: bool[m], which of the m coordinates of these blocks are coded.
      values: int64[m], symbols; None when reading.

    Returns:
      int64[m], 0 where nothing is sent.
    """
    n = model.lattice.dimension
    ids = np.arange(first, last, dtype=np.uint32)
    width, spare = _widths(model, ids)
    one_stream = n == 1 and model.layered  # the second word of the layers' stream is the dither
    axes = [_centered(spare)] if one_stream else _dither_samples(model, 0, ids)
    dither = np.stack(axes, 1).reshape(-1)[: len(sent)]
    width = np.repeat(width, n)[: len(sent)] / model.scale[first * n : first * n + len(sent)]
    symbols = np.zeros(len(sent), np.int64)
    at: slice | np.ndarray = slice(None) if sent.all() else np.flatnonzero(sent)
    for family, some in _of_laws(model, slice(first * n, first * n + len(sent)), at):
        given = None if values is None else values[some]
        symbols[some] = integers.code(coder, dither[some] * width[some], width[some], family, given)
    return symbols


def _of_laws(model: Model, chunk: slice, at: slice | np.ndarray) -> Iterator[tuple[str, slice | np.ndarray]]:
    """The coordinates of a chunk, law by law: (family, which of them), of those that are sent."""
    if model.law is None:
        yield model.code.family, at
        return
    law = model.law[chunk]
    sent = np.zeros(len(law), bool)
    sent[at] = True
    for number, family in enumerate(laws.LAWS):
        some = np.flatnonzero(sent & (law == number))
        if some.size:
            yield family, some


def dependent(
    coder: Coder,
    model: Model,
    ids: np.ndarray,
    sent: np.ndarray,
    values: np.ndarray | None = None,
    index: np.ndarray | None = None,
    forced: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and indices of blocks, as `mechanisms.acceptance` predicts them.

    Args:
      coder: Writer or Reader.
      model: model of the message.
      ids: uint32[k], numbers of the blocks.
      sent: bool[k, n], axes that are coded (only the update's last block lacks some).
      values: int64[k, n], symbols; None when reading.
      index: int64[k], accepted proposals; None when reading, or where nothing is rejected.
      forced: bool[k], blocks to be written as if their symbols were those that zero would get; None when
        reading.

    Returns:
      int64[k, n] symbols, int64[k] accepted proposals.

    Raises:
      WireError: when reading, a block accepts no proposal, which no writer writes.
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
    active, proposal, limit = np.arange(count), 0, lattices.most_tries(lat, layer) if model.layered else 1
    while active.size:
        if proposal > limit:
            raise WireError("the message's body is not one that a coder wrote (a block accepts nothing)")
        point, suffered = zero_at(model, proposal, ids[active])
        same, other = acceptance.predict(
            lat, layer, acceptance.table_of(family), acceptance.norm(suffered, layer), deviation[active]
        )
        if model.layered:
            accepts = coder.code_bits(same + other, None if index is None else index[active] == proposal)
        else:
            accepts = np.ones(len(active), bool)
        now = active[accepts]  # blocks that accept this proposal
        accepted[now] = proposal
        integer[:, now], error[:, now] = np.stack(point)[:, accepts], np.stack(suffered)[:, accepts]
        known = None
        if values is not None and forced is not None:
            known = ((values[now] == integer[:, now].T) | ~sent[now]).all(1) | forced[now]
        at_zero[now] = coder.code_bits(same[accepts] / (same + other)[accepts], known)
        active, proposal = active[~accepts], proposal + 1
    symbols = np.rint(integer.T).astype(np.int64)
    rest = np.flatnonzero(~at_zero)
    if rest.size:
        given = None if values is None else (values[rest] - symbols[rest]).T.astype(np.float64)
        symbols[rest] += deviations.code(
            coder, lat, family, error[:, rest], scales[:, rest], sent[rest].T, given
        )
    return np.where(sent, symbols, 0), accepted
