"""What a configuration promises to whom: the bridge from a run to `cepam_jax.privacy`."""

import itertools
import math

import numpy as np

from cepam_jax import privacy
from cepam_jax.config import build_mechanism, knobs_of
from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.participation import SCHEDULES, scheduled
from cepam_jax.federated.program import steps_of
from cepam_jax.privacy import arithmetic

# What no epsilon here accounts for, in every run.
ALWAYS = (
    "the messages on the wire: even without the shared key their integers, scales and lengths tell more than "
    "a decoded update does; encrypt the link",
    "metrics.jsonl and what is printed while training: losses, norms and signals of private updates, without "
    "noise; they are for whoever may see the data",
    "the mean and deviation of all training pixels, by which images are normalized, computed without noise",
    "other runs on the same data: each reveals as much again, and runs with equal seeds share their noise, "
    "which their difference lacks",
    "the seeds: 32-bit numbers, in config.json; whoever knows or guesses them has all noise",
)


def federation_of(config, counts, rounds: int | None = None) -> privacy.Federation:
    """The facts that privacy depends on, for clients with these numbers of examples.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
      rounds: in place of config.rounds.
    """
    rounds = config.rounds if rounds is None else rounds
    about = build_mechanism(config.mechanism, ((1,),)).about
    aggregator = AGGREGATORS[config.aggregator]
    clients, counts = config.num_clients, np.asarray(counts)
    example = config.local.example_clip > 0
    per_round = config.clients_per_round or clients
    if aggregator.public_weights:
        aggregation, weights = "weighted_sum", aggregator.public_weights(counts)
    else:
        aggregation, weights = "function" if aggregator.post_processing else "unstated", np.ones(clients)
    return privacy.Federation(
        outsiders=about.outsiders.law if about.outsiders else None,
        server=about.server.law if about.server else None,
        norm=_norm(config, about),
        clip=_sensitivity(config, counts),
        phases=_phases(config, about, rounds),
        weights=weights,
        # A batch is filled up with another example where one is missing: at example level all is replacement.
        relation="replace" if example else config.privacy.relation,
        sampling="all" if per_round == clients else "fixed",
        per_round=per_round,
        independent_coordinates=config.mechanism.sparsify == "none",
        aggregation=aggregation,
        summable=about.summable,
        # FedNova's server multiplies by the participants' mean step weight, which betrays them.
        hidden=not config.local.normalize or np.ptp(steps_of(config, counts)) == 0,
        fresh=not config.mechanism.error_feedback,
        refused=tuple(_refused(config, about, aggregator)),
        not_covered=(*_exposed(config, about), *ALWAYS),
        unit="example" if example else "client",
    )


def _phases(config, about, rounds: int) -> tuple[privacy.Phase, ...]:
    """The noise that every client adds, round by round; rounds of equal noise are one phase."""
    knobs = knobs_of(config)
    if config.schedule.knob == "none":
        return (privacy.Phase(rounds, *_deviations(config, about, knobs)),)
    # The schedule runs over config.rounds, however many of them are counted here. Any knob may carry noise.
    factor = SCHEDULES[config.schedule.kind](config.schedule.end, config.rounds)
    change = scheduled({config.schedule.knob: factor})
    noise = [_deviations(config, about, change(knobs, number)) for number in range(rounds)]
    keys = [tuple(map(tuple, pair)) for pair in noise]
    return tuple(
        privacy.Phase(len(list(group)), *map(np.array, key)) for key, group in itertools.groupby(keys)
    )


def _deviations(config, about, knobs) -> tuple[np.ndarray, np.ndarray]:
    """(against outsiders, against the server), f64[clients] each."""

    def of(noise):
        if noise is None:
            return np.zeros(config.num_clients)
        return np.broadcast_to(np.asarray(noise.deviation(knobs), np.float64), (config.num_clients,))

    return of(about.outsiders), of(about.server)


def _norm(config, about):
    if config.local.example_clip > 0:
        # One gradient; per-example clipping bounds what one example moves, in L2, and no other norm.
        return "l2"
    return about.sensitivity


def _sensitivity(config, counts):
    if config.local.example_clip > 0:
        batch = config.local.steps * config.local.batch_size
        repeats = np.ceil(batch / counts)  # of one example in the shuffled, repeated order
        return repeats * config.local.example_clip / batch
    return np.full(len(counts), float(config.mechanism.clip_norm))


def _refused(config, about, aggregator):
    """Why no theorem covers this run, whoever looks; nothing where one does."""
    if about.leaks:
        yield "sent without noise: " + ", ".join(about.leaks)
    if aggregator.refused:
        yield aggregator.refused
    if config.mechanism.error_feedback and config.local.example_clip > 0:
        yield (
            "error feedback adds what earlier rounds lost, which no clip bounds: one example may move it "
            "without bound"
        )


def _exposed(config, about):
    """What shapes the result or reaches an adversary without noise, in words."""
    yield from about.leaks
    if config.aggregator == "examples":
        yield "numbers of examples, which are the weights of the aggregation (assumed to be public)"
    if config.aggregator == "inverse_error":
        yield "weights by inverse error, computed from the updates without noise"
    if config.local.steps_by_size or config.local.normalize:
        yield "numbers of local steps, which follow from the sizes of the clients' data"
    if config.partition.kind != "iid":
        yield "which client holds which example: it follows from all labels or sizes, and is taken as given"
    if config.mechanism.quantize == "weights" and config.local.example_clip == 0:
        yield "weights in place of updates: nothing bounds them"
    if config.mechanism.name == "sdq" and config.mechanism.rate == "bits":
        yield "the scale of the lattice, computed from the update without noise"


def _words(config, federation, coordinates) -> str:
    """What 32-bit arithmetic leaves out, with its size where it is known."""
    about = build_mechanism(config.mechanism, ((1,),)).about
    text = "noise sampled in 32-bit arithmetic: see docs/randomness.md"
    if not about.outsiders or federation.norm is None:
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


def report_text(config, counts, rounds: int | None = None, coordinates: int = 0) -> str:
    """The report of `privacy.text` for the whole run, or for its first `rounds`.

    Args:
      config, counts, rounds: as for `federation_of`.
      coordinates: of an update, for the size of what 32-bit words leave out; 0: not known.
    """
    federation = federation_of(config, counts, rounds)
    words = _words(config, federation, coordinates)
    federation = federation._replace(not_covered=(*federation.not_covered, words))
    return privacy.text(federation, config.privacy.delta)


def epsilons(config, counts, rounds: int) -> dict:
    """Largest epsilon over clients after `rounds`, by adversary; infinity as None for JSON."""
    found = {}
    for row in privacy.report(federation_of(config, counts, rounds), config.privacy.delta):
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
