"""How much noise keeps a client's messages within a number of bits: from a mechanism to `length_limits`."""

import math
from typing import NamedTuple

from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation import Aggregator
from cepam_jax.mechanisms import RANGE, About, Mechanism, code_length, length_limits
from cepam_jax.wire import header

# Of real bytes beyond header and ideal code length: the end of the range coder's last byte, and a part of the
# symbols. Measured, not proved: no message of tests/run/test_needs.py takes more.
CODER_BITS, CODER_PART = 16, 0.0005
# Steps of a chain that send nothing of their own, and steps that are refused by a reason of their own.
_STEPS = ("clip_l2", "clip_l1", "rotate")
_NAMED = ("mask", "top-k")


class Messages(NamedTuple):
    """The messages of one federation.

    Attributes:
      sent: what their length depends on; None where all are equally long.
      fixed: bits of each message where all are equally long.
      header: bits of a message's frame; 0 where messages are not packed.
      packed: whether they are.
    """

    sent: length_limits.Sent | None
    fixed: float = 0.0
    header: float = 0.0
    packed: bool = False

    def ideal(self, bits: float) -> float:
        """Bits of ideal code length that leave room for all else in a message of so many bits."""
        return (bits - self.header - CODER_BITS) / (1 + CODER_PART) if self.packed else bits

    def real(self, bits: float) -> float:
        """Bits that a message of an ideal code length takes at most: the inverse of `ideal`."""
        return bits * (1 + CODER_PART) + CODER_BITS + self.header if self.packed else bits

    def longest(self, ratio: float) -> float:
        """Bits that at most 1 % of messages exceed; the ratio is the clip over sigma."""
        return self.real(self.fixed if self.sent is None else length_limits.longest(self.sent, ratio))


def messages_of(
    mechanism: Mechanism,
    aggregator: Aggregator,
    segments: tuple[int, ...],
    packed: bool,
    peak: float,
) -> Messages:
    """The messages of a federation.

    Args:
      mechanism: that encodes updates.
      aggregator: which may ask for more to be sent.
      segments: lengths of an update's tensors.
      packed: whether messages are packed into bytes.
      peak: as of `length_limits.Sent`.

    Raises:
      ConfigError: nothing is known about the length of its messages; says why.
    """
    about, code, d = mechanism.about, mechanism.code, sum(segments)
    extra = 32.0 * len(segments) if aggregator.per_tensor else 0.0
    frame = 8.0 * header.BARE_BYTES if packed else 0.0
    if code.kind == "float" and code.weight is None:
        return Messages(None, 32.0 * d + extra, frame, packed)
    reason = _unknown(about, mechanism)
    if reason:
        raise ConfigError(
            f"no limit to the bits of messages is known for the mechanism {about.name}: {reason}. State "
            "needs of bits with config.mechanism.name='lrsuq', config.mechanism.lattice='Z1' and a clip"
        )
    size = code.size(d)
    scales = math.ceil(code_length.Scales(code.segments, code.family, "own").most_bits(size))
    norm = "l1" if about.sensitivity == "l1" else "l2"
    sent = length_limits.Sent(_family(mechanism), code.layer, size, scales + extra, norm, float(peak))
    return Messages(sent, 0.0, frame, packed)


def _unknown(about: About, mechanism: Mechanism) -> str:
    """Why no theorem covers the messages of a mechanism; "" where `length_limits` does."""
    code = mechanism.code
    *steps, last = about.name.split("+")
    other = not last.startswith("lrsuq-") or set(steps) - set(_STEPS) - set(_NAMED)
    reasons = (
        (
            "private" in about.randomness,
            "noise of the client's own is added before the quantizer, and is coded with the update",
        ),
        (
            code.kind != "lattice" or code.layer not in ("gaussian", "laplace") or other,
            "its messages do not follow from gamma as those of LRSUQ do",
        ),
        (code.lattice != "Z1", f"blocks on {code.lattice} are coded with what was rejected before them"),
        (code.weight is not None, "which coordinates are sent is chosen at random, or by the update"),
        (
            "scale" in about.knobs,
            "its coder's scales follow from the last aggregate, which need not be like the update",
        ),
        (about.sensitivity is None, "updates are not clipped, and a longer one takes more bits"),
        (
            _family(mechanism) not in length_limits.FAMILIES,
            f"the tails of the coder's law {code.family!r} are too thin for updates of another law",
        ),
    )
    return next((why for wrong, why in reasons if wrong), "")


def _family(mechanism: Mechanism) -> str:
    """The law by which messages are limited: where the encoder chooses, none is longer than with this."""
    family = mechanism.code.family
    return "mixture" if family == code_length.FITTED else family


def gamma_within(messages: Messages, bits: float, target: str) -> float:
    """The largest gamma with which 99 % of messages at least keep to so many bits.

    Args:
      messages: of the federation.
      bits: the most a message may have.
      target: law of the error, "gaussian" or "laplace".

    Raises:
      ConfigError: no gamma does; says by how much.
    """
    unit = 1.0 if target == "gaussian" else math.sqrt(2)
    if messages.sent is None:
        if messages.real(messages.fixed) > bits:
            raise ConfigError(
                f"{bits:g} bits are {messages.real(messages.fixed) - bits:g} too few: every message has "
                f"{messages.real(messages.fixed):g}"
            )
        return float(RANGE)
    if messages.ideal(bits) <= messages.sent.side_bits:
        taken = messages.real(messages.sent.side_bits)
        raise ConfigError(
            f"{bits:g} bits are {taken - bits:g} too few: {taken:g} are taken by "
            f"{'the header, the ends of the coder and ' if messages.packed else ''}the scales of the tensors "
            "before anything is said of the update"
        )
    room = messages.ideal(bits)
    try:
        ratio = length_limits.largest_ratio(messages.sent, room, float(RANGE) / unit)
    except ConfigError as error:
        beside = f" ({bits:g} with header and coder)" if messages.packed else ""
        raise ConfigError(f"{error}{beside}") from error
    return ratio * unit
