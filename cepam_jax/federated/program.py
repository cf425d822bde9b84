"""From a configuration to what is compiled for it, and to the arrays it runs on."""

import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cepam_jax import models
from cepam_jax.config import SERVER_OPTIMIZERS, build_mechanism, knobs_of
from cepam_jax.data import partition, sources
from cepam_jax.federated import evaluation, rounds
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.clients import Images, LocalTraining, make_local_update
from cepam_jax.federated.devices import ONE_DEVICE, RUNS, Layout
from cepam_jax.federated.participation import SCHEDULES, scheduled
from cepam_jax.mechanisms import code_length

_TEST_BATCH = 1000


class Program(NamedTuple):
    """What one configuration compiles to; shared by all runs that differ in arrays alone.

    Attributes:
      initialize: (key, clip norm) -> State.
      block: (State, Federation, test images, stop), from `evaluation.make_block`, jitted; where runs are
        spread over devices, of several runs: State, Federation (but for the images) and stop have a leading
        axis, and so have the results.
      coordinates: d, length of an update.
      layout: what is spread over the devices.
    """

    initialize: Any
    block: Any
    coordinates: int
    layout: Layout


def program(config: ml_collections.ConfigDict, image_shape, num_classes: int, layout: Layout = ONE_DEVICE):
    """The Program of a valid configuration; the same object for configurations that can share it.

    Runs that differ only in data, seeds, gamma, clip norm or the number of rounds (from eval_every on) share
    one.

    Args:
      config: valid configuration.
      image_shape: height, width, channels.
      num_classes: of the data.
      layout: what is spread over the devices.
    """
    builder = models.MODELS.get(config.model)  # registered anew it is another model
    return _program(
        shared_fields(config), tuple(image_shape), num_classes, jax.default_backend(), layout, builder
    )


def shared_fields(config: ml_collections.ConfigDict) -> str:
    """What runs must have in common to share one Program, as text."""
    fields = json.loads(config.to_json())
    # A block of more rounds than the run has would only be skipped through.
    fields["eval_every"] = min(config.eval_every, config.rounds)
    for name in ("seeds", "partition", "privacy", "data", "devices", *open_fields(config)):
        fields.pop(name, None)
    for name in ("gamma", "step", "bits", "levels", "fraction", "clip_norm", "per_client"):
        del fields["mechanism"][name]
    return json.dumps(fields, sort_keys=True)


def open_fields(config) -> tuple[str, ...]:
    """Fields that rounds already done do not depend on."""
    planned = config.schedule.knob != "none" or config.privacy.target_epsilon
    return ("data.dir", "devices", *(() if planned else ("rounds",)))


@functools.lru_cache(maxsize=16)
def _program(fields_text, image_shape, num_classes, backend, layout, builder):
    del builder
    config = ml_collections.ConfigDict(json.loads(fields_text))
    module = models.build(config.model, num_classes)
    shapes = jax.eval_shape(lambda key: models.initialize(module, key, image_shape), jax.random.key(0))
    tensors = tuple(leaf.shape for leaf in jax.tree.leaves(shapes))
    segments = tuple(leaf.size for leaf in jax.tree.leaves(shapes))
    server = SERVER_OPTIMIZERS[config.server.optimizer](config.server.learning_rate, config.server.momentum)
    per_round = config.clients_per_round or config.num_clients
    mesh = None if layout.axis == RUNS else layout.mesh
    share = -(-per_round // (mesh.devices.size if mesh else 1))  # of one device
    per_chunk = config.clients_per_chunk or (1 if backend == "cpu" else share)

    remembers = config.mechanism.error_feedback
    mechanism = build_mechanism(config.mechanism, tensors)

    def initialize(key, clip_norm):
        params = models.initialize(module, key, image_shape)
        memory = jnp.zeros((config.num_clients, sum(segments)), jnp.float32) if remembers else None
        scale = None
        if "scale" in mechanism.about.knobs:  # before anything is known: the clip norm, spread evenly
            octaves = jnp.log2(clip_norm / math.sqrt(sum(segments)))
            scale = jnp.round(code_length.SCALES_PER_OCTAVE * octaves).astype(jnp.int32)
            scale = jnp.full(len(segments), scale)
        return rounds.State(params, server.init(params), jnp.int32(0), jnp.int32(-1), memory, scale)

    local = {name: config.local[name] for name in LocalTraining._fields}
    run_round = rounds.make_round(
        rounds.Plan(
            local_update=make_local_update(module, LocalTraining(**local)),
            mechanism=mechanism,
            aggregator=AGGREGATORS[config.aggregator],
            server=server,
            segments=segments,
            per_round=per_round,
            per_chunk=min(per_chunk, share),
            quantize=config.mechanism.quantize,
            schedule=_schedule(config),
            wire=config.wire,
            mesh=mesh,
        )
    )
    block = evaluation.make_block(run_round, evaluation.make_evaluate(module, _TEST_BATCH), config.eval_every)
    if layout.axis == RUNS:
        block = evaluation.make_blocks(block, layout.mesh, layout.together)
    return Program(jax.jit(initialize), jax.jit(block), sum(segments), layout)


def _schedule(config):
    if config.schedule.knob == "none":
        return None
    factor = SCHEDULES[config.schedule.kind](config.schedule.end, config.rounds)
    return scheduled({config.schedule.knob: factor})


def steps_of(config: ml_collections.ConfigDict, counts):
    """Local steps of each client, int32[clients]: the largest client takes all of them."""
    share = counts / counts.max() if config.local.steps_by_size else np.ones(len(counts))
    return np.maximum(1, np.round(config.local.steps * share)).astype(np.int32)


def shared_key(seed: int):
    """Root of the shared randomness.

    Set apart from the training key: with equal seeds, whoever knows a client's shared key would
    otherwise know its private key, which is folded out of the same root.
    """
    return jax.random.fold_in(jax.random.key(seed), np.uint32(0x53484152))


def images(data: sources.Dataset) -> tuple[Images, Images]:
    """Training and test images as the round wants them, on the host."""
    pixel = np.asarray(data.mean), np.asarray(data.std)
    return (
        Images(data.train_images, data.train_labels, *pixel),
        Images(data.test_images, data.test_labels, *pixel),
    )


def split_of(config: ml_collections.ConfigDict, labels) -> partition.Partition:
    """The partition that a configuration asks for."""
    names = {"dirichlet": "alpha", "shards": "shards_per_client", "quantity": "exponent"}
    kind = config.partition.kind
    options = {names[kind]: config.partition[names[kind]]} if kind in names else {}
    return partition.partition(labels, kind, config.num_clients, config.seeds.partition, **options)


def federation_arrays(config: ml_collections.ConfigDict, split: partition.Partition) -> rounds.Federation:
    """The arrays of a federation but for its images."""
    return rounds.Federation(
        data=None,
        rows=np.asarray(split.indices),
        counts=np.asarray(split.counts),
        steps=steps_of(config, split.counts),
        knobs=knobs_of(config),
        training_key=jax.random.key(config.seeds.training),
        shared_key=shared_key(config.seeds.shared),
    )
