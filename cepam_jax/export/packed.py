"""Writes what `loader` reads: a graph and its weights in few bytes."""

import zlib

import constriction
import numpy as np

from cepam_jax.export.loader import MAGIC, VERSION, Symbols, Weight, deflated, varint


def pack(graph: bytes, weights: list[Weight]) -> bytes:
    """The bytes of a packed file; `loader.read` gives back the same graph and the same weights.

    Args:
      graph: a GraphProto without weights, as `translate.translate` makes it.
      weights: of it, all quantized.
    """
    table, numbers = [varint(len(weights))], []
    symbols = Symbols(coder := constriction.stream.queue.RangeEncoder())
    for w in weights:
        assert w.codes is not None and w.numbers is not None, f"{w.name} is not quantized"
        axis = 0 if w.axis is None else w.axis + 1
        table += [varint(len(w.name.encode())), w.name.encode(), varint(w.bits), varint(axis)]
        table += [varint(w.codes.ndim), *map(varint, w.codes.shape)]
        numbers.append(w.numbers)
        symbols.encode(w.bits, w.codes)
    upper, lower = np.divmod(np.concatenate(numbers), 256)
    head = varint(len(graph)) + graph + b"".join(table) + upper.astype(np.uint8).tobytes()
    head = deflated(head)
    body = varint(len(head)) + head + lower.astype(np.uint8).tobytes()
    body += coder.get_compressed().astype("<u4").tobytes()
    return MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body
