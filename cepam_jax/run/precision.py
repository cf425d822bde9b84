"""The report on privacy, with what 32-bit arithmetic leaves out and how much that is where it is known."""

import math
from typing import NamedTuple

import numpy as np

from cepam_jax import privacy
from cepam_jax.mechanisms import About
from cepam_jax.privacy import arithmetic, noise_sums


class Drawn(NamedTuple):
    """How the noise of a mechanism is drawn, for those that `privacy.arithmetic` measured.

    Attributes:
      share: part of its variance that is added with the private key; the rest is the quantizer's error.
      block: coordinates that leave the noise's range together.
      rotated: whether updates are rotated, and padded for that, before the noise.
      cells: whether the quantizer is that of rotated cells; otherwise it is LRSUQ.
    """

    share: float
    block: int
    rotated: bool
    cells: bool = False


def drawn_by(about: About) -> Drawn | None:
    """How a mechanism's noise is drawn, by its name; None for one that was not measured."""
    *steps, last = about.name.split("+")
    rotated = "rotate" in steps
    own = last.startswith("jopeq-") or last == "secure-sum"
    if own or any(step.endswith("-noise") for step in steps):
        return Drawn(1.0, 1, rotated)
    if last.startswith("lrsuq-"):
        return Drawn(0.0, about.block, rotated)
    if last.startswith("rotated-"):
        return Drawn(0.0, about.block, rotated, cells=True)
    if last.startswith("split-"):
        return Drawn(float(last.split("-")[1]), 1, rotated, cells="-rotated-" in last)
    return None


def report(about: About, federation: privacy.Federation, delta: float, coordinates: int = 0) -> str:
    """The text of `privacy.text`, and beside what else is not covered, what 32-bit arithmetic leaves out.

    Args:
      about: of the mechanism.
      federation: the facts that guarantees depend on.
      delta: above 0 and below 1.
      coordinates: of an update, for the size of what 32-bit words leave out; 0: not known.
    """
    words = words_of(about, federation, delta, coordinates)
    federation = federation._replace(not_covered=(*federation.not_covered, words))
    return privacy.text(federation, delta)


def words_of(about: About, federation: privacy.Federation, delta: float, coordinates: int) -> str:
    """What 32-bit arithmetic leaves out, with its size where it is known; arguments as for `report`."""
    text = "noise sampled in 32-bit arithmetic: see docs/randomness.md"
    drawn = drawn_by(about)
    if federation.central:
        drawn = Drawn(1.0, 1, rotated=False)
    if not federation.outsiders or federation.norm is None or drawn is None:
        return text
    law, end = federation.outsiders, 0.0
    if drawn.share > 0:
        end += arithmetic.ADDITIVE_ENDS[law] * math.sqrt(drawn.share)
    if drawn.share < 1:  # the ends of both parts add up
        end += arithmetic.layers_end("rotated" if drawn.cells else law, about.block) * math.sqrt(
            1 - drawn.share
        )
    chance = _chance_beyond(law, drawn.block, end, federation)
    unit = "deviations" if law == "gaussian" else "times its scale b"
    text += (
        f"; it ends at {end:.2f} {unit}, and an update that lies on one coordinate leaves that range with "
        f"probability {chance:.1e} over the run"
    )
    if chance > delta:
        who = "colluding_clients and decoded_updates"
        who = "released_model and colluding_clients" if federation.central else who
        text += f", more than delta = {delta:g}: the epsilons against {who} are those of noise without end"
    if drawn.share == 1 or not coordinates:
        return text
    padded = 1 << (coordinates - 1).bit_length() if drawn.rotated else coordinates
    rounds = sum(phase.rounds for phase in federation.phases)
    blocks = -(-padded // about.block) * rounds * federation.per_round
    distance = arithmetic.total_variation("rotated" if drawn.cells else law, about.block, blocks)
    what = "errors of rotated cells" if drawn.cells else "radii of LRSUQ's layers"
    return (
        f"{text}; the {what} follow their law to {distance:.1e} in total variation over all "
        f"{blocks:,} blocks of the run, which may cost 1 + e^epsilon times as much delta"
    )


def _chance_beyond(law, block, end, federation) -> float:
    """Of the least protected client over all rounds, if it takes part in all of them.

    Where a budget B is spent by results, rounds have f times the shift, and sum f^2 <= B. With g(u) the
    chance of a round with f^2 = u, the sum over the rounds is at most rounds g(0) + B sup (g(u) - g(0)) / u.
    """
    total = np.zeros(len(federation.clip))
    for phase in federation.phases:
        with np.errstate(divide="ignore"):
            if federation.central:
                noise = privacy.noise_scale(law, noise_sums.multipliers(federation, phase))
            else:
                noise = privacy.noise_scale(law, phase.outsiders) / privacy.bounds(federation, phase)
            shift = privacy.reach(federation) / noise
        if federation.budget is None:
            total += phase.rounds * arithmetic.beyond(law, block, end, np.minimum(shift, 1e3))
            continue
        squares = np.geomspace(1e-6, federation.budget, 400)[:, None]
        none = arithmetic.beyond(law, block, end, np.zeros(1))
        moved = arithmetic.beyond(law, block, end, np.minimum(np.sqrt(squares) * shift, 1e3))
        # Between two points of the grid the quotient is no more than their ratio above the larger.
        steep = squares[1] / squares[0] * np.max((moved - none) / squares, axis=0)
        total += phase.rounds * none + federation.budget * np.maximum(steep, 0.0)
    return float(min(1.0, total.max()))
