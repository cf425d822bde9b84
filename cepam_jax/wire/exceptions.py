"""Symbols that the model has no place for: listed one by one, so that every message can be written.

A coordinate that could not be quantized (NaN, infinite), a level outside its alphabet, integers that name no
lattice point, a proposal that nobody accepts: none of them comes from a valid update, all of them
must arrive as they are, or an invalid update would be laundered into a valid one.
"""

import struct
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms.base import Message
from cepam_jax.mechanisms.blocks import INVALID
from cepam_jax.wire import symbols


class Plain(NamedTuple):
    """What goes through the model: int32 symbols and index (floats as their bits), and bool[blocks],
    blocks that are written as if zero had been sent because their symbols are listed."""

    symbols: np.ndarray
    index: np.ndarray | None
    forced: np.ndarray | None


class Unusual(NamedTuple):
    """What is listed: where and what, of symbols and of indices."""

    at: np.ndarray
    values: np.ndarray
    index_at: np.ndarray
    index_values: np.ndarray


def empty(context) -> Plain:
    """Zeros to read into."""
    template = context.template
    index = None if template.index is None else np.zeros(template.index.shape, np.uint32)
    return Plain(np.zeros(template.symbols.shape, np.int32), index, None)


def split(message: Message, context, block: int, weight) -> tuple[Plain, Unusual | None]:
    """Separates what the model can write from what must be listed."""
    code = context.mechanism.code
    values = np.ascontiguousarray(message.symbols).view(np.int32).copy()
    index = None if message.index is None else np.array(message.index, np.uint32)
    listed, forced, bad_index = np.zeros(len(values), bool), None, np.zeros(0, bool)
    sent = None
    if weight is not None:
        sent = np.zeros(len(values), bool)
        sent[: len(weight)] = weight > 0
    if code.kind == "levels":
        low, number = code.alphabet(context.knobs)
        listed = (values.astype(np.int64) < low) | (values.astype(np.int64) >= low + number)
    elif code.kind == "float":
        listed = ~np.isfinite(message.symbols) & (False if sent is None else ~sent)
    else:
        listed = values == INVALID  # cheaper than as a number, and what `Mechanism.bits` says
        lat = symbols.lattices.LATTICES[code.lattice]
        if symbols.acceptance.needed(lat, code.layer):
            listed, forced, bad_index = _of_blocks(values, index, lat, code, sent, block)
    if not listed.any() and not bad_index.any():
        if sent is not None:
            _clear(values, index, sent, block)
        return Plain(values, index, forced), None
    index_at = np.flatnonzero(bad_index)
    unusual = Unusual(
        np.flatnonzero(listed),
        values[listed],
        index_at,
        np.zeros(0, np.uint32) if index is None else index[index_at],
    )
    values[listed] = code.alphabet(context.knobs)[0] if code.kind == "levels" else 0
    if index is not None:
        index[index_at] = 0
    if sent is not None:
        _clear(values, index, sent, block)
    return Plain(values, index, forced), unusual


def _of_blocks(values, index, lat, code, sent, block):
    """(listed symbols, blocks written as zero, listed indices) where axes depend on each other."""
    count = -(-len(values) // block)
    rows = np.concatenate([values, np.zeros(count * block - len(values), np.int32)]).reshape(count, block)
    exists = np.arange(count * block).reshape(count, block) < len(values)
    wrong = ~symbols.is_lattice_point(lat, rows, exists) | (rows == INVALID).any(1)
    bad_index = np.zeros(0, bool)
    if index is not None:
        bad_index = index >= symbols.most_tries(code)
        wrong |= bad_index
    listed = (wrong[:, None] & exists).reshape(-1)[: len(values)]
    if sent is not None:  # of blocks that are not sent only what is invalid matters
        used = np.repeat(_any_sent(sent, block), block)[: len(values)]
        listed &= used | (values == INVALID)
        bad_index = bad_index & _any_sent(sent, block) if index is not None else bad_index
    return listed, wrong, bad_index


def _any_sent(sent, block):
    return np.concatenate([sent, np.zeros(-len(sent) % block, bool)]).reshape(-1, block).any(1)


def _clear(values, index, sent, block):
    used = _any_sent(sent, block)
    values[~np.repeat(used, block)[: len(values)]] = 0
    if index is not None:
        index[~used] = 0


def write(unusual: Unusual) -> bytes:
    """Counts, positions, values."""
    return (
        struct.pack("<II", len(unusual.at), len(unusual.index_at))
        + unusual.at.astype("<u4").tobytes()
        + unusual.values.astype("<i4").tobytes()
        + unusual.index_at.astype("<u4").tobytes()
        + unusual.index_values.astype("<u4").tobytes()
    )


def read(cursor) -> Unusual:
    """The inverse of `write`; what does not fit into the bytes is refused before it is allocated."""
    count, index_count = struct.unpack("<II", cursor.take(8))
    at, values = (np.frombuffer(cursor.take(4 * count), kind) for kind in ("<u4", "<i4"))
    index_at, index_values = (np.frombuffer(cursor.take(4 * index_count), "<u4") for _ in range(2))
    return Unusual(at, values, index_at, index_values)


def merge(plain: Plain, unusual: Unusual | None, message: Message, context) -> Message:
    """The whole message: what the model wrote, then what was listed."""
    values, index = plain.symbols, plain.index
    if unusual is not None:
        if (unusual.at >= len(values)).any() or (
            len(unusual.index_at) and (index is None or (unusual.index_at >= len(index)).any())
        ):
            raise WireError("the message lists a symbol beyond its end")
        values[unusual.at] = unusual.values
        if index is not None:
            index[unusual.index_at] = unusual.index_values
    return Message(values.view(context.template.symbols.dtype), index, message.side, message.length)
