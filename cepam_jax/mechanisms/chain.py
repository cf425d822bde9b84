"""Transforms in front of a mechanism, as one mechanism.

A chain applies its transforms one after the other and ends with a mechanism, as `optax.chain` composes the
steps of an optimizer. Step i draws from keys that are derived from the client's keys and from i, so that no
randomness is used twice. The side information of step i is kept in the message under the key "i:name of the
step", that of the mechanism at the end under the key "chain".

Every function below takes the steps first, as a `_Steps`; `chain` binds them.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms.base import Code, Keys, Knobs, Mechanism, Message, Transform, check_vector
from cepam_jax.mechanisms.chain_facts import about_of_chain, clips_astray, even_errors
from cepam_jax.mechanisms.joint import Joint


class _Steps(NamedTuple):
    """The steps of one chain.

    Attributes:
      transforms: the transforms, in the order in which the client applies them.
      last: the mechanism that ends the chain.
    """

    transforms: tuple[Transform, ...]
    last: Mechanism


def chain(*steps: Transform | Mechanism) -> Mechanism:
    """Applies transforms in order, then the mechanism that ends the chain.

    Args:
      *steps: any number of transforms followed by one mechanism (which may be a chain).

    Returns:
      A mechanism. Its `reference` includes the deterministic steps; step i draws from keys of its
      own, so that no randomness is used twice.

    Raises:
      ConfigError: the chain does not end with its only mechanism, or mixes coordinates after some
        were left out.
    """
    checked = _checked(steps)
    transforms, last = checked
    has_variance = (
        last.variance
        and all(step.variance for step in transforms)
        and even_errors(transforms, last.about)
        and not clips_astray(transforms, last.about)
    )
    return Mechanism(
        encode=partial(_encode, checked),
        decode=partial(_decode, checked),
        bits=partial(_bits, checked),
        reference=partial(_reference, checked),
        about=about_of_chain(transforms, last.about),
        code=_code(checked),
        variance=partial(_variance, checked) if has_variance else None,
        joint=last.joint and _joint(checked),
    )


def _checked(steps: Sequence[Any]) -> _Steps:
    """The arguments of `chain` as `_Steps`; raises ConfigError as `chain` says."""
    if not steps or not isinstance(steps[-1], Mechanism):
        raise ConfigError("chain(...) must end with a mechanism, such as lrsuq()")
    *transforms, last = steps
    undone = [
        step.name for step in transforms if isinstance(step, Transform) and (step.inverse or step.weight)
    ]
    if last.joint and undone:
        raise ConfigError(
            f"chain(...): {undone[0]} cannot stand before {last.about.name}: the server sees a sum, of which "
            "it cannot undo what each client did with randomness of its own"
        )
    noised = [step.name for step in transforms if isinstance(step, Transform) and step.about.server]
    if last.joint and noised:
        raise ConfigError(
            f"chain(...): {noised[0]} cannot stand before {last.about.name}: the modulus goes by its noise"
        )
    sparse = None  # name of the last step so far that leaves coordinates out
    for step in transforms:
        if not isinstance(step, Transform):
            raise ConfigError("chain(...): every step before the last must be a transform")
        if sparse and step.mixes:
            raise ConfigError(
                f"chain(...): {step.name} cannot follow {sparse}: it would mix what is not sent"
            )
        sparse = step.name if step.weight else sparse
    if sparse and last.about.mixes:
        raise ConfigError(
            f"chain(...): {last.about.name} cannot follow {sparse}: it would mix what is not sent"
        )
    return _Steps(tuple(transforms), last)


def _sizes(steps: _Steps, d: int) -> list[int]:
    """Lengths of the vector before each step, and at the end the length that the mechanism receives."""
    lengths = [d]
    for step in steps.transforms:
        lengths.append(step.size(lengths[-1]))
    return lengths


def _key_of_step(key: jax.Array, i: int) -> jax.Array:
    """Key of step i, derived from the key of the whole chain."""
    return jax.random.fold_in(key, i)


def _key_of_last(steps: _Steps, key: jax.Array) -> jax.Array:
    """Key of the mechanism that ends the chain, derived from the key of the whole chain."""
    return _key_of_step(key, len(steps.transforms))


def _side_name(i: int, step: Transform) -> str:
    """Key of the side information of step i in `Message.side`."""
    return f"{i}:{step.name}"


def _message_of_last(steps: _Steps, message: Message) -> Message:
    """The message as the mechanism at the end of the chain encoded it."""
    return dataclasses.replace(
        message, side=message.side.get("chain", {}), length=_sizes(steps, message.length)[-1]
    )


def _weight(
    steps: _Steps, shared: jax.Array, side: dict, knobs: Knobs, d: int, weight: jax.Array | None = None
) -> jax.Array | None:
    """Which coordinates are sent, of the vector that the mechanism at the end receives.

    Steps that leave coordinates out keep the length of the vector, and none of them is followed by a step
    that mixes coordinates. So the product of their masks is the mask of the whole. Behind a step that mixes
    coordinates or changes their number a mask from outside means nothing: all of the mixture is sent.

    Args:
      steps: the steps of the chain.
      shared: shared key of the whole chain.
      side: side information of the whole chain.
      knobs: the client's knobs.
      d: length of the update.
      weight: f32[d], mask that was given from outside, 0 where a coordinate is not sent; None: all are sent.

    Returns:
      f32[size], 0 where a coordinate is not sent; None where all are.
    """
    lengths = _sizes(steps, d)
    for i, step in enumerate(steps.transforms):
        if step.mixes or lengths[i + 1] != lengths[i]:
            weight = None
        if step.weight:
            kept = step.weight(_key_of_step(shared, i), side.get(_side_name(i, step)), knobs, lengths[i])
            weight = kept if weight is None else weight * kept
    return weight


def _encode(
    steps: _Steps, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d]: every transform in turn, then the mechanism; see `Mechanism.encode`."""
    check_vector(x)
    d, side = x.shape[0], {}
    for i, step in enumerate(steps.transforms):
        step_keys = Keys(_key_of_step(keys.shared, i), _key_of_step(keys.private, i))
        x, step_side = step.forward(step_keys, x, knobs)
        if step_side is not None:
            side[_side_name(i, step)] = step_side
    last_keys = Keys(_key_of_last(steps, keys.shared), _key_of_last(steps, keys.private))
    mask = _weight(steps, keys.shared, side, knobs, d, weight)
    message = steps.last.encode(last_keys, x, knobs, mask)
    nested = {"chain": message.side} if message.side else {}
    return dataclasses.replace(message, side=side | nested, length=d)


def _decode(steps: _Steps, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for: the mechanism's, then every transform undone in turn."""
    y = steps.last.decode(_key_of_last(steps, shared), _message_of_last(steps, message), knobs)
    lengths = _sizes(steps, message.length)
    for i, step in reversed(list(enumerate(steps.transforms))):
        if step.inverse:
            step_side = message.side.get(_side_name(i, step))
            y = step.inverse(_key_of_step(shared, i), y, step_side, knobs, lengths[i])
    return y


def _bits(
    steps: _Steps, shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the ideal code length of a message in bits: side information of all steps, and symbols."""
    total = jnp.float32(0)
    lengths = _sizes(steps, message.length)
    for i, step in enumerate(steps.transforms):
        if step.side_bits:
            total += step.side_bits(message.side.get(_side_name(i, step)), knobs, lengths[i])
    weight = _weight(steps, shared, message.side, knobs, message.length, weight)
    return total + steps.last.bits(
        _key_of_last(steps, shared), _message_of_last(steps, message), knobs, weight
    )


def _reference(steps: _Steps, x: jax.Array, knobs: Knobs) -> jax.Array:
    """The vector f32[d] that the error is measured from: x f32[d] after the deterministic steps."""
    for step in steps.transforms:
        if step.reference:
            x = step.reference(x, knobs)
    return steps.last.reference(x, knobs)


def _variance(steps: _Steps, x: jax.Array, knobs: Knobs) -> jax.Array:
    """Expected squared error per coordinate, f32[d] or f32[], of x f32[d].

    The errors of the steps add up, because each of them has mean zero given what entered its step.
    """
    if not steps.transforms:
        assert steps.last.variance  # `chain` asks only where every step has one
        return steps.last.variance(x, knobs)
    first, rest = steps.transforms[0], _Steps(steps.transforms[1:], steps.last)
    assert first.variance
    entering = first.reference(x, knobs) if first.reference else x
    return first.variance(entering, knobs, partial(_variance, rest))


def _code(steps: _Steps) -> Code:
    """How the symbols of the chain are distributed: as those of its last mechanism."""
    last = steps.last.code
    sparse = last.weight or any(step.weight for step in steps.transforms)
    said = [f"{step.name}: {step.identity}" for step in steps.transforms if step.identity]
    return last._replace(
        identity="\n".join(filter(None, [*said, last.identity])),
        key=partial(_code_key, steps),
        size=partial(_code_size, steps),
        weight=partial(_code_weight, steps) if sparse else None,
        side=partial(_code_side, steps),
    )


def _code_key(steps: _Steps, shared: jax.Array) -> jax.Array:
    """Shared key of the whole chain -> shared key of the symbols."""
    return steps.last.code.key(_key_of_last(steps, shared))


def _code_size(steps: _Steps, d: int) -> int:
    """Length of the update -> number of coordinates that are quantized."""
    return steps.last.code.size(_sizes(steps, d)[-1])


def _code_side(steps: _Steps, side: dict) -> dict:
    """Side information of the whole chain -> side information of the symbols."""
    return steps.last.code.side(side.get("chain", {}))


def _code_weight(steps: _Steps, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array | None:
    """f32[size], 0 where a coordinate is not sent: the masks of the transforms and of the last mechanism."""
    weight = _weight(steps, shared, message.side, knobs, message.length)
    weight_of_last = steps.last.code.weight
    if weight_of_last is None:
        return weight
    kept = weight_of_last(_key_of_last(steps, shared), _message_of_last(steps, message), knobs)
    return kept if weight is None or kept is None else weight * kept


def _joint(steps: _Steps) -> Joint:
    """How sums of the chain's messages are decoded: as those of its last mechanism."""
    last = steps.last.joint
    assert last is not None
    return last._replace(
        encode=partial(_encode_jointly, steps),
        dithers=lambda shared, d: last.dithers(_key_of_last(steps, shared), d),
    )


def _encode_jointly(
    steps: _Steps, keys: Keys, common: jax.Array, participants: int, bits: Any, x: jax.Array, knobs: Knobs
) -> Message:
    """The message of x f32[d] for a sum; see `Joint.encode`."""
    joint = steps.last.joint
    assert joint is not None
    last = steps.last._replace(
        encode=lambda own, y, knobs, mask: joint.encode(own, common, participants, bits, y, knobs)
    )
    return _encode(steps._replace(last=last), keys, x, knobs)
