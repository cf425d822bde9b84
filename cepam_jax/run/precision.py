"""The report on privacy, with what 32-bit arithmetic leaves out and how much that is where it is known."""

import math
import re
from typing import NamedTuple

import numpy as np

from cepam_jax import privacy
from cepam_jax.federated import poisson
from cepam_jax.mechanisms import About
from cepam_jax.privacy import arithmetic, noise_sums
from cepam_jax.privacy.events import by_own_noise


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
    own = _JOPEQ.fullmatch(last) or last == "secure-sum"
    if own or {"gaussian-noise", "laplace-noise"} & set(steps):
        return Drawn(1.0, 1, rotated)
    if _LRSUQ.fullmatch(last):
        return Drawn(0.0, about.block, rotated)
    if _CELLS.fullmatch(last):
        return Drawn(0.0, about.block, rotated, cells=True)
    if found := _SPLIT.fullmatch(last):
        return Drawn(float(found["share"]), 1, rotated, cells=found["cells"] is not None)
    return None


# Names that this project gives; of mechanisms with other ones nothing was measured.
_LATTICE = "(A2|D4|E8|Z[1-9])"
_LRSUQ = re.compile(f"lrsuq-(gaussian|laplace)-{_LATTICE}")
_JOPEQ = re.compile(f"jopeq-(gaussian|laplace)-{_LATTICE}")
_CELLS = re.compile(f"rotated-{_LATTICE}")
_SPLIT = re.compile(rf"split-(?P<share>[\d.e-]+)-(?P<cells>rotated-)?{_LATTICE}")


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
    chance = _chance_beyond(law, drawn.block, end, federation, lambda phase: phase.outsiders)
    unit = "deviations" if law == "gaussian" else "times its scale b"
    text += (
        f"; it ends at {end:.2f} {unit}, and an update that lies on one coordinate leaves that range with "
        f"probability {chance:.1e} over the run"
    )
    if chance > delta:
        who = "colluding_clients and decoded_updates"
        if by_own_noise(federation):
            who = "released_model, colluding_clients and decoded_updates"
        who = "released_model and colluding_clients" if federation.central else who
        text += f", more than delta = {delta:g}: the epsilons against {who} are those of noise without end"
    text += _against_the_server(federation, delta)
    if drawn.share == 1 or not coordinates:
        return text
    padded = 1 << (coordinates - 1).bit_length() if drawn.rotated else coordinates
    rounds, most = sum(phase.rounds for phase in federation.phases), federation.per_round
    if federation.sampling == "poisson":
        most = poisson.places(len(federation.clip), federation.per_round)
    blocks = -(-padded // about.block) * rounds * most
    distance = arithmetic.total_variation("rotated" if drawn.cells else law, about.block, blocks)
    what = "errors of rotated cells" if drawn.cells else "radii of LRSUQ's layers"
    return (
        f"{text}; the {what} follow their law to {distance:.1e} in total variation over all "
        f"{blocks:,} blocks of the run, which may cost 1 + e^epsilon times as much delta"
    )


def _against_the_server(federation: privacy.Federation, delta: float) -> str:
    """The same of what the server faces, the noise from private keys alone, where that is less."""
    law = federation.server
    if law is None or federation.central or federation.summed:
        return ""
    end = arithmetic.ADDITIVE_ENDS[law]
    chance = _chance_beyond(law, 1, end, federation, lambda phase: phase.server)
    if chance <= delta:
        return ""
    return (
        f"; what the server faces ends at {end:.2f}, and the probability is {chance:.1e}, more than delta = "
        f"{delta:g}: the epsilon against server is that of noise without end"
    )


def _chance_beyond(law, block, end, federation, own) -> float:
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
                noise = privacy.noise_scale(law, own(phase)) / privacy.bounds(federation, phase)
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
