"""Rules that make quantization finer while the training loss falls: opponents without any promise of privacy.

DAdaQuant (Hönig, Zhao, Mullins: DAdaQuant: Doubly-adaptive quantization for communication-efficient Federated
Learning, arXiv 2111.00465). Over time: G^_t = psi G^_(t-1) + (1 - psi) G_t is the running mean of the
participants' loss; the number of levels q doubles when it is no lower than phi - 1 rounds before, stays for
phi rounds at least, and never exceeds a cap; psi = .9, phi a tenth of the rounds. Over clients: a client of
relative weight w_k gets q_k = sqrt(a / b) w_k^(2/3), with a = sum w_j^(2/3) and b = sum w_j^2 / q^2, which
leaves the expected variance of the mean as it is under q and sends the fewest bits. Here the sums run over
all clients and not over those of the round; as a / b is a ratio of means, this is the same up to the draw.
Numbers of examples reach the rule with the first results, so all clients have q in the first round.

AdaQuantFL (Jhunjhunwala, Gadhikar, Joshi, Eldar: Adaptive Quantization of Model Updates for Communication-
Efficient Federated Learning, arXiv 2102.04487): q_t = ceil(sqrt(F_0 / F_t) q_0), with F the mean training
loss, here that of the participants' local steps.

Both read training losses, which are never released: they `watch`, and the report says that nothing is
guaranteed. q_0 is the knob at the start. For the knob `bits`, q counts intervals, 2^bits - 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax import mechanisms, settings
from cepam_jax.errors import ConfigError
from cepam_jax.federated.control import CONTROLS, Control, Measured
from cepam_jax.mechanisms import Knobs
from cepam_jax.mechanisms.configured import knob_values

_KNOBS = ("bits", "levels")
_MOST = {"bits": 8.0, "levels": 2.0**20}
_LEAST = {"bits": 1.0, "levels": 2.0}

settings.declare(
    "adaptive_levels",
    {
        "most": settings.integer(
            8, "Cap on bits (or on log2 of levels) of the rules 'dadaquant' and 'adaquantfl'.", high=20
        ),
        "forgetting": settings.below_one(
            0.9, "Of `dadaquant`: psi, what stays of the running loss in a round."
        ),
        "patience": settings.integer(0, "Of `dadaquant`: phi in rounds; 0: a tenth of the rounds.", low=0),
        "by_client": settings.boolean(
            False, "Of `dadaquant`: whether clients with more examples get more levels."
        ),
    },
    "Of the rules 'dadaquant' and 'adaquantfl', which read training losses.",
)


class Plateau(NamedTuple):
    """State of `dadaquant`.

    Attributes:
      losses: f32[phi], the running loss of the last rounds, the newest last.
      seen: int32[], rounds seen.
      times: f32[], what the levels at the start are multiplied by: a power of two.
      held: int32[], rounds since that changed.
      examples: f32[clients]; ones before the first results.
    """

    losses: jax.Array
    seen: jax.Array
    times: jax.Array
    held: jax.Array
    examples: jax.Array


class Falling(NamedTuple):
    """State of `adaquantfl`.

    Attributes:
      first, last: f32[], the mean training loss of the first round and of the last; 0: there is none yet.
    """

    first: jax.Array
    last: jax.Array


def knob_of(config) -> str:
    """The knob that the configured mechanism has: "bits" or "levels".

    Raises:
      ConfigError: it has neither.
    """
    about = mechanisms.build(config.mechanism, ((1,),)).about
    for name in _KNOBS:
        if name in about.knobs:
            return name
    raise ConfigError(
        f"config.control = {config.control!r} sets bits or levels, and the mechanism {about.name} has "
        "neither: config.mechanism.name must be 'clipped', 'k_level', 'qsgd', or 'sdq' with "
        "config.mechanism.rate='bits'"
    )


def mean_loss(measured: Measured) -> jax.Array:
    """f32[], the participants' mean loss, each weighted by its number of examples."""
    return jnp.sum(measured.examples * measured.loss) / jnp.sum(measured.examples)


def quanta(name: str, value: jax.Array) -> jax.Array:
    """q f32[...], the number that the papers call levels, of a knob."""
    return 2.0**value - 1 if name == "bits" else value


def knob_for(name: str, q: jax.Array, most: float, up: bool = False) -> jax.Array:
    """The knob f32[...] with about q levels (at least so many with `up`), between its least and the cap."""
    value = jnp.log2(q + 1) if name == "bits" else q
    # Powers of two come back as they were, whatever log2 does in the last bit.
    whole = jnp.ceil(value - 1e-4) if up else jnp.round(value)
    return jnp.clip(whole, _LEAST[name], most)


def by_weight(q: jax.Array, examples: jax.Array) -> jax.Array:
    """q_k = sqrt(a / b) w_k^(2/3) f32[clients], from q f32[clients] and numbers of examples f32[clients]."""
    w = examples / jnp.sum(examples)
    a, b = jnp.sum(w ** (2 / 3)), jnp.sum(jnp.square(w / q))
    return jnp.sqrt(a / b) * w ** (2 / 3)


def _cap(config, name: str) -> float:
    most = config.adaptive_levels.most
    return min(float(most) if name == "bits" else 2.0**most, _MOST[name])


@CONTROLS.function
def dadaquant(config) -> Control:
    """Levels double when the running training loss stalls, and differ by client where that is asked for."""
    name, options = knob_of(config), config.adaptive_levels
    most = _cap(config, name)
    # One that is longer than the run never doubles, however long it is.
    patience = max(2, min(options.patience or config.rounds // 10, config.rounds + 1))
    psi = options.forgetting

    def initialize(knobs: Knobs) -> Plateau:
        clients = jnp.shape(getattr(knobs, name))[0]
        zero = jnp.int32(0)
        return Plateau(
            jnp.zeros(patience, jnp.float32), zero, jnp.float32(1), zero, jnp.ones(clients, jnp.float32)
        )

    def watch(state: Plateau, measured: Measured) -> Plateau:
        loss, before = mean_loss(measured), state.losses[-1]
        loss = jnp.where(jnp.isfinite(loss), loss, before)
        running = jnp.where(state.seen > 0, psi * before + (1 - psi) * loss, loss)
        losses = jnp.concatenate([state.losses[1:], running[None]])
        seen, held = state.seen + 1, state.held + 1
        doubles = (seen >= patience) & (held >= patience) & (losses[-1] >= losses[0])
        return Plateau(
            losses,
            seen,
            jnp.where(doubles, 2 * state.times, state.times),
            jnp.where(doubles, 0, held),
            measured.all_examples,
        )

    def knobs(state: Plateau, start: Knobs, number) -> Knobs:
        del number
        largest = quanta(name, jnp.float32(most))
        q = jnp.minimum(state.times * quanta(name, getattr(start, name)), largest)
        q = by_weight(q, state.examples) if options.by_client else q
        return start._replace(**{name: knob_for(name, q, most)})

    return Control(knobs, initialize, watch=watch)


@CONTROLS.function
def adaquantfl(config) -> Control:
    """Levels grow with the square root of the first training loss over the last."""
    name = knob_of(config)
    most = _cap(config, name)

    def watch(state: Falling, measured: Measured) -> Falling:
        loss = mean_loss(measured)
        loss = jnp.where(jnp.isfinite(loss), loss, state.last)
        return Falling(jnp.where(state.first > 0, state.first, loss), loss)

    def knobs(state: Falling, start: Knobs, number) -> Knobs:
        del number
        known = (state.first > 0) & (state.last > 0)
        ratio = jnp.where(known, state.first / jnp.where(known, state.last, 1.0), 1.0)
        q = jnp.ceil(jnp.sqrt(ratio) * quanta(name, getattr(start, name)) - 1e-4)
        return start._replace(**{name: knob_for(name, q, most, up=True)})

    return Control(knobs, lambda knobs: Falling(jnp.float32(0), jnp.float32(0)), watch=watch)


@settings.rule
def _rules(fields):
    where = f"where config.control is {fields['control']!r}"
    if fields["control"] != "dadaquant":
        read = ("adaptive_levels.most",) if fields["control"] == "adaquantfl" else ()
        yield from settings.unread(fields, "adaptive_levels", where, read)
    if fields["control"] not in ("dadaquant", "adaquantfl"):
        return
    yield from settings.unread(fields, "filter", f"{where}, which no filter limits")
    bits = fields["mechanism.name"] in ("clipped", "sdq")
    start = max(knob_values(fields, "bits" if bits else "levels"))
    most = fields["adaptive_levels.most"]
    cap = min(most, int(_MOST["bits"])) if bits else 2**most
    yield (
        start <= cap,
        "adaptive_levels.most",
        f"such that its {cap} {'bits' if bits else 'levels'} are at least what clients start with, {start}",
    )
