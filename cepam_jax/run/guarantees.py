"""What a run promises to whom: from its parts' statements and its ledger to `cepam_jax.privacy`."""

import math
from typing import NamedTuple

import numpy as np

from cepam_jax import mechanisms, privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import local
from cepam_jax.federated.aggregation import AGGREGATORS, Aggregator
from cepam_jax.federated.control import Control
from cepam_jax.federated.local import Influence
from cepam_jax.privacy import arithmetic
from cepam_jax.run import build
from cepam_jax.run.ledger import Ledger, planned

# What no epsilon here accounts for, in every run.
ALWAYS = (
    "the messages on the wire: even without the shared key their integers, scales and lengths tell more than "
    "a decoded update does; encrypt the link",
    "metrics.jsonl and what is printed while training: losses, norms and signals of private updates, without "
    "noise; they are for whoever may see the data",
    "the mean and deviation of all training pixels, by which images are normalized, computed without noise",
    "other runs on the same data: each reveals as much again, and runs with equal seeds share their noise, "
    "which their difference lacks",
    "the seeds: 32-bit numbers, in config.json; whoever knows or guesses them has all noise; ledger.jsonl "
    "says who was drawn",
)


class Facts(NamedTuple):
    """What the parts of a run state about privacy; the accountant reads these and the ledger, nothing else.

    Attributes:
      about: of the mechanism.
      aggregator, influence, control: the rule, what local training bounds, and the rule for knobs.
      counts: int[clients], examples of each client.
      clip: f64[clients], bound on an update's norm at the mechanism, where it clips.
      per_round: participants.
      relation: "add_remove" or "replace".
      remembers: whether clients send later what their messages lost.
      masked: whether clients send different coordinates.
      hidden: whether nothing public but the model depends on who was drawn.
      exposes: what shapes the result or reaches an adversary without noise, in words.
    """

    about: mechanisms.About
    aggregator: Aggregator
    influence: Influence
    control: Control
    counts: np.ndarray
    clip: np.ndarray
    per_round: int
    relation: str = "add_remove"
    remembers: bool = False
    masked: bool = False
    hidden: bool = True
    exposes: tuple[str, ...] = ()


def facts_of(config, counts) -> Facts:
    """The facts of a configuration's parts.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
    """
    counts, settings = np.asarray(counts), config.mechanism
    influence = local.influence_of(build.training_of(config))
    exposes = []
    if config.local.steps_by_size or config.local.normalize:
        exposes.append("numbers of local steps, which follow from the sizes of the clients' data")
    if config.partition.kind != "iid":
        exposes.append(
            "which client holds which example: it follows from all labels or sizes, and is taken as given"
        )
    if settings.quantize == "weights" and influence.unit == "client":
        exposes.append("weights in place of updates: nothing bounds them")
    exposes += mechanisms.registry.CONFIGURABLE[settings.name].exposes(settings)
    return Facts(
        about=mechanisms.build(settings, ((1,),)).about,
        aggregator=AGGREGATORS[config.aggregator],
        influence=influence,
        control=build.control_of(config),
        counts=counts,
        clip=np.full(len(counts), float(settings.clip_norm)),
        per_round=config.clients_per_round or config.num_clients,
        relation=config.privacy.relation,
        remembers=settings.error_feedback,
        masked=settings.sparsify != "none",
        # FedNova's server multiplies by the participants' mean step weight, which betrays them.
        hidden=not config.local.normalize or np.ptp(build.steps_of(config, counts)) == 0,
        exposes=tuple(exposes),
    )


def federation_of(
    config, counts, rounds: int | None = None, ledger: Ledger | None = None
) -> privacy.Federation:
    """The facts that privacy depends on, for clients with these numbers of examples.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
      rounds: in place of config.rounds; only without a ledger.
      ledger: what the rounds applied; by default what they are planned to apply.
    """
    facts = facts_of(config, counts)
    if ledger is None:
        rounds = config.rounds if rounds is None else rounds
        ledger = planned(facts.control, mechanisms.knobs_of(config), rounds)
    return federation_from(facts, ledger)


def plan(config, rounds: int) -> Ledger:
    """What the first rounds of a configuration are planned to apply."""
    return planned(build.control_of(config), mechanisms.knobs_of(config), rounds)


def federation_from(facts: Facts, ledger: Ledger) -> privacy.Federation:
    """The accountant's federation: the parts' statements and the noise that the rounds applied."""
    about, rule, influence = facts.about, facts.aggregator, facts.influence
    clients, counts = len(facts.counts), np.asarray(facts.counts)
    example = influence.unit == "example"
    if rule.public_weights:
        aggregation, weights = "weighted_sum", rule.public_weights(counts)
    else:
        aggregation, weights = "function" if rule.post_processing else "unstated", np.ones(clients)
    bounded = influence.bound is not None
    return privacy.Federation(
        outsiders=about.outsiders.law if about.outsiders else None,
        server=about.server.law if about.server else None,
        # What local training bounds it bounds in its own norm, whatever the mechanism clips in.
        norm=influence.norm if bounded else about.sensitivity,
        clip=influence.bound(counts) if bounded else facts.clip,
        phases=_phases(facts, ledger),
        weights=weights,
        # A batch is filled up with another example where one is missing: at example level all is replacement.
        relation="replace" if example else facts.relation,
        sampling="all" if facts.per_round == clients else "fixed",
        per_round=facts.per_round,
        independent_coordinates=not facts.masked,
        aggregation=aggregation,
        summable=about.summable,
        hidden=facts.hidden,
        fresh=not facts.remembers,
        refused=tuple(_refused(facts)),
        not_covered=(*about.leaks, *rule.exposes, *influence.exposes, *facts.exposes, *ALWAYS),
        unit=influence.unit,
    )


def _phases(facts: Facts, ledger: Ledger) -> tuple[privacy.Phase, ...]:
    """The noise that every client added, round by round; rounds of equal noise are one phase.

    Where the bound on an update changes too, the noise is given relative to the first bound.
    """
    found = []
    for entry in ledger.entries:
        bounds = np.broadcast_to(np.asarray(entry.knobs.clip, np.float64), facts.clip.shape)
        moved = 1.0 if facts.influence.bound is not None else facts.clip / bounds.astype(np.float32)
        if np.all(np.isclose(moved, 1.0, rtol=1e-6, atol=0)):
            moved = 1.0  # the bound as 32 bits hold it
        noise = (
            _deviation(facts, entry.knobs, of) * moved for of in (facts.about.outsiders, facts.about.server)
        )
        found.append((entry.rounds, *noise))
    phases = []
    for rounds, outsiders, server in found:
        if phases and all(map(np.array_equal, phases[-1][1:], (outsiders, server))):
            phases[-1] = phases[-1]._replace(rounds=phases[-1].rounds + rounds)
        else:
            phases.append(privacy.Phase(rounds, outsiders, server))
    return tuple(phases)


def _deviation(facts, knobs, noise) -> np.ndarray:
    """Standard deviation of one kind of noise, f64[clients]; zeros where there is none."""
    shape = facts.clip.shape
    if noise is None:
        return np.zeros(shape)
    return np.broadcast_to(np.asarray(noise.deviation(knobs), np.float64), shape)


def _refused(facts: Facts):
    """Why no theorem covers this run, whoever looks; nothing where one does."""
    if facts.about.leaks:
        yield "sent without noise: " + ", ".join(facts.about.leaks)
    if facts.aggregator.refused:
        yield facts.aggregator.refused
    if facts.control.adaptive:
        yield (
            "the rule that sets the knobs reads earlier results: the noise of a round is chosen by what was "
            "released, which the composition of rounds planned in advance does not cover"
        )
    if facts.remembers and facts.influence.unit == "example":
        yield (
            "error feedback adds what earlier rounds lost, which no clip bounds: one example may move it "
            "without bound"
        )


# Mechanisms whose noise is that of `cepam_jax.privacy.arithmetic`; of others nothing is said.
_MEASURED = ("lrsuq", "split", "noise", "noise_sdq", "noise_rounding", "jopeq")


def _words(config, federation, coordinates) -> str:
    """What 32-bit arithmetic leaves out, with its size where it is known."""
    about = mechanisms.build(config.mechanism, ((1,),)).about
    text = "noise sampled in 32-bit arithmetic: see docs/randomness.md"
    if not about.outsiders or federation.norm is None or config.mechanism.name not in _MEASURED:
        return text
    law, layered = about.outsiders.law, config.mechanism.name in ("lrsuq", "split")
    block = about.block if config.mechanism.name == "lrsuq" else 1
    end = arithmetic.ADDITIVE_ENDS[law]
    if layered:
        end = arithmetic.layers_end(law, about.block)
    if config.mechanism.name == "split":  # the ends of both parts add up
        share = config.mechanism.share
        end = arithmetic.ADDITIVE_ENDS[law] * math.sqrt(share) + end * math.sqrt(1 - share)
    chance = _chance_beyond(law, block, end, federation)
    delta = config.privacy.delta
    unit = "deviations" if law == "gaussian" else "times its scale b"
    text += (
        f"; it ends at {end:.2f} {unit}, and an update that lies on one coordinate leaves that range with "
        f"probability {chance:.1e} over the run"
    )
    if chance > delta:
        text += (
            f", more than delta = {delta:g}: the epsilons against colluding_clients and decoded_updates are "
            "those of noise without end"
        )
    if not layered or not coordinates:
        return text
    padded = 1 << (coordinates - 1).bit_length() if config.mechanism.rotate else coordinates
    rounds = sum(phase.rounds for phase in federation.phases)
    blocks = -(-padded // about.block) * rounds * (config.clients_per_round or config.num_clients)
    distance = arithmetic.total_variation(law, about.block, blocks)
    return (
        f"{text}; the radii of LRSUQ's layers follow their law to {distance:.1e} in total variation over all "
        f"{blocks:,} blocks of the run, which may cost 1 + e^epsilon times as much delta"
    )


def _chance_beyond(law, block, end, federation) -> float:
    """Of the least protected client over all rounds, if it takes part in all of them."""
    total = np.zeros(len(federation.clip))
    for phase in federation.phases:
        with np.errstate(divide="ignore"):
            shift = privacy.reach(federation) * federation.clip / privacy.noise_scale(law, phase.outsiders)
        total += phase.rounds * arithmetic.beyond(law, block, end, np.minimum(shift, 1e3))
    return float(min(1.0, total.max()))


def report_text(
    config, counts, rounds: int | None = None, coordinates: int = 0, ledger: Ledger | None = None
) -> str:
    """The report of `privacy.text` for the whole run, or for its first `rounds`.

    Args:
      config, counts, rounds, ledger: as for `federation_of`.
      coordinates: of an update, for the size of what 32-bit words leave out; 0: not known.
    """
    federation = federation_of(config, counts, rounds, ledger)
    words = _words(config, federation, coordinates)
    federation = federation._replace(not_covered=(*federation.not_covered, words))
    return privacy.text(federation, config.privacy.delta)


def epsilons(config, counts, ledger: Ledger) -> dict:
    """Largest epsilon over clients after the rounds of a ledger, by adversary; infinity as None for JSON."""
    found = {}
    for row in privacy.report(federation_of(config, counts, ledger=ledger), config.privacy.delta):
        value = float(np.max(row.epsilon))
        found[row.adversary] = value if np.isfinite(value) else None
    return found


def calibrated(config, counts):
    """A copy of the configuration whose gamma meets config.privacy.target_epsilon after all its rounds.

    Raises:
      ConfigError: no gamma does, and why.
    """

    def with_gamma(gamma):
        changed = config.copy_and_resolve_references()
        changed.mechanism.gamma = float(gamma)
        return changed

    gamma = privacy.gamma_for(
        lambda gamma: federation_of(with_gamma(gamma), counts),
        config.privacy.adversary,
        config.privacy.target_epsilon,
        config.privacy.delta,
    )
    return with_gamma(gamma)


def rounds_within_budget(config, counts) -> int:
    """How many of config.rounds the budget allows, at least one; all without a target.

    Raises:
      ConfigError: not even one round keeps to the target, or nothing is guaranteed.
    """
    settings = config.privacy
    if not settings.target_epsilon:
        return config.rounds
    found = privacy.affordable_rounds(
        lambda rounds: federation_of(config, counts, rounds),
        settings.adversary,
        settings.target_epsilon,
        settings.delta,
        config.rounds,
    )
    if found == 0:
        first = {
            row.adversary: row for row in privacy.report(federation_of(config, counts, 1), settings.delta)
        }
        row = first[settings.adversary]
        spent = float(row.epsilon.max())
        cause = f"gives no guarantee ({row.reason})" if np.isinf(spent) else f"spends epsilon = {spent:.4g}"
        raise ConfigError(
            f"config.privacy.target_epsilon is {settings.target_epsilon:g}, but the first round alone "
            f"{cause} against {settings.adversary}; lower config.mechanism.gamma, raise the target, or set "
            "config.privacy.calibrate=true, which chooses gamma"
        )
    return found
