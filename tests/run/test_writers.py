"""What a run writes for TensorBoard, and what it shows in a pipe."""

import types

import pytest
from tensorboardX.proto import event_pb2

from cepam_jax.errors import ConfigError
from cepam_jax.run import progress, writers
from cepam_jax.run.training import train
from configs import digits

pytestmark = pytest.mark.compiled_fast


def config_of(rounds, **changes):
    config = digits.get_config()
    config.update_from_flattened_dict({"rounds": rounds, "eval_every": 2, **changes})
    return config


def events_of(folder):
    """{(tag, round): value} of all event files in a folder, in the order in which they were begun."""
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):  # what a killed run wrote of later rounds is gone
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_the_event_file_holds_every_number_of_every_line(tmp_path, monkeypatch):
    from tensorboardX import event_file_writer  # noqa: PLC0415  an extra

    # A run continued within the second in which it began must not overwrite what it wrote.
    monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: 1.7e9))
    lines = train(config_of(4, writer="tensorboard"), tmp_path, progress=False)
    lines = train(config_of(6, writer="tensorboard"), tmp_path, progress=False)  # continued
    found = events_of(tmp_path / "tensorboard")
    expected = {(name, line["round"]): v for line in lines for name, v in writers.scalars(line).items()}
    assert found.keys() == expected.keys() and ("epsilon/released_model", 6) in found
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)


def test_a_fork_s_writer_is_closed_after_the_last_line(tmp_path, monkeypatch):
    seen = []
    make = lambda workdir, done: writers.Writer(seen.append, lambda: seen.append("closed"))  # noqa: E731
    monkeypatch.setitem(writers.WRITERS, "of_a_fork", make)
    lines = train(config_of(2, writer="of_a_fork"), tmp_path, progress=False)
    assert seen == [*lines, "closed"]


def test_without_the_package_one_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="pip install tensorboardX"):
        train(config_of(2, writer="tensorboard"), tmp_path, progress=False)


def test_a_pipe_gets_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    now = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Progress(10, 2, "digits", shown=True) as shown:
        for number in range(8):
            shown.update(1, f"loss {number}")
    text = capsys.readouterr().err
    assert "\r" not in text
    assert [line.split(";")[1].strip() for line in text.splitlines()] == ["loss 2", "loss 5", "loss 7"]
    assert text.splitlines()[-1].startswith("digits: round 10 of 10, 25 s a round")
