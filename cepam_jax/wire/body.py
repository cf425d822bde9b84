"""Reading and writing a whole message on host arrays: streams, their blocks, and what goes around them.

A stream is the output of one range coder. A message has one stream for all its symbols, or one for each
segment (with offsets). The symbols of a stream are coded in chunks, see `streams`.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError, require
from cepam_jax.mechanisms import code_length
from cepam_jax.mechanisms.base import Message
from cepam_jax.wire import exceptions, header, side, streams, symbols
from cepam_jax.wire.coder import Reader, Writer
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
    code = context.mechanism.code
    tables = header.tables(code.lattice, code.layer) if code.kind == "lattice" else b""
    return header.Expectation(
        mechanism=context.mechanism.about.name.encode() + tables,
        segments=np.asarray(layout.lengths, "<u4").tobytes(),
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
    scales = symbols_side["scale"] if "scale" in symbols_side else context.knobs.scale
    if code.weight is None and "scale" in symbols_side:
        require(len(scales) == len(layout.lengths), "scales", len(scales), "one for each segment")
    scale = symbols.coordinate_scales(scales, layout.lengths)
    return symbols.Model(code, context.key, float(code.width(symbols_side, context.knobs)), scale)


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


def write(message: Message, context: Context, weight: np.ndarray | None, offsets: bool) -> bytes:
    """`pack` on host arrays.

    Args:
      message: message of numpy arrays.
      context: what sender and receiver know.
      weight: f32[size], 0 where a coordinate is not sent; None: all are.
      offsets: whether every segment is a stream of its own.

    Returns:
      The message as bytes.
    """
    layout = _layout(context)
    expectation, kind = _expectation(context, layout), header.kind_of(context.mechanism.code)
    context = _informed(context, message.side)
    plain, unusual = exceptions.split(message, context, layout.block, weight)
    model = _model(context, layout, message.side)
    parts = []
    for first, last in _ranges(layout, offsets):
        writer = Writer()
        streams.code(writer, context, model, layout.block, (first, last), weight, plain)
        parts.append(writer.finish())
    scales, rest = side.write(message.side)
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts)) if offsets else b""
    extra = b"" if unusual is None else exceptions.write(unusual)
    flags = (header.OFFSETS if offsets else 0) | (header.EXCEPTIONS if unusual is not None else 0)
    numbers = (message.length, context.round, context.client)
    front = header.Header(flags, kind, expectation.hints(), *numbers)
    return header.write(front, expectation, b"".join([scales, extra, rest, lengths, *parts]))


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
    if segment is not None:
        require(0 <= segment < len(layout.lengths), "segment", segment, f"below {len(layout.lengths)}")
        if not offsets:
            raise WireError("the message has no offsets: one segment cannot be read alone")
    cursor = side.Cursor(rest)
    scales = cursor.scales(context.template.side)
    unusual = exceptions.read(cursor) if front.flags & header.EXCEPTIONS else None
    message_side = cursor.side(context.template.side, scales)
    context = _informed(context, message_side)
    message = Message(np.zeros(0, np.int32), None, message_side, context.template.length)
    weight = None if weight_of is None else weight_of(message)
    model = _model(context, layout, message_side)
    ranges = _ranges(layout, offsets)
    lengths = struct.unpack(f"<{len(ranges)}I", cursor.take(4 * len(ranges))) if offsets else None
    plain = exceptions.empty(context)
    for i, (first, last) in enumerate(ranges):
        body = cursor.take(cursor.left if lengths is None else lengths[i])
        if segment is not None and not _holds(layout, i, segment):
            continue
        reader = Reader(body)
        streams.code(reader, context, model, layout.block, (first, last), weight, plain, read_into=True)
        reader.finish()
    if cursor.left:
        raise WireError("the message goes on after its last stream")
    return exceptions.merge(plain, unusual, message, context)


def _holds(layout: _Layout, stream: int, segment: int) -> bool:
    """Whether a stream has coordinates of a segment: its own, or the one in which its first block begins."""
    first = int(np.sum(layout.lengths[:segment]))
    last = first + layout.lengths[segment]
    low, high = layout.bounds[stream] * layout.block, layout.bounds[stream + 1] * layout.block
    return bool(low < last and first < high)
