"""Work directories that release 0.1 left are continued: the state to the bit, the lines as they were.

run_of_0_1.zip is such a directory, of two rounds of a linear model with error feedback and public scales. Its
arithmetic is another machine's; what is compared to the bit is written here, as 0.1 wrote it.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cepam_jax import files, mechanisms
from cepam_jax.data import sources
from cepam_jax.run import build, checkpoints, guarantees, ledger, training
from cepam_jax.run.metrics import read_lines
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TIMES = ("seconds", "seconds_per_round")
RECORDED = Path(__file__).with_name("run_of_0_1.zip")


class StateOf01(NamedTuple):
    """All that a state held in 0.1."""

    params: Any
    server: Any
    round: Any
    invalid_client: Any
    memory: Any
    scale: Any


def small(**changes):
    config = digits.get_config()
    changes = {"model": "linear", "num_clients": 3, "rounds": 2, "eval_every": 2, "local.steps": 2, **changes}
    config.update_from_flattened_dict(changes)
    return config


def timeless(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def newest(workdir, config) -> checkpoints.Checkpoint:
    compiled = build.program(config, sources.load_examples("digits").specification)
    initial = compiled.initialize(jax.random.key(0), mechanisms.knobs_of(config))
    return checkpoints.Checkpoints(workdir / "checkpoints").newest(jax.tree.map(np.asarray, initial))


def as_of_0_1(workdir, config):
    """Writes the newest checkpoint again as 0.1 would have, and removes what 0.1 did not write."""
    found = newest(workdir, config)
    step = workdir / "checkpoints" / str(found.round)
    record = json.loads((step / "record.json").read_text())
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "ledger.jsonl").unlink()
    step.mkdir(parents=True)
    state = StateOf01(*(getattr(found.state, name) for name in StateOf01._fields))
    ocp.Checkpointer(ocp.StandardCheckpointHandler()).save(
        step / "default", args=ocp.args.StandardSave(state)
    )
    (step / "metrics.jsonl").write_text(found.lines)
    record |= {"files": files.digests(step), "state": checkpoints.digest(state)}
    record.pop("record"), record.pop("ledger")
    record["record"] = checkpoints._sha256(checkpoints._canonical(record))
    (step / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mechanism.error_feedback": True},
        {"mechanism.scales": "public"},
        {"server.optimizer": "adam", "server.learning_rate": 0.01, "clients_per_round": 2},
    ],
)
def test_a_state_of_fewer_fields_is_continued_to_the_bit(changes, tmp_path, capsys):
    whole = training.train(small(rounds=4, **changes), tmp_path / "whole", progress=False)
    training.train(small(**changes), tmp_path / "old", progress=False)
    as_of_0_1(tmp_path / "old", small(**changes))
    capsys.readouterr()
    assert timeless(training.train(small(rounds=4, **changes), tmp_path / "old", progress=False)) == timeless(
        whole
    )
    assert not capsys.readouterr().err  # nothing is damaged, nothing was mended
    states = [newest(tmp_path / name, small(**changes)).state for name in ("old", "whole")]
    assert int(states[0].round) == 4
    jax.tree.map(np.testing.assert_array_equal, *states)


def with_copies(workdir):
    """Makes of each checkpoint what releases before this one wrote: a copy of the ledger, without parts."""
    whole = (workdir / "ledger.jsonl").read_text().splitlines(keepends=True)
    old = [line for line in whole if '"rounds"' in line]
    for step in (workdir / "checkpoints").iterdir():
        record = json.loads((step / "record.json").read_text())
        (step / "record.json").unlink()
        (step / "ledger.jsonl").write_text("".join(old[: record["ledger"]["lines"] - 1]))
        record |= {"files": files.digests(step)}
        record.pop("record"), record.pop("ledger")
        record["record"] = checkpoints._sha256(checkpoints._canonical(record))
        (step / "record.json").write_text(json.dumps(record))
    (workdir / "ledger.jsonl").write_text("".join(old))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_with_a_copy_of_the_ledger_is_continued(damaged, tmp_path, capsys):
    changes = {"clients_per_round": 2, "eval_every": 1, "schedule.knob": "gamma", "schedule.end": 2.0}
    whole = training.train(small(rounds=4, **changes), tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "old")
    shutil.rmtree(tmp_path / "old/checkpoints/4")
    with_copies(tmp_path / "old")
    if damaged:  # the copy is what counts, as it was
        (tmp_path / "old/ledger.jsonl").write_text("[]")
    lines = training.train(small(rounds=4, **changes), tmp_path / "old", progress=False)
    assert timeless(lines) == timeless(whole) and not capsys.readouterr().err
    books = [ledger.read((tmp_path / name / "ledger.jsonl").read_text()) for name in ("old", "whole")]
    assert [entry.made_by is None for entry in books[0].entries] == [True, True, True, False]
    assert [e.drawn for e in books[0].entries] == [e.drawn for e in books[1].entries]
    assert (tmp_path / "old/privacy.txt").read_text() == (tmp_path / "whole/privacy.txt").read_text()
    assert not (tmp_path / "old/checkpoints/4/ledger.jsonl").exists()


def test_a_recorded_run_is_continued(tmp_path, capsys):
    with zipfile.ZipFile(RECORDED) as packed:
        packed.extractall(tmp_path / "run")
    before = read_lines(tmp_path / "run/metrics.jsonl")
    changes = {"mechanism.error_feedback": True, "mechanism.scales": "public"}
    state = newest(tmp_path / "run", small(**changes)).state
    assert state.memory.shape == (3, 650) and state.scale.shape == (2,) and state.control is None
    lines = training.train(small(rounds=4, **changes), tmp_path / "run", progress=False)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "has no data.sha256" in said[0]  # that release kept none
    assert lines[:2] == before and [line["round"] for line in lines] == [0, 2, 4]
    whole = training.train(small(rounds=4, **changes), tmp_path / "whole", progress=False)
    for name in ("loss", "accuracy", "train_loss", "update_norm", "uplink_bits"):
        np.testing.assert_allclose(lines[-1][name], whole[-1][name], rtol=5e-3, err_msg=name)
    planned = guarantees.plan(small(rounds=4, **changes), 4)
    assert ledger.read((tmp_path / "run/ledger.jsonl").read_text()).rounds == planned.rounds == 4
    assert lines[-1]["epsilon"] == pytest.approx(whole[-1]["epsilon"])


def test_a_field_that_is_needed_and_missing_is_damage(tmp_path):
    training.train(small(), tmp_path, progress=False)
    as_of_0_1(tmp_path, small())
    with pytest.raises(checkpoints.CheckpointDamagedError, match="its state cannot be read"):
        newest(tmp_path, small(**{"mechanism.error_feedback": True}))
