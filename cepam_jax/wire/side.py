"""Side information as bytes.

Scales (int32 leaves) take two bytes each, other numbers (float32 leaves) four, and supports (bool leaves,
which coordinates are sent) become range-coded masks.
"""

import struct
from typing import Any

import jax
import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import code_length
from cepam_jax.wire.coder import Reader, Writer


def _is_scales(leaf: Any) -> bool:
    """Whether a leaf of the side information holds scales: they alone are integers."""
    return leaf.dtype == np.int32


def write(side: dict) -> tuple[bytes, bytes]:
    """Side information as bytes, in the order of its flattened tree: all scales, and all the rest."""
    scales, rest = [], []
    for leaf in map(np.asarray, jax.tree.leaves(side)):
        if _is_scales(leaf):
            scales.append(leaf.astype("<i2").tobytes())
        elif leaf.dtype == bool:
            rest.append(_write_support(leaf))
        else:
            rest.append(leaf.astype("<f4").tobytes())
    return b"".join(scales), b"".join(rest)


def _write_support(mask: np.ndarray) -> bytes:
    """A mask bool[k]: how many are true, the length of what follows, and the mask, range-coded."""
    count = int(mask.sum())
    coder = Writer()
    coder.decide(np.full(len(mask), count / max(len(mask), 1)), mask)
    body = coder.finish()
    return struct.pack("<II", count, len(body)) + body


class Cursor:
    """Reads bytes in order, and never beyond their end.

    Args:
      data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Number of bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next `size` bytes; raises WireError if there are not so many."""
        if size > self.left:
            raise WireError(f"the message is truncated: {size} bytes expected, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def scales(self, template: dict) -> list[np.ndarray]:
        """Reads the scales.

        Args:
          template: side information with arrays or shapes as leaves.

        Returns:
          One int32 array for each leaf that holds scales, in the order of the flattened tree.

        Raises:
          WireError: too few bytes, or a scale that no encoder measures.
        """
        scales = [
            np.frombuffer(self.take(2 * leaf.size), "<i2").astype(np.int32).reshape(leaf.shape)
            for leaf in jax.tree.leaves(template)
            if _is_scales(leaf)
        ]
        if any((abs(scale) > code_length.LARGEST_SCALE).any() for scale in scales):
            raise WireError("the message has a scale that no coder writes")
        return scales

    def side(self, template: dict, scales: list[np.ndarray]) -> dict:
        """Reads the rest of the side information.

        Args:
          template: side information with arrays or shapes as leaves.
          scales: the scales, which were read before.

        Returns:
          The side information, with arrays of numpy as leaves.

        Raises:
          WireError: too few bytes, or a mask that no coder wrote.
        """
        remaining = iter(scales)

        def read_leaf(leaf: Any) -> np.ndarray:
            """The array of one leaf, with the kind and shape that the template's leaf has."""
            if _is_scales(leaf):
                return next(remaining)
            if leaf.dtype == bool:
                return self._support(leaf.size)
            return np.frombuffer(self.take(4 * leaf.size), "<f4").astype(np.float32).reshape(leaf.shape)

        return jax.tree.map(read_leaf, template)

    def _support(self, size: int) -> np.ndarray:
        """Reads a mask bool[size] that `_write_support` wrote."""
        count, length = struct.unpack("<II", self.take(8))
        coder = Reader(self.take(length))
        mask = coder.decide(np.full(size, min(count, size) / max(size, 1)))
        coder.finish()
        return mask
