"""The contract of every mechanism, and `chain`.

A mechanism turns one client's update into a message and back. It is a tuple of pure functions
in the spirit of optax: no hidden state, safe under `jit` and `vmap`.

  mechanism = mechanisms.lrsuq(target="gaussian", lattice="Z2")
  keys = mechanisms.Keys(shared=jax.random.key(1), private=jax.random.key(2))
  knobs = mechanisms.Knobs(sigma=0.01)
  message = mechanism.encode(keys, x, knobs)              # x: f32[d]
  x_hat = mechanism.decode(keys.shared, message, knobs)   # f32[d]

Laws, each tested for every mechanism of the registry:

1. `decode` needs the shared key, the message and the knobs, nothing else of the client's.
2. The error x_hat - reference(x) has the law stated in `about`, whatever x is.
3. Coordinate i of message and result depends on i and on the blocks up to its own, not on
   len(x): padding x with zeros leaves the leading whole blocks as they were.
4. `vmap` over clients with different keys and knobs equals a Python loop.
5. A coordinate that is NaN, infinite or too large to be coded decodes to NaN: an invalid
   update is never laundered into a valid one.
6. The same keys and x give the same message; keys are for one round of one client.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError, require


class Keys(NamedTuple):
    """Randomness of one client in one round.

    Attributes:
      shared: key known to client and server: dithers, latents, rotations.
      private: key of the client alone: additive noise, stochastic rounding.
    """

    shared: jax.Array
    private: jax.Array


class Knobs(NamedTuple):
    """What may differ from client to client and from round to round: arrays, never static.

    Attributes:
      sigma: standard deviation of the error per coordinate, in units of the update, for
        Gaussian and Laplace targets alike (Laplace scale b = sigma / sqrt 2).
      clip: largest norm an update may have, in the norm of the clipping transform.
    """

    sigma: Any = None
    clip: Any = None


class Message(NamedTuple):
    """What one client sends in one round.

    Attributes:
      symbols: int32[d] lattice coordinates, or f32[d] where nothing is quantized.
      index: uint32[blocks], how many proposals were rejected before the accepted one; None where
        nothing can be rejected.
      side: small integers of side information, by name.
    """

    symbols: jax.Array
    index: jax.Array | None = None
    side: dict[str, jax.Array] | None = None


class About(NamedTuple):
    """Static facts of a mechanism.

    Attributes:
      name: for tables and files.
      law: law of the error of one coordinate, "gaussian", "laplace" or "none" (no error).
      block: coordinates quantized together.
      randomness: which keys are used, a subset of ("shared", "private").
      knobs: names of the knobs that must be given.
      clip: the norm bounded before quantization, "l2", "l1" or None.
    """

    name: str
    law: str
    block: int = 1
    randomness: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()
    clip: str | None = None


class Mechanism(NamedTuple):
    """A mechanism: see the module's laws.

    Attributes:
      encode: (Keys, x f32[d], Knobs) -> Message. What the client does.
      decode: (shared key, Message, Knobs) -> f32[d]. What the server does.
      bits: (shared key, Message, Knobs) -> f32[], ideal code length of the message in bits.
      reference: (x f32[d], Knobs) -> f32[d], the vector the error is measured from: x after the
        deterministic steps of the chain, such as clipping.
      about: static facts.
    """

    encode: Callable[[Keys, jax.Array, Knobs], Message]
    decode: Callable[[jax.Array, Message, Knobs], jax.Array]
    bits: Callable[[jax.Array, Message, Knobs], jax.Array]
    reference: Callable[[jax.Array, Knobs], jax.Array]
    about: About


class Transform(NamedTuple):
    """A deterministic step before a mechanism: norm bounds and the like.

    Attributes:
      apply: (x f32[d], Knobs) -> f32[d].
      knobs: names of the knobs that must be given.
      clip: the norm it bounds, "l2", "l1" or None.
    """

    apply: Callable[[jax.Array, Knobs], jax.Array]
    knobs: tuple[str, ...] = ()
    clip: str | None = None


def chain(*steps: Transform | Mechanism) -> Mechanism:
    """Applies transforms in order, then the mechanism that ends the chain.

    Args:
      *steps: any number of transforms followed by one mechanism (which may be a chain).

    Returns:
      A mechanism whose `reference` includes the transforms.

    Raises:
      ConfigError: the chain does not end with its only mechanism.
    """
    if not steps or not isinstance(steps[-1], Mechanism):
        raise ConfigError("chain(...) must end with a mechanism, such as lrsuq()")
    *transforms, last = steps
    if not all(isinstance(step, Transform) for step in transforms):
        raise ConfigError("chain(...): every step before the last must be a transform")

    def prepare(x, knobs):
        for transform in transforms:
            x = transform.apply(x, knobs)
        return x

    def encode(keys, x, knobs):
        check_vector(x)
        return last.encode(keys, prepare(x, knobs), knobs)

    return last._replace(
        encode=encode,
        reference=lambda x, knobs: last.reference(prepare(x, knobs), knobs),
        about=last.about._replace(
            knobs=tuple(dict.fromkeys(sum((t.knobs for t in transforms), ()) + last.about.knobs)),
            clip=next((t.clip for t in reversed(transforms) if t.clip), last.about.clip),
        ),
    )


def check_vector(x) -> None:
    """Raises ConfigError unless x is f32[d]."""
    require(getattr(x, "ndim", None) == 1, "shape of x", jnp.shape(x), "one-dimensional")
    require(x.dtype == jnp.float32, "dtype of x", str(x.dtype), "float32")


def check_knobs(knobs: Knobs, names: tuple[str, ...]) -> None:
    """Raises ConfigError if a knob that is needed is missing, or a concrete one is not positive."""
    for name in names:
        value = getattr(knobs, name)
        require(value is not None, f"knob {name}", value, "a positive number")
        if isinstance(value, (int, float)):
            require(value > 0, f"knob {name}", value, "positive")
