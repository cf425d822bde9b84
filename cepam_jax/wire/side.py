"""Side information as bytes: scales (2 each), other numbers as they are, supports as a range-coded mask."""

import struct

import jax
import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import code_length
from cepam_jax.wire.coder import Reader, Writer


def _is_scales(leaf) -> bool:
    return leaf.dtype == np.int32


def write(side: dict) -> tuple[bytes, bytes]:
    """(scales, the rest) of a message's side information, in the order of its flattened tree."""
    scales, rest = [], []
    for leaf in map(np.asarray, jax.tree.leaves(side)):
        if _is_scales(leaf):
            scales.append(leaf.astype("<i2").tobytes())
        elif leaf.dtype == bool:
            rest.append(_write_support(leaf))
        else:
            rest.append(leaf.astype("<f4").tobytes())
    return b"".join(scales), b"".join(rest)


def _write_support(mask) -> bytes:
    count = int(mask.sum())
    coder = Writer()
    coder.decide(np.full(len(mask), count / max(len(mask), 1)), mask)
    body = coder.finish()
    return struct.pack("<II", count, len(body)) + body


class Cursor:
    """Reads bytes in order; never beyond their end."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next `size` bytes; WireError if there are not so many."""
        if size > self.left:
            raise WireError(f"the message is truncated: {size} bytes expected, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def scales(self, template: dict) -> list:
        """The scales, for those leaves that are scales."""
        found = [
            np.frombuffer(self.take(2 * leaf.size), "<i2").astype(np.int32).reshape(leaf.shape)
            for leaf in jax.tree.leaves(template)
            if _is_scales(leaf)
        ]
        if any((abs(scale) > code_length.LARGEST_SCALE).any() for scale in found):
            raise WireError("the message has a scale that no coder writes")
        return found

    def side(self, template: dict, scales: list) -> dict:
        """The side information with the scales read before."""
        scales = iter(scales)

        def one(leaf):
            if _is_scales(leaf):
                return next(scales)
            if leaf.dtype == bool:
                return self._support(leaf.size)
            return np.frombuffer(self.take(4 * leaf.size), "<f4").astype(np.float32).reshape(leaf.shape)

        return jax.tree.map(one, template)

    def _support(self, size: int):
        count, length = struct.unpack("<II", self.take(8))
        coder = Reader(self.take(length))
        mask = coder.decide(np.full(size, min(count, size) / max(size, 1)))
        coder.finish()
        return mask
