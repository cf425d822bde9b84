"""Transforms in front of a mechanism, as one mechanism."""

import dataclasses

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms.base import About, Keys, Mechanism, Transform, check_vector


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
    if not steps or not isinstance(steps[-1], Mechanism):
        raise ConfigError("chain(...) must end with a mechanism, such as lrsuq()")
    *transforms, last = steps
    sparse = None
    for step in transforms:
        if not isinstance(step, Transform):
            raise ConfigError("chain(...): every step before the last must be a transform")
        if sparse and step.mixes:
            raise ConfigError(
                f"chain(...): {step.name} cannot follow {sparse}: it would mix what is not sent"
            )
        sparse = step.name if step.weight else sparse

    def sizes(d):
        found = [d]
        for step in transforms:
            found.append(step.size(found[-1]))
        return found

    def own(key, i):
        return jax.random.fold_in(key, i)

    def weighted(shared, side, knobs, d, weight=None):
        """Product of the steps' weights: 0 where a coordinate is not sent; None: all are."""
        before = sizes(d)
        for i, step in enumerate(transforms):
            if step.weight:
                kept = step.weight(own(shared, i), side.get(f"{i}:{step.name}"), knobs, before[i])
                weight = kept if weight is None else weight * kept
        return weight

    def encode(keys, x, knobs, weight=None):
        check_vector(x)
        d, side = x.shape[0], {}
        for i, step in enumerate(transforms):
            mine = Keys(own(keys.shared, i), own(keys.private, i))
            x, found = step.forward(mine, x, knobs)
            if found is not None:
                side[f"{i}:{step.name}"] = found
        rest = Keys(own(keys.shared, len(transforms)), own(keys.private, len(transforms)))
        message = last.encode(rest, x, knobs, weighted(keys.shared, side, knobs, d, weight))
        nested = {"chain": message.side} if message.side else {}
        return dataclasses.replace(message, side=side | nested, length=d)

    def inner(message):
        return dataclasses.replace(
            message, side=message.side.get("chain", {}), length=sizes(message.length)[-1]
        )

    def decode(shared, message, knobs):
        y = last.decode(own(shared, len(transforms)), inner(message), knobs)
        before = sizes(message.length)
        for i, step in reversed(list(enumerate(transforms))):
            if step.inverse:
                found = message.side.get(f"{i}:{step.name}")
                y = step.inverse(own(shared, i), y, found, knobs, before[i])
        return y

    def bits(shared, message, knobs, weight=None):
        total = jnp.float32(0)
        before = sizes(message.length)
        for i, step in enumerate(transforms):
            found = message.side.get(f"{i}:{step.name}")
            if step.side_bits:
                total += step.side_bits(found, knobs, before[i])
        weight = weighted(shared, message.side, knobs, message.length, weight)
        return total + last.bits(own(shared, len(transforms)), inner(message), knobs, weight)

    def reference(x, knobs):
        for step in transforms:
            if step.reference:
                x = step.reference(x, knobs)
        return x

    def variance(x, knobs):
        """Errors of the steps add up: each is unbiased given what entered it."""
        if not transforms:
            return last.variance(x, knobs)
        first = transforms[0]
        rest = chain(*steps[1:])
        entering = first.reference(x, knobs) if first.reference else x
        return first.variance(entering, knobs, rest.variance)

    def code_weight(shared, message, knobs):
        weight = weighted(shared, message.side, knobs, message.length)
        if last.code.weight is None:
            return weight
        kept = last.code.weight(own(shared, len(transforms)), inner(message), knobs)
        return kept if weight is None else weight * kept

    sparse = sparse or last.code.weight
    code = last.code._replace(
        key=lambda shared: last.code.key(own(shared, len(transforms))),
        size=lambda d: last.code.size(sizes(d)[-1]),
        weight=code_weight if sparse else None,
        side=lambda side: last.code.side(side.get("chain", {})),
    )
    known = last.variance and all(step.variance for step in transforms)
    return Mechanism(
        encode,
        decode,
        bits,
        lambda x, knobs: last.reference(reference(x, knobs), knobs),
        _about(transforms, last.about),
        code,
        variance if known else None,
    )


def _protection(transforms, last: About):
    """(outsiders, server, sensitivity, summable) of a chain: a later clip bounds nothing that noise hides."""
    outsiders, server, norm, frozen, after = None, None, None, False, []
    for step in transforms:
        if step.about.server and not frozen:
            outsiders, server, frozen = step.about.outsiders, step.about.server, True
        elif frozen:
            after.append(step.about)
        else:
            norm = step.about.clip or norm
            norm = "l2" if step.mixes and norm else norm
    if frozen:
        # A law of its own is that of an error independent of x; a clip has none, but is not linear.
        linear = all(about.law != "other" and about.clip is None for about in [*after, last])
        return outsiders, server, norm, linear
    return last.outsiders, last.server, last.sensitivity or norm, last.summable


def _about(transforms, last: About) -> About:
    abouts = [step.about for step in transforms]
    outsiders, server, sensitivity, summable = _protection(transforms, last)
    laws = {about.law for about in [*abouts, last]} - {"none"}
    return About(
        name="+".join([step.name for step in transforms if step.name] + [last.name]),
        law=laws.pop() if len(laws) == 1 else "other" if laws else "none",
        unbiased=all(about.unbiased for about in [*abouts, last]),
        block=last.block,
        randomness=tuple(sorted(set(sum((about.randomness for about in abouts), last.randomness)))),
        knobs=tuple(dict.fromkeys(sum((about.knobs for about in [*abouts, last]), ()))),
        clip=next((about.clip for about in reversed(abouts) if about.clip), last.clip),
        local=all(about.local for about in [*abouts, last]),
        outsiders=outsiders,
        server=server,
        sensitivity=sensitivity,
        leaks=sum((about.leaks for about in [*abouts, last]), ()),
        summable=summable,
    )
