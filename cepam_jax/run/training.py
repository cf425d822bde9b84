"""Runs from beginning to end: build from configurations, train, evaluate, log, checkpoint, resume."""

import functools
import json
import math
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, NonFiniteUpdateError, require
from cepam_jax.federated.plan import CLIENTS
from cepam_jax.run import allowed, blame, build, data_kept, devices, links_kept, origins, stacking
from cepam_jax.run.config import plain, validate
from cepam_jax.run.devices import RUNS, Layout
from cepam_jax.run.interrupts import check_interrupt, forget_interrupt, interrupt, saving
from cepam_jax.run.progress import Progress, say
from cepam_jax.run.records import RunDirectory, progress_text
from cepam_jax.tasks.base import check_examples

__all__ = ["check_interrupt", "forget_interrupt", "interrupt", "train", "train_many"]


def train(
    config: ml_collections.ConfigDict, workdir: str | Path, progress: bool = True, label: str = ""
) -> list[dict]:
    """Trains, or continues where an earlier call with the same workdir was stopped.

    Writes under workdir: config.json, partition.txt, partition.png, privacy.txt, metrics.jsonl, ledger.jsonl,
    data.sha256, lock.json, checkpoints/ (with config.init also initial.json). The clients of a round are
    spread over `config.devices` devices. Everything is computed in 32 bits, also where JAX_ENABLE_X64 is set.

    Args:
      config: as `cepam_jax.defaults()` makes it, with any changes, frozen or not.
      workdir: directory of this run alone; created if needed; a leading ~ is the home directory.
      progress: show a progress bar on standard error.
      label: stands before the bar; by default data set and mechanism.

    Returns:
      The lines of metrics.jsonl.

    Raises:
      ConfigError: before anything is loaded or compiled.
      DataNotPreparedError: within seconds.
      DatasetError: the data set's arrays do not fit together.
      CheckpointMismatchError: workdir belongs to another configuration, to other data, or to a run of more
        rounds.
      CheckpointDamagedError: workdir holds nothing intact to go on from.
      WorkdirInUseError: another process trains there.
      NonFiniteUpdateError: a client's update, its decoded update or the new model was NaN or infinite; the
        checkpoint before it stays.
      OSError: workdir cannot be written to.
      KeyboardInterrupt: by Ctrl-C; a note on it says what was saved, and the same call continues there.
    """
    config, workdir = plain(config), _directory(workdir)
    validate(config)
    with jax.enable_x64(False):
        layout = Layout(CLIENTS, devices.count(config.devices))
        return _train([config], [workdir], progress, label, layout)[0]


def train_many(
    configs: list[ml_collections.ConfigDict],
    workdirs: list[str | Path],
    progress: bool = True,
    labels: list[str] | None = None,
    together: int | None = None,
    keep_failures: bool = False,
) -> list[list[dict]]:
    """Trains many runs; those that differ in arrays alone (seeds, gamma, ...) as one compiled sweep.

    Every run has a work directory of its own, with the same files and figures as if `train` had been called
    for it (which may also continue it). Runs that were finished are not repeated. With several devices the
    runs of a sweep are spread over them; with several processes they take turns.

    Args:
      configs: one for each run.
      workdirs: one for each run.
      progress: show progress bars on standard error.
      labels: one for each run, to stand before the bars; by default data set and mechanism.
      together: runs of a sweep that train at the same time on one device, under one vmap; by default one on a
        CPU, all elsewhere. Memory grows with it.
      keep_failures: whether a run that met a NaN or infinite update gives the lines up to there instead
        of an error.

    Returns:
      For each run the lines of its metrics.jsonl.

    Raises:
      NonFiniteUpdateError: only after the other runs of the sweep were finished.
      ConfigError, DataNotPreparedError, CheckpointMismatchError: as `train`.
    """
    workdirs = [_directory(workdir) for workdir in workdirs]
    configs = [plain(config) for config in configs]
    runs, different = len(configs), len({workdir.resolve() for workdir in workdirs})
    require(runs == len(workdirs), "number of workdirs", len(workdirs), f"{runs}, one per run")
    require(runs == different, "number of different workdirs", different, f"{runs}, one per run")
    require(
        labels is None or runs == len(labels), "number of labels", len(labels or ()), f"{runs}, one per run"
    )
    for config in configs:
        validate(config)
    with jax.enable_x64(False):
        return _train_groups(configs, workdirs, progress, labels, together, keep_failures)


def _directory(workdir) -> Path:
    """The path with ~ as the home directory; an empty one would be wherever the process stands."""
    named = isinstance(workdir, Path) or (isinstance(workdir, str) and workdir and "\0" not in workdir)
    require(named, "workdir", workdir, "the path of a directory")
    try:
        return Path(workdir).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"workdir is {str(workdir)!r}: {error}") from error


def _train_groups(configs, workdirs, progress, labels, together, keep_failures):
    groups: dict = {}
    for number, config in enumerate(configs):
        alone = number if jax.process_count() > 1 else None
        shape = (config.data.name, config.data.dir, sources.options_of(config))
        groups.setdefault((build.compile_key(config), shape, alone), []).append(number)
    results = [[] for _ in configs]
    for numbers in groups.values():
        mine = [configs[n] for n in numbers]
        present = devices.count(mine[0].devices)
        if len(mine) == 1:
            layout = Layout(CLIENTS, present)
        else:
            spread = min(present, len(mine))
            layout = Layout(RUNS, spread, devices.at_once(together or 0, len(mine), spread))
        name = labels[numbers[0]] if labels else ""
        if labels and len(numbers) > 1:
            name += f" to {labels[numbers[-1]]}"
        found = _train(mine, [workdirs[n] for n in numbers], progress, name, layout, keep_failures)
        for number, lines in zip(numbers, found, strict=True):
            results[number] = lines
    return results


@functools.lru_cache(maxsize=2)
def _examples(held, source, layout):
    """(training examples, constants, HeldOut) on the devices."""
    del source  # registered anew its constants may be others
    data = held.data
    return tuple(devices.put(part, layout.mesh) for part in (data.train, data.constants, build.tested(data)))


def _train(configs, workdirs, progress, label, layout, keep_failures=False):
    """The runs of one Program, from their checkpoints to the end."""
    first = configs[0]
    data = sources.load_examples(first.data.name, first.data.dir, sources.options_of(first))
    compiled = build.program(first, data.specification, layout)
    for part in (data.train, data.test):
        check_examples(compiled.task, part, data.constants)
    examples_digest = data_kept.digest(data)
    records: list[RunDirectory] = []
    unknown: list[Path] = []
    try:
        for config, workdir in zip(configs, workdirs, strict=True):
            check_interrupt()
            records.append(_open(compiled, config, data, examples_digest, workdir, unknown))
        if devices.is_main():
            data_kept.warn(unknown)
        running = [record for record in records if record.open or record.untouched]
        for record in records:
            if record not in running:
                record.close()  # of hundreds of finished runs nothing need stay open
        if running:
            # The examples stay the same: one copy on the devices for all calls.
            examples = _examples(
                data_kept.Held(data, examples_digest),
                sources.SOURCES[first.data.name],
                layout._replace(together=1),
            )
            name = label or f"{first.data.name} {first.mechanism.name}"
            check_interrupt()
            _run(compiled, running, data, examples, progress and devices.is_main(), name)
    except KeyboardInterrupt as error:
        error.add_note(_where(records, len(configs)))
        raise
    finally:
        for record in records:
            record.close()
    failures = [record.failure for record in records if record.failure]
    if failures and not keep_failures:
        raise failures[0]
    return [record.lines for record in records]


def _where(records, runs) -> str:
    """Where interrupted runs stand."""
    if runs > 1:
        finished = sum(not record.open for record in records)
        under = f"{records[0].workdir} and others" if records else "their work directories"
        return f"{finished} of {runs} runs were finished, the others are saved in {under}; repeat to continue"
    if not records:
        return "Nothing was trained yet"
    record = records[0]
    return (
        f"{record.workdir} holds the run up to round {record.done} of {record.last}; repeat to continue there"
    )


def _open(compiled, config, data, examples_digest, workdir, unknown):
    split = build.split_of(config, data)
    asked = json.loads(config.to_json())
    config, plan = allowed.planned(config, split.counts, compiled)
    origin, whole = origins.of_config(config, compiled.task, workdir)
    initial = compiled.initialize(jax.random.key(config.seeds.model), mechanisms.knobs_of(config), whole)
    initial = jax.tree.map(np.asarray, initial)
    known = links_kept.check(config, workdir)
    if not data_kept.check(examples_digest, workdir):
        unknown.append(workdir)
    record = RunDirectory(asked, config, split, data, initial, workdir, compiled.task, origin)
    if devices.is_main():
        links_kept.write(known, workdir)
        data_kept.write(examples_digest, workdir)
    allowed.write(plan, workdir)
    return record


def _run(compiled, records, data, examples, progress, label):
    """Blocks of rounds until every run's last, or until its privacy budget is spent."""
    layout = compiled.layout
    several = layout.axis == RUNS
    slots = -(-len(records) // layout.devices) * layout.devices if several else 1

    def place(trees):
        whole = stacking.stacked(trees, slots) if several else trees[0]
        return devices.put(whole, layout.mesh, RUNS if several else None)

    def of_run(tree, number):
        return jax.tree.map(lambda a: a[number], tree) if several else tree

    for record in records:
        if record.last < record.config.rounds:
            target = f"epsilon = {record.config.privacy.target_epsilon:g}"
            note = f"the privacy budget of {target} ends after round {record.last} of {record.config.rounds}"
            say(note)
    train, constants, test = examples
    arrays = place(stacking.client_arrays(records))._replace(examples=train, constants=constants)
    owners = place([build.test_owners(record.config, data, record.split) for record in records])

    def block(state, stops):
        """The block's results on the host, but for the state; seconds."""
        start = time.perf_counter()
        stops = place([np.int32(stop) for stop in stops])
        state, *found = jax.block_until_ready(compiled.block(state, arrays, test, owners, stops))
        return state, *jax.tree.map(np.asarray, found), time.perf_counter() - start

    state = place([record.state for record in records])
    # No round is left before `done`: this compiles, and evaluates where we stand.
    _, _, evaluation, _ = block(state, [record.done for record in records])
    for number, record in enumerate(records):
        record.start(of_run(evaluation, number))
    total, done = (sum(getattr(record, name) for record in records) for name in ("last", "done"))
    name = label + (f" ({len(records)} runs)" if len(records) > 1 else "")
    with Progress(total, done, name, progress) as shown:
        while any(record.open for record in records):
            check_interrupt()
            active, rounds = sum(record.open for record in records), 0
            state, report, evaluation, seconds = block(
                state, [record.last if record.open else 0 for record in records]
            )
            host = jax.tree.map(np.asarray, state)
            for number, record in enumerate(records):
                if record.open:
                    before = record.done
                    results = (of_run(tree, number) for tree in (host, report, evaluation))
                    _note(record, *results, compiled.coordinates, seconds / active)
                    rounds += record.done - before
            shown.update(rounds, _progress(records))


def _note(record, state, report, evaluation, coordinates, seconds):
    """Keeps a block's results, or why there are none."""
    if int(state.invalid_client) < 0:
        with saving():
            record.add(state, report, evaluation, coordinates, seconds)
        return
    with saving():
        record.failed(report, NonFiniteUpdateError(blame.explanation(record, state)), coordinates)


def _progress(records) -> str:
    """Of one run its figures, of several the range of the headline metric."""
    task = records[0].task
    if len(records) == 1:
        lines = records[0].lines
        return progress_text(lines[-1], task) if len(lines) > 1 else ""
    name, shown = task.headline, task.formats.get(task.headline, ".3f")
    last = [record.lines[-1][name] for record in records if record.lines]
    values = [value for value in last if value is not None] or [math.nan]
    failed = sum(record.failure is not None for record in records)
    return f"{name} {min(values):{shown}} to {max(values):{shown}}" + (f", {failed} failed" if failed else "")
