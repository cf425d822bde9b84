"""Rules that set the noise by earlier results: whether a ledger kept to the budget that the rule states.

What is guaranteed is that of the budget, which was fixed before anything was released; never the sum of the
noises that a ledger shows. That sum is itself a result: which noises were applied depends on what was
released, and so on the data. docs/adaptive.md has the theorem, and what goes wrong with the sum.

Rules that read how many updates were within their clips leave gamma as it is: clips and sigmas have a common
factor, and each round costs what the first one does (docs/clipping.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cepam_jax import privacy
from cepam_jax.run import phases
from cepam_jax.run.ledger import Entry, Ledger

if TYPE_CHECKING:
    from cepam_jax.run.guarantees import Facts

_SAME = 1e-5  # relative difference of factors that 32 bits make of one
_SCALES = 2.0 ** np.arange(-6, 7, 3)  # of sigma, where its noise is looked at

UNSTATED = (
    "the rule that sets the knobs reads earlier results and states no budget: the noise of a round is chosen "
    "by what was released, which the composition of rounds planned in advance does not cover"
)


def stated(facts: Facts) -> bool:
    """Whether a rule that reads results says what it spends at most."""
    known = facts.start is not None and facts.start.sigma is not None
    released = facts.control.observe is not None and facts.control.watch is None
    return released and _usable(facts.control.budget) and known


def _usable(budget: float | None) -> bool:
    return budget is not None and bool(np.isfinite(budget)) and budget > 0


def counted(facts: Facts) -> float | None:
    """The noise on the count of updates within their clips, over how far a client that becomes zero moves it.

    None where the rule that sets the knobs reads no such count, or where it is not covered.
    """
    rule = facts.control
    known = facts.start is not None and facts.start.sigma is not None and facts.start.clip is not None
    if not known or rule.observe is None or rule.watch is not None or rule.budget is not None:
        return None
    return 2 * rule.count_noise if _usable(rule.count_noise) else None


def _refused_count(facts: Facts, ledger: Ledger) -> str:
    """Why a rule that reads the count of updates within their clips has no guarantee; "" where it has one."""
    if counted(facts) is None:
        return (
            "the rule that sets the knobs reads how many updates were within their clips, and sets a budget "
            "beside it, or no positive noise on that count, or mechanisms without sigma and clip"
        )
    if facts.influence is not None and facts.influence.bound is not None:
        return "local training bounds updates, and not the clip that the rule for knobs moves"
    if not _proportional(facts, clips=True):
        return (
            f"the noise of {facts.about.name} is not proportional to sigma, which follows the clip: gamma "
            "does not stay as it is"
        )
    start = _start(facts)
    for entry in ledger.entries:
        if not _follows(facts, start, entry):
            return (
                "a round applied knobs that are not those of the start with one common factor of clips and "
                "sigmas, which is what a rule that reads a count may change"
            )
    return ""


def _follows(facts: Facts, start: privacy.Phase, entry: Entry) -> bool:
    """Whether clips have a common factor, and sigmas one that is no smaller."""
    phase = phases.of_knobs(facts, entry.knobs)
    before, after = (facts.clip if p.clip is None else p.clip for p in (start, phase))
    clip = np.asarray(after, np.float64) / np.asarray(before, np.float64)
    if not np.allclose(clip, clip.max(), rtol=_SAME, atol=0):
        return False
    for one, other in ((start.outsiders, phase.outsiders), (start.server, phase.server)):
        noisy = one > 0
        if np.any((other > 0) != noisy):
            return False
        sigma = other[noisy] / one[noisy]
        if np.any(sigma < clip.max()) or not np.allclose(sigma, clip.max(), rtol=_SAME, atol=0):
            return False
    return True


def refused(facts: Facts, ledger: Ledger) -> str:
    """Why a rule that reads what was released has no guarantee; "" where it has one, or reads nothing."""
    if facts.control.observe is None:
        return ""
    if facts.control.count_noise is not None:
        return _refused_count(facts, ledger)
    budget = facts.control.budget
    if budget is not None and not _usable(budget):
        return f"the budget of the rule that sets the knobs is {budget}, and must be positive and finite"
    if budget is None or not stated(facts):
        return UNSTATED
    if not _proportional(facts):
        return (
            f"the noise of {facts.about.name} is not proportional to sigma, and a budget in rounds at the "
            "start's sigma says nothing about it"
        )
    return _excess(facts, ledger, budget)


def _excess(facts: Facts, ledger: Ledger, budget: float) -> str:
    """Why what the rounds applied does not keep to a budget; "" where it does."""
    start, spent = _start(facts), 0.0
    for entry in ledger.entries:
        factor = _factor(facts, start, entry)
        if factor is None:
            return (
                "a round applied knobs that are not those of the start with one common factor of gamma, "
                "which is what the rule's budget counts"
            )
        spent += entry.rounds * factor**2
        if facts.control.most is not None and not factor**2 <= facts.control.most:
            return (
                f"the rule that sets the knobs states that no round has more than {facts.control.most:g} "
                f"rounds' budget, and one had {factor**2:.6g}: it does not keep what it states"
            )
    if spent <= budget:
        return ""
    return (
        f"the rule that sets the knobs states a budget of {budget:g} rounds at the start's gamma, and "
        f"what the rounds applied is {spent:.6g}: it does not keep what it states"
    )


def phase_of(facts: Facts, ledger: Ledger) -> privacy.Phase:
    """The noise and bounds of the start, which the budget counts in, in place of what the rounds applied."""
    return _start(facts)._replace(rounds=max(1, ledger.rounds))


def _start(facts: Facts) -> privacy.Phase:
    assert facts.start is not None
    return phases.of_knobs(facts, facts.start)


def _proportional(facts: Facts, clips: bool = False) -> bool:
    """Whether all noise is sigma times a constant, whatever the factor of sigmas, or of clips as well."""
    start = _start(facts)
    assert facts.start is not None
    for scale in map(np.float32, _SCALES):
        knobs = facts.start._replace(sigma=facts.start.sigma * scale)
        knobs = knobs._replace(clip=facts.start.clip * scale) if clips else knobs
        other = phases.of_knobs(facts, knobs)
        for one, two in ((start.outsiders, other.outsiders), (start.server, other.server)):
            if not np.allclose(one * scale, two, rtol=_SAME, atol=0):
                return False
    return True


def _factor(facts: Facts, start: privacy.Phase, entry: Entry) -> float | None:
    """f of a round, the largest over clients; None where it is not common, or where the bounds differ."""
    phase = phases.of_knobs(facts, entry.knobs)
    clips = [facts.clip if p.clip is None else p.clip for p in (start, phase)]
    if not np.allclose(*clips, rtol=1e-6, atol=0):
        return None
    factors = []
    for before, after in ((start.outsiders, phase.outsiders), (start.server, phase.server)):
        noisy = before > 0
        if np.any((after > 0) != noisy):
            return None
        factors.append(before[noisy] / after[noisy])
    each = np.concatenate(factors)
    if not each.size or not np.allclose(each, each.max(), rtol=_SAME, atol=0):
        return None
    return float(each.max())
