"""The symbols of one range-coded stream, chunk by chunk; the same functions write and read."""

import numpy as np

from cepam_jax.mechanisms import acceptance
from cepam_jax.mechanisms.base import Code, Knobs
from cepam_jax.wire import cells, symbols
from cepam_jax.wire.coder import Coder
from cepam_jax.wire.context import Context
from cepam_jax.wire.exceptions import CodedSymbols


def code(
    coder: Coder,
    context: Context,
    model: symbols.Model | None,
    block: int,
    blocks: tuple[int, int],
    weight: np.ndarray | None,
    regular: CodedSymbols,
    read_into: bool = False,
) -> None:
    """Writes the symbols of one stream from `regular`, or reads them into it.

    Args:
      coder: Writer or Reader.
      context: what sender and receiver know.
      model: what lattice symbols are conditioned on; None for other symbols.
      block: coordinates per block.
      blocks: numbers (first, last + 1) of the stream's blocks.
      weight: f32[size], 0 where a coordinate is not sent; None: all are.
      regular: the symbols and indices of the whole message.
      read_into: whether to read.
    """
    for first, last in symbols.chunks(*blocks, block):
        chunk = slice(first * block, min(last * block, len(regular.symbols)))
        values = None if read_into else regular.symbols[chunk].astype(np.int64)
        sent = _sent(chunk, weight)
        if model is None:
            coded = _without_model(coder, context.mechanism.code, context.knobs, sent, values)
        elif acceptance.needed(model.lattice, model.code.layer):
            coded = _dependent(coder, model, (first, last), sent, values, regular, read_into)
        else:
            coded = symbols.independent(coder, model, first, last, sent, values)
        if read_into:
            regular.symbols[chunk] = coded


def _sent(chunk: slice, weight: np.ndarray | None) -> np.ndarray:
    """bool[chunk], which of its symbols are sent; symbols beyond the end of `weight` f32[size] are not."""
    count = chunk.stop - chunk.start
    if weight is None:
        return np.ones(count, bool)
    sent = np.zeros(count, bool)
    known = np.asarray(weight[chunk]) > 0
    sent[: len(known)] = known
    return sent


def _without_model(
    coder: Coder, code: Code, knobs: Knobs, sent: np.ndarray, values: np.ndarray | None
) -> np.ndarray:
    """Codes floats as they are, or levels, all of which are equally likely.

    Args:
      coder: Writer or Reader.
      code: how the symbols are distributed, of the kind "float" or "levels".
      knobs: knobs of the message.
      sent: bool[m], which symbols are sent.
      values: int64[m], the symbols (floats as their bits); None when reading.

    Returns:
      int64[m], the symbols, 0 where nothing is sent.
    """
    low, number = 0, 1 << 32
    if code.kind == "levels":
        assert code.alphabet
        low, number = code.alphabet(knobs)
    given = None
    if values is not None:
        given = (values[sent] - low) & 0xFFFFFFFF if code.kind == "float" else values[sent] - low
    coded = np.zeros(len(sent), np.int64)
    coded[sent] = np.asarray(coder.uniform(number, int(sent.sum()), given), np.int64) + low
    return coded


def _dependent(
    coder: Coder,
    model: symbols.Model,
    blocks: tuple[int, int],
    sent: np.ndarray,
    values: np.ndarray | None,
    regular: CodedSymbols,
    read_into: bool,
) -> np.ndarray:
    """Codes blocks whose axes depend on each other; those of which nothing is sent are left out.

    Args:
      coder: Writer or Reader.
      model: what the symbols are conditioned on.
      blocks: numbers (first, last + 1) of the blocks.
      sent: bool[m], which of the m coordinates of these blocks are sent.
      values: int64[m], their symbols; None when reading.
      regular: the indices and forced blocks of the whole message; indices are read into it.
      read_into: whether to read.

    Returns:
      int64[m], the symbols, 0 in blocks of which nothing is sent.
    """
    n, (first, last) = model.lattice.dimension, blocks
    count, length = last - first, len(sent)
    exists = _rows(np.ones(length, bool), count, n)
    chosen = _rows(sent, count, n).any(1)
    ids = np.arange(first, last, dtype=np.uint32)[chosen]
    given = index = forced = None
    if values is not None:
        given = _rows(values, count, n)[chosen]
        index = None if regular.index is None else regular.index[first:last][chosen].astype(np.int64)
        forced = None if regular.forced is None else regular.forced[first:last][chosen]
    if model.code.layer == "rotated":
        coded, accepted = cells.code(coder, model, ids, given, index, forced)
    else:
        coded, accepted = symbols.dependent(coder, model, ids, exists[chosen], given, index, forced)
    if read_into and regular.index is not None:
        regular.index[first:last][chosen] = accepted
    rows = np.zeros((count, n), np.int64)
    rows[chosen] = coded
    return rows.reshape(-1)[:length]


def _rows(flat: np.ndarray, count: int, n: int) -> np.ndarray:
    """[m] -> [count, n], filled up with zeros."""
    return np.concatenate([flat, np.zeros(count * n - len(flat), flat.dtype)]).reshape(count, n)
