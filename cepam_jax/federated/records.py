"""What one run leaves on the disk, line by line, and what it finds there when it is continued."""

import math
from pathlib import Path

import jax
import numpy as np

from cepam_jax import checkpoints
from cepam_jax.data import partition
from cepam_jax.federated import guarantees
from cepam_jax.federated.devices import broadcast, is_main
from cepam_jax.federated.program import open_fields
from cepam_jax.metrics import MetricsFile


class Record:
    """One run's work directory, opened; only process 0 reads and writes it.

    Attributes:
      config: as it is carried out (calibrated to a privacy target).
      split: who holds which examples.
      state: State on the host, the last that was saved or the initial one.
      lines: of metrics.jsonl so far; in other processes than 0, those of this call.
      last: the round after which the run ends.
      failure: the error that ended the run early, or None.
    """

    def __init__(self, asked: dict, config, split, data, initial, workdir: Path):
        """Claims the directory and restores what is there.

        Args:
          asked: the configuration as given, for config.json.
          config: the same, calibrated.
          split: its partition.
          data: its data set.
          initial: State of round 0, host arrays.
          workdir: of this run alone.

        Raises:
          CheckpointMismatchError: workdir belongs to another configuration.
        """
        self.config, self.split, self.failure = config, split, None
        self.last = guarantees.rounds_within_budget(config, split.counts)
        self.state, self.lines = initial, []
        self._store = self._file = None
        if is_main():
            workdir.mkdir(parents=True, exist_ok=True)
            checkpoints.claim(workdir, asked, open_fields(config))
            _describe(data, split, workdir)
            text = guarantees.report_text(config, split.counts, self.last)
            (workdir / "privacy.txt").write_text(text + "\n")
            self._store = checkpoints.Checkpoints(workdir / "checkpoints")
            restored = self._store.restore(initial)
            self.state = initial if restored is None else jax.tree.map(np.asarray, restored)
            self._file = MetricsFile(workdir / "metrics.jsonl")
            self.lines = self._file.resume(self.done)
        self.state = broadcast(self.state)

    @property
    def done(self) -> int:
        """Rounds done."""
        return int(self.state.round)

    @property
    def open(self) -> bool:
        """Whether rounds remain."""
        return self.failure is None and self.done < self.last

    def start(self, evaluation) -> None:
        """Notes the untrained model's (loss, accuracy)."""
        if self.done == 0 and not self.lines:
            self._add({"round": 0, **_evaluation(evaluation)})

    def add(self, state, metrics, evaluation, coordinates: int, seconds: float) -> None:
        """Notes a block of rounds and saves the state after it.

        Args:
          state: State on the host.
          metrics, evaluation: of `evaluation.make_block`, on the host.
          coordinates: d of one update.
          seconds: wall time of the block, its evaluation included.
        """
        ran = int(state.round) - self.done
        self.state = state
        per_round = self.config.clients_per_round or self.config.num_clients
        line = summarize(metrics, evaluation, self.done, ran, per_round * coordinates, seconds)
        line["epsilon"] = guarantees.epsilons(self.config, self.split.counts, self.done)
        self._add(line)
        if self._store:
            self._store.save(self.done, state)

    def _add(self, line):
        self.lines.append(line)
        if self._file:
            self._file.append(line)

    def close(self) -> None:
        if self._store:
            self._store.close()


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
    return value if math.isfinite(value) else None


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
