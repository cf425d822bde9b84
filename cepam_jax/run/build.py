"""From a configuration to its parts, to what is compiled for it, and to the arrays it runs on."""

import functools
import json
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from cepam_jax import federated, mechanisms, models
from cepam_jax.data import augment, partition
from cepam_jax.data.examples import Examples, number_of
from cepam_jax.errors import ConfigError, DatasetError
from cepam_jax.federated import (
    aggregation,
    byzantine,
    control,
    downlink,
    lengths,
    links,
    local,
    poisson,
    rounds,
    server,
)
from cepam_jax.mechanisms import configured
from cepam_jax.run import evaluation, needs
from cepam_jax.run.devices import ONE_DEVICE, RUNS, Layout, at_once
from cepam_jax.run.evaluation import HeldOut
from cepam_jax.run.provenance import noises_of
from cepam_jax.settings import FIELDS
from cepam_jax.tasks import rounded_layers, trainable
from cepam_jax.tasks.base import TASKS, Model, Task, check_model


class Program(NamedTuple):
    """What one configuration compiles to; shared by all runs that differ in arrays alone.

    Attributes:
      initialize: (key, Knobs of all clients, whole Model to begin with or None) -> State.
      block: (State, ClientArrays, HeldOut, owners, stop), from `evaluation.make_block`, jitted; where runs
        are spread over devices, of several runs: all but examples, constants and HeldOut have a leading axis,
        and so have the results.
      coordinates: d, length of an update.
      layout: what is spread over the devices.
      task: what is learned.
    """

    initialize: Any
    block: Any
    coordinates: int
    layout: Layout
    task: Task


def program(config: ml_collections.ConfigDict, specification: tuple, layout: Layout = ONE_DEVICE) -> Program:
    """The Program of a valid configuration; the same object for configurations that can share it.

    Runs that differ only in data, seeds, gamma, clip bound or the number of rounds (from eval_every on) share
    one.

    Args:
      config: valid configuration.
      specification: of the examples.
      layout: what is spread over the devices.
    """
    backend = jax.default_backend()
    return _program(compile_key(config), specification, backend, layout, _parts_by_name(config))


def _parts_by_name(config) -> tuple:
    """The parts that a configuration names: registered anew, a part is another one."""
    return (
        TASKS.get_or_raise(config.task),
        models.parts_of(config.model),
        aggregation.AGGREGATORS.get_or_raise(config.aggregator),
        byzantine.attack_of(config),
        control.CONTROLS.get_or_raise(config.control),
        mechanisms.registry.CONFIGURABLE.get_or_raise(config.mechanism.name),
        mechanisms.registry.CONFIGURABLE.get(config.downlink.name),
        configured.SPARSIFIERS.get(config.mechanism.sparsify),
        configured.SPARSIFIERS.get(config.downlink.sparsify),
        augment.AUGMENTATIONS.get_or_raise(config.local.augment),
        local.OPTIMIZERS.get_or_raise(config.local.optimizer),
        server.OPTIMIZERS.get_or_raise(config.server.optimizer),
        control.SCHEDULES.get_or_raise(config.schedule.kind),
    )


def compile_key(config: ml_collections.ConfigDict) -> str:
    """What runs must have in common to share one Program, as text."""
    fields = json.loads(config.to_json())
    # A block of more rounds than the run has would only be skipped through.
    fields["eval_every"] = min(config.eval_every, config.rounds)
    for name in [*(name for name, field in FIELDS.items() if not field.compiled), *resumable_fields(config)]:
        *sections, last = name.split(".")
        place = fields
        for section in sections:
            place = place[section]
        place.pop(last, None)
    return json.dumps(fields, sort_keys=True)


def resumable_fields(config) -> tuple[str, ...]:
    """Fields that rounds already done do not depend on."""
    planned = config.schedule.knob != "none" or config.control != "schedule" or config.privacy.target_epsilon
    planned = planned or needs.given(config)
    resumable = tuple(name for name, field in FIELDS.items() if field.resumable)
    return (*resumable, *(() if planned else ("rounds",)))


@functools.lru_cache(maxsize=16)
def _program(fields_text, specification, backend, layout, parts):
    del parts
    config = ml_collections.ConfigDict(json.loads(fields_text))
    task = task_of(config, specification)
    model = jax.eval_shape(task.initialize, jax.random.key(0))
    check_model(model)
    mesh = None if layout.axis == RUNS else layout.mesh
    plan = plan_of(config, task, model, mesh, backend)

    def initialize(key, knobs, whole=None):
        if whole is None:
            model = task.initialize(key)
        else:
            model = whole if task.begin is None else task.begin(whole, key)
        remembers = config.mechanism.error_feedback
        return rounds.initial_state(plan, model, knobs, config.num_clients, remembers, knobs.clip[0])

    evaluate = evaluation.make_evaluate(task, config.evaluation.batch_size, config.evaluation.clients)
    block = evaluation.make_block(rounds.make_round(plan), evaluate, config.eval_every, config.metrics.bits)
    if layout.axis == RUNS:
        block = evaluation.make_blocks(block, layout.mesh, layout.together)
    return Program(jax.jit(initialize), jax.jit(block), sum(plan.segments), layout, task)


def task_of(config, specification: tuple) -> Task:
    """What a configuration learns from examples with this specification; which part is trained, and how."""
    task = trainable.of_config(config, TASKS.get_or_raise(config.task)(config, specification))
    return rounded_layers.of_config(config, task)


def plan_of(config, task: Task, model: Model, mesh, backend: str) -> federated.Plan:
    """The parts of a round, as a configuration says.

    Args:
      config: its compiled fields.
      task: what is learned.
      model: its Model, arrays or shapes.
      mesh: devices over which participants are spread; None: one.
      backend: of JAX; on a CPU clients train one after another, unless the configuration says otherwise.
    """
    leaves = jax.tree.leaves((model.params, model.statistics))
    per_round, expected = config.clients_per_round or config.num_clients, 0
    if config.participation.sampling == "poisson":
        per_round, expected = poisson.places(config.num_clients, per_round), per_round
    present = mesh.devices.size if mesh else 1
    shapes = tuple(leaf.shape for leaf in leaves)
    mechanism = mechanisms.build(config.mechanism, shapes)
    _check_about(mechanism.about, about_of(config))
    attack, update = byzantine.attack_of(config), local.make_local_update(task, training_of(config))
    return federated.Plan(
        local_update=byzantine.with_false_labels(update, task, attack),
        mechanism=mechanism,
        aggregator=aggregation.of_config(config),
        server=server.OPTIMIZERS[config.server.optimizer](
            config.server.learning_rate, config.server.momentum
        ),
        segments=tuple(leaf.size for leaf in leaves),
        per_round=per_round,
        per_chunk=at_once(config.clients_per_chunk, per_round, present, backend),
        control=control.for_updates(control_of(config), sum(leaf.size for leaf in leaves)),
        task=task,
        downlink=downlink.of_config(config, shapes),
        seeded=config.downlink.start == "seed",
        quantize=config.mechanism.quantize,
        wire=config.wire,
        attack=attack,
        false_alarm=config.byzantine.false_alarm if config.byzantine.check else None,
        pairs=config.byzantine.pairs,
        ends=config.links.ends,
        mesh=mesh,
        server_noise=config.mechanism.target if config.server.noise else None,
        poisson=expected,
        counts=config.metrics.bits != lengths.NEVER,
    )


def about_of(config) -> mechanisms.About:
    """What the mechanism states of itself, whatever the shapes of updates."""
    return mechanisms.build(config.mechanism, ((1,),)).about


def _check_about(found: mechanisms.About, stated: mechanisms.About) -> None:
    """Checks that the accountant, which knows no shapes, reads what is true of the updates that are sent.

    Raises:
      ConfigError: a mechanism states other facts for other shapes, and which.
    """

    def plain(about):
        return about._asdict() | dict(zip(("outsiders", "server"), noises_of(about), strict=True))

    pairs = zip(plain(found).items(), plain(stated).values(), strict=True)
    wrong = [f"{name} is {one!r}, and {other!r}" for (name, one), other in pairs if one != other]
    if wrong:
        raise ConfigError(
            f"the mechanism {found.name} states other facts for these updates than for one number: "
            f"{'; '.join(wrong)}. What is accounted for must not depend on the shapes of updates"
        )


def training_of(config) -> local.LocalTraining:
    """The settings of local training."""
    return local.LocalTraining(**{name: config.local[name] for name in local.LocalTraining._fields})


def control_of(config) -> control.Control:
    """The rule that sets the knobs."""
    return control.CONTROLS.get_or_raise(config.control)(config)


def steps_of(config: ml_collections.ConfigDict, counts):
    """Local steps of each client, int32[clients]: the largest client takes all of them."""
    share = counts / counts.max() if config.local.steps_by_size else np.ones(len(counts))
    return np.maximum(1, np.round(config.local.steps * share)).astype(np.int32)


def split_of(config: ml_collections.ConfigDict, data: Examples) -> partition.Partition:
    """The partition that a configuration asks for."""
    return partition.of_config(config, data.labels, data.owners, number_of(data.train), data.sizes)


def test_owners(config, data: Examples, split: partition.Partition) -> np.ndarray:
    """int32[test examples]: which client each belongs to, or the number of clients where to none."""
    clients = len(split.counts)
    if config.evaluation.clients == "test" and data.test_owners is None:
        raise DatasetError(
            "config.evaluation.clients is 'test', but the data set does not say whose each test example is "
            "(test_owners)"
        )
    if config.evaluation.clients != "test":
        return np.full(number_of(data.test), clients, np.int32)
    owner_of_client = data.owners[split.indices[:, 0]]
    client_of = dict(zip(owner_of_client.tolist(), range(clients), strict=True))
    return np.array([client_of.get(owner, clients) for owner in data.test_owners.tolist()], np.int32)


def tested(data: Examples) -> HeldOut:
    """The test examples as an evaluation takes them."""
    return HeldOut(data.test, data.constants)


def client_arrays(
    config: ml_collections.ConfigDict, split: partition.Partition, origin: tuple[int, ...] = ()
) -> federated.ClientArrays:
    """The arrays of a federation but for its examples.

    Args:
      config: valid configuration.
      split: who holds which examples.
      origin: 32-bit words that tell the model apart that training begins with; () where it is initialized.
        They go into the keys: with the run that made that model no noise is shared, though the seeds be
        equal.
    """
    training = federated.root_key(config.seeds.training)
    shared = federated.shared_key(config.seeds.shared)
    for word in origin:
        training, shared = (jax.random.fold_in(key, np.uint32(word)) for key in (training, shared))
    liars, strength = byzantine.liars_of(config)
    return federated.ClientArrays(
        examples=None,
        constants=None,
        rows=np.asarray(split.indices),
        counts=np.asarray(split.counts),
        steps=steps_of(config, split.counts),
        knobs=mechanisms.knobs_of(config),
        training_key=training,
        shared_key=shared,
        liars=liars,
        strength=strength,
        links=links.of_config(config),
    )
