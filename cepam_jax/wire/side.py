"""Side information as bytes.

Scales that are sent alone (int32 leaves) take two bytes each, other numbers (float32 leaves) four, and
supports (bool leaves, which coordinates are sent) become range-coded masks. The scales and laws of tensors
(int32 leaves of these names) are not here: they stand in the stream of the symbols, see `scales`.
"""

import struct
from typing import Any

import jax
import numpy as np

from cepam_jax.errors import WireError, require
from cepam_jax.mechanisms import code_length
from cepam_jax.mechanisms.base import Message
from cepam_jax.wire.coder import Reader, Writer

TENSORS = ("scale", "law")  # what is sent of each tensor


def _of_tensors(path: tuple, leaf: Any) -> str:
    """ "scale" or "law" for a leaf that holds those of the tensors; "" for another."""
    name = getattr(path[-1], "key", "") if path else ""
    return name if name in TENSORS and leaf.dtype == np.int32 else ""


def described(template: Message) -> str:
    """Types and shapes of a message's arrays, in words that depend on no library's version."""
    index = "none" if template.index is None else _type(template.index)
    found = [f"symbols {_type(template.symbols)}", f"index {index}"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(template.side)[0]:
        found.append(f"{'/'.join(str(getattr(part, 'key', part)) for part in path)} {_type(leaf)}")
    return "\n".join(found)


def _type(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).str}{list(map(int, leaf.shape))}"


def check(message: Message, laws: int) -> None:
    """Raises ConfigError unless a message's scales and laws are numbers that an encoder writes.

    Args:
      message: message of numpy arrays.
      laws: how many laws a tensor may have.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(message.side)[0]:
        array, name = np.asarray(leaf), str(getattr(path[-1], "key", path[-1]))
        if array.dtype != np.int32 or not array.size:
            continue
        low, high = -code_length.LARGEST_SCALE, code_length.LARGEST_SCALE
        if name == "law":
            low, high = 0, laws - 1
        for wrong in array[(array < low) | (array > high)][:1].tolist():
            require(False, f"the message's {name}", wrong, f"from {low} to {high}")


def write(side: dict) -> bytes:
    """All side information but that of the tensors, in the order of its flattened tree."""
    rest = []
    for path, array in jax.tree_util.tree_flatten_with_path(side)[0]:
        leaf = np.asarray(array)
        if _of_tensors(path, leaf):
            continue
        if leaf.dtype == np.int32:
            rest.append(leaf.astype("<i2").tobytes())
        elif leaf.dtype == bool:
            rest.append(_write_support(leaf))
        else:
            rest.append(leaf.astype("<f4").tobytes())
    return b"".join(rest)


def _write_support(mask: np.ndarray) -> bytes:
    """A mask bool[k]: how many are true, the length of what follows, and the mask, range-coded."""
    count = int(mask.sum())
    coder = Writer()
    coder.code_bits(np.full(len(mask), count / max(len(mask), 1)), mask)
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

    def rest(self, template: dict) -> list[np.ndarray]:
        """Reads what `write` wrote.

        Args:
          template: side information with arrays or shapes as leaves.

        Returns:
          The arrays of all leaves but those of the tensors, in the order of the flattened tree.

        Raises:
          WireError: too few bytes, a scale that no encoder measures, or a mask that no coder wrote.
        """
        leaves = jax.tree_util.tree_flatten_with_path(template)[0]
        return [self._leaf(leaf) for path, leaf in leaves if not _of_tensors(path, leaf)]

    def _leaf(self, leaf: Any) -> np.ndarray:
        """The array of one leaf, with the kind and shape that the template's leaf has."""
        if leaf.dtype == bool:
            return self._support(leaf.size)
        if leaf.dtype != np.int32:
            return np.frombuffer(self.take(4 * leaf.size), "<f4").astype(np.float32).reshape(leaf.shape)
        scale = np.frombuffer(self.take(2 * leaf.size), "<i2").astype(np.int32).reshape(leaf.shape)
        if (abs(scale) > code_length.LARGEST_SCALE).any():
            raise WireError("the message has a scale that no coder writes")
        return scale

    def _support(self, size: int) -> np.ndarray:
        """Reads a mask bool[size] that `_write_support` wrote."""
        count, length = struct.unpack("<II", self.take(8))
        coder = Reader(self.take(length))
        return coder.code_bits(np.full(size, min(count, size) / max(size, 1)))


def assemble(template: dict, rest: list[np.ndarray], tensors: dict[str, np.ndarray]) -> dict:
    """Side information with arrays of numpy as leaves.

    Args:
      template: side information with arrays or shapes as leaves.
      rest: arrays of all leaves but those of the tensors, from `Cursor.rest`.
      tensors: scales and laws of the tensors, by their names.
    """
    remaining = iter(rest)

    def leaf_of(path: tuple, leaf: Any) -> np.ndarray:
        name = _of_tensors(path, leaf)
        return tensors[name].astype(np.int32).reshape(leaf.shape) if name else next(remaining)

    return jax.tree_util.tree_map_with_path(leaf_of, template)
