"""Reading and writing a whole message on host arrays: streams, their blocks, and what goes around them."""

import struct
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError, require
from cepam_jax.mechanisms import acceptance, code_length
from cepam_jax.mechanisms.base import Knobs, Mechanism, Message
from cepam_jax.wire import exceptions, header, side, symbols
from cepam_jax.wire.coder import Reader, Writer


class Context(NamedTuple):
    """What sender and receiver know before the message, as host values.

    Attributes:
      mechanism: of the message.
      key: uint32 words of the shared key of the symbols.
      knobs: Knobs of numpy float32 values (or None).
      template: Message of arrays or shapes with the message's structure.
      round, client: numbers for the header.
    """

    mechanism: Mechanism
    key: np.ndarray
    knobs: Knobs
    template: Message
    round: int = 0
    client: int = 0


class _Layout(NamedTuple):
    """How the symbols are cut up.

    Attributes:
      size: coordinates that are quantized.
      lengths: of the segments.
      block: coordinates per block.
      bounds: numbers of the blocks where a segment begins, and where the last ends.
    """

    size: int
    lengths: tuple[int, ...]
    block: int
    bounds: np.ndarray


def _layout(context: Context) -> _Layout:
    code = context.mechanism.code
    size = code.size(context.template.length)
    lengths = code_length.Scales(code.segments, code.family, "own").lengths(size)
    block = context.mechanism.about.block if code.kind == "lattice" else 1
    edges = -(-np.cumsum((0, *lengths)) // block)  # a block belongs to the segment where it begins
    return _Layout(size, lengths, block, edges)


def _expectation(context: Context, layout: _Layout) -> header.Expectation:
    code = context.mechanism.code
    tables = header.tables(code.lattice, code.layer) if code.kind == "lattice" else b""
    return header.Expectation(
        mechanism=context.mechanism.about.name.encode() + tables,
        segments=np.asarray(layout.lengths, "<u4").tobytes(),
        key=np.asarray(context.key, "<u4").tobytes(),
        knobs=header.knobs_bytes(context.knobs),
    )


def _model(context: Context, layout: _Layout, found_side: dict) -> symbols.Model:
    code = context.mechanism.code
    own = code.side(found_side)
    scales = own["scale"] if "scale" in own else context.knobs.scale
    if code.weight is None and "scale" in own:
        require(len(scales) == len(layout.lengths), "scales", len(scales), "one for each segment")
    scale = symbols.coordinate_scales(scales, layout.lengths)
    return symbols.Model(code, context.key, float(code.width(own, context.knobs)), scale)


def _streams(layout: _Layout, offsets: bool):
    """Ranges of blocks, one for each stream."""
    if not offsets:
        return [(0, int(layout.bounds[-1]))]
    return [(int(a), int(b)) for a, b in zip(layout.bounds[:-1], layout.bounds[1:], strict=True)]


def write(message: Message, context: Context, weight, offsets: bool) -> bytes:
    """`pack` on host arrays; weight is f32[size] or None."""
    layout = _layout(context)
    lattice = context.mechanism.code.kind == "lattice"
    plain, unusual = exceptions.split(message, context, layout.block, weight)
    model = _model(context, layout, message.side) if lattice else None
    parts = []
    for first, last in _streams(layout, offsets):
        coder = Writer()
        _code(coder, context, model, layout, (first, last), weight, plain)
        parts.append(coder.finish())
    scales, rest = side.write(message.side)
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts)) if offsets else b""
    extra = b"" if unusual is None else exceptions.write(unusual)
    flags = (header.OFFSETS if offsets else 0) | (header.EXCEPTIONS if unusual is not None else 0)
    expectation, kind = _expectation(context, layout), header.kind_of(context.mechanism.code)
    numbers = (message.length, context.round, context.client)
    own = header.Header(flags, kind, expectation.hints(), *numbers)
    return header.write(own, expectation, b"".join([scales, extra, rest, lengths, *parts]))


def read(data: bytes, context: Context, weight_of, segment: int | None = None) -> Message:
    """`unpack` on host values; weight_of: Message with side information -> f32[size], or None."""
    layout = _layout(context)
    kind, length = header.kind_of(context.mechanism.code), context.template.length
    found, rest = header.read(data, kind, length, _expectation(context, layout))
    offsets = bool(found.flags & header.OFFSETS)
    if segment is not None:
        require(0 <= segment < len(layout.lengths), "segment", segment, f"below {len(layout.lengths)}")
        if not offsets:
            raise WireError("the message has no offsets: one segment cannot be read alone")
    cursor = side.Cursor(rest)
    scales = cursor.scales(context.template.side)
    unusual = exceptions.read(cursor) if found.flags & header.EXCEPTIONS else None
    found_side = cursor.side(context.template.side, scales)
    message = Message(None, None, found_side, context.template.length)
    weight = None if weight_of is None else weight_of(message)
    lattice = context.mechanism.code.kind == "lattice"
    model = _model(context, layout, found_side) if lattice else None
    streams = _streams(layout, offsets)
    lengths = struct.unpack(f"<{len(streams)}I", cursor.take(4 * len(streams))) if offsets else None
    plain = exceptions.empty(context)
    for i, (first, last) in enumerate(streams):
        body = cursor.take(cursor.left if lengths is None else lengths[i])
        if segment is not None and not _holds(layout, i, segment):
            continue
        coder = Reader(body)
        _code(coder, context, model, layout, (first, last), weight, plain, read_into=True)
        coder.finish()
    if cursor.left:
        raise WireError("the message goes on after its last stream")
    return exceptions.merge(plain, unusual, message, context)


def _holds(layout: _Layout, stream: int, segment: int) -> bool:
    """Whether a stream has coordinates of a segment: its own, or the one in which its first block begins."""
    first = int(np.sum(layout.lengths[:segment]))
    last = first + layout.lengths[segment]
    low, high = layout.bounds[stream] * layout.block, layout.bounds[stream + 1] * layout.block
    return bool(low < last and first < high)


def _code(coder, context, model, layout, blocks, weight, plain: exceptions.Plain, read_into=False):
    """One stream: writes the symbols of these blocks from `plain`, or reads them into it."""
    code = context.mechanism.code
    n = layout.block
    for first, last in symbols.chunks(*blocks, n):
        here = slice(first * n, min(last * n, len(plain.symbols)))
        values = None if read_into else plain.symbols[here].astype(np.int64)
        count = here.stop - here.start
        sent = np.ones(count, bool) if weight is None else np.zeros(count, bool)
        if weight is not None:
            own = np.asarray(weight[here]) > 0
            sent[: len(own)] = own
        if code.kind != "lattice":
            found = _plain(coder, code, context.knobs, sent, values)
        elif acceptance.needed(model.lattice, code.layer):
            found = _blocks(coder, model, (first, last), sent, values, plain, read_into)
        else:
            found = symbols.independent(coder, model, first, last, sent, values)
        if read_into:
            plain.symbols[here] = found


def _plain(coder, code, knobs, sent, values):
    """Floats as they are, or levels, all equally likely."""
    found = np.zeros(len(sent), np.int64)
    low, number = (0, 1 << 32) if code.kind == "float" else code.alphabet(knobs)
    given = None
    if values is not None:
        given = (values[sent] - low) & 0xFFFFFFFF if code.kind == "float" else values[sent] - low
    read = coder.uniform(number, int(sent.sum()), given)
    found[sent] = np.asarray(read, np.int64) + low
    return found


def _blocks(coder, model, blocks, sent, values, plain, read_into):
    """Blocks whose axes depend on each other; those of which nothing is sent are left out."""
    n, (first, last) = model.lattice.dimension, blocks
    count, length = last - first, len(sent)

    def rows(flat, fill):
        return np.concatenate([flat, np.full(count * n - length, fill, flat.dtype)]).reshape(count, n)

    coded = rows(np.ones(length, bool), False)
    chosen = rows(sent, False).any(1)
    ids = np.arange(first, last, dtype=np.uint32)[chosen]
    given = index = forced = None
    if not read_into:
        given = rows(values, 0)[chosen]
        index = None if plain.index is None else plain.index[first:last][chosen].astype(np.int64)
        forced = plain.forced[first:last][chosen]
    found, accepted = symbols.dependent(coder, model, ids, coded[chosen], given, index, forced)
    if read_into and plain.index is not None:
        plain.index[first:last][chosen] = accepted
    all_symbols = np.zeros((count, n), np.int64)
    all_symbols[chosen] = found
    return all_symbols.reshape(-1)[:length]
