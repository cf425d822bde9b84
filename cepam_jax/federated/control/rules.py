"""Rules that set gamma by what was released: coarse first, fine when it pays.

All read the power of the aggregate without its noise, |A|^2 - E|noise|^2, of which the second is public. They
read no loss: clients' losses are not released, and no public examples are asked for. Near an optimum the mean
update is x = a (w* - w), a the part of the distance that a round contracts, so |x|^2 is a^2 times the squared
distance: it falls while training gains, and stalls where what the clients learn in a round only mends the
noise of rounds before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import require
from cepam_jax.federated.control.base import CONTROLS, Control, Released
from cepam_jax.federated.control.filters import Purse, Spender, filtered

FORGETTING = 0.9  # of running means, for each round
_SKETCH = 4096  # numbers that stand for an aggregate, where two of them are compared

_FIRST = settings.unit(0.5, "Gamma of the first round, as a part of that of an even spread of the budget.")
settings.declare(
    "plateau",
    {
        "first": _FIRST,
        "growth": settings.number(
            2.0, "What gamma is multiplied by at a plateau.", lambda v: 1 < v <= 1e3, "above 1, at most 1e3"
        ),
    },
    "Of config.control=plateau: gamma grows where the power of the released aggregate stalls.",
)
settings.declare(
    "signal_to_noise",
    {
        "first": _FIRST,
        "ratio": settings.not_negative(
            0.0, "Power of the released aggregate over that of its noise; 0: that of the first round."
        ),
    },
    "Of config.control=signal_to_noise: gamma keeps a ratio of released signal to known noise.",
)
settings.declare(
    "greedy",
    {
        "contraction": settings.below_one(
            0.0, "Part of the distance to the optimum that a round contracts; 0: estimated from releases."
        )
    },
    "Of config.control=greedy: gamma by the bound of convergence.",
)


@settings.rule
def _rules(fields):
    """Settings that nobody reads are errors."""
    rule = fields["control"]
    for name in ("plateau", "signal_to_noise", "greedy"):
        if rule != name:
            yield from settings.unread(fields, name, f"unless config.control is {name!r}")
    if rule == "schedule":
        why = "where config.control is 'schedule', which no filter is needed for"
        yield from settings.unread(fields, "filter", why)
    yield (
        rule not in ("plateau", "signal_to_noise", "greedy")
        or fields["privacy.target_epsilon"] == 0
        or fields["privacy.calibrate"],
        "privacy.calibrate",
        f"True where config.control is {rule!r}: its budget is set beforehand (config.filter.rounds)",
    )


def power(released: Released) -> jax.Array:
    """|A|^2 - E|noise|^2, at least two standard deviations of what the noise alone makes of it; f32[]."""
    d = released.aggregate.size
    least = released.noise * np.float32(np.sqrt(8 / d))
    return jnp.maximum(jnp.sum(jnp.square(released.aggregate)) - released.noise, least)


class _Plateau(NamedTuple):
    """State of `plateau`.

    Attributes:
      factor: f32[], gamma over that of the first round.
      unit: f32[], f^2 of the first round; 0 before it.
      running: f32[], running power.
      past: f32[hold], that after the last rounds, the oldest first.
      since: int32[], rounds since gamma changed.
    """

    factor: jax.Array
    unit: jax.Array
    running: jax.Array
    past: jax.Array
    since: jax.Array


def plateau(
    rounds: int, first: float = 0.5, growth: float = 2.0, budget: float = 0.0, **limits: Any
) -> Control:
    """Gamma times `growth` when the running power of the aggregate stalls over a tenth of the rounds.

    The rule of Hönig, Zhao, Mullins: DAdaQuant: Doubly-adaptive quantization for communication-efficient
    Federated Learning (arXiv 2111.00465), which doubles a quantizer's levels where the running mean (factor
    .9) of the clients' losses stalls. Those are not released; the power of the aggregate is.

    Args:
      rounds: as for `filtered`.
      budget: as for `filtered`.
      **limits: other arguments of `filtered`.
      first: gamma of the first round over that of an even spread of the budget.
      growth: above 1.
    """
    _check("plateau", first=first, growth=growth)
    hold = max(1, round(rounds / 10))

    def initialize() -> _Plateau:
        none = jnp.float32(0)
        return _Plateau(jnp.float32(1), none, none, jnp.zeros(hold, jnp.float32), jnp.int32(0))

    def wanted(state: _Plateau, purse: Purse) -> jax.Array:
        begun = state.unit > 0
        return jnp.where(begun, jnp.square(state.factor) * state.unit, np.float32(first**2) * purse.even)

    def observe(state: _Plateau, square: jax.Array, released: Released) -> _Plateau:
        begun, since = state.unit > 0, state.since + 1
        running = jnp.where(begun, _mean(state.running, power(released)), power(released))
        stalled = (since > hold) & (running >= state.past[0])
        factor = jnp.where(stalled, jnp.minimum(state.factor * np.float32(growth), 1e6), state.factor)
        past = jnp.append(state.past[1:], running)
        unit = jnp.where(begun, state.unit, square)
        return _Plateau(factor, unit, running, past, jnp.where(stalled, 0, since))

    return filtered(Spender(wanted, initialize, observe), rounds, budget, **limits)


def _mean(before: jax.Array, now: jax.Array) -> jax.Array:
    """The running mean with one round more."""
    return FORGETTING * before + (1 - FORGETTING) * now


class _Ratio(NamedTuple):
    """Running power; f^2 times power that is to be kept (0: not known yet)."""

    running: jax.Array
    kept: jax.Array


def signal_to_noise(
    rounds: int, first: float = 0.5, ratio: float = 0.0, budget: float = 0.0, **limits: Any
) -> Control:
    """Gamma such that the released power stays a constant multiple of the noise: f^2 goes as 1 / power.

    Args:
      rounds: as for `filtered`.
      budget: as for `filtered`.
      **limits: other arguments of `filtered`.
      first: gamma of the first round over that of an even spread of the budget.
      ratio: power over noise; 0: that of the first round.
    """
    _check("signal_to_noise", first=first, ratio=ratio)

    def initialize() -> _Ratio:
        return _Ratio(jnp.float32(0), jnp.float32(0))

    def wanted(state: _Ratio, purse: Purse) -> jax.Array:
        known = state.running > 0
        later = state.kept / jnp.where(known, state.running, 1)
        return jnp.where(known, later, np.float32(first**2) * purse.even)

    def observe(state: _Ratio, square: jax.Array, released: Released) -> _Ratio:
        found = power(released)
        known = state.running > 0
        running = jnp.where(known, _mean(state.running, found), found)
        at_one = square * released.noise  # of the noise at f = 1, the same in every round
        kept = ratio * at_one if ratio else jnp.where(known, state.kept, square * found)
        return _Ratio(running, kept)

    return filtered(Spender(wanted, initialize, observe), rounds, budget, **limits)


class _Greedy(NamedTuple):
    """A sketch of the last aggregate; sums over pairs of rounds of |A|^2, of <A, next A>, and of noises."""

    sketch: jax.Array
    noise: jax.Array
    square: jax.Array
    sums: jax.Array


def sketch(vector: jax.Array) -> jax.Array:
    """f32[_SKETCH] whose inner products are those of the vectors f32[d] in the mean, to some 2 percent.

    Charikar, Chen, Farach-Colton: Finding frequent items in data streams, 2002: fixed signs, and folded.
    """
    signs = jax.random.rademacher(jax.random.key(16), vector.shape, jnp.float32)
    folds = -(-vector.size // _SKETCH)
    padded = jnp.pad(vector * signs, (0, folds * _SKETCH - vector.size))
    return padded.reshape(folds, _SKETCH).sum(0)


def greedy(rounds: int, contraction: float = 0.0, budget: float = 0.0, **limits: Any) -> Control:
    """Gamma by the bound of convergence; docs/adaptive.md derives it.

    A round takes the bound of E|w - w*|^2 from D to (1 - a)^2 D + V + N / f^2. Of all ways to spend what is
    left over the n rounds left, the last D is least for f^2 growing by 1 / (1 - a) each round: this round
    has the part (1 - a)^(n-1) a / (1 - (1 - a)^n) of it. That follows from a alone, which is given, or
    estimated from released aggregates: after a round, clients undo the part a of all that separates
    the model from the optimum, the last noise included, so E<A, next A> = (1 - a) |x|^2 - a E|noise|^2.

    Args:
      rounds: as for `filtered`.
      budget: as for `filtered`.
      **limits: other arguments of `filtered`.
      contraction: a, of a round; 0: estimated.
    """
    _check("greedy", contraction=contraction)

    def initialize() -> _Greedy:
        nothing = jnp.float32(0)
        return _Greedy(jnp.zeros(_SKETCH, jnp.float32), nothing, nothing, jnp.zeros(3, jnp.float32))

    def wanted(state: _Greedy, purse: Purse) -> jax.Array:
        a = contracts(state.sums) if not contraction else jnp.float32(contraction)
        left = (purse.rounds - purse.number).astype(jnp.float32)
        decay = jnp.log1p(-a)
        # (1 - q) q^(n-1) / (1 - q^n) times n, with q = 1 - a near 1 where a is small.
        part = left * a * jnp.exp((left - 1) * decay) / -jnp.expm1(left * decay)
        return part * purse.even

    def observe(state: _Greedy, square: jax.Array, released: Released) -> _Greedy:
        del square
        now = sketch(released.aggregate)
        pair = jnp.stack([state.square, jnp.dot(state.sketch, now), state.noise])
        return _Greedy(
            now, released.noise, jnp.sum(jnp.square(released.aggregate)), state.sums * FORGETTING + pair
        )

    return filtered(Spender(wanted, initialize, observe), rounds, budget, **limits)


def contracts(sums: jax.Array) -> jax.Array:
    """The estimate of a, f32[]: 1 - (<A, next A> + noise) / |A|^2, from 1e-3 to .5; 1e-3 at first."""
    square, product, noise = sums
    known = square > 0
    found = 1 - (product + noise) / jnp.where(known, square, 1)
    return jnp.where(known & (found > 1e-3), jnp.minimum(found, 0.5), np.float32(1e-3))


def _check(section: str, **values: float) -> None:
    for name, value in values.items():
        field = settings.FIELDS[f"{section}.{name}"]
        require(field.test(value), name, value, field.words())


def _of_config(rule, section: str):
    """Config -> the rule with its settings and budgets."""

    def build(config) -> Control:
        own, limits = config[section].to_dict(), config.filter
        return rule(
            config.rounds, **own, budget=limits.rounds, bits=limits.bits, least=limits.least, most=limits.most
        )

    return build


for _rule in (plateau, signal_to_noise, greedy):
    CONTROLS.register(_rule.__name__, _of_config(_rule, _rule.__name__))
