"""What one run leaves on the disk, line by line, and what it finds there when it is continued."""

import json
import os
from pathlib import Path

import jax
import numpy as np

from cepam_jax import files
from cepam_jax.data import partition
from cepam_jax.data.examples import number_of
from cepam_jax.errors import CheckpointMismatchError, ConfigError
from cepam_jax.federated.aggregation import AGGREGATORS, check_weights
from cepam_jax.run import checkpoints, guarantees, ledger, needs_kept, traffic
from cepam_jax.run.build import resumable_fields
from cepam_jax.run.claims import check_claim
from cepam_jax.run.devices import broadcast, broadcast_text, is_main
from cepam_jax.run.ledger import Ledger
from cepam_jax.run.ledger_file import LedgerFile, Mark
from cepam_jax.run.lines import evaluated, progress_text, summarize
from cepam_jax.run.locks import Lock
from cepam_jax.run.metrics import MetricsFile, lines_up_to, parse
from cepam_jax.run.progress import say
from cepam_jax.run.provenance import check, check_draws, parts_of
from cepam_jax.run.writers import WRITERS

__all__ = ["RunDirectory", "evaluated", "progress_text", "say", "summarize"]


class RunDirectory:
    """One run's work directory, opened and locked; only process 0 reads and writes it.

    Attributes:
      config: as it is carried out (calibrated to a privacy target).
      split: who holds which examples.
      state: State on the host, the last that was saved or the initial one.
      lines: of metrics.jsonl so far; in other processes than 0, those of this call.
      last: the round after which the run ends.
      failure: the error that ended the run early, or None.
      ledger: what the rounds so far applied.
      task: what is learned.
      workdir: its directory.
      origin: the run whose model it begins with, or None.
    """

    def __init__(self, asked: dict, config, split, data, initial, workdir: Path, task, origin=None):
        """Claims the directory and restores what is there.

        Args:
          asked: the configuration as given, for config.json.
          config: the same, calibrated.
          split: its partition.
          data: its data set.
          initial: State of round 0, host arrays.
          workdir: of this run alone.
          task: what is learned.
          origin: as the attribute.

        Raises:
          CheckpointMismatchError: workdir belongs to another configuration, or the run there is longer.
          CheckpointDamagedError: nothing intact is left there.
          WorkdirInUseError: another process trains there.
          OSError: it cannot be written to.
        """
        self.config, self.split, self.failure, self.workdir = config, split, None, workdir
        self.last = guarantees.rounds_within_budget(config, split.counts)
        self.state, self.lines, self.ledger, self.task = initial, [], Ledger(), task
        self._asked, self._warned, self._tests = asked, False, number_of(data.test)
        self.origin = origin
        facts = guarantees.facts_of(config, split.counts)
        check_weights(facts.aggregator, split.counts)  # before anything is written
        self._parts, self._knobs = parts_of(facts), facts.knobs
        self._store = self._file = self._lock = self._writer = self._ledger_file = None
        if is_main():
            workdir.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(workdir)
            try:
                self._restore(data, initial)
            except BaseException:
                self.close()
                raise
        self.state = broadcast(self.state)
        self.ledger = ledger.read(broadcast_text(self.ledger.text()))
        tried = self._ledger_file.tried if self._ledger_file else None
        self._tried = int(broadcast(np.int32([-1 if tried is None else tried]))[0])

    def _restore(self, data, initial):
        """Checks everything before anything is written; then mends, says what, and goes on."""
        workdir, config = self.workdir, self.config
        self._store = checkpoints.Checkpoints(workdir / "checkpoints")
        path = workdir / "metrics.jsonl"
        before = path.read_bytes().decode(errors="replace") if path.exists() else ""
        mended = [check_claim(workdir, self._asked, resumable_fields(config), self._store)]
        found = self._store.newest(initial, lambda number: lines_up_to(before, number, config.eval_every))
        seen = max([self._store.seen(), *(line["round"] for line in parse(before))])
        if seen > self.last:  # also where the checkpoint of that round is lost or damaged
            raise CheckpointMismatchError(
                f"{workdir} holds a run of {seen} rounds, this one ends after {self.last}"
                + (f" of {config.rounds} (its privacy budget)" if self.last < config.rounds else "")
                + f". Ask for at least {seen}, or use another --workdir; nothing was changed."
            )
        self._ledger_file = LedgerFile(workdir / "ledger.jsonl")
        past = "" if found is None else self._past(found)
        self._ledger_file.check_length(past, self.last)
        claimed = (workdir / "config.json").exists()
        self._store.clean()
        if found is not None:
            self.state, self.ledger = found.state, ledger.read(past)
            for number, why in found.damaged:
                aside = self._store.set_aside(number)
                mended.append(
                    f"the checkpoint of round {number} is damaged ({why}), now {aside.name}; "
                    f"the run goes on from round {found.round}"
                )
        if self.origin is not None:  # first, as the keys follow from it
            self.origin.write(workdir)
        files.write(workdir / "config.json", json.dumps(self._asked, indent=2) + "\n")
        _describe(data, self.split, workdir, new=found is None)
        if self.last:
            sent = jax.tree.leaves((initial.params, initial.statistics))
            book = self.ledger
            if self.open:  # what is planned, but for reasons that no plan mends
                book = guarantees.plan(config, self.last)._replace(refused=book.refused)
            self._report(book, sum(leaf.size for leaf in sent))
        else:
            files.write(workdir / "privacy.txt", "no round is trained: nothing is released\n")
        mended.append(self._ledger_file.resume(past))
        self._file = MetricsFile(path)
        lines = found.lines if found else ""  # the untrained model is evaluated again: it may be another
        if found is None:
            mended.append(self._begin_again(path, before, claimed))
        mended.append(self._file.resume(lines))
        self.lines = parse(lines)
        if config.writer != "none" and (self.open or self.untouched):
            self._writer = WRITERS.get_or_raise(config.writer)(workdir, self.done)
        for what in filter(None, mended):
            say(f"{workdir}: {what}")

    def _past(self, found) -> str:
        """What the rounds up to a checkpoint applied, as lines of ledger.jsonl.

        Raises:
          CheckpointMismatchError: other parts than those of now made them.
        """
        text, refused = found.ledger, ()
        if isinstance(text, Mark):
            mark, text = text, self._ledger_file.up_to(text)
            if text is None:
                self._ledger_file.damaged, refused = True, self._lost(mark)
        if text is None:  # as after the first release: rounds followed the plan
            text = guarantees.plan(self.config, found.round)._replace(refused=refused).text()
        past = ledger.read(text)
        try:
            check(past, self._parts)
            check_draws(past, self._parts)
        except ConfigError as error:
            raise CheckpointMismatchError(f"{self.workdir} cannot be continued: {error}") from error
        return text

    def _lost(self, mark) -> tuple[str, ...]:
        """Why rounds whose ledger is lost have no guarantee: what an own rule applied is not known."""
        own = [] if self.config.control == "schedule" else [f"config.control = {self.config.control!r}"]
        if self.config.aggregator != "precision" and AGGREGATORS[self.config.aggregator].weights:
            own.append(f"config.aggregator = {self.config.aggregator!r}")
        lost = "ledger.jsonl was lost or altered, and what {} applied is not known"
        return (*mark.refused, *map(lost.format, own))

    def _begin_again(self, path, before, claimed) -> str:
        """Keeps the lines of a run without checkpoints, if there are any that took training; says so."""
        ran = parse(before)
        if not before or (claimed and len(ran) < 2 and before.count("\n") < 2):
            return ""  # new, or stopped before its first block
        # One block's line is written before the first checkpoint is.
        why = "its checkpoints are lost" if len(ran) > 2 else "it has no checkpoint"
        if not claimed:
            why += ", and no config.json says whose lines its metrics.jsonl holds"
        aside = files.set_aside(path, "metrics.damaged.jsonl")
        return f"{why}; the run begins again, from round 0 (the lines are kept as {aside.name})"

    @property
    def done(self) -> int:
        """Rounds done."""
        return int(self.state.round)

    @property
    def open(self) -> bool:
        """Whether rounds remain."""
        return self.failure is None and self.done < self.last

    @property
    def untouched(self) -> bool:
        """Whether not even the untrained model was evaluated."""
        return not self.lines

    def start(self, evaluation) -> None:
        """Notes how the untrained model is evaluated."""
        if self.done == 0 and not self.lines:
            self._add({"round": 0, **evaluated(self.task, evaluation, self._tests)})

    def add(self, state, report, evaluation, coordinates: int, seconds: float) -> None:
        """Notes a block of rounds and saves the state after it.

        Args:
          state: State on the host.
          report, evaluation: of `evaluation.make_block`, on the host.
          coordinates: d of one update.
          seconds: wall time of the block, its evaluation included.
        """
        if self._lock:
            self._lock.check()
        self.state = state
        block = Ledger().add(report, self.config.num_clients, self._parts)
        refused = self._passed()
        self.ledger = self.ledger.joined(block.entries)._replace(refused=self.ledger.refused + refused)
        line = {
            "round": self.done,
            **evaluated(self.task, evaluation, self._tests),
            **summarize(report, coordinates, seconds),
            **traffic.line_of(self.config, report),
            "epsilon": guarantees.epsilons(self.config, self.split.counts, self.ledger),
            **needs_kept.line_of(self.config, self.split.counts, self.ledger, report),
        }
        self._add(line)
        if self._store:
            self._ledger_file.append(block.entries, refused)
            self._store.save(self.done, state, self._asked, self._file.text, self._ledger_file.mark)
            if not self.open:
                self._report(self.ledger, coordinates)  # what the rounds applied, once no more follow

    def _passed(self) -> tuple[str, ...]:
        """Why nothing is guaranteed where a round failed when it ran before, and now does not."""
        tried, passed = self._tried, 0 <= self._tried < self.done
        if not passed:
            return ()
        self._tried = -1
        return (
            f"round {tried + 1} failed before and was run again with another result: both were sent with the "
            "same noise, which their difference lacks",
        )

    def failed(self, report, failure: Exception, coordinates: int) -> None:
        """Notes a block that met an update that was not finite: what was sent in it counts, nothing is saved.

        Args:
          report: of `evaluation.make_block`, on the host; the first round that did not run is the failed one.
          failure: why there are no results.
          coordinates: d of one update.
        """
        self.failure = failure
        clients, by = self.config.num_clients, self._parts
        block = Ledger().add(report, clients, by).add_failure(report, clients, self._knobs, by)
        self.ledger = self.ledger.joined(block.entries)
        if self._store:
            self._lock.check()
            self._ledger_file.append(block.entries)
            self._report(self.ledger, coordinates)  # what the rounds applied, once no more follow

    def _report(self, book, coordinates):
        about = {"coordinates": coordinates, "ledger": book, "holders": self.split.holders}
        text = guarantees.report_text(self.config, self.split.counts, **about)
        files.write(self.workdir / "privacy.txt", text + "\n")

    def _add(self, line):
        self.lines.append(line)
        if self._file:
            self._file.append(line)
            if self._writer:
                self._writer.write(line)
            if line["loss"] is None and not self._warned:
                self._warned = True
                say(
                    f"{self.workdir}: the test loss after round {line['round']} is NaN or infinite, though "
                    f"the model is finite: its outputs overflow, and the accuracy means little"
                )

    def close(self) -> None:
        """Lets other processes in; may be called twice."""
        if self._writer:
            self._writer.close()
            self._writer = None
        if self._lock:
            self._lock.release()


def _describe(data, split, workdir, new):
    """Writes who holds what: for a new run, and where it is lost, half drawn or of another partition."""
    text, picture = workdir / "partition.txt", workdir / "partition.png"
    labels = np.zeros(number_of(data.train), np.int32) if data.labels is None else data.labels
    if labels.max() >= len(labels):  # whatever the labels are numbered by
        labels = np.unique(labels, return_inverse=True)[1]
    table = partition.histogram(labels, split, int(labels.max()) + 1)
    summary = partition.summary(table) + "\n"
    if new or not picture.exists() or not text.exists() or text.read_bytes() != summary.encode():
        unfinished = workdir / "partition.tmp.png"
        with files.naming(picture):
            partition.plot(table, unfinished)
            os.replace(unfinished, picture)
        files.write(text, summary)  # last: whoever finds it finds its picture too
