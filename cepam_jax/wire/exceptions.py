"""Symbols to which the entropy coder's model gives no probability: they are listed one by one.

A coordinate that could not be quantized (NaN, infinite), a level outside its alphabet, integers that name no
lattice point, a proposal that nobody accepts: none of them comes from a valid update. All of them
must arrive as they are, or an invalid update would come back as a valid one. With them listed, every message
can be written.
"""

import dataclasses
import struct
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import acceptance, counter, lattices
from cepam_jax.mechanisms.base import Code, Message
from cepam_jax.mechanisms.blocks import INVALID
from cepam_jax.wire import cells, deviations
from cepam_jax.wire.context import Context
from cepam_jax.wire.side import Cursor


@dataclasses.dataclass(frozen=True)
class CodedSymbols:
    """The part of a message that is coded with the model's probabilities.

    Attributes:
      symbols: int32[...], the symbols, with 0 (or the lowest level) where one is listed; floats as their
        bits.
      index: uint32[blocks], the accepted proposals, with 0 where one is listed; None where there are none.
      forced: bool[blocks], blocks that are written as if zero had been sent because their symbols are
        listed; None where blocks are not coded as a whole, and when reading.
    """

    symbols: np.ndarray
    index: np.ndarray | None
    forced: np.ndarray | None


class EscapedSymbols(NamedTuple):
    """The part of a message that is listed.

    Attributes:
      at: int[k], positions of the listed symbols.
      values: int32[k], those symbols.
      index_at: int[m], blocks whose index is listed.
      index_values: uint32[m], those indices.
    """

    at: np.ndarray
    values: np.ndarray
    index_at: np.ndarray
    index_values: np.ndarray


def empty(context: Context) -> CodedSymbols:
    """A `CodedSymbols` of zeros, with the shapes of the context's messages, to read into."""
    template = context.template
    index = None if template.index is None else np.zeros(template.index.shape, np.uint32)
    return CodedSymbols(np.zeros(template.symbols.shape, np.int32), index, None)


def split(
    message: Message, context: Context, block: int, weight: np.ndarray | None
) -> tuple[CodedSymbols, EscapedSymbols | None]:
    """Separates what the model can write from what must be listed.

    Args:
      message: message of numpy arrays.
      context: what sender and receiver know.
      block: coordinates per block.
      weight: f32[size], 0 where a coordinate is not sent; None: all are.

    Returns:
      What the model can write, and what must be listed (None if nothing must).
    """
    code = context.mechanism.code
    values = np.ascontiguousarray(message.symbols).view(np.int32).copy()
    index = None if message.index is None else np.array(message.index, np.uint32)
    listed, forced, bad_index = np.zeros(len(values), bool), None, np.zeros(0, bool)
    sent = None
    if weight is not None:
        sent = np.zeros(len(values), bool)
        sent[: len(weight)] = weight > 0
    low = 0
    if code.kind == "levels":
        assert code.alphabet
        low, number = code.alphabet(context.knobs)
        listed = (values.astype(np.int64) < low) | (values.astype(np.int64) >= low + number)
    elif code.kind == "float":
        listed = ~np.isfinite(message.symbols) & (False if sent is None else ~sent)
    else:
        listed = values == INVALID  # cheaper than as a number, and what `Mechanism.bits` says
        lat = lattices.LATTICES[code.lattice]
        if acceptance.needed(lat, code.layer):
            rejects = None
            if code.layer == "rotated":
                assert index is not None and code.streams[0] is not None
                ids = np.arange(len(index), dtype=np.uint32)
                _, rejects = cells.scales(lat, counter.stream(context.key, code.streams[0]), ids)
            listed, forced, bad_index = _of_blocks(values, index, lat, code, sent, block, rejects)
    if not listed.any() and not bad_index.any():
        if sent is not None:
            _clear(values, index, sent, block)
        return CodedSymbols(values, index, forced), None
    index_at = np.flatnonzero(bad_index)
    escaped = EscapedSymbols(
        np.flatnonzero(listed),
        values[listed],
        index_at,
        np.zeros(0, np.uint32) if index is None else index[index_at],
    )
    values[listed] = low
    if index is not None:
        index[index_at] = 0
    if sent is not None:
        _clear(values, index, sent, block)
    return CodedSymbols(values, index, forced), escaped


def _of_blocks(
    values: np.ndarray,
    index: np.ndarray | None,
    lat: lattices.Lattice,
    code: Code,
    sent: np.ndarray | None,
    block: int,
    rejects: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What must be listed where the axes of a block depend on each other.

    Args:
      values: int32[length], symbols.
      index: uint32[blocks], accepted proposals; None where nothing is rejected.
      lat: lattice.
      code: how the symbols are distributed.
      sent: bool[length], which coordinates are sent; None: all are.
      block: coordinates per block.
      rejects: bool[blocks], which blocks may reject a proposal; None: all.

    Returns:
      bool[length], symbols to list; bool[blocks], blocks to write as if zero had been sent; bool[blocks],
      indices to list (bool[0] where there is no index).
    """
    count = -(-len(values) // block)
    rows = np.concatenate([values, np.zeros(count * block - len(values), np.int32)]).reshape(count, block)
    exists = np.arange(count * block).reshape(count, block) < len(values)
    wrong = ~deviations.is_lattice_point(lat, rows, exists) | (rows == INVALID).any(1)
    bad_index = np.zeros(0, bool)
    if index is not None:
        bad_index = index >= lattices.most_tries(lat, code.layer)
        if rejects is not None:
            bad_index |= (index > 0) & ~rejects
        wrong |= bad_index
    listed = (wrong[:, None] & exists).reshape(-1)[: len(values)]
    if sent is not None:  # of blocks that are not sent only what is invalid matters
        used = np.repeat(_any_sent(sent, block), block)[: len(values)]
        listed &= used | (values == INVALID)
        bad_index = bad_index & _any_sent(sent, block) if index is not None else bad_index
    return listed, wrong, bad_index


def _any_sent(sent: np.ndarray, block: int) -> np.ndarray:
    """bool[blocks] from bool[length]: whether any coordinate of a block is sent."""
    filled = np.concatenate([sent, np.zeros(-len(sent) % block, bool)])
    return np.any(filled.reshape(-1, block), axis=1)


def _clear(values: np.ndarray, index: np.ndarray | None, sent: np.ndarray, block: int) -> None:
    """Sets the symbols int32[length] and indices uint32[blocks] of blocks of which nothing is sent to 0."""
    used = _any_sent(sent, block)
    values[~np.repeat(used, block)[: len(values)]] = 0
    if index is not None:
        index[~used] = 0


def write(escaped: EscapedSymbols) -> bytes:
    """What is listed, as bytes.

    First the numbers of symbols and of indices, then where the symbols are and what they are, then the same
    of the indices; each number takes four bytes.
    """
    return (
        struct.pack("<II", len(escaped.at), len(escaped.index_at))
        + escaped.at.astype("<u4").tobytes()
        + escaped.values.astype("<i4").tobytes()
        + escaped.index_at.astype("<u4").tobytes()
        + escaped.index_values.astype("<u4").tobytes()
    )


def read(cursor: Cursor) -> EscapedSymbols:
    """The inverse of `write`; raises WireError, before it allocates, where the bytes are too few."""
    count, index_count = struct.unpack("<II", cursor.take(8))
    at, values = (np.frombuffer(cursor.take(4 * count), kind) for kind in ("<u4", "<i4"))
    index_at, index_values = (np.frombuffer(cursor.take(4 * index_count), "<u4") for _ in range(2))
    return EscapedSymbols(at, values, index_at, index_values)


def merge(
    regular: CodedSymbols, escaped: EscapedSymbols | None, message: Message, context: Context
) -> Message:
    """The whole message: what the model wrote, with what was listed in its place.

    Args:
      regular: what was read with the model's probabilities.
      escaped: what was listed; None if nothing was.
      message: message with the side information and length of the whole.
      context: what sender and receiver know.

    Returns:
      The message, with numpy arrays.

    Raises:
      WireError: a symbol is listed beyond the message's end.
    """
    values, index = regular.symbols, regular.index
    if escaped is not None:
        if (escaped.at >= len(values)).any() or (
            len(escaped.index_at) and (index is None or (escaped.index_at >= len(index)).any())
        ):
            raise WireError("the message lists a symbol beyond its end")
        values[escaped.at] = escaped.values
        if index is not None:
            index[escaped.index_at] = escaped.index_values
    return Message(values.view(context.template.symbols.dtype), index, message.side, message.length)
