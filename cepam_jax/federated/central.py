"""Noise that the server adds to the sum of the updates: the fair opponent of CEPAM under a trusted server.

CEPAM trusts the server with the shared randomness. Then the server might as well add the noise itself:
clients send any compressed message, and what is decoded of it

  x^_k = clip(decode(encode(clip(x_k))))

is clipped once more, because a quantizer's error may carry it beyond its bound C_k; but where the error is
independent of the update (`About.independent`, subtractive dithers), it hides more and reveals nothing, and
is left as it is (docs/privacy.md, "Noise by the server"). The server releases

  (sum_k w_k x^_k + n) / sum_k w_k,   n of variance sum_k w_k^2 sigma_k^2 per coordinate,

the sums over the participants of the round: the noise that CEPAM's clients would have added together, so that
equal sigmas mean equal noise and, for Gaussian noise, equal accounting against whoever sees the models. n is
Gaussian, or one Laplace variable per coordinate, and comes from a key that the server alone knows.

Under Poisson sampling (`participation`) the number of participants is random and must not be betrayed by the
noise: n has the variance of as many clients as there are places, each with the largest w_k sigma_k, and the
sum is divided by its expected weight. Where clients add Gaussian noise themselves, the server adds what is
missing to that variance.
"""

import jax
import jax.numpy as jnp

from cepam_jax import mechanisms, settings
from cepam_jax.errors import ConfigError, require_choice
from cepam_jax.federated import poisson, round_keys
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.state import ClientArrays, Report
from cepam_jax.mechanisms import RANGE, About, Keys, Knobs, Mechanism
from cepam_jax.mechanisms.latents import TARGETS
from cepam_jax.mechanisms.noise import add_noise
from cepam_jax.mechanisms.transforms import clip

settings.declare(
    "server",
    {
        "noise": settings.boolean(
            False,
            "Whether the server adds noise to the sum, of the law mechanism.target and of deviation "
            "clip_norm / gamma for each update in it; clients add none. Under Poisson sampling it adds "
            "what the clients that came lack of the noise of all places.",
        )
    },
)


def bounded(about: About, decoded: jax.Array, knobs: Knobs, drawn_alone: bool) -> jax.Array:
    """A decoded update f32[d] within the mechanism's clip, but for an error that is independent of it.

    Such an error is clipped, too, where clients are drawn by themselves (Poisson sampling): it comes with its
    client, and betrays by its length who came. And behind an L1 clip, which a rotation's way back may undo.
    """
    assert about.clip is not None
    if about.independent and about.clip == "l2" and not drawn_alone:
        return decoded
    within = clip(about.clip).reference
    assert within is not None
    return within(decoded, knobs)


def added(plan: Plan, round_number, arrays: ClientArrays, knobs: Knobs, aggregate, report: Report):
    """The aggregate f32[d] with the server's noise, NaN where that would vanish beside a coordinate.

    Args:
      plan: of the round.
      round_number: int32[], rounds done.
      arrays: of all clients.
      knobs: of all clients in this round.
      aggregate: f32[d], without it.
      report: Report of the participants.
    """
    if plan.server_noise is None:
        return aggregate
    key = round_keys.of_round(arrays.training_key, round_number, round_keys.SERVER_NOISE)
    add, size = add_noise(plan.server_noise).forward, deviation(plan, arrays, knobs, report)
    if not plan.poisson or plan.mechanism.about.outsiders is None:
        return add(Keys(key, key), aggregate, Knobs(sigma=size))[0]
    # What is filled up may be little, or nothing: a coordinate is too large only beside all noise of the sum.
    unit = add(Keys(key, key), jnp.zeros_like(aggregate), Knobs(sigma=jnp.float32(1)))[0]
    whole = jnp.sqrt(_whole(plan, arrays, knobs)) / poisson.expected_weight(plan, arrays)
    return jnp.where(jnp.abs(aggregate) <= RANGE * whole, aggregate + size * unit, jnp.nan)


def deviation(plan: Plan, arrays: ClientArrays, knobs: Knobs, report: Report) -> jax.Array:
    """f32[], standard deviation per coordinate of what the server adds to a round's aggregate.

    Args:
      plan: of the round, whose server adds noise.
      arrays: of all clients.
      knobs: of all clients in this round.
      report: Report of the participants, with their weights.
    """
    if plan.poisson:
        return _missing(plan, arrays, knobs, report)
    return of_participants(knobs, report)


def of_participants(knobs: Knobs, report: Report) -> jax.Array:
    """f32[], the same where the participants are as many as were to be drawn."""
    each = report.weight * knobs.sigma[report.client]
    return jnp.sqrt(jnp.sum(jnp.square(each))) / jnp.sum(report.weight)


def _missing(plan: Plan, arrays: ClientArrays, knobs: Knobs, report: Report) -> jax.Array:
    """The same under Poisson sampling: what participants leave of the largest noise of all places."""
    squares = _squares(plan, arrays, knobs)
    if plan.mechanism.about.outsiders is None:
        variance = _whole(plan, arrays, knobs)
    else:  # place by place, where rounding makes little of nothing, and no large part of what is there
        assert report.present is not None
        came = jnp.where(report.present > 0, squares[jnp.minimum(report.client, len(squares) - 1)], 0.0)
        variance = jnp.sum(jnp.maximum(jnp.max(squares) - came, 0.0))
    return jnp.sqrt(variance) / poisson.expected_weight(plan, arrays)


def _squares(plan: Plan, arrays: ClientArrays, knobs: Knobs) -> jax.Array:
    """f32[clients], variance of each client's part of the noise of the sum, its own or what stands for it."""
    about = plan.mechanism.about
    own = knobs.sigma if about.outsiders is None else about.outsiders.deviation(knobs)
    return jnp.square(poisson.weights_of_all(plan, arrays) * own)


def _whole(plan: Plan, arrays: ClientArrays, knobs: Knobs) -> jax.Array:
    """f32[], variance of the noise of the sum under Poisson sampling, whoever comes."""
    return plan.per_round * jnp.max(_squares(plan, arrays, knobs))


def check(plan: Plan) -> None:
    """Checks that the server's noise hides a client among the other parts of a round.

    Raises:
      ConfigError: it does not, and why.
    """
    if plan.server_noise is None:
        return
    require_choice("law of the server's noise", plan.server_noise, TARGETS)
    if plan.quantize == "weights":
        raise ConfigError(f"{_SETTING} needs updates, and config.mechanism.quantize is 'weights'")
    if plan.attack is not None or plan.false_alarm is not None:
        raise ConfigError(f"{_SETTING} does not go with config.byzantine: {_LIES}")
    if plan.ends != "slowest":
        raise ConfigError(f"{_SETTING} does not go with participants that may be late: {_LATE}")
    unbounded = why_unbounded(plan.mechanism, plan.server_noise, bool(plan.poisson))
    for cause in (unbounded, why_no_sum(plan.aggregator)):
        if cause:
            raise ConfigError(f"{_SETTING}: {cause}")


_SETTING = "noise by the server (config.server.noise)"
_LATE = "who is late follows from lengths of messages, which its noise does not hide"
_LIES = "what liars craft follows from all honest updates, and so does who is refused"


def why_unbounded(mechanism: Mechanism, law: str, fills: bool = False) -> str:
    """Why what a mechanism decodes to is not what the server's noise is for; "" if it is.

    Args:
      mechanism: of the clients.
      law: of the server's noise.
      fills: whether the server adds what noise of the clients' own lacks (Poisson sampling).
    """
    about = mechanism.about
    if about.outsiders is not None and fills:
        # An error beside the noise, as a dither's, would come with its client and betray who came.
        whole = law == about.law == about.outsiders.law == "gaussian" and about.summable
        whole = whole and mechanism.code.weight is None
        return (
            "" if whole else f"the errors of {about.name} do not add up to a Gaussian one in every coordinate"
        )
    if about.outsiders is not None:
        return f"the mechanism {about.name} adds noise of its own at the clients; take one without, as sdq"
    if about.clip is None:
        return "updates are not clipped, and one client may move their sum without bound"
    if law == "laplace" and about.clip != "l1":
        return "Laplace noise needs an L1 clip, and the clip is L2"
    dithered = mechanism.code.kind == "lattice" and "shared" in about.randomness
    if dithered and not about.independent and not fills:
        return (
            "its dither is clipped together with the update, so that an update of zeros, which is what an "
            "absent client counts as, is decoded to something else; leave out masks, and scale by step"
        )
    return ""


def why_no_sum(rule: Aggregator) -> str:
    """Why a client's part in what a rule makes of decoded updates has no bound; "" if it has one."""
    if rule.public_weights is not None:
        return ""
    if rule.combine is not None:
        return (
            "the aggregator is no weighted sum: its sensitivity to one client, as that of a median, is not "
            "bounded by the client's clip and weight; use mean or examples"
        )
    if rule.weights is not None:
        return (
            "the aggregator weighs clients by the noise of their own updates, which have none; use mean or "
            "examples"
        )
    return "the aggregator's weights are not public; use mean or examples"


@settings.rule
def _rules(fields):
    """The same, before anything is loaded."""
    if not fields["server.noise"]:
        return
    mechanism, fills = mechanisms.build(settings.section(fields, "mechanism"), ((1,),)), _fills(fields)
    cause = why_unbounded(mechanism, fields["mechanism.target"], fills)
    yield not cause, "server.noise", f"False with this mechanism: {cause}"
    rule = AGGREGATORS.get_or_raise(fields["aggregator"])
    cause = why_no_sum(rule) if isinstance(rule, Aggregator) else ""
    yield not cause, "server.noise", f"False with config.aggregator = {fields['aggregator']!r}: {cause}"
    honest = fields["byzantine.attack"] == "none" and not fields["byzantine.check"]
    yield honest, "server.noise", f"False where clients lie or are checked (config.byzantine): {_LIES}"
    yield fields["links.ends"] == "slowest", "server.noise", f"False where participants may be late: {_LATE}"
    asked = any(fields[f"needs.{name}"] for name in ("epsilon", "bits", "rate", "deadline", "clients"))
    yield not asked, "server.noise", "False with config.needs, which sets the noise of each client"
    own = mechanism.about.outsiders is not None
    yield (
        not (fills and own and fields["mechanism.error_feedback"]),
        "server.noise",
        "False where clients add noise and remember it (config.mechanism.error_feedback)",
    )


def _fills(fields) -> bool:
    return fields["participation.sampling"] == "poisson"
