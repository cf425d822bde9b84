"""Reading and writing a whole message on host arrays: streams, their blocks, and what goes around them.

A stream is the output of one range coder. A message has one stream for all its symbols, or one for each
segment (with offsets). The symbols of a stream are coded in chunks, see `streams`.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cepam_jax.errors import WireError, is_whole, require
from cepam_jax.mechanisms import code_length
from cepam_jax.mechanisms.base import Message
from cepam_jax.wire import exceptions, header, scales, side, streams, symbols
from cepam_jax.wire.coder import Coder, Reader, Writer
from cepam_jax.wire.context import Context


class _Layout(NamedTuple):
    """How the symbols are divided into blocks and segments.

    Attributes:
      size: number of coordinates that are quantized.
      lengths: lengths of the segments, in coordinates.
      block: coordinates per block.
      bounds: int[segments + 1], numbers of the blocks where the segments begin, and where the last one ends.
    """

    size: int
    lengths: tuple[int, ...]
    block: int
    bounds: np.ndarray


def _layout(context: Context) -> _Layout:
    """The layout of the context's messages."""
    code = context.mechanism.code
    size = code.size(context.template.length)
    lengths = code_length.Scales(code.segments, code.family, "own").lengths(size)
    block = context.mechanism.about.block if code.kind == "lattice" else 1
    edges = -(-np.cumsum((0, *lengths)) // block)  # a block belongs to the segment where it begins
    return _Layout(size, lengths, block, edges)


def _expectation(context: Context, layout: _Layout) -> header.Expectation:
    """What the header verifies: everything that sender and receiver must agree on."""
    code, about = context.mechanism.code, context.mechanism.about
    tables = header.tables(code.lattice, code.layer) if code.kind == "lattice" else b""
    said = "\n".join((about.name, " ".join(about.knobs), code.identity))
    return header.Expectation(
        mechanism=said.encode() + tables,
        segments=np.asarray(layout.lengths, "<u4").tobytes() + side.described(context.template).encode(),
        key=np.asarray(context.key, "<u4").tobytes(),
        knobs=header.knobs_bytes(context.knobs),
    )


def _model(context: Context, layout: _Layout, message_side: dict) -> symbols.Model | None:
    """What lattice symbols are conditioned on, given a message's side information; None for other symbols."""
    code = context.mechanism.code
    if code.kind != "lattice":
        return None
    assert code.width
    symbols_side = code.side(message_side)
    of_tensors = symbols_side["scale"] if "scale" in symbols_side else context.knobs.scale
    if code.weight is None and "scale" in symbols_side:
        require(len(of_tensors) == len(layout.lengths), "scales", len(of_tensors), "one for each segment")
    scale = symbols.coordinate_scales(of_tensors, layout.lengths)
    law = symbols_side.get("law")
    each = None if law is None else np.repeat(np.asarray(law, np.int8), layout.lengths)
    return symbols.Model(code, context.key, float(code.width(symbols_side, context.knobs)), scale, each)


def _of_tensors(context: Context, side_of: dict) -> dict[str, Any]:
    """Scales and laws in a message's side information, by name; empty where none are sent."""
    code = context.mechanism.code
    if code.kind != "lattice":
        return {}
    return {name: leaf for name, leaf in code.side(side_of).items() if name in side.TENSORS}


def _code_tensors(
    coder: Coder, context: Context, layout: _Layout, given: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Writes the scales and laws of the tensors, or reads them (given: None); by name."""
    code = context.mechanism.code
    number = code_length.Scales(code.segments, code.family, "own").laws
    scale, law = (None, None) if given is None else (given["scale"], given.get("law"))
    return dict(zip(side.TENSORS, scales.code(coder, layout.lengths, number, scale, law), strict=True))


def _informed(context: Context, message_side: dict) -> Context:
    """The context with what a message's side information says of its alphabet."""
    code = context.mechanism.code
    if code.informed is None:
        return context
    return context._replace(knobs=code.informed(code.side(message_side), context.knobs))


def _ranges(layout: _Layout, offsets: bool) -> list[tuple[int, int]]:
    """Numbers (first, last + 1) of the blocks of each stream."""
    if not offsets:
        return [(0, int(layout.bounds[-1]))]
    return [(int(a), int(b)) for a, b in zip(layout.bounds[:-1], layout.bounds[1:], strict=True)]


def write(message: Message, context: Context, weight: np.ndarray | None, offsets: bool, bare: bool) -> bytes:
    """`pack` on host arrays.

    Args:
      message: message of numpy arrays.
      context: what sender and receiver know.
      weight: f32[size], 0 where a coordinate is not sent; None: all are.
      offsets: whether every segment is a stream of its own.
      bare: whether the header says nothing of the message.

    Returns:
      The message as bytes.
    """
    layout = _layout(context)
    expectation, kind = _expectation(context, layout), header.kind_of(context.mechanism.code)
    context = _informed(context, message.side)
    regular, escaped = exceptions.split(message, context, layout.block, weight)
    model = _model(context, layout, message.side)
    tensors = _of_tensors(context, message.side)
    writer, parts = Writer(), []
    if tensors:
        _code_tensors(writer, context, layout, tensors)
    if tensors and offsets:
        parts.append(writer.finish())
    for first, last in _ranges(layout, offsets):
        writer = Writer() if offsets else writer
        streams.code(writer, context, model, layout.block, (first, last), weight, regular)
        parts.append(writer.finish())
    rest = side.write(message.side)
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts)) if offsets else b""
    extra = b"" if escaped is None else exceptions.write(escaped)
    flags = (header.OFFSETS if offsets else 0) | (header.EXCEPTIONS if escaped is not None else 0)
    flags |= header.BARE if bare else 0
    numbers = (message.length, context.round, context.client)
    front = header.Header(flags, kind, expectation.hints(), *numbers)
    return header.write(front, expectation, b"".join([extra, rest, lengths, *parts]))


def read(
    data: bytes,
    context: Context,
    weight_of: Callable[[Message], np.ndarray | None] | None,
    segment: int | None = None,
) -> Message:
    """`unpack` on host values.

    Args:
      data: the bytes.
      context: what sender and receiver know.
      weight_of: message with side information, but without symbols -> f32[size], 0 where a coordinate is not
        sent; None: all are.
      segment: the segment to read alone; None: all.

    Returns:
      The message, with numpy arrays.

    Raises:
      WireError: the bytes are no message of this context; see `unpack`.
    """
    layout = _layout(context)
    kind, length = header.kind_of(context.mechanism.code), context.template.length
    front, rest = header.read(data, kind, length, _expectation(context, layout))
    offsets = bool(front.flags & header.OFFSETS)
    wanted = None if segment is None else _wanted(context, layout, segment)
    if wanted is not None and not offsets:
        raise WireError("the message has no offsets: one segment cannot be read alone")
    cursor = side.Cursor(rest)
    escaped = exceptions.read(cursor) if front.flags & header.EXCEPTIONS else None
    alone = cursor.rest(context.template.side)
    ranges, tensors = _ranges(layout, offsets), {}
    has_tensors = bool(_of_tensors(context, context.template.side))
    bodies = _bodies(cursor, len(ranges) + has_tensors if offsets else None)
    readers = [Reader(body) for body in bodies]
    if has_tensors:
        tensors = _code_tensors(readers[0], context, layout)
    if has_tensors and offsets:
        del readers[0]
    message_side = side.assemble(context.template.side, alone, tensors)
    context = _informed(context, message_side)
    message = Message(np.zeros(0, np.int32), None, message_side, context.template.length)
    weight = None if weight_of is None else weight_of(message)
    model = _model(context, layout, message_side)
    regular = exceptions.empty(context)
    for i, (first, last) in enumerate(ranges):
        if wanted is not None and not _holds(layout, i, wanted):
            continue
        streams.code(readers[i], context, model, layout.block, (first, last), weight, regular, read_into=True)
    found = exceptions.merge(regular, escaped, message, context)
    return found if wanted is None else _alone(found, layout, wanted)


def _bodies(cursor: side.Cursor, count: int | None) -> list[bytes]:
    """The streams at the end of a message: so many with their lengths in front, or one (None).

    Raises:
      WireError: there are fewer bytes than the lengths say, or more.
    """
    if count is None:
        return [cursor.take(cursor.left)]
    lengths = struct.unpack(f"<{count}I", cursor.take(4 * count))
    bodies = [cursor.take(length) for length in lengths]
    if cursor.left:
        raise WireError("the message goes on after its last stream")
    return bodies


def _wanted(context: Context, layout: _Layout, segment: int) -> tuple[int, int]:
    """The first coordinate of a tensor, and the one behind its last.

    Args:
      context: what sender and receiver know.
      layout: of its messages.
      segment: number of the tensor, empty ones counted.

    Raises:
      ConfigError: there is no such tensor.
    """
    lengths = context.mechanism.code.segments or (layout.size,)
    known = is_whole(segment) and 0 <= segment < len(lengths)
    require(known, "segment", segment, f"a whole number below {len(lengths)}, the number of tensors")
    first = sum(lengths[:segment])
    return first, first + lengths[segment]


def _alone(message: Message, layout: _Layout, wanted: tuple[int, int]) -> Message:
    """The message with zeros for all blocks that have no wanted coordinate."""
    blocks = np.arange(-(-len(message.symbols) // layout.block))
    keep = (blocks >= wanted[0] // layout.block) & (blocks < -(-wanted[1] // layout.block))
    each = np.repeat(keep, layout.block)[: len(message.symbols)]
    symbols = np.where(each, message.symbols, np.zeros_like(message.symbols))
    index = None if message.index is None else np.where(keep, message.index, np.zeros_like(message.index))
    return Message(symbols, index, message.side, message.length)


def _holds(layout: _Layout, stream: int, wanted: tuple[int, int]) -> bool:
    """Whether a stream has wanted coordinates: its own, or those of the block that begins before them."""
    first, last = wanted
    low, high = layout.bounds[stream] * layout.block, layout.bounds[stream + 1] * layout.block
    return bool(low < last and first < high)
