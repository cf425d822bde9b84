"""What a configuration promises to whom: the bridge from a run to `cepam_jax.privacy`."""

import numpy as np

from cepam_jax import privacy
from cepam_jax.config import build_mechanism, knobs_of
from cepam_jax.federated.participation import SCHEDULES, scheduled

# What no epsilon here accounts for, in every run.
ALWAYS = (
    "the messages on the wire: even without the shared key their integers, scales and lengths tell more than "
    "a decoded update does; encrypt the link",
    "noise sampled in 32-bit arithmetic: see 'Randomness' in the README",
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
    knobs = knobs_of(config)
    clients = config.num_clients
    if config.schedule.knob == "gamma":
        # The schedule runs over config.rounds, however many of them are counted here.
        factor = SCHEDULES[config.schedule.kind](config.schedule.end, config.rounds)
        change = scheduled({"gamma": factor})
        phases = tuple(_phase(about, change(knobs, number), clients, 1) for number in range(rounds))
    else:
        phases = (_phase(about, knobs, clients, rounds),)
    example = config.local.example_clip > 0
    per_round = config.clients_per_round or clients
    return privacy.Federation(
        outsiders=about.outsiders.law if about.outsiders else None,
        server=about.server.law if about.server else None,
        norm=_norm(config, about),
        clip=_sensitivity(config, np.asarray(counts)),
        phases=phases,
        weights=np.asarray(counts, np.float64) if config.aggregator == "examples" else np.ones(clients),
        # A batch is filled up with another example where one is missing: at example level all is replacement.
        relation="replace" if example else config.privacy.relation,
        sampling="all" if per_round == clients else "fixed",
        per_round=per_round,
        independent_coordinates=config.mechanism.sparsify == "none",
        not_covered=(*_exposed(config, about), *ALWAYS),
        unit="example" if example else "client",
    )


def _phase(about, knobs, clients, rounds):
    def deviation(noise):
        if noise is None:
            return np.zeros(clients)
        return np.broadcast_to(np.asarray(noise.deviation(knobs), np.float64), (clients,))

    return privacy.Phase(rounds, deviation(about.outsiders), deviation(about.server))


def _norm(config, about):
    if about.leaks:  # the support of top-k is not hidden by noise
        return None
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


def _exposed(config, about):
    """What shapes the result or reaches an adversary without noise, in words."""
    yield from about.leaks
    if config.aggregator == "examples":
        yield "numbers of examples, which are the weights of the aggregation (assumed to be public)"
    if config.aggregator == "inverse_error":
        yield "weights by inverse error, computed from the updates without noise"
    if config.local.steps_by_size or config.local.normalize:
        yield "numbers of local steps, which follow from the sizes of the clients' data"
    if config.mechanism.quantize == "weights":
        yield "weights in place of updates: nothing bounds them"
    if config.mechanism.name == "sdq" and config.mechanism.rate == "bits":
        yield "the scale of the lattice, computed from the update without noise"


def report_text(config, counts, rounds: int | None = None) -> str:
    """The report of `privacy.text` for the whole run, or for its first `rounds`."""
    return privacy.text(federation_of(config, counts, rounds), config.privacy.delta)


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
    """How many of config.rounds the budget allows; all without a target."""
    settings = config.privacy
    if not settings.target_epsilon:
        return config.rounds
    return privacy.affordable_rounds(
        lambda rounds: federation_of(config, counts, rounds),
        settings.adversary,
        settings.target_epsilon,
        settings.delta,
        config.rounds,
    )
