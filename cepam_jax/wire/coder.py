"""Yes-or-no decisions and numbers through a range coder, that of the library constriction.

`Writer` and `Reader` have the same methods, so that one function describes how something is coded and
runs on both sides: a writer is told the outcomes and returns them, a reader finds them in the bytes.
Probabilities must be the same numbers on both sides: see `cepam_jax.mechanisms.exact`.
"""

from typing import Protocol

import constriction
import numpy as np

from cepam_jax.errors import WireError

# Least probability of either outcome. An outcome to which the model gives probability 0 costs 20 bits.
LEAST = 2.0**-20
_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)
_UNIFORM_BITS = 16
# Bits that a reader takes decisions to have cost, over the bits that there are: beyond, nothing wrote them.
# The library rounds a probability to 24 bits, which changes the least cost of an outcome by a fifteenth.
_SPENT, _SPENT_MORE = 1.25, 256.0


class Coder(Protocol):
    """What `Writer` and `Reader` have in common."""

    def code_bits(self, p: np.ndarray, outcomes: np.ndarray | None = None) -> np.ndarray:
        """Codes decisions.

        Args:
          p: f64[k], probability that each is true.
          outcomes: bool[k], the decisions; a reader ignores them.

        Returns:
          bool[k], the decisions.
        """

    def uniform(self, number: int, size: int, values: np.ndarray | None = None) -> np.ndarray:
        """Codes integers that are all equally likely.

        Args:
          number: the integers lie from 0 to number - 1; at most 2^32.
          size: how many integers there are.
          values: int[size], the integers; a reader ignores them.

        Returns:
          int64[size], the integers.
        """


def _possible(p: np.ndarray) -> np.ndarray:
    """Probabilities f64[k] moved inside (0, 1); 1/2 where a ratio of two vanishing tails is NaN."""
    return np.where(np.isnan(p), 0.5, np.clip(p, LEAST, 1 - LEAST))


class Writer:
    """A `Coder` that collects decisions and integers into bytes."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def code_bits(self, p: np.ndarray, outcomes: np.ndarray | None = None) -> np.ndarray:
        """Writes bool[k] `outcomes`, each true with probability p f64[k], and returns them."""
        assert outcomes is not None
        if outcomes.size:
            self._encoder.encode(outcomes.astype(np.int32), _BERNOULLI, _possible(p))
        return outcomes

    def uniform(self, number: int, size: int, values: np.ndarray | None = None) -> np.ndarray:
        """Writes integers int[size] `values` from 0 to number - 1, number at most 2^32, and returns them."""
        assert values is not None
        if number <= 1 << _UNIFORM_BITS:
            if size and number > 1:
                self._encoder.encode(values.astype(np.int32), constriction.stream.model.Uniform(number))
            return values
        low = np.asarray(values, np.uint64) & np.uint64((1 << _UNIFORM_BITS) - 1)
        self.uniform(1 << _UNIFORM_BITS, size, low)
        self.uniform(
            -(-number >> _UNIFORM_BITS), size, np.asarray(values, np.uint64) >> np.uint64(_UNIFORM_BITS)
        )
        return values

    def finish(self) -> bytes:
        """All that was written, in as few bytes as name a number of the coder's last interval.

        The bytes are the digits of a number, the highest first, and a reader supposes zeros behind them. The
        library ends with whole words of four bytes, mostly two more than needed.
        """
        if self._encoder.is_empty():
            return b""
        count, (lower, width) = self._encoder.pos()  # words that are settled, and the interval of two more
        words, size = self._encoder.get_compressed().astype(">u4").tobytes(), 4 * (count + 2)
        inside = int.from_bytes(words.ljust(size, b"\0"), "big")
        low = inside - (inside - lower) % 2**64
        for cut in range(8, 0, -1):  # bytes that need not be sent
            number = -(-low >> 8 * cut)
            if (number << 8 * cut) < low + width:
                return number.to_bytes(size - cut, "big")
        return low.to_bytes(size, "big")


class Reader:
    """A `Coder` that finds in bytes what a `Writer` wrote there.

    Args:
      data: the bytes that `Writer.finish` returned. Whether they are as many as were written is for the
        message's check to say: a range coder reads on in zeros, but not much farther than there are bits:
        a few bytes could ask for thousands of decisions about each block of an update.
    """

    def __init__(self, data: bytes) -> None:
        self._left = _SPENT * 8 * len(data) + _SPENT_MORE
        words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def code_bits(self, p: np.ndarray, outcomes: np.ndarray | None = None) -> np.ndarray:
        """Reads bool[k], each true with probability p f64[k]."""
        del outcomes
        if not p.size:
            return np.zeros(0, bool)
        p = _possible(p)
        found = self._read(_BERNOULLI, p).astype(bool)
        self._left += float(np.log2(np.where(found, p, 1 - p)).sum())
        if self._left < 0:
            raise WireError("the message's body says more than so few bytes can")
        return found

    def uniform(self, number: int, size: int, values: np.ndarray | None = None) -> np.ndarray:
        """Reads int64[size], integers from 0 to number - 1."""
        del values
        if number <= 1 << _UNIFORM_BITS:
            if not size or number <= 1:
                return np.zeros(size, np.int64)
            return self._read(constriction.stream.model.Uniform(number), size).astype(np.int64)
        low = self.uniform(1 << _UNIFORM_BITS, size)
        return low + (self.uniform(-(-number >> _UNIFORM_BITS), size) << _UNIFORM_BITS)

    def _read(self, *model) -> np.ndarray:
        """What constriction decodes with a model and its arguments; raises WireError if it cannot."""
        try:
            return self._decoder.decode(*model)
        except (AssertionError, ValueError) as error:
            raise WireError(f"the message's body is not one that a coder wrote ({error})") from error
