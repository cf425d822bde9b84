"""A whole run: build from a configuration, train, evaluate, log, checkpoint, resume."""

import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from cepam_jax import checkpoints, models
from cepam_jax.config import SERVER_OPTIMIZERS, build_mechanism, knobs_of, validate
from cepam_jax.data import partition, sources
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.federated import guarantees, rounds
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.clients import Images, LocalTraining, make_local_update
from cepam_jax.federated.participation import SCHEDULES, scheduled
from cepam_jax.mechanisms import code_length
from cepam_jax.metrics import MetricsFile

_TEST_BATCH = 1000


class Program(NamedTuple):
    """What one configuration compiles to; shared by all runs that differ in arrays alone.

    Attributes:
      initialize: (key, clip norm) -> State.
      block: from `rounds.make_block`.
      coordinates: d, length of an update.
    """

    initialize: Any
    block: Any
    coordinates: int


def program(config: ml_collections.ConfigDict, image_shape: tuple[int, ...], num_classes: int):
    """The Program of a valid configuration; the same object for configurations that can share it.

    Runs that differ only in data, seeds, gamma, clip norm or the number of rounds share one.
    """
    fields = json.loads(config.to_json())
    for name in ("seeds", "partition", "data", "privacy", *_unscheduled(config)):
        del fields[name]
    for name in ("gamma", "step", "bits", "levels", "fraction", "clip_norm", "per_client"):
        del fields["mechanism"][name]
    return _program(json.dumps(fields, sort_keys=True), image_shape, num_classes, jax.default_backend())


def _unscheduled(config):
    """Fields that rounds already done do not depend on: their number, but for schedules and budgets."""
    return ("rounds",) if config.schedule.knob == "none" and not config.privacy.target_epsilon else ()


@functools.lru_cache(maxsize=8)
def _program(fields_text, image_shape, num_classes, backend):
    config = ml_collections.ConfigDict(json.loads(fields_text))
    module = models.build(config.model, num_classes)
    shapes = jax.eval_shape(lambda key: models.initialize(module, key, image_shape), jax.random.key(0))
    tensors = tuple(leaf.shape for leaf in jax.tree.leaves(shapes))
    segments = tuple(leaf.size for leaf in jax.tree.leaves(shapes))
    server = SERVER_OPTIMIZERS[config.server.optimizer](config.server.learning_rate, config.server.momentum)
    per_round = config.clients_per_round or config.num_clients
    per_chunk = config.clients_per_chunk or (1 if backend == "cpu" else per_round)

    remembers = config.mechanism.error_feedback
    mechanism = build_mechanism(config.mechanism, tensors)

    def initialize(key, clip_norm):
        params = models.initialize(module, key, image_shape)
        memory = jnp.zeros((config.num_clients, sum(segments))) if remembers else None
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
            per_chunk=min(per_chunk, per_round),
            quantize=config.mechanism.quantize,
            schedule=_schedule(config),
            wire=config.wire,
        )
    )
    block = rounds.make_block(run_round, rounds.make_evaluate(module, _TEST_BATCH), config.eval_every)
    return Program(jax.jit(initialize), block, sum(segments))


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


@functools.lru_cache(maxsize=4)
def _on_device(name, data_dir):
    data = sources.load(name, data_dir)
    pixel = jnp.asarray(data.mean), jnp.asarray(data.std)
    return (
        Images(jnp.asarray(data.train_images), jnp.asarray(data.train_labels), *pixel),
        Images(jnp.asarray(data.test_images), jnp.asarray(data.test_labels), *pixel),
    )


def load_images(config: ml_collections.ConfigDict) -> tuple[Images, Images]:
    """Training and test images of a configuration, on the device; loaded once per process."""
    return _on_device(config.data.name, config.data.dir)


def split_of(config: ml_collections.ConfigDict, labels) -> partition.Partition:
    """The partition that a configuration asks for."""
    names = {"dirichlet": "alpha", "shards": "shards_per_client", "quantity": "exponent"}
    kind = config.partition.kind
    options = {names[kind]: config.partition[names[kind]]} if kind in names else {}
    return partition.partition(labels, kind, config.num_clients, config.seeds.partition, **options)


def train(
    config: ml_collections.ConfigDict, workdir: str | Path, progress: bool = True, label: str = ""
) -> list[dict]:
    """Trains, or continues where an earlier call with the same workdir was stopped.

    Writes under workdir: config.json, partition.txt, partition.png, metrics.jsonl, checkpoints/.

    Args:
      config: as `configs/common.py` defines it.
      workdir: directory of this run alone; created if needed.
      progress: show a progress bar on standard error.
      label: stands before the bar; by default data set and mechanism.

    Returns:
      The lines of metrics.jsonl.

    Raises:
      ConfigError: before anything is loaded or compiled.
      DataNotPreparedError: within seconds.
      CheckpointMismatchError: workdir belongs to another configuration.
      NonFiniteUpdateError: a client's update was NaN or infinite; the checkpoint before it stays.
    """
    validate(config)
    data = sources.load(config.data.name, config.data.dir)
    split = split_of(config, data.train_labels)
    asked = json.loads(config.to_json())
    if config.privacy.target_epsilon and config.privacy.calibrate:
        config = guarantees.calibrated(config, split.counts)
    compiled = program(config, data.train_images.shape[1:], data.num_classes)
    state = compiled.initialize(jax.random.key(config.seeds.model), jnp.float32(config.mechanism.clip_norm))
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints.claim(workdir, asked, ("data.dir", *_unscheduled(config)))
    _describe(data, split, workdir)

    train_images, test_images = load_images(config)
    federation = rounds.Federation(
        data=train_images,
        rows=jnp.asarray(split.indices),
        counts=jnp.asarray(split.counts),
        steps=jnp.asarray(steps_of(config, split.counts)),
        knobs=knobs_of(config),
        training_key=jax.random.key(config.seeds.training),
        shared_key=shared_key(config.seeds.shared),
    )
    store = checkpoints.Checkpoints(workdir / "checkpoints")
    restored = store.restore(state)
    state = state if restored is None else jax.tree.map(jnp.asarray, restored)
    file = MetricsFile(workdir / "metrics.jsonl")
    lines = file.resume(int(state.round))
    bar = tqdm.tqdm(
        total=config.rounds,
        initial=min(int(state.round), config.rounds),
        desc=label or f"{config.data.name} {config.mechanism.name}",
        unit="round",
        disable=not progress,
        dynamic_ncols=True,
    )
    last = guarantees.rounds_within_budget(config, split.counts)
    (workdir / "privacy.txt").write_text(guarantees.report_text(config, split.counts, last) + "\n")
    try:
        _run(config, compiled, state, federation, test_images, store, file, lines, bar, split.counts, last)
    finally:
        bar.close()
        store.close()
    return lines


def _run(config, compiled, state, federation, test, store, file, lines, bar, counts, last):
    """Blocks of rounds until the last, or until the privacy budget is spent; appends to `lines`."""
    done = int(state.round)
    if last < config.rounds:
        note = f"the privacy budget of epsilon = {config.privacy.target_epsilon:g} ends after round {last}"
        tqdm.tqdm.write(f"{note} of {config.rounds}", file=sys.stderr)
    if done >= last:
        return
    # No round is left before `done`: this compiles, and evaluates where we stand.
    block = functools.partial(compiled.block, federation=federation, test=test)
    _, _, evaluation = jax.block_until_ready(block(state, stop=jnp.int32(done)))
    if done == 0 and not lines:
        lines.append({"round": 0, **_evaluation(evaluation)})
        file.append(lines[-1])
    per_round = config.clients_per_round or config.num_clients
    while done < last:
        start = time.perf_counter()
        state, metrics, evaluation = jax.block_until_ready(block(state, stop=jnp.int32(last)))
        seconds = time.perf_counter() - start
        if int(state.invalid_client) >= 0:
            raise NonFiniteUpdateError(
                f"client {int(state.invalid_client)} sent a NaN or infinite update in round "
                f"{int(state.round) + 1}; it was not averaged. The checkpoint of round {done} is intact. "
                f"Lower config.local.learning_rate (now {config.local.learning_rate}) or clip updates."
            )
        ran = int(state.round) - done
        done += ran
        line = summarize(metrics, evaluation, done, ran, per_round * compiled.coordinates, seconds)
        line["epsilon"] = guarantees.epsilons(config, counts, done)
        file.append(line)
        lines.append(line)
        store.save(done, state)
        bar.update(ran)
        bar.set_postfix_str(progress_text(line))


def summarize(metrics, evaluation, last_round: int, ran: int, coordinates: int, seconds: float) -> dict:
    """One line of metrics.jsonl.

    Args:
      metrics: RoundMetrics of a block, leading axis rounds.
      evaluation: (test loss, test accuracy) after the block.
      last_round: rounds done so far.
      ran: rounds of this block.
      coordinates: coordinates sent by all participants of one round.
      seconds: wall time of the block, its evaluation included.
    """
    total = {name: float(np.sum(np.asarray(v, np.float64))) for name, v in metrics._asdict().items()}
    return {
        "round": last_round,
        **_evaluation(evaluation),
        "train_loss": _finite(total["train_loss"] / ran),
        "bits_per_coordinate": total["bits"] / ran / coordinates,
        "uplink_bits": total["bits"],
        **({"uplink_bytes": total["bytes"]} if total["bytes"] else {}),
        "update_norm": total["norm"] / ran,
        "clipped_norm": total["clipped_norm"] / ran,
        "snr": total["signal"] / total["noise"] if total["noise"] > 0 else None,
        "seconds": seconds,
        "seconds_per_round": seconds / ran,
    }


def _evaluation(evaluation):
    loss, accuracy = map(float, evaluation)
    return {"loss": _finite(loss), "accuracy": accuracy}


def _finite(value):
    return value if np.isfinite(value) else None


def progress_text(line: dict) -> str:
    """The figures beside the progress bar."""
    snr = "inf" if line["snr"] is None else f"{line['snr']:.2g}"
    found = line.get("epsilon", {}).get("released_model")
    epsilon = "" if found is None else f", epsilon {found:.3g} (released model)"
    loss = "nan" if line["loss"] is None else f"{line['loss']:.3f}"
    return (
        f"loss {loss}, accuracy {line['accuracy']:.3f}, {line['bits_per_coordinate']:.3f} bits/coordinate, "
        f"norm {line['update_norm']:.3g}->{line['clipped_norm']:.3g}, SNR {snr}{epsilon}"
    )


def _describe(data, split, workdir):
    """Writes who holds what, once."""
    picture = workdir / "partition.png"
    if not picture.exists():
        table = partition.histogram(data.train_labels, split, data.num_classes)
        (workdir / "partition.txt").write_text(partition.summary(table) + "\n")
        partition.plot(table, picture)
