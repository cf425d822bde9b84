"""What a run promises to whom: from its parts' statements and its ledger to `cepam_jax.privacy`."""

from typing import NamedTuple

import numpy as np

from cepam_jax import mechanisms, privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import aggregation as rules
from cepam_jax.federated import local
from cepam_jax.federated.control import Control
from cepam_jax.federated.local import Influence
from cepam_jax.run import budgets, build, late, phases, precision, provenance, refusals, uncovered
from cepam_jax.run.ledger import Ledger, planned


class Facts(NamedTuple):
    """What the parts of a run state about privacy; the accountant reads these and the ledger, nothing else.

    Attributes:
      about: of the mechanism.
      aggregator, influence, control: the rule, what local training bounds (None: it states nothing), and the
        rule for knobs.
      counts: int[clients], examples of each client.
      clip: f64[clients], bound on an update's norm at the mechanism, where it clips.
      per_round: participants.
      relation: "add_remove" or "replace".
      remembers: whether clients send later what their messages lost.
      masked: whether clients send different coordinates.
      hidden: whether nothing public but the model depends on who was drawn.
      exposes: what shapes the result or reaches an adversary without noise, in words.
      refused: reasons, beside those of the parts, why nothing is guaranteed.
      always: what no epsilon accounts for, whatever the parts.
      start: Knobs of all clients that the rule for knobs starts from; None: not known.
      central: law of the noise that the server adds to the sum; None: it adds none.
      poisson: whether each client is drawn by itself, `per_round` of them in the mean.
    """

    about: mechanisms.About
    aggregator: rules.Aggregator
    influence: Influence | None
    control: Control
    counts: np.ndarray
    clip: np.ndarray
    per_round: int
    relation: str = "add_remove"
    remembers: bool = False
    masked: bool = False
    hidden: bool = True
    exposes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    always: tuple[str, ...] = uncovered.IN_A_RUN
    start: mechanisms.Knobs | None = None
    central: str | None = None
    poisson: bool = False

    @property
    def by_server(self) -> bool:
        """Whether the server adds all noise that there is."""
        return self.central is not None and self.about.outsiders is None

    @property
    def hiding(self) -> mechanisms.Noise | None:
        """The noise against outsiders: the mechanism's, or a participant's part of the server's."""
        if self.central and self.by_server:
            return mechanisms.Noise(self.central, lambda knobs: knobs.sigma)
        return self.about.outsiders

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the knobs that the rounds use."""
        return tuple(dict.fromkeys((*self.about.knobs, *(("sigma",) if self.central else ()))))


def facts_of(config, counts) -> Facts:
    """The facts of a configuration's parts.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
    """
    counts, settings, ends = np.asarray(counts), config.mechanism, config.links.ends
    about = build.about_of(config)
    influence = local.influence_of(build.training_of(config))
    exposes = []
    if config.local.steps_by_size or config.local.normalize:
        exposes.append("numbers of local steps, which follow from the sizes of the clients' data")
    exposes += uncovered.of_clients(config)
    if config.init:
        exposes.append(
            f"the model of {config.init}, with which training began: an epsilon is of this run alone, given "
            "that model; what it tells of the same clients' data is not counted"
        )
    if settings.quantize == "weights" and influence.unit == "client":
        exposes.append("weights in place of updates: nothing bounds them")
    exposes += mechanisms.registry.CONFIGURABLE[settings.name].exposes(settings)
    return Facts(
        about=late.about_with(about, ends),
        aggregator=rules.of_config(config),
        influence=influence,
        control=build.control_of(config),
        counts=counts,
        clip=np.full(len(counts), float(settings.clip_norm)),
        per_round=config.clients_per_round or config.num_clients,
        relation=config.privacy.relation,
        remembers=settings.error_feedback,
        masked=settings.sparsify != "none",
        # FedNova's server multiplies by the participants' mean step weight, which betrays them; with momentum
        # of their own clients send what depends on when they were drawn before.
        hidden=ends == "slowest"
        and not config.local.worker_momentum
        # A round to which nobody comes has a step weight of its own.
        and not (config.local.normalize and config.participation.sampling == "poisson")
        and (not config.local.normalize or np.ptp(build.steps_of(config, counts)) == 0),
        exposes=tuple(exposes),
        refused=late.refused(about, ends) + refusals.of_config(config),
        start=mechanisms.knobs_of(config),
        central=settings.target if config.server.noise else None,
        poisson=config.participation.sampling == "poisson",
    )


def federation_of(
    config, counts, rounds: int | None = None, ledger: Ledger | None = None, watched: bool = False
) -> privacy.Federation:
    """The facts that privacy depends on, for clients with these numbers of examples.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
      rounds: in place of config.rounds; only without a ledger.
      ledger: what the rounds applied; by default what they are planned to apply.
      watched: whether it can be seen who was drawn, as on the links of a deployment; then nothing is counted
        on hidden draws.
    """
    facts = facts_of(config, counts)
    if ledger is None:
        rounds = config.rounds if rounds is None else rounds
        ledger = planned(facts.control, mechanisms.knobs_of(config), rounds)
    found = federation_from(facts, ledger)
    return found._replace(hidden=found.hidden and not watched)


def plan(config, rounds: int) -> Ledger:
    """What the first rounds of a configuration are planned to apply."""
    return planned(build.control_of(config), mechanisms.knobs_of(config), rounds)


def federation_from(facts: Facts, ledger: Ledger) -> privacy.Federation:
    """The accountant's federation: the parts' statements and the noise that the rounds applied.

    Raises:
      ConfigError: the aggregator's weights are not those that it states, or the ledger is of other parts.
    """
    about, rule, influence = facts.about, facts.aggregator, facts.influence or Influence()
    clients, counts = len(facts.counts), np.asarray(facts.counts)
    budget = facts.control.budget if budgets.stated(facts) else None
    counted = budgets.counted(facts)
    planned_noise = budget is None and counted is None
    example = influence.unit == "example"
    rules.check_weights(rule, counts)
    if any(entry.made_by is not None for entry in ledger.entries):
        provenance.check(ledger, provenance.parts_of(facts))
    if rule.public_weights:
        aggregation, weights = "weighted_sum", rule.public_weights(counts)
    elif rule.weights and planned_noise and (rule.initialize is None or rule.least_ratios):
        aggregation, weights = "weighted_sum", np.ones(clients)  # each phase says its own
    elif rule.weights:
        # Results set them, or their noise, and nothing bounds them; they follow from decoded updates.
        aggregation, weights = "function", np.ones(clients)
    else:
        aggregation, weights = "function" if rule.post_processing else "unstated", np.ones(clients)
    bounded = influence.bound is not None
    return privacy.Federation(
        outsiders=facts.hiding.law if facts.hiding else None,
        server=about.server.law if about.server else None,
        # What local training bounds it bounds in its own norm, whatever the mechanism clips in.
        # The server clips what it decodes, whatever the steps before did.
        norm=influence.norm if bounded else about.clip if facts.by_server else about.sensitivity,
        clip=influence.bound(counts) if bounded else facts.clip,
        phases=phases.of_ledger(facts, ledger) if planned_noise else (budgets.phase_of(facts, ledger),),
        weights=weights,
        # A batch is filled up with another example where one is missing: at example level all is replacement.
        relation="replace" if example else facts.relation,
        sampling="poisson" if facts.poisson else "all" if facts.per_round == clients else "fixed",
        per_round=facts.per_round,
        independent_coordinates=not facts.masked,
        aggregation=aggregation,
        summable=about.summable,
        hidden=facts.hidden and _equal_knobs(facts, ledger),
        fresh=not facts.remembers,
        refused=(*ledger.refused, *refusals.of_run(facts, ledger)),
        not_covered=(
            *(*about.leaks, *rule.exposes, *influence.exposes, *facts.exposes, *ledger.exposes),
            *((uncovered.SERVER_NOISE,) if facts.central else ()),
            *(uncovered.OF_SUMS if about.summed else ()),
            *(*uncovered.of_votes(counted), *uncovered.of_failures(ledger.failures), *facts.always),
        ),
        unit=influence.unit,
        budget=budget,
        most=None if budget is None else facts.control.most,
        counted=counted,
        central=facts.by_server,
        summed=about.summed,
        **phases.places_of(facts, ledger),
    )


def _equal_knobs(facts: Facts, ledger: Ledger) -> bool:
    """Whether no error's scale tells one client from another; sigmas and clips are compared elsewhere."""
    names = [name for name in facts.about.knobs if name not in ("sigma", "clip", "scale")]
    each = (getattr(entry.knobs, name) for entry in ledger.entries for name in names)
    return all(value is None or np.ptp(np.asarray(value, np.float64)) == 0 for value in each)


def report_text(
    config,
    counts,
    rounds: int | None = None,
    coordinates: int = 0,
    ledger: Ledger | None = None,
    holders: int = 1,
) -> str:
    """The report of `privacy.text` for the whole run, or for its first `rounds`.

    Args:
      config, counts, rounds, ledger: as for `federation_of`.
      coordinates: of an update, for the size of what 32-bit words leave out; 0: not known.
      holders: the most clients that hold examples of one owner, as `Partition` has it.
    """
    federation = uncovered.with_owners(federation_of(config, counts, rounds, ledger), holders)
    text = precision.report(build.about_of(config), federation, config.privacy.delta, coordinates)
    return uncovered.with_broadcast(text, config.downlink.name != "none")


def epsilons(config, counts, ledger: Ledger) -> dict:
    """Largest epsilon over clients after the rounds of a ledger, by adversary; infinity as None for JSON."""
    found = {}
    for row in privacy.report(federation_of(config, counts, ledger=ledger), config.privacy.delta):
        value = float(np.max(row.epsilon))
        found[row.adversary] = value if np.isfinite(value) else None
    return found


def calibrated(config, counts, watched: bool = False):
    """A copy of the configuration whose gamma meets config.privacy.target_epsilon after all its rounds.

    Args:
      config, counts, watched: as for `federation_of`.

    Raises:
      ConfigError: no gamma does, and why.
    """

    def with_gamma(gamma):
        changed = config.copy_and_resolve_references()
        changed.mechanism.gamma = float(gamma)
        return changed

    gamma = privacy.gamma_for(
        lambda gamma: federation_of(with_gamma(gamma), counts, watched=watched),
        config.privacy.adversary,
        config.privacy.target_epsilon,
        config.privacy.delta,
    )
    return with_gamma(gamma)


def rounds_within_budget(config, counts, watched: bool = False) -> int:
    """How many of config.rounds the budget allows, at least one; all without a target.

    Args:
      config, counts, watched: as for `federation_of`.

    Raises:
      ConfigError: not even one round keeps to the target, or nothing is guaranteed.
    """
    settings = config.privacy
    if not settings.target_epsilon:
        return config.rounds
    found = privacy.affordable_rounds(
        lambda rounds: federation_of(config, counts, rounds, watched=watched),
        settings.adversary,
        settings.target_epsilon,
        settings.delta,
        config.rounds,
    )
    if found == 0:
        one = federation_of(config, counts, 1, watched=watched)
        row = {row.adversary: row for row in privacy.report(one, settings.delta)}[settings.adversary]
        spent = float(row.epsilon.max())
        cause = f"gives no guarantee ({row.reason})" if np.isinf(spent) else f"spends epsilon = {spent:.4g}"
        raise ConfigError(
            f"config.privacy.target_epsilon is {settings.target_epsilon:g}, but the first round alone "
            f"{cause} against {settings.adversary}; lower config.mechanism.gamma, raise the target, or set "
            "config.privacy.calibrate=true, which chooses gamma"
        )
    return found
