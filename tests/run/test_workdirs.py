"""What a run finds in its work directory, intact or not, and what it makes of it."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import types

import jax
import ml_collections
import numpy as np
import pytest

from cepam_jax import files, mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import CheckpointDamagedError, CheckpointMismatchError, ConfigError, WorkdirInUseError
from cepam_jax.run import build, checkpoints, data_kept, guarantees, locks, records, training
from cepam_jax.run.metrics import MetricsFile, lines_up_to, parse, read_lines
from configs import digits

pytestmark = pytest.mark.compiled_fast

TIMES = ("seconds", "seconds_per_round")


def small(**changes):
    config = digits.get_config()
    changes = {"model": "linear", "rounds": 6, "eval_every": 2, "local.steps": 2, **changes}
    config.update_from_flattened_dict(changes)
    return config


def train(workdir, **changes):
    return training.train(small(**changes), workdir, progress=False)


def timeless(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 6 rounds, to be copied; its lines."""
    place = tmp_path_factory.mktemp("finished") / "run"
    return place, train(place)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def content(folder):
    """The text or bytes of every file under a folder, but for the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != locks.NAME)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def as_first_release(run):
    """Makes of a work directory what the first release left: no records, no lines beside the states."""
    for step in (run / "checkpoints").iterdir():
        (step / "record.json").unlink()
        (step / "metrics.jsonl").unlink()
        (step / "_CHECKPOINT_METADATA").write_text("{}")


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, position=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "a byte of the state": lambda step: flip(largest(step / "default")),
    "half a state": lambda step: os.truncate(largest(step / "default"), 300),
    "an empty state": lambda step: [os.truncate(path, 0) for path in step.rglob("*.ocdbt")],
    "no state": lambda step: shutil.rmtree(step / "default"),
    "a byte of the record": lambda step: flip(step / "record.json"),
    "no record": lambda step: (step / "record.json").unlink(),
    "a byte of the lines": lambda step: flip(step / "metrics.jsonl"),
    "nothing at all": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_from_a_damaged_checkpoint_the_run_goes_on_from_the_intact_one(damage, run, finished, capsys):
    DAMAGES[damage](run / "checkpoints/6")
    assert timeless(train(run)) == timeless(finished[1])
    said = capsys.readouterr().err
    assert "the checkpoint of round 6 is damaged (" in said
    assert "now damaged_6; the run goes on from round 4" in said and len(said.splitlines()) == 1
    assert (run / "checkpoints/damaged_6").is_dir()  # nothing is deleted
    assert timeless(read_lines(run / "metrics.jsonl")) == timeless(finished[1])
    assert train(run) == read_lines(run / "metrics.jsonl")  # finished, and intact
    assert not capsys.readouterr().err


def test_a_checkpoint_without_its_record_is_none_of_the_first_release(run):
    """An empty file of orbax's and a deleted record would switch all digests off."""
    for number in (6, 4):
        step = run / f"checkpoints/{number}"
        (step / "record.json").unlink()
        (step / "_CHECKPOINT_METADATA").write_text("")
        if number == 6:
            (step / "metrics.jsonl").unlink()  # as the first release, but for the older one's record
            assert checkpoints.Checkpoints(run / "checkpoints").newest(template_of(run)).round == 4
    with pytest.raises(CheckpointDamagedError, match="of round 4: record.json cannot be read"):
        train(run)


@pytest.mark.parametrize("name", ["record.json", "metrics.jsonl", "config.json"])
def test_json_that_is_too_deep_is_damage(name, run, finished, capsys):
    path = run / ("checkpoints/6/record.json" if name == "record.json" else name)
    path.write_text("[" * 100_000)
    assert timeless(train(run)) == timeless(finished[1])
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and name in said


def test_names_that_are_no_rounds_and_files_in_place_of_folders(run, finished):
    for name in ("\u0669", "07"):  # an Arabic nine
        (run / "checkpoints" / name).mkdir()
    for name in ("unfinished_6", "unfinished_8"):
        (run / "checkpoints" / name).write_text("")
    assert train(run) == finished[1]
    (run / "checkpoints/unfinished_8").write_text("")
    assert train(run, rounds=8)[:4] == finished[1]
    assert sorted(os.listdir(run / "checkpoints")) == ["07", "6", "8", "\u0669"]


def test_every_flipped_byte_is_seen(run, finished):
    """A hundred bytes of the newest checkpoint's files, one at a time."""
    template = template_of(finished[0])
    store = checkpoints.Checkpoints(run / "checkpoints")
    assert store.newest(template).round == 6
    files = [
        path for path in sorted((run / "checkpoints/6").rglob("*")) if path.stat().st_size and path.is_file()
    ]
    for number in range(100):
        path = files[number % len(files)]
        before = path.read_bytes()
        flip(path, (number + 0.5) / 100)
        assert store.newest(template).round == 4, path
        path.write_bytes(before)
    assert store.newest(template).round == 6


def test_what_orbax_reads_is_what_was_saved(run, finished, monkeypatch):
    """The files are intact, but another version reads another state out of them."""
    template = template_of(finished[0])
    store = checkpoints.Checkpoints(run / "checkpoints")
    read = checkpoints.Checkpoints._state

    def other(self, number, template):
        state = read(self, number, template)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * np.float32(number != 6), state.params))

    monkeypatch.setattr(checkpoints.Checkpoints, "_state", other)
    assert store.newest(template).damaged == ((6, "its state is not what was saved"),)


def template_of(place):
    config = small()
    compiled = build.program(config, sources.load_examples("digits").specification)
    initial = compiled.initialize(jax.random.key(0), mechanisms.knobs_of(config))
    return jax.tree.map(np.asarray, initial)


def test_with_all_checkpoints_damaged_nothing_is_changed(run):
    for step in (run / "checkpoints").iterdir():
        flip(largest(step / "default"))
    before = content(run)
    with pytest.raises(CheckpointDamagedError) as error:
        train(run)
    for words in (
        "of round 6: its default/",
        "of round 4: its default/",
        str(run),
        "delete",
        "Nothing was changed",
    ):
        assert words in str(error.value)
    assert content(run) == before


def test_directories_of_the_first_release_are_continued(run, finished, capsys):
    as_first_release(run)
    assert train(run) == finished[1]
    longer = train(run, rounds=8)
    assert longer[:4] == finished[1] and longer[-1]["round"] == 8
    assert not capsys.readouterr().err


def test_lines_of_the_first_release_that_reach_the_older_checkpoint_alone(run, finished, capsys):
    as_first_release(run)
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))  # up to round 4
    assert timeless(train(run)) == timeless(finished[1])
    assert "the lines of metrics.jsonl up to there are not complete" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", '{"round": 0}\n', '{"round": 0}\n{"round": 6}\n{"rou', "[]\n3\n"])
def test_lines_of_the_first_release_that_reach_no_checkpoint(run, text):
    as_first_release(run)
    (run / "metrics.jsonl").unlink()
    if text is not None:
        (run / "metrics.jsonl").write_text(text)
    before = content(run)
    with pytest.raises(
        CheckpointDamagedError, match="the lines of metrics.jsonl up to there are not complete"
    ):
        train(run)
    assert content(run) == before


WRONG_LINES = {
    "cut": lambda text: text[:1500],
    "cut to whole lines": lambda text: "".join(text.splitlines(keepends=True)[:2]),
    "deleted": lambda text: None,
    "emptied": lambda text: "",
    "edited": lambda text: text.replace('"accuracy": 0.', '"accuracy": 0.9'),
    "without round": lambda text: text.replace('"round"', '"around"'),
    "no objects": lambda text: "[1, 2]\n3\nnull\n",
    "another run's": lambda text: '{"round": 0, "loss": 1.0, "accuracy": 0.5}\n',
}


@pytest.mark.parametrize("change", WRONG_LINES)
def test_lines_that_disagree_with_the_checkpoint_are_written_again(change, run, finished, capsys):
    metrics = run / "metrics.jsonl"
    before = metrics.read_text()
    wrong = WRONG_LINES[change](before)
    if wrong is None:
        metrics.unlink()
    else:
        metrics.write_text(wrong)
    assert train(run) == finished[1]
    assert metrics.read_text() == before
    assert "metrics.jsonl was " in (said := capsys.readouterr().err) and str(run) in said
    aside = run / "metrics.damaged.jsonl"
    kept = wrong is not None and not before.startswith(
        wrong
    )  # a part of the lines is no evidence of anything
    assert aside.exists() == kept and (not kept or aside.read_text() == wrong)


def test_half_a_line_and_lines_beyond_the_checkpoint_are_dropped_without_a_word(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n{"round": 2}\n{"round": 4}\n{"rou')
    assert [line["round"] for line in read_lines(path)] == [0, 2, 4]
    file = MetricsFile(path)
    assert not file.resume(lines_up_to(path.read_text(), 2, 2))
    file.append({"round": 4, "again": True})
    assert file.text == path.read_text() == '{"round": 0}\n{"round": 2}\n{"round": 4, "again": true}\n'


def test_only_lines_with_rounds_are_lines():
    assert parse('{"round": 0}\n{"round": true}\n') == [{"round": 0}]
    for text in ("", '{"round": 1}\n', '{"round": 0}\n{"round": 0}\n', '{"round": 0}\n{}\n{"round": 2}\n'):
        assert lines_up_to(text, 2, 2) is None
    skipped = '{"round": 0}\n{"round": 2}\n{"round": 6}\n'
    assert lines_up_to(skipped, 6, 2) is None and lines_up_to(skipped, 6, 4) == skipped


def test_lines_without_checkpoints_are_said_and_kept(run, finished, capsys):
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    assert timeless(train(run)) == timeless(finished[1])
    said = capsys.readouterr().err
    assert "its checkpoints are lost; the run begins again" in said and "metrics.damaged.jsonl" in said
    assert (run / "metrics.damaged.jsonl").read_text() == before
    again = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    train(run)
    assert (run / "metrics.damaged.jsonl").read_text() == before  # the second is numbered
    assert (run / "metrics.damaged_2.jsonl").read_text() == again


def test_no_line_of_another_run_stays(run, tmp_path, capsys):
    """Neither config.json nor checkpoints say whose lines and whose partition the directory holds."""
    other = {"seeds.model": 7, "num_clients": 5}
    alone = train(tmp_path / "alone", **other)
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").unlink()
    lines = run / "metrics.jsonl"
    lines.write_text(lines.read_text().splitlines(keepends=True)[0])
    before = lines.read_bytes()
    assert timeless(train(run, **other)) == timeless(alone)
    assert timeless(read_lines(lines)) == timeless(alone)
    for name in ("partition.txt", "partition.png", "privacy.txt", "config.json"):
        assert (run / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert (run / "metrics.damaged.jsonl").read_bytes() == before
    assert "no config.json says whose lines" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(run, monkeypatch, capsys):
    """A folder that was prepared anew under its old name, or a data set of one's own that has changed."""
    data = sources.load_examples("digits", "", sources.options_of(small()))
    swapped = {name: np.roll(array, 1, axis=0) for name, array in data.train.items()}
    other = data._replace(train=swapped)
    kept, path = data_kept.digest(data), run / "data.sha256"
    assert data_kept.digest(other) != kept == path.read_text().strip()
    moments = {name: array * np.float32(1 + 1e-6) for name, array in data.constants.items()}
    assert data_kept.digest(data._replace(constants=moments)) == kept  # as another machine may have them
    moments["edges"] = np.arange(4)
    before = content(run)
    for found, what in ((other, "examples"), (data._replace(constants=moments), "constants")):
        with monkeypatch.context() as patch:
            patch.setattr(training.sources, "load_examples", lambda *given, found=found: found)
            with pytest.raises(CheckpointMismatchError, match=f"a run on other {what}.* than these"):
                train(run, rounds=8)
        assert content(run) == before
    for damaged in (b"\xff\xfe\x00", b"\n", b"", b"0" * 63, path.read_bytes()[:-9], path.read_bytes() * 2):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointDamagedError, match="data.sha256 is no digest of data: whether"):
            train(run, rounds=8)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointDamagedError, match="data.sha256 is no digest of data: whether"):
        train(run, rounds=8)
    path.rmdir()
    path.write_text(kept.split()[0] + "\n")  # as in a run of an earlier version
    assert len(train(run, rounds=8)) == 5 and path.read_text().strip() == kept
    path.unlink()  # as in a run of a version before that
    capsys.readouterr()
    assert len(train(run, rounds=10)) == 6 and path.exists()
    assert capsys.readouterr().err.count("has no data.sha256, the digest of its examples") == 1


def test_a_run_stopped_before_its_first_block_begins_again_without_a_word(run, finished, capsys):
    shutil.rmtree(run / "checkpoints")
    lines = run / "metrics.jsonl"
    lines.write_text(lines.read_text().splitlines(keepends=True)[0] + '{"rou')
    assert timeless(train(run)) == timeless(finished[1])
    assert not capsys.readouterr().err and not (run / "metrics.damaged.jsonl").exists()


def test_an_altered_partition_is_written_again(run, finished):
    (run / "partition.txt").write_text("3 clients\n")
    train(run)
    assert (run / "partition.txt").read_bytes() == (finished[0] / "partition.txt").read_bytes()


@pytest.mark.parametrize("what", ["a link to nothing", "a loop", "a file"])
def test_checkpoints_on_a_disk_that_is_not_there(what, run):
    place = run / "checkpoints"
    os.replace(place, run / "elsewhere")
    if what == "a file":
        place.write_text("")
    else:
        place.symlink_to(run / "not mounted" if what == "a link to nothing" else place)
    before = content(run)
    with pytest.raises(CheckpointDamagedError, match="checkpoints is not a directory, or a link to one"):
        train(run)
    assert content(run) == before
    place.unlink()
    place.symlink_to(run / "elsewhere")  # mounted again
    assert train(run) == read_lines(run / "metrics.jsonl")


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", "null", "3", '"a"', b"\xff\xfe"])
def test_config_json_is_written_again_from_an_equal_configuration(text, run, finished, capsys):
    path = run / "config.json"
    before = path.read_bytes()
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointMismatchError, match="config.mechanism.gamma = 100.0, this one has 50.0"):
        train(run, **{"mechanism.gamma": 50.0})
    assert train(run) == finished[1] and path.read_bytes() == before
    assert "config.json is" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_without_any_configuration_nothing_is_continued(text, run):
    as_first_release(run)
    path = run / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    before = content(run)
    with pytest.raises(CheckpointDamagedError, match="no checkpoint says which run this directory holds"):
        train(run)
    assert content(run) == before


def test_a_copied_config_json_does_not_open_another_run(run, tmp_path):
    train(tmp_path / "other", **{"mechanism.gamma": 50.0, "rounds": 2})
    shutil.copy(tmp_path / "other/config.json", run / "config.json")
    with pytest.raises(CheckpointMismatchError, match="config.mechanism.gamma = 100.0, this one has 50.0"):
        train(run, **{"mechanism.gamma": 50.0})


def test_fewer_rounds_than_were_done_are_refused_before_anything_is_written(run):
    before = content(run)
    with pytest.raises(CheckpointMismatchError, match="holds a run of 6 rounds, this one ends after 2"):
        train(run, rounds=2)
    assert content(run) == before


NEWEST_LOST = {
    "damaged": lambda run: flip(largest(run / "checkpoints/6/default")),
    "deleted": lambda run: shutil.rmtree(run / "checkpoints/6"),
    "deleted with its line": lambda run: [
        flip(largest(run / "checkpoints/6/default")),
        (run / "metrics.jsonl").unlink(),
    ],
    "all deleted": lambda run: shutil.rmtree(run / "checkpoints"),
    "set aside, and its line": lambda run: [
        os.replace(run / "checkpoints/6", run / "checkpoints/damaged_6"),
        (run / "metrics.jsonl").unlink(),
    ],
}


@pytest.mark.parametrize("lose", NEWEST_LOST)
def test_fewer_rounds_are_refused_without_the_newest_checkpoint_too(lose, run):
    NEWEST_LOST[lose](run)
    before = content(run)
    with pytest.raises(CheckpointMismatchError, match="holds a run of 6 rounds, this one ends after 5"):
        train(run, rounds=5)
    assert content(run) == before


def test_a_smaller_budget_than_was_spent_is_refused_too(run, monkeypatch):
    """As if a later release counted a round's privacy for more."""
    before = content(run)
    monkeypatch.setattr(guarantees, "rounds_within_budget", lambda config, counts: 4)
    with pytest.raises(CheckpointMismatchError, match=r"ends after 4 of 6 \(its privacy budget\)"):
        train(run)
    assert content(run) == before


def test_a_run_of_no_rounds_is_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(guarantees, "rounds_within_budget", lambda config, counts: 0)
    lines = train(tmp_path)
    assert [line["round"] for line in lines] == [0]
    assert train(tmp_path) == lines == read_lines(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", ["a[b]", "a*?", "back\\slash", "{x}", "sp ace", "ü"])
def test_any_name_of_a_work_directory_can_be_continued(name, tmp_path):
    first = train(tmp_path / name, rounds=4)
    assert train(tmp_path / name, rounds=6)[:3] == first


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train("~/run", rounds=2)
    assert (tmp_path / "run/metrics.jsonl").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("workdir", ["", None, 5, b"run", "a\0b", "~nobody-of-this-name/run"])
def test_a_work_directory_that_is_no_path(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="^workdir is "):
        train(workdir)
    with pytest.raises(ConfigError, match="^workdir is "):
        training.train_many([small(), small()], [tmp_path / "a", workdir], progress=False)
    assert not os.listdir(tmp_path)


def holder(workdir):
    """Another process that holds a work directory until it is killed."""
    code = (
        "import sys, time; from cepam_jax.run.locks import Lock; "
        "lock = Lock(sys.argv[1]); print('held', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(workdir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_in_one_directory(run, finished, tmp_path):
    before = content(run)
    process = holder(run)
    try:
        message = rf"{run} is in use by process {process.pid} on \S+, since 20"
        with pytest.raises(WorkdirInUseError, match=message.replace("[", "\\[")):
            train(run, rounds=8)
        with pytest.raises(WorkdirInUseError, match=message):
            training.train_many([small(), small()], [tmp_path / "free", run], progress=False)
        assert content(run) == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert train(run) == finished[1]  # a lock does not outlive its process
    assert training.train_many([small(), small(rounds=8)], [tmp_path / "free", run], progress=False)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_that_was_deleted_stops_the_run(replaced, tmp_path, monkeypatch, finished):
    def deleted(self, *arguments):
        add(self, *arguments)
        if self.done == 2:
            (tmp_path / locks.NAME).unlink()
            others.extend(locks.Lock(tmp_path) for _ in range(replaced))

    add, others = records.RunDirectory.add, []
    monkeypatch.setattr(records.RunDirectory, "add", deleted)
    with pytest.raises(WorkdirInUseError, match="was replaced while" if replaced else "was deleted while"):
        train(tmp_path)
    monkeypatch.undo()
    assert [line["round"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 2]
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    for other in others:
        other.release()
    assert timeless(train(tmp_path)) == timeless(finished[1])


def test_a_lock_that_is_a_link_overwrites_nothing(run):
    (run / locks.NAME).unlink()
    (run / locks.NAME).symlink_to(run / "config.json")
    before = content(run)
    with pytest.raises(OSError, match=r"A lock cannot be a symbolic link; delete it: .*lock\.json"):
        train(run)
    assert content(run) == before


def test_a_failure_lets_go_of_the_directory(run):
    with pytest.raises(CheckpointMismatchError):
        train(run, rounds=2)
    train(run)


def test_without_locks_the_run_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    train(tmp_path, rounds=2)
    assert "has no locks (Operation not supported)" in capsys.readouterr().err


def test_more_locks_than_files_may_be_open(tmp_path):
    code = (
        "import resource, sys, pathlib; from cepam_jax.run.locks import Lock\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "places = [pathlib.Path(sys.argv[1], str(n)) for n in range(100)]\n"
        "[place.mkdir() for place in places]\n"
        "print(len([Lock(place) for place in places]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "100\n", done.stderr


def test_ctrl_c_in_python_says_where_the_run_is_and_loses_nothing(tmp_path, monkeypatch, finished):
    def interrupted(self, *arguments):
        add(self, *arguments)
        raise KeyboardInterrupt

    add = records.RunDirectory.add
    monkeypatch.setattr(records.RunDirectory, "add", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(tmp_path / "run")
    assert stop.value.__notes__ == [
        f"{tmp_path / 'run'} holds the run up to round 2 of 6; repeat to continue there"
    ]
    with pytest.raises(KeyboardInterrupt) as stop:
        training.train_many([small(), small(rounds=2)], [tmp_path / "run", tmp_path / "b"], progress=False)
    assert "0 of 2 runs were finished" in stop.value.__notes__[0]
    monkeypatch.undo()
    assert timeless(train(tmp_path / "run")) == timeless(finished[1])


def test_an_interrupt_that_was_swallowed_ends_the_run_after_its_block(tmp_path, monkeypatch, finished):
    def interrupted(self, *arguments):
        if self.done == 2:
            training.interrupt(KeyboardInterrupt())  # waits until the checkpoint is written
        add(self, *arguments)

    add = records.RunDirectory.add
    monkeypatch.setattr(records.RunDirectory, "add", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(tmp_path)
    assert stop.value.__notes__ == [f"{tmp_path} holds the run up to round 4 of 6; repeat to continue there"]
    assert (tmp_path / "checkpoints/4").is_dir()
    with pytest.raises(KeyboardInterrupt, match="now"):
        training.interrupt(KeyboardInterrupt("now"))
    training.forget_interrupt()
    monkeypatch.undo()
    assert timeless(train(tmp_path)) == timeless(finished[1])


def test_a_full_disk_leaves_the_checkpoint_before(run, finished, monkeypatch, capsys):
    """ENOSPC, from orbax in the words of tensorstore, and from our own files."""

    class Full:
        def save(self, *_, **__):
            for name in ("asyncio", "absl"):  # as orbax's threads and loops do
                logging.getLogger(name).error("Task exception was never retrieved")
            spec = """[os_error_code='28'] [tensorstore_spec='{"a":["b"],"c": "d"}']"""
            raise ValueError(f"RESOURCE_EXHAUSTED: Error writing: No space left on device {spec}\nmore")

        def restore(self, *arguments, **named):
            return real.restore(*arguments, **named)

        def metadata(self, *arguments):
            return real.metadata(*arguments)

    real = checkpoints._orbax()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_orbax", Full)
        with pytest.raises(
            OSError,
            match=f"the checkpoint of round 8 cannot be written to {run}/.*_8: No space left on device$",
        ):
            train(run, rounds=10)
    assert not capsys.readouterr().err and logging.getLogger("asyncio").isEnabledFor(logging.ERROR)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=f"No space left on device: '{run}/metrics.jsonl'"):
            train(run, rounds=10)
        for name in ("config.json", "privacy.txt", "partition.txt", "ledger.jsonl"):
            text = (run / name).read_text()
            (run / name).write_text("3 clients")
            with pytest.raises(OSError, match=f"No space left on device: '{run}/{name}'"):
                files.write(run / name, text)
            assert (run / name).read_text() == "3 clients"
            (run / name).write_text(text)
        assert not list(run.glob("*.tmp"))
    longer = train(run, rounds=10)
    assert longer[:4] == finished[1] and [line["round"] for line in longer] == [0, 2, 4, 6, 8, 10]
    assert sorted(os.listdir(run / "checkpoints")) == ["10", "8"]  # nothing half written is left


def test_what_threads_of_a_failed_save_report_later_is_dropped(run, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    def report(error):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))

    with pytest.raises(OSError, match="full"), checkpoints._quiet():
        raise OSError("full")
    report(RuntimeError("Event loop is closed"))
    assert not seen
    report(ValueError("a fault"))
    assert len(seen) == 1
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with checkpoints._quiet():
        pass
    report(RuntimeError("Event loop is closed"))
    assert len(seen) == 2  # nothing failed: nothing is hidden


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(tmp_path / "file")


def test_blocks_are_no_longer_than_the_run(tmp_path, finished):
    """Rounds up to a far evaluation cost nothing; the limits of 32-bit counters are said."""
    lines = train(tmp_path / "a", eval_every=2**31 - 1)
    assert [line["round"] for line in lines] == [0, 6]
    for name in ("accuracy", "loss"):
        assert lines[-1][name] == finished[1][-1][name]
    for field in ("rounds", "eval_every", "local.steps", "local.batch_size", "num_clients"):
        with pytest.raises(
            ConfigError, match=f"config.{field} is 2147483648; it must be .* at most 2147483647"
        ):
            train(tmp_path / "b", **{field: 2**31})
    with pytest.raises(ConfigError, match=r"local.steps is 100000000; it must be below 2\*\*31 / "):
        train(tmp_path / "b", **{"local.steps": 10**8})


def test_a_killed_picture_is_drawn_again(tmp_path, monkeypatch):
    def killed(table, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(records.partition, "plot", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, rounds=2)
    monkeypatch.undo()
    train(tmp_path, rounds=2)
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_64_bit_jax_gives_the_same_lines(tmp_path, finished, root):
    code = (
        "import sys, json; sys.path.insert(0, 'tests')\n"
        "from run.test_workdirs import train\n"
        "import jax; assert jax.numpy.zeros(1).dtype == 'float64'\n"
        "print(json.dumps(train(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert timeless(json.loads(done.stdout)) == timeless(finished[1])


def test_frozen_configurations_and_numbers_of_numpy_train(tmp_path, finished):
    frozen = ml_collections.FrozenConfigDict(small())
    assert timeless(training.train(frozen, tmp_path / "a", progress=False)) == timeless(finished[1])
    loose = ml_collections.ConfigDict(small().to_dict(), type_safe=False)
    loose.rounds, loose.mechanism.gamma = np.int64(6), np.float32(100)
    loose.mechanism.per_client.gamma = np.full(10, 100.0, np.float32)
    (lines,) = training.train_many([loose], [tmp_path / "b"], progress=False)
    assert timeless(lines) == timeless(finished[1])
    assert json.loads((tmp_path / "b/config.json").read_text())["rounds"] == 6
