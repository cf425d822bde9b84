"""The parts of a federation in Python, put together and checked; what they state about privacy."""

from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.data.clients import Clients
from cepam_jax.errors import is_whole, require, require_choice
from cepam_jax.federated import (
    ClientArrays,
    Downlink,
    LocalTraining,
    Plan,
    constant,
    facts,
    poisson,
    root_key,
    shared_key,
    summed,
)
from cepam_jax.federated.aggregation import guarded
from cepam_jax.federated.byzantine import Byzantine, checked, with_false_labels
from cepam_jax.federated.control import for_updates
from cepam_jax.federated.links import Links
from cepam_jax.federated.links import checked as checked_links
from cepam_jax.federated.participation import SAMPLINGS
from cepam_jax.federated.plan import CLIENTS
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import devices, guarantees, late, parts, provenance, refusals, uncovered
from cepam_jax.run.account import Account
from cepam_jax.run.ledger import Ledger
from cepam_jax.tasks.base import Model, Task, check_examples, check_model


class Seeds(NamedTuple):
    """Where a federation's randomness begins: the model, the clients' own words, the shared words."""

    model: int = 0
    training: int = 0
    shared: int = 0


class Assembled(NamedTuple):
    """A federation that is ready to be compiled.

    Attributes:
      plan: the parts of a round.
      arrays: ClientArrays on the devices.
      model: shapes of the task's Model.
      seeds: Seeds.
      remembers: whether clients send later what their messages lost.
      weighed: whether the mean step weight of a round may depend on who came.
      hidden: whether what updates are divided by tells nothing about who was drawn.
      exposes: what shapes the result without noise, in words.
    """

    plan: Plan
    arrays: ClientArrays
    model: Model
    seeds: Seeds
    remembers: bool
    weighed: bool
    hidden: bool
    exposes: tuple[str, ...]


def assemble(
    task: Task,
    clients: Clients,
    mechanism: Any,
    knobs: Knobs,
    optimizer: Any,
    steps: Any,
    batch_size: int,
    training: dict[str, Any],
    local: Any,
    aggregator: Any,
    control: Any,
    server: Any,
    downlink: Any,
    participants: int,
    together: int,
    error_feedback: bool,
    wire: bool,
    device_count: int,
    seed: Any,
    byzantine: Byzantine | None,
    links: Links | None,
    seeded: bool,
    server_noise: str | None = None,
    participation: str = "fixed",
) -> Assembled:
    """The parts of a federation; the arguments are those of `simulation.Federation`, which explains them.

    Raises:
      ConfigError: names the argument that does not fit, and what would.
    """
    parts.check_kind("task", task, Task, "a tasks.Task, such as tasks.classification(...)")
    parts.check_kind("clients", clients, Clients, "a result of cepam_jax.clients(...)")
    model = jax.eval_shape(task.initialize, jax.random.key(0))
    check_model(model)
    check_examples(task, clients.examples, clients.constants)
    leaves = jax.tree.leaves((model.params, model.statistics))
    built = parts.mechanism_of(mechanism, tuple(leaf.shape for leaf in leaves))
    ruling = constant() if control is None else control
    each = parts.client_knobs(built, knobs, clients.number, server_noise is not None)
    summed.check_knobs(built.about, each)
    each_steps = parts.client_steps(steps, clients.number)
    settings = parts.local_training(int(each_steps.max()), batch_size, training, built)
    same = settings.update_kind == "weights" or len(set(each_steps.tolist())) == 1
    require(same, "steps", steps, f"one number where update_kind is {settings.update_kind!r}")
    if local is None:
        update = parts.local_update(task, settings, optimizer)
    else:
        given = optimizer is not None or settings != LocalTraining(settings.steps, 32)
        update = parts.check_own_local(local, given)
    per_round = parts.count("participants", participants, clients.number) or clients.number
    require_choice("participation", participation, SAMPLINGS)
    expected = per_round if participation == "poisson" else 0
    if expected:
        most = clients.number - 1
        require(per_round <= most, "participants", participants, f"the expected number, from 1 to {most}")
        per_round = poisson.places(clients.number, expected)
    present = devices.count(parts.count("device_count", device_count, len(jax.devices())))
    asked = parts.count("together", together, 2**31 - 1)
    attack, liars, strength = checked(byzantine, clients.number)
    alarm = byzantine.false_alarm if byzantine else None
    paired = bool(byzantine and byzantine.pairs)
    rule = parts.aggregator_of(aggregator, clients.split.counts)
    for name, value in (("error_feedback", error_feedback), ("wire", wire), ("seeded", seeded)):
        parts.check_kind(name, value, bool | np.bool_, "True or False")
    known = None if links is None else checked_links(links, clients.number, per_round)
    ends = "slowest" if links is None else links.ends
    if attack is not None or alarm is not None or ends != "slowest":
        gathered = (attack is not None and attack.craft is not None) or paired or ends == "quorum"
        rule = guarded(rule, gathered, alarm is not None or ends != "slowest")
        allowed = "False where clients lie, are checked or may be late"
        require(not settings.normalize, "normalize", True, allowed)
    summed.check_memory(built.about, bool(error_feedback))
    both = not (error_feedback and ends == "quorum")
    require(both, "error_feedback", error_feedback, "False where a quorum ends a round")
    told = not (error_feedback and paired)
    require(told, "error_feedback", error_feedback, "False where pairs are checked (byzantine.pairs)")
    plan = Plan(
        local_update=with_false_labels(update, task, attack),
        mechanism=built,
        aggregator=rule,
        server=parts.server_of(server, task),
        segments=tuple(leaf.size for leaf in leaves),
        per_round=per_round,
        per_chunk=devices.at_once(asked, per_round, present),
        control=for_updates(
            parts.check_control(ruling, each, built.about.knobs), sum(leaf.size for leaf in leaves)
        ),
        task=task,
        downlink=parts.check_kind("downlink", downlink, Downlink | None, "a federated.Downlink"),
        seeded=bool(seeded),
        wire=bool(wire),
        attack=attack,
        false_alarm=alarm,
        pairs=paired,
        ends=ends,
        mesh=devices.Layout(CLIENTS, present).mesh,
        server_noise=server_noise,
        poisson=expected,
    )
    _check_weights(plan, clients.split.counts, each)
    seeds = _seeds(seed)
    arrays = ClientArrays(
        examples=clients.examples,
        constants=clients.constants,
        rows=clients.split.indices,
        counts=clients.split.counts,
        steps=each_steps,
        knobs=each,
        training_key=root_key(seeds.training),
        shared_key=shared_key(seeds.shared),
        liars=liars,
        strength=strength if liars is not None else None,
        links=known,
    )
    return Assembled(
        plan,
        devices.put(arrays, plan.mesh),
        model,
        seeds,
        remembers=bool(error_feedback),
        weighed=local is not None or settings.normalize,
        # What an update was divided by reaches the model; of one's own it may tell who was drawn. With
        # momentum of their own clients send what depends on when they were drawn before.
        hidden=local is None
        and not settings.worker_momentum
        and not (settings.normalize and (plan.poisson or np.ptp(each_steps) > 0)),
        exposes=parts.exposed(clients, settings, each_steps),
    )


def _check_weights(plan: Plan, counts, knobs: Knobs) -> None:
    """Checks the first weights of a rule that weighs all clients before the round; ConfigError says how."""
    rule, clients = plan.aggregator, len(counts)
    if rule.weights is None:
        return
    facts.check(plan)  # names what the rule needs of the others, without which its weights are no numbers
    state = rule.initialize(sum(plan.segments)) if rule.initialize else None
    found = np.asarray(rule.weights(state, facts.public(plan, np.asarray(counts), knobs)))
    require(found.shape == (clients,), "shape of the aggregator's weights", found.shape, f"({clients},)")
    good = np.isfinite(found).all() and (found >= 0).all() and (found > 0).any()
    allowed = "finite numbers, none below zero and not all of them zero"
    require(bool(good), "weights of the aggregator", found.tolist(), allowed)


def _seeds(seed: Any) -> Seeds:
    seeds = seed if isinstance(seed, Seeds) else Seeds(seed, seed, seed)
    for name, value in seeds._asdict().items():
        whole = is_whole(value) and 0 <= value < 2**32
        require(whole, f"seed of the {name}", value, "a whole number from 0 to 2**32 - 1")
    return seeds


def account_of(built: Assembled, ledger: Ledger) -> Account:
    """The account of a federation that goes on from a ledger.

    Raises:
      ConfigError: the ledger is that of other parts.
    """
    facts = facts_of(built, None, "add_remove")
    made_by = provenance.parts_of(facts)
    return Account(ledger, built.plan.control, built.arrays.knobs, made_by, facts.knobs)


def facts_of(built: Assembled, account: Account | None, relation: str) -> guarantees.Facts:
    """What the parts state about privacy, and what the account says of how their rounds were used."""
    plan, counts, clip = built.plan, np.asarray(built.arrays.counts), built.arrays.knobs.clip
    return guarantees.Facts(
        about=late.about_with(plan.mechanism.about, plan.ends),
        aggregator=plan.aggregator,
        influence=plan.local_update.influence,
        control=plan.control,
        counts=counts,
        clip=np.ones(len(counts)) if clip is None else np.asarray(clip, np.float64),
        per_round=plan.poisson or plan.per_round,
        relation=relation,
        remembers=built.remembers,
        masked=plan.mechanism.code.weight is not None,
        hidden=built.hidden and plan.ends == "slowest",
        exposes=(*(account.exposes if account else ()), *built.exposes),
        refused=(
            *(account.refused if account else ()),
            *late.refused(plan.mechanism.about, plan.ends),
            *refusals.of_seeds(built.seeds, plan.seeded),
            *refusals.of_step_weights(plan.poisson > 0, plan.server_noise is not None, built.weighed),
        ),
        always=uncovered.IN_PYTHON,
        start=built.arrays.knobs,
        central=plan.server_noise,
        poisson=plan.poisson > 0,
    )
