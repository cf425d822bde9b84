"""A packed model, read back: as arrays, or as an ONNX file that any runtime takes.

This file stands alone. It needs numpy and constriction, and may be copied to the device:

  python loader.py model.packed model.onnx

What a packed file holds, in this order:

  4 bytes  "cpjm"
  1 byte   version of the format, 1
  4 bytes  CRC-32 of all that follows, little-endian
  varint   length of the next part
  deflate  the graph without its weights (an ONNX GraphProto), the table of weights, and the upper bytes of
           the numbers of their steps; with the preset dictionary that is below
  bytes    the lower bytes of the numbers of the steps
  words    the codes of all weights through a range coder

A weight is its code times a step: that of its channel, or one for its whole array. Step number k is
2^((k - 4800) / 32), and number 0 is zero. Codes of b bits lie from -(2^(b-1) - 1) to 2^(b-1) - 1, and both
sides learn how frequent each one is while they go on, so that no table of frequencies is in the file.
"""

import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import constriction
import numpy as np

MAGIC, VERSION = b"cpjm", 1
OPSET, IR_VERSION = 21, 10  # the first opset with weights of four bits
FLOAT, INT8, INT4 = 1, 3, 22  # types of ONNX
_FIRST, _LONGEST = 32, 4096  # symbols between two looks at how frequent each one is
_MEMORY = 512  # what earlier weights count at most
_LARGEST_HEAD, _MOST_WEIGHTS = 2**26, 2**16  # bytes of graph and table, arrays; of the models here: thousands
_OCTAVE, _ONE, STEPS = 32, 4800, 8896  # steps in an octave; the number of step 1; how many numbers there are
# What deflate may refer back to; the most frequent comes last.
_DICTIONARY = (
    b'ReduceMaxReduceSumkeepdimsWhereTanhReciprocalSqrtExpGatherExpandSliceConcatPad"\x06Einsum*\x1a\n\x08equation'
    b'"\rabcd,aecd->abec\xa0\x01\x03Cast*\t\n\x02to\x18\x01\xa0\x01\x02last_norm/biasblock_0/scalequery/kernel'
    b'"\x07MaxPool*\x17\n\x0ckernel_shape@\x02@\x02\xa0\x01\x07*\x12\n\x07strides@\x02@\x02\xa0\x01\x07'
    b'"\x04Conv*\x15\n\x04pads@\x01@\x01@\x01@\x01\xa0\x01\x07'
    b'"\tTranspose*\x13\n\x04perm@\x00@\x02@\x03@\x01\xa0\x01\x07*\x13\n\x04perm@\x00@\x03@\x01@\x02\xa0\x01\x07'
    b'"\x03Sub"\x03Div"\x03Mul"\x07Reshape"\x08Identity\x12\x05modelb#\n\x06output\x12\x19\n\x17\x08\x01\x12\x13\n\x07\x12\x05batch'
    b"\n\x02\x08\n*\n\x08\x01\x10\x01B\x03~c0J\x04Z\x1c\n\x05input\x08\x01\x10\x07J\x10\xff\xff\xff\xff\xff\xff\xff\xff"
    b"\rConv_0/kernel\x0bConv_0/bias\x0eDense_0/kernel\x0cDense_0/bias\x08\x02\x00\x01"
    b'\x12\x02~0"\x06MatMul\n\x16\n\x02~1\n\x0cDense_1/bias\x12\x02~2"\x03Add\n\x10\n\x02~3\x12\x02~4"\x04Relu'
)


class CorruptModelError(ValueError):
    """A file is not a packed model, or was cut short or altered."""


class Weight(NamedTuple):
    """One array of a model.

    Attributes:
      name: what the graph calls it.
      values: f32[...], as the model computes with them.
      codes: int8 of that shape, where it is quantized; else None.
      numbers: int32[channels] or int32[1], the numbers of the steps; None likewise.
      axis: of the channels; None where one step serves the whole array.
      bits: of a code.
    """

    name: str
    values: np.ndarray
    codes: np.ndarray | None = None
    numbers: np.ndarray | None = None
    axis: int | None = None
    bits: int = 0


def steps(numbers: np.ndarray) -> np.ndarray:
    """f32[...] of the numbers int[...] of steps; the same bits on every machine."""
    root = 2.0
    for _ in range(5):
        root = math.sqrt(root)  # 2^(1/32), by operations that are exact to the last bit everywhere
    part = np.cumprod([1.0] + [root] * (_OCTAVE - 1)).astype(np.float32)
    octave, place = np.divmod(np.asarray(numbers) - _ONE, _OCTAVE)
    return np.where(np.asarray(numbers) == 0, np.float32(0), np.ldexp(part[place], octave))


def quantized(name: str, codes: np.ndarray, numbers: np.ndarray, axis: int | None, bits: int) -> Weight:
    """The Weight of codes int8[...] and the numbers of their steps."""
    shape = [1] * codes.ndim
    if axis is not None:
        shape[axis] = -1
    return Weight(name, codes * steps(numbers).reshape(shape), codes, numbers, axis, bits)


def read(data: bytes, most: int = 2**28) -> tuple[bytes, list[Weight]]:
    """(graph without weights, weights) of the bytes of a packed file, `most` numbers in all at most.

    A few bytes can stand for any number of zeros; reading takes some nine bytes of memory for each number.

    Raises:
      CorruptModelError: they are no such file, of another version, cut short or altered, or too large.
    """
    if data[:4] != MAGIC:
        raise CorruptModelError("this is not a packed model: it does not begin with 'cpjm'")
    if len(data) < 9 or data[4] != VERSION:
        raise CorruptModelError(f"the packed model is of version {data[4:5].hex()}; {VERSION} is read here")
    if zlib.crc32(data[9:]).to_bytes(4, "little") != data[5:9]:
        raise CorruptModelError("the packed model was cut short or altered: its checksum is another one")
    try:
        return _read(data, most)
    except MemoryError:
        raise CorruptModelError("the packed model is larger than this machine's memory") from None
    except (ValueError, IndexError, OverflowError, AssertionError, zlib.error) as error:
        raise CorruptModelError(f"the packed model is not one that was written so ({error})") from error


def _read(data: bytes, most: int) -> tuple[bytes, list[Weight]]:
    """As `read`, of bytes whose checksum fits, whoever made it fit; ValueError and others where they lie."""
    length, start = _read_varint(data, 9)
    inflated = zlib.decompressobj(-15, _DICTIONARY)
    head = inflated.decompress(data[start : start + length], _LARGEST_HEAD)
    _check(not inflated.unconsumed_tail, f"its graph and table have more than {_LARGEST_HEAD:,} bytes")
    size, at = _read_varint(head, 0)
    graph, (table, at) = head[at : at + size], _read_table(head, at + size)
    upper, low = np.frombuffer(head[at:], np.uint8), start + length
    lower = np.frombuffer(data[low : low + len(upper)], np.uint8)
    numbers = (upper.astype(np.int32) << 8) | lower
    words = np.frombuffer(data[low + len(upper) :], "<u4").astype(np.uint32)
    symbols = Symbols(constriction.stream.queue.RangeDecoder(words))
    _check(numbers.max(initial=0) < STEPS, f"a step has the number {numbers.max(initial=0)} of {STEPS}")
    total = sum(math.prod(shape) for *_, shape in table)
    _check(total <= most, f"its weights have {total:,} numbers; {most:,} are read at most")
    weights, at = [], 0
    for name, bits, axis, shape in table:
        count = 1 if axis is None else shape[axis]
        _check(at + count <= len(numbers), "there are fewer steps than channels")
        codes = symbols.decode(bits, math.prod(shape)).reshape(shape)
        weights.append(quantized(name, codes, numbers[at : at + count], axis, bits))
        at += count
    return graph, weights


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise ValueError(otherwise)


def deflated(head: bytes) -> bytes:
    """The second part of a packed file, from what it says."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return deflate.compress(head) + deflate.flush()


def to_onnx(graph: bytes, weights: list[Weight], integers: bool = False) -> bytes:
    """An ONNX file.

    Args:
      graph: without its weights, as `read` gives it.
      weights: of the graph.
      integers: whether quantized weights stay integers in it, of eight or four bits, which the graph
        multiplies by their scales; else they are float32, which is larger and needs nothing of a runtime.
    """
    nodes, tensors = b"", b""
    for w in weights:
        # Of a vector the integers save nothing.
        if not integers or w.codes is None or w.numbers is None or w.codes.ndim < 2:
            tensors += message(5, tensor(w.name, w.values.shape, FLOAT, w.values.tobytes()))
            continue
        codes, kind = w.codes.reshape(-1), INT8 if w.bits > 4 else INT4
        if kind == INT4:
            pairs = np.concatenate([codes, np.zeros(codes.size % 2, np.int8)]).view(np.uint8) & 15
            codes = pairs[::2] | (pairs[1::2] << 4)
        scales = steps(w.numbers)
        shape = () if w.axis is None else scales.shape
        tensors += message(5, tensor(w.name + "_q", w.codes.shape, kind, codes.tobytes()))
        tensors += message(5, tensor(w.name + "_s", shape, FLOAT, scales.tobytes()))
        axis = () if w.axis is None else (attribute("axis", w.axis),)
        nodes += message(1, node("DequantizeLinear", [w.name + "_q", w.name + "_s"], [w.name], *axis))
    model = whole(1, IR_VERSION) + message(2, b"cepam_jax")
    return model + message(7, nodes + graph + tensors) + message(8, whole(2, OPSET))


class Symbols:
    """The codes of weights through a coder of constriction, with frequencies learned on the way."""

    def __init__(self, coder) -> None:
        self._coder = coder
        self._counts: dict[int, np.ndarray] = {}

    def encode(self, bits: int, codes: np.ndarray) -> None:
        """Writes codes int8[k] of this many bits."""
        symbols = codes.reshape(-1).astype(np.int32) + (2 ** (bits - 1) - 1)
        for part, law in self._parts(bits, symbols):
            self._coder.encode(symbols[part], law)

    def decode(self, bits: int, number: int) -> np.ndarray:
        """Reads int8[number] codes of this many bits; AssertionError or ValueError where there are none."""
        symbols = np.zeros(number, np.int32)
        for part, law in self._parts(bits, symbols):
            symbols[part] = self._coder.decode(law, part.stop - part.start)
        return (symbols - (2 ** (bits - 1) - 1)).astype(np.int8)

    def _parts(self, bits: int, symbols: np.ndarray) -> Iterator:
        """(slice, law) of one part after the other; each is coded before the next one is asked for."""
        largest = 2 ** (bits - 1) - 1
        counts = self._counts.setdefault(bits, np.zeros(2 * largest + 1, np.int64))
        if counts.sum() > _MEMORY:
            counts[:] = counts * _MEMORY // counts.sum()
        unseen = 1 / (1 + np.abs(np.arange(-largest, largest + 1)))  # what a code counts before it came
        start, size = 0, _FIRST
        while start < len(symbols):
            part = slice(start, min(start + size, len(symbols)))
            weights = counts + unseen
            yield part, constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
            counts += np.bincount(symbols[part], minlength=len(counts))
            start, size = part.stop, min(2 * size, _LONGEST)


def tensor(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    """A TensorProto of raw data in this type of ONNX."""
    dims = b"".join(whole(1, size) for size in shape)
    return dims + whole(2, kind) + message(8, name.encode()) + message(9, data)


def node(operation: str, inputs: list[str], outputs: list[str], *attributes: bytes) -> bytes:
    """A NodeProto."""
    names = [message(1, name.encode()) for name in inputs] + [message(2, name.encode()) for name in outputs]
    return b"".join([*names, message(4, operation.encode()), *(message(5, a) for a in attributes)])


def attribute(name: str, value: int | list[int] | str) -> bytes:
    """An AttributeProto: an integer, several, or a text."""
    if isinstance(value, str):
        content, kind = message(4, value.encode()), 3
    elif isinstance(value, int):
        content, kind = whole(3, value), 2
    else:
        content, kind = b"".join(whole(8, each) for each in value), 7
    return message(1, name.encode()) + content + whole(20, kind)


def varint(number: int) -> bytes:
    """An integer in groups of seven bits, as in Protocol Buffers; a negative one as one of 64 bits."""
    number &= 2**64 - 1
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def whole(field: int, value: int) -> bytes:
    """A field of a message that is an integer."""
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    """A field of a message that is bytes: a text, or another message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    number = shift = 0
    while shift < 35:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at
    raise ValueError("a number has more than 35 bits")


def _read_table(head: bytes, at: int) -> tuple[list[tuple], int]:
    """([(name, bits, axis, shape)], where it ends)."""
    count, at = _read_varint(head, at)
    _check(count <= _MOST_WEIGHTS, f"it has {count:,} arrays; {_MOST_WEIGHTS:,} are read at most")
    table = []
    for _ in range(count):
        size, at = _read_varint(head, at)
        name, at = head[at : at + size].decode(), at + size
        fields: list[int] = []
        while len(fields) < 3 or len(fields) < 3 + fields[2]:  # bits, axis + 1 or 0, axes, size of each
            field, at = _read_varint(head, at)
            fields.append(field)
        good = 2 <= fields[0] <= 8 and fields[1] <= fields[2]
        _check(good, f"its weight {name!r} has {fields[0]} bits, axis {fields[1]}, shape {fields[3:]}")
        table.append((name, fields[0], fields[1] - 1 if fields[1] else None, tuple(fields[3:])))
    return table, at


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python loader.py model.packed model.onnx")
    try:
        Path(sys.argv[2]).write_bytes(to_onnx(*read(Path(sys.argv[1]).read_bytes())))
    except (CorruptModelError, OSError) as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
