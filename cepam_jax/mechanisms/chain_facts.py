"""The static facts of a chain, from those of its steps: what law its error has, and what hides an update."""

from collections.abc import Sequence
from typing import NamedTuple

from cepam_jax.mechanisms.base import About, Noise, Transform


class _Protection(NamedTuple):
    """What hides an update in a chain: the fields of `About` with these names."""

    outsiders: Noise | None
    server: Noise | None
    sensitivity: str | None
    summable: bool
    keeps: tuple[str, ...]
    unbounded_by: str


def _protection(transforms: Sequence[Transform], last: About) -> _Protection:
    """Which noise of a chain hides the update, and which norm is bounded where that noise comes in.

    The first private noise counts. A clip that comes later bounds nothing that this noise hides, and neither
    does one before a step that does not keep its norm.
    """
    noise, lost_by, undone, linear = None, "", True, True
    norm: str | None = None
    keeps: tuple[str, ...] = ("l1", "l2")
    for step in transforms:
        # What undoes a step up to the noise is done to the noise, too.
        undone = undone and (noise is not None or step.inverse is None or step.about.summable)
        if noise is not None:
            linear = linear and _leaves_noise(step)
        elif step.about.server:
            noise = step.about
        else:
            before, norm = norm, step.about.clip or _kept(norm, step.keeps)
            lost_by = "" if norm else step.name if before else lost_by
            keeps = tuple(name for name in keeps if name in step.keeps)
    if noise is None:
        before, norm = norm, last.sensitivity or _kept(norm, last.keeps)
        lost_by = "" if norm else last.unbounded_by or (last.name if before else lost_by)
        keeps = tuple(name for name in keeps if name in last.keeps)
        summable = undone and last.summable
        return _Protection(last.outsiders, last.server, norm, summable, keeps, lost_by)
    summable = undone and linear and last.leaves_noise
    return _Protection(noise.outsiders, noise.server, norm, summable, keeps, lost_by)


def _leaves_noise(step: Transform) -> bool:
    """Whether a step after the noise leaves it in the sum of all clients: more noise does."""
    return step.about.summable or (step.about.server is not None and step.inverse is None)


def _adds_nothing(step: Transform) -> bool:
    """Whether a step has no error, and what undoes it is an orthogonal map."""
    return step.about.law == "none" and (step.inverse is None or step.about.summable)


def _kept(norm: str | None, keeps: tuple[str, ...]) -> str | None:
    """The norm that is bounded behind a step, if `norm` was before it; an L1 bound implies the L2 bound."""
    if norm is None or norm in keeps:
        return norm
    return "l2" if "l2" in keeps else None


def clips_astray(transforms: Sequence[Transform], last: About) -> bool:
    """Whether a chain clips something else than its `reference` does, which is the update clipped.

    It does where an update is noised, rotated or thinned out before it is clipped; a whole L2 clip alone does
    the same to a rotated update. Then the error has no law and no mean that is known.
    """
    moved = turned = False  # by more than orthogonal maps; by such maps
    for step in transforms:
        if step.reference and (moved or (turned and not step.radial)):
            return True
        moved = moved or bool(step.weight) or not _adds_nothing(step)
        turned = turned or bool(step.inverse)
    return last.clip is not None and (moved or turned)


def even_errors(transforms: Sequence[Transform], last: About) -> bool:
    """Whether what follows each noise and mask of a chain errs alike whatever enters it.

    Otherwise the squared error of the whole is not that of an update without the noise and the mask, which a
    formula knows.
    """
    for place, step in enumerate(transforms):
        if step.about.server or step.weight:
            if not (last.leaves_noise and all(map(_leaves_noise, transforms[place + 1 :]))):
                return False
    return True


def about_of_chain(transforms: Sequence[Transform], last: About) -> About:
    """The static facts of a chain.

    Args:
      transforms: the transforms, in the order in which the client applies them.
      last: facts of the mechanism that ends the chain.

    Returns:
      The facts of the whole.
    """
    abouts = [step.about for step in transforms]
    everything = [*abouts, last]
    protection = _protection(transforms, last)
    # One error's law is the whole one's; of the sum of several none is stated, nor is its deviation, nor of
    # one that is mixed when a step is undone, but of a Gaussian error by an orthogonal map.
    laws = [about.law for about in everything if about.law != "none"]
    first = next((place for place, about in enumerate(abouts) if about.law != "none"), len(abouts))
    undone = [step for step in transforms[:first] if step.inverse]
    astray = clips_astray(transforms, last)
    kept = not undone or (laws == ["gaussian"] and all(step.about.summable for step in undone))
    if astray or (laws and not kept):
        laws.append("other")
    randomness = {key for about in everything for key in about.randomness}
    return About(
        name="+".join([step.name for step in transforms if step.name] + [last.name]),
        law=laws[0] if len(laws) == 1 else "other" if laws else "none",
        unbiased=not astray and all(about.unbiased for about in everything),
        block=last.block,
        randomness=tuple(sorted(randomness)),
        knobs=tuple(dict.fromkeys(name for about in everything for name in about.knobs)),
        clip=next((about.clip for about in reversed(abouts) if about.clip), last.clip),
        local=all(about.local for about in everything),
        outsiders=protection.outsiders,
        server=protection.server,
        sensitivity=protection.sensitivity,
        leaks=tuple(leak for about in everything for leak in about.leaks),
        summable=protection.summable,
        leaves_noise=last.leaves_noise and all(map(_leaves_noise, transforms)),
        keeps=protection.keeps,
        unbounded_by=protection.unbounded_by,
        mixes=last.mixes or any(step.mixes for step in transforms),
        # A step that moves an update at will has no error either, but what is decoded is not bounded.
        independent=last.independent and not protection.unbounded_by and all(map(_adds_nothing, transforms)),
        summed=last.summed,
    )
