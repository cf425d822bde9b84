"""The contract of every mechanism.

A mechanism turns one client's update into a message and back. It is a tuple of pure functions without state.

  mechanism = mechanisms.lrsuq(target="gaussian", lattice="Z2")
  keys = mechanisms.Keys(shared=jax.random.key(1), private=jax.random.key(2))
  knobs = mechanisms.Knobs(sigma=0.01)
  message = mechanism.encode(keys, x, knobs)              # x: f32[d]
  x_hat = mechanism.decode(keys.shared, message, knobs)   # f32[d]

Laws, each tested for every mechanism of the registry:

1. `decode` needs the shared key, the message and the knobs, and nothing else of the client's.
2. The error x_hat - reference(x) has the law stated in `about`, whatever x is; its mean is zero
   if `about.unbiased`; its mean square per coordinate is `variance(x, knobs)`.
3. Where `about.local`, coordinate i of message and result depends on i and on its own block, not
   on len(x): padding x with zeros leaves the leading whole blocks as they were.
4. `vmap` over clients with different keys and knobs equals a Python loop.
5. An update with a NaN or infinite coordinate does not decode to finite numbers alone, and neither does
   one that is too large to be coded: an invalid update never comes back as a valid one. A coordinate is too
   large if it exceeds `RANGE` standard deviations of the noise, or `RANGE` lattice cells where there is no
   noise; it decodes to NaN with its whole block. Up to that limit law 2 holds (without noise,
   near the limit, to 2^-8 of a cell). An encoder always ends.
6. The same keys and x give the same message; keys are for one round of one client.
7. `wire.unpack(wire.pack(message))` is the message, from its bytes, the shared key and the knobs; the
   bytes of a valid update are as many as `bits` says, within 2 % and a header.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms.arrays import Array
from cepam_jax.mechanisms.joint import Joint, Summed

# Largest |x| that is coded. The unit is the standard deviation of the noise (in `split` of both parts), or a
# cell, which is the lattice's scale, of a quantizer without noise (SDQ, rounding).
#
# float32 has 24 bits. Encoder and decoder round a few times, each by at most |x| 2^-24: the quotient x/d,
# the sum m + V, its product with d. Of x_hat = x + error the error is what is left below x, so it comes on
# a grid of |x| 2^-23, and its law is off by about as much: at |x| = 2^15 sigma by 2^-8 sigma. Measured with
# |x| just below the limit on a million coordinates, a Kolmogorov-Smirnov test against the exact law has
# p-values above 0.01 at 2^15, down to 1e-5 at 2^16 and to 1e-13 at 2^17 (sigma = 1 and 0.05; Z1, Z2, D4,
# E8; Gaussian and Laplace). At 1e8 sigma, nine tenths of the errors would be exactly zero, and with them
# the privacy that they are there for.
RANGE = np.float32(2.0**15)
# What is larger has a reciprocal that some platforms take for zero, and division by it gives zero, too.
LARGEST = np.float32(2.0**126)


class Keys(NamedTuple):
    """Randomness of one client in one round.

    Attributes:
      shared: key that client and server know. Dithers, radii of layers and rotations are drawn from it.
      private: key that the client alone knows, for additive noise and stochastic rounding.
    """

    shared: jax.Array
    private: jax.Array


class Knobs(NamedTuple):
    """What may differ from client to client and from round to round: numbers or arrays, never static.

    Each is a number (f32[]) for one client, or None where the mechanism does not need it. `knobs.LIMITS` says
    which values are allowed. A known value that is not allowed is a ConfigError; a traced one makes
    everything that is decoded with it NaN.

    Attributes:
      sigma: standard deviation of the error per coordinate, in units of the update, for
        Gaussian and Laplace targets alike (Laplace scale b = sigma / sqrt 2).
      clip: largest norm an update may have, in the norm of the clipping transform.
      step: scale of the lattice in subtractively dithered quantization, in units of the update.
      bits: bits per coordinate of uniform quantizers.
      levels: number of levels of stochastic quantizers.
      fraction: fraction of the coordinates that are sent.
      scale: int32[segments], a public guess of the update's scales in eighths of an octave, for mechanisms
        built with scales="public".
    """

    sigma: Any = None
    clip: Any = None
    step: Any = None
    bits: Any = None
    levels: Any = None
    fraction: Any = None
    scale: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Message:
    """What one client sends in one round; a pytree.

    Attributes:
      symbols: lattice coordinates or levels as int32[...], or coordinates as f32[...] where nothing is
        quantized; one for each quantized coordinate, on some lattices rounded up to whole blocks.
      index: uint32[blocks], how many proposals were rejected before the accepted one; None where
        nothing can be rejected.
      side: side information by name: scales, ranges, supports.
      length: d of the update, static. There may be more or fewer symbols than that.
    """

    symbols: Array
    index: Array | None
    side: dict[str, Any]
    length: int = dataclasses.field(metadata={"static": True})


class Noise(NamedTuple):
    """Noise that hides an update.

    Attributes:
      law: "gaussian" or "laplace", i.i.d. over coordinates and independent of the update.
      deviation: Knobs -> standard deviation per coordinate, in units of the update.
    """

    law: str
    deviation: Callable[[Knobs], Any]


class About(NamedTuple):
    """Static facts of a mechanism.

    Attributes:
      name: the mechanism's name in tables and files.
      law: exact law of the error of one coordinate: "gaussian", "laplace", "uniform" (on the
        lattice's cell), "none" (no error), or "other" (depends on x, or has no name).
      unbiased: whether the error has mean zero for every x.
      block: how many coordinates are quantized together.
      randomness: which keys are used, a subset of ("shared", "private").
      knobs: names of the knobs that must be given.
      clip: the norm that is bounded before quantization, "l2", "l1" or None.
      local: whether a coordinate's result depends on its own block alone.
      outsiders: the noise that hides the update from those who do not know the shared key; None if there
        is none.
      server: the noise, drawn from the private key, that hides the update from those who know the shared key
        as well; None if there is none.
      sensitivity: the norm that is bounded where that noise comes in, "l2", "l1" or None. A rotation
        keeps the L2 norm alone; an L1 bound implies the same L2 bound.
      leaks: what is sent without noise, in words.
      summable: whether noises of clients add up in a sum of their decoded updates. They do if what comes
        after the noise is linear, or adds an error that is independent of what entered. Rounding is neither:
        it may remove the noise of a client altogether. A transform with an inverse, and one after the noise,
        states it of itself: both its ways leave noise as it is, but for an orthogonal map.
      leaves_noise: whether a mechanism decodes to what entered plus an error that is independent of it, so
        that noise which was added before is still in the sum of all. What states nothing is taken to remove
        such noise.
      keeps: the norms in which two updates come no farther apart by what happens to them before that noise. A
        chain derives them from `Transform.keeps`.
      unbounded_by: name of the step of a chain behind which no bound of a clip before it holds, because it
        states no norm that it keeps; "" if there is none.
      mixes: whether coordinates are mixed before they are quantized; what is sent is then all of the mixture,
        whatever the weight that `encode` is given.
      independent: whether the error, of a law that is known, is independent of x for those who do not know
        the keys, as that of a subtractive dither is; not where its scale follows from the update.
      summed: facts of the secure sum of its messages; None where the server sees each message.
    """

    name: str
    law: str
    unbiased: bool = True
    block: int = 1
    randomness: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()
    clip: str | None = None
    local: bool = True
    outsiders: Noise | None = None
    server: Noise | None = None
    sensitivity: str | None = None
    leaks: tuple[str, ...] = ()
    summable: bool = False
    leaves_noise: bool = False
    keeps: tuple[str, ...] = ("l1", "l2")
    unbounded_by: str = ""
    mixes: bool = False
    independent: bool = False
    summed: Summed | None = None


class Code(NamedTuple):
    """How a mechanism's symbols are distributed, which is what `wire` needs to write them; all is static.

    In a chain, "the whole" is the chain, and "these symbols" are those of its last mechanism.

    Attributes:
      kind: "float" (written as they are), "levels" (uniform over an alphabet) or "lattice".
      alphabet: Knobs of numbers -> (lowest symbol, number of symbols), for the kind "levels".
      lattice: the lattice's name.
      layer: law of the layers of LRSUQ, "gaussian" or "laplace"; "cell" if there are none.
      streams: tags of the shared streams that layers and dithers are drawn from; None where it is not used.
      width: (side information, Knobs of numbers) -> float, scale of the lattice; with layers, the scale per
        unit of `latents.radius`.
      family: assumed law of the update's coordinates, one of `code_length.FAMILIES`.
      segments: lengths of the tensors that have a scale of their own; None: the update is one segment.
      mixed: whether the coordinates of a block are mixed before they are quantized, so that whole blocks of
        symbols are sent.
      key: shared key of the whole -> shared key of these symbols.
      size: d of the update -> number of coordinates that are quantized.
      weight: (shared key of the whole, Message, Knobs) -> f32[size], 0 where nothing is sent; None: all is.
      side: side information of the whole -> side information of these symbols.
      informed: (side information of these symbols, Knobs) -> the Knobs that `alphabet` is asked with, where
        it follows from the side information as well; None: it does not.
      identity: what else symbols are decoded by, in words, such as shapes; both sides must have the same.
    """

    kind: str
    alphabet: Callable[[Knobs], tuple[int, int]] | None = None
    lattice: str = "Z1"
    layer: str = "cell"
    streams: tuple[int | None, int | None] = (None, None)
    width: Callable[[dict, Knobs], Any] | None = None
    family: str = "laplace"
    segments: tuple[int, ...] | None = None
    mixed: bool = False
    key: Callable[[jax.Array], jax.Array] = lambda shared: shared
    size: Callable[[int], int] = lambda d: d
    weight: Callable[[jax.Array, Message, Knobs], jax.Array | None] | None = None
    side: Callable[[dict], dict] = lambda side: side
    informed: Callable[[dict, Knobs], Knobs] | None = None
    identity: str = ""


class Mechanism(NamedTuple):
    """A mechanism, for which the laws at the top of this module hold.

    Attributes:
      encode: (Keys, x f32[d], Knobs, weight f32[d] or None) -> Message. This is what the client does.
        Coordinates with weight 0 will not be sent; they do not count where the update is measured.
      decode: (shared key, Message, Knobs) -> f32[d]. This is what the server does.
      bits: (shared key, Message, Knobs, weight f32[d] or None) -> f32[], ideal code length of the
        message in bits; a coordinate with weight 0 is not sent and costs nothing.
      reference: (x f32[d], Knobs) -> f32[d], the vector that the error is measured from: x after the
        deterministic steps of the chain, such as clipping.
      about: static facts of the mechanism.
      code: how the symbols are distributed.
      variance: (x f32[d], Knobs) -> f32[d] or f32[], expected squared error per coordinate; None
        where there is no formula.
      joint: how sums of messages are decoded; None: the server decodes each message. `encode` and `decode`
        are then those of a sum of one.
    """

    encode: Callable[..., Message]
    decode: Callable[[jax.Array, Message, Knobs], jax.Array]
    bits: Callable[..., jax.Array]
    reference: Callable[[jax.Array, Knobs], jax.Array]
    about: About
    code: Code
    variance: Callable[[jax.Array, Knobs], jax.Array] | None = None
    joint: Joint | None = None


class Transform(NamedTuple):
    """A step before a mechanism: clipping, noise, rotation, sparsification.

    Attributes:
      name: name of the step, under which a chain keeps its side information.
      forward: (Keys, x f32[d], Knobs) -> (f32[size(d)], side information or None).
      inverse: (shared key, y f32[size(d)], side, Knobs, d) -> f32[d]; None if it is the identity.
      size: d -> length of the vector after the step, static.
      reference: (x f32[d], Knobs) -> f32[d], the part of the step that is no error; None if it is the
        identity.
      weight: (shared key, side, Knobs, d) -> f32[d], 0 where a coordinate is not sent; None if all are sent.
      side_bits: (side, Knobs, d) -> f32[], cost of the side information in bits; None if there is none.
      variance: (x f32[d], Knobs, rest) -> f32[d] or f32[], expected squared error per coordinate of this step
        and all that follow, where rest(x, knobs) is that of the steps that follow; None if there is no
        formula.
      mixes: whether coordinates are mixed; such a step cannot follow one that leaves coordinates out.
      about: what the step adds to the mechanism's facts: knobs, randomness, clip, unbiased, law, local.
      keeps: the norms, of "l1" and "l2", in which two updates come no farther apart by this step. One that
        states none may scale an update up, so no bound from before it holds behind it.
      radial: whether `reference` does the same before an orthogonal map as behind it.
      identity: what else `inverse` and `weight` go by, in words; both sides must have the same.
    """

    name: str
    forward: Callable[[Keys, jax.Array, Knobs], tuple[jax.Array, Any]]
    inverse: Callable[[jax.Array, jax.Array, Any, Knobs, int], jax.Array] | None = None
    size: Callable[[int], int] = lambda d: d
    reference: Callable[[jax.Array, Knobs], jax.Array] | None = None
    weight: Callable[[jax.Array, Any, Knobs, int], jax.Array] | None = None
    side_bits: Callable[[Any, Knobs, int], jax.Array] | None = None
    variance: Callable[[jax.Array, Knobs, Callable], jax.Array] | None = None
    mixes: bool = False
    about: About = About("", "none")
    keeps: tuple[str, ...] = ()
    radial: bool = False
    identity: str = ""


def check_vector(x: jax.Array) -> None:
    """Raises ConfigError unless x is a vector f32[d]."""
    require(getattr(x, "ndim", None) == 1, "shape of x", jnp.shape(x), "one-dimensional")
    require(x.dtype == jnp.float32, "dtype of x", str(x.dtype), "float32")
