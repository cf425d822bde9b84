"""The ledger on disk and from process to process: nothing of what was released is lost or taken for less."""

import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_federation import DATA, RISING, after, bounded, federation
from run.test_guarantees import config_of
from run.test_workdirs import flip, largest, timeless

import cepam_jax as cepam
from cepam_jax import federated, mechanisms
from cepam_jax.errors import CheckpointMismatchError, ConfigError, NonFiniteUpdateError
from cepam_jax.federated import AGGREGATORS, CONTROLS
from cepam_jax.mechanisms.noise import scaled_noise
from cepam_jax.run import guarantees, ledger, ledger_file
from cepam_jax.run.training import train

pytestmark = pytest.mark.compiled_fast

# What a federation may have done in an earlier process, and what differs now.
OTHERS = {
    "mechanism was 'clip_l2+gaussian-noise": {
        "mechanism": mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq())
    },
    "noise at sigma 1 was (('gaussian', 1.0), ('gaussian', 1.0)) and is (('gaussian', 10.0)": {
        "mechanism": mechanisms.chain(
            mechanisms.clip("l2"),
            scaled_noise("gaussian", lambda knobs: 10 * knobs.sigma, ("sigma",), "gaussian-noise"),
            mechanisms.identity(),
        )
    },
    "aggregator was 'mean' and is 'median'": {"aggregator": "median"},
    "weights was 1.0 and is": {"aggregator": "examples"},
    "participants of a round was 4 and is 2": {"participants": 2},
    "unit of privacy was 'client' and is None": {
        "local": federated.LocalUpdate(federation().plan.local_update.run)
    },
    "bound of local training was None and is 0.01": {"local": bounded("l2")},
    "error feedback was False and is True": {"error_feedback": True},
    "knobs by what was released was False": {
        "control": federated.Control(lambda s, k, n: k, observe=lambda s, released: s)
    },
    "number of clients was 4 and is 5": {"clients": cepam.clients(DATA, number=5)},
}


@pytest.fixture(scope="module")
def two_rounds():
    """The ledger of two rounds, as text."""
    fed = federation()
    after(fed, 2)
    return fed.ledger.text()


@pytest.mark.parametrize("what", OTHERS)
def test_a_ledger_of_other_parts_is_refused(what, two_rounds):
    """Two rounds of other parts were counted as if these had made them."""
    with pytest.raises(ConfigError, match="the ledger was made by other parts than these: ") as error:
        federation(**OTHERS[what], ledger=ledger.read(two_rounds))
    assert what in str(error.value)


def test_a_bound_of_local_training_is_kept_and_compared():
    fed = federation(mechanisms.additive("gaussian"), clip=None, local=bounded("l2", 0.01))
    after(fed, 1)
    (entry,) = ledger.read(fed.ledger.text()).entries
    assert (entry.made_by.unit, entry.made_by.norm, entry.made_by.bound) == ("client", "l2", 0.01)
    smaller = {"mechanism": mechanisms.additive("gaussian"), "clip": None, "local": bounded("l2", 0.001)}
    with pytest.raises(ConfigError, match="bound of local training was 0.01 and is 0.001"):
        federation(**smaller, ledger=fed.ledger)
    # Nor is it counted where it is handed over behind the federation's back.
    with pytest.raises(ConfigError, match="bound of local training was 0.01 and is 0.001"):
        guarantees.federation_from(federation(**smaller).facts(), fed.ledger)


def test_the_same_parts_go_on(two_rounds):
    fed = federation(ledger=ledger.read(two_rounds))
    assert fed.ledger.text() == two_rounds and fed.ledger.applied == 2
    straight = federation()
    after(straight, 2)
    assert fed.privacy() == straight.privacy()
    changed = federation(sigma=0.7, ledger=ledger.read(two_rounds))  # knobs are each round's own
    assert changed.epsilons()["released_model"].max() == straight.epsilons()["released_model"].max()


def test_a_ledger_that_does_not_say_which_parts_made_it_has_no_guarantee(two_rounds):
    """As an earlier release wrote it: it can be read, and is no reason for a number."""
    old = "".join(line for line in two_rounds.splitlines(keepends=True) if '"rounds"' in line)
    read = ledger.read(old)
    assert read.rounds == 2 and read.entries[0].made_by is None
    fed = federation(ledger=read)
    assert "released_model: no guarantee (2 rounds of the ledger do not say which parts made" in fed.privacy()
    assert np.isinf(fed.epsilons()["decoded_updates"]).all()
    with pytest.raises(ConfigError, match="knobs of 3 clients, not of 4"):
        federation(ledger=ledger.Ledger((ledger.Entry(1, mechanisms.Knobs(sigma=np.ones(3))),)))


@pytest.mark.parametrize("change", ["none", "one fewer", "twice", "nobody", "a round fewer"])
def test_draws_that_are_none_are_refused(change):
    fed = federation(participants=2)
    after(fed, 2)
    whole = fed.ledger
    federation(participants=2, ledger=whole)
    first, second = whole.entries[0].drawn
    drawn = {
        "none": (),
        "one fewer": (first, second[:1]),
        "twice": (first, (second[0],) * 2),
        "nobody": (first, (4, 5)),
        "a round fewer": (first,),
    }[change]
    altered = whole._replace(entries=(whole.entries[0]._replace(drawn=drawn),))
    with pytest.raises(ConfigError, match="entry 1 does not say who was drawn as 2 of 4 clients are"):
        federation(participants=2, ledger=altered)


def test_what_refused_a_ledger_refuses_it_in_the_next_process():
    """Noise that was used twice was forgotten by handing the ledger on."""
    first = federation()
    start = first.initialize()
    after(first, 1, start)
    after(first, 1, start._replace(params=jax.tree.map(lambda a: a + 1, start.params)))
    for once in (first.ledger, ledger.read(first.ledger.text())):
        second = federation(ledger=once)
        text = second.privacy()
        assert "no guarantee (round 1 was run from different states with the same noise" in text
        assert "1 of the states that rounds began from were not made by this federation" in text
        assert np.isinf(second.epsilons(planned_rounds=1)["released_model"]).all()
        assert second.ledger.text() == once.text()
        assert federation(ledger=second.ledger).privacy() == text


def test_repeated_steps_make_no_room_in_another_process_either():
    """A louder first round, repeated three times, was taken for rounds 2 to 4 of another federation."""
    first, other = federation(control=RISING), federation(control=RISING)
    start = first.initialize()
    for _ in range(4):
        first.step(start)
    far = after(other, 4)
    for book in (first.ledger, ledger.read(first.ledger.text())):
        assert book.rounds == 4 and book.reached == 1
        second = federation(control=RISING, ledger=book)
        second.step(far)
        assert "a state came with 3 rounds that are not in this" in second.privacy().splitlines()[0]


@pytest.mark.parametrize("cut", ["half a line", "no object", "unknown", "parts"])
def test_a_text_that_is_no_ledger_is_named(cut, two_rounds):
    wrong = {
        "half a line": two_rounds[:-8],
        "no object": "3\n" + two_rounds,
        "unknown": two_rounds + '{"unknown": 1}\n',
        "parts": two_rounds.replace('"clients"', '"people"', 1),
    }[cut]
    with pytest.raises(ConfigError, match=r"line \d of the ledger was altered or cut off"):
        ledger.read(wrong)


# In a work directory.

FIELDS = {"clients_per_round": 3, "eval_every": 1, "rounds": 5, "schedule.knob": "gamma", "schedule.end": 2.0}


def run(workdir, **fields):
    return train(config_of(**(FIELDS | fields)), workdir, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of five rounds; its lines."""
    place = tmp_path_factory.mktemp("ledger") / "run"
    return place, run(place)


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def back_to(place, number):
    """A work directory as if it had been killed while it wrote the checkpoint behind this one."""
    for step in (place / "checkpoints").iterdir():
        if int(step.name) > number:
            shutil.rmtree(step)


def test_the_file_is_added_to_and_never_rewritten(tmp_path, monkeypatch):
    seen = []
    append = ledger_file.LedgerFile._append

    def watched(self, text):
        seen.append((tmp_path / "ledger.jsonl").read_bytes())
        append(self, text)

    monkeypatch.setattr(ledger_file.LedgerFile, "_append", watched)
    run(tmp_path)
    seen.append((tmp_path / "ledger.jsonl").read_bytes())
    assert len(seen) == 6 and all(b.startswith(a) and len(b) > len(a) for a, b in itertools.pairwise(seen))
    for step in (tmp_path / "checkpoints").iterdir():
        assert not (step / "ledger.jsonl").exists()
        record = json.loads((step / "record.json").read_text())
        assert record["ledger"]["lines"] == 1 + int(step.name)  # the parts, and a round each
    book = ledger.read(seen[-1].decode())
    assert book.applied == 5 and {len(draw) for entry in book.entries for draw in entry.drawn} == {3}


@pytest.mark.parametrize("torn", [b'{"rou', b'{"rounds": 1, "kn', b"\xff", b"", b"[]\n3\n"])
def test_after_a_kill_the_ledger_goes_on_to_the_bit(torn, place, finished, capsys):
    whole = (place / "ledger.jsonl").read_bytes()
    back_to(place, 4)
    lines = whole.splitlines(keepends=True)
    (place / "ledger.jsonl").write_bytes(b"".join(lines[:5]) + torn)  # the parts, four rounds, half a line
    assert timeless(run(place)) == timeless(finished[1])
    assert (place / "ledger.jsonl").read_bytes() == whole and not capsys.readouterr().err
    back_to(place, 4)
    assert timeless(run(place)) == timeless(finished[1])  # whole lines behind the checkpoint
    assert (place / "ledger.jsonl").read_bytes() == whole and not capsys.readouterr().err


def test_from_the_older_checkpoint_too(place, finished, capsys):
    whole = (place / "ledger.jsonl").read_bytes()
    flip(largest(place / "checkpoints/5/default"))
    assert timeless(run(place)) == timeless(finished[1])
    assert (place / "ledger.jsonl").read_bytes() == whole
    assert "ledger" not in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["lost", "cut", "altered", "no text"])
def test_a_ledger_that_is_not_what_the_checkpoint_says_is_planned_again(wrong, place, finished, capsys):
    path = place / "ledger.jsonl"
    whole = path.read_bytes()
    if wrong == "lost":
        path.unlink()
    else:
        changed = {"cut": whole[:-30], "altered": whole.replace(b"sigma", b"sigmb", 1), "no text": b"\xff\n"}
        path.write_bytes(changed[wrong])
    assert timeless(run(place, rounds=5)) == timeless(finished[1])
    said = capsys.readouterr().err
    assert (
        f"ledger.jsonl was {'lost' if wrong == 'lost' else 'altered'}; it is written again as planned" in said
    )
    assert (place / "ledger.damaged.jsonl").exists() == (wrong != "lost")
    planned, ran = ledger.read(path.read_text()), ledger.read(whole.decode())
    for a, b in zip(planned.entries, ran.entries, strict=True):
        np.testing.assert_allclose(a.knobs.sigma, b.knobs.sigma, rtol=1e-6)


@pytest.mark.parametrize("control", ["schedule", "own"])
def test_a_lost_ledger_has_no_guarantee_where_the_plan_may_be_another_now(control, monkeypatch, tmp_path):
    """A plugin's rule, changed since: 4 rounds of gamma 100 would be taken for rounds of gamma 1."""
    fields = {"control": control, "schedule.knob": "none"}
    monkeypatch.setitem(CONTROLS, "own", lambda config: federated.constant())
    run(tmp_path, rounds=4, **fields)
    (tmp_path / "ledger.jsonl").unlink()
    louder = federated.scheduled({"gamma": lambda number: 0.01})
    monkeypatch.setitem(CONTROLS, "own", lambda config: louder)
    run(tmp_path, rounds=4, **fields)
    first = (tmp_path / "privacy.txt").read_text().splitlines()[0]
    if control == "own":
        reason = "ledger.jsonl was lost or altered, and what config.control = 'own' applied is not known"
        assert first == f"released_model: no guarantee ({reason})"
        assert ledger.read((tmp_path / "ledger.jsonl").read_text()).refused == (reason,)
    else:
        assert "no guarantee" not in first


def test_a_work_directory_of_other_parts_is_not_continued(monkeypatch, tmp_path):
    """A plugin's rule of the same name that states something else than before."""
    monkeypatch.setitem(AGGREGATORS, "own", AGGREGATORS["mean"]._replace(exposes=("own",)))
    run(tmp_path, aggregator="own", rounds=2, **{"schedule.knob": "none"})
    monkeypatch.setitem(AGGREGATORS, "own", AGGREGATORS["median"]._replace(exposes=("own",)))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(
        CheckpointMismatchError, match="aggregation was 'weighted sum' and is 'post-processing'"
    ):
        run(tmp_path, aggregator="own", rounds=3, **{"schedule.knob": "none"})
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


# Rounds that fail.


def failing(monkeypatch, at):
    """A server whose step is infinite in one round, counted from 0; a plugin's."""
    import optax  # noqa: PLC0415

    from cepam_jax.federated import server  # noqa: PLC0415

    def optimizer(rate, momentum):
        def update(updates, state, params=None):
            factor = jnp.where(state == at, jnp.inf, -1.0)
            return jax.tree.map(lambda u: factor * u, updates), state + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)

    monkeypatch.setitem(server.OPTIMIZERS, "failing", optimizer)
    from cepam_jax.run import build  # noqa: PLC0415

    build._program.cache_clear()  # the optimizer is registered anew


FAILS = {"server.optimizer": "failing", "eval_every": 2, "schedule.knob": "none", "rounds": 6}


@pytest.mark.parametrize("at", [1, 3])
def test_a_round_that_fails_is_counted_for_what_left_the_clients(at, monkeypatch, tmp_path, capsys):
    failing(monkeypatch, at)
    for _ in range(2):  # run again it fails again, and is the same release
        with pytest.raises(NonFiniteUpdateError, match=f"infinite in round {at + 1}"):
            run(tmp_path, **FAILS)
        book = ledger.read((tmp_path / "ledger.jsonl").read_text())
        assert (book.applied, book.failures, book.rounds) == (at, 1, at + 1)
        text = (tmp_path / "privacy.txt").read_text()
        assert "not covered: 1 rounds that failed and were not applied: their updates are counted" in text
        expected = guarantees.report_text(config_of(**(FIELDS | FAILS)), np.full(10, 140), at + 1)
        assert text.splitlines()[1:3] == expected.splitlines()[1:3]  # colluding_clients, decoded_updates
    assert not book.refused


def test_a_run_does_not_end_before_a_round_that_failed(monkeypatch, tmp_path):
    """Its updates were sent, and those of rounds before it in its block: a shorter run would forget them."""
    failing(monkeypatch, 3)
    with pytest.raises(NonFiniteUpdateError):
        run(tmp_path, **FAILS)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for rounds in (2, 3):
        with pytest.raises(CheckpointMismatchError, match="of which round 4 failed after its updates"):
            run(tmp_path, **FAILS | {"rounds": rounds})
        unchanged = {path: path.read_bytes() for path in before if path.name != "lock.json"}
        assert unchanged == {path: text for path, text in before.items() if path.name != "lock.json"}
    with pytest.raises(NonFiniteUpdateError):
        run(tmp_path, **FAILS | {"rounds": 4})


def test_a_round_that_fails_no_longer_has_used_its_noise_twice(monkeypatch, tmp_path):
    failing(monkeypatch, 3)
    with pytest.raises(NonFiniteUpdateError):
        run(tmp_path, **FAILS)
    (tmp_path / "ledger.jsonl").open("a").write('{"rou')  # and is killed when it is tried again
    failing(monkeypatch, -1)
    lines = run(tmp_path, **FAILS)
    assert lines[1]["epsilon"]["decoded_updates"] is not None
    assert lines[-1]["epsilon"]["decoded_updates"] is None and lines[-1]["round"] == 6
    reason = "no guarantee (round 4 failed before and was run again with another result"
    assert reason in (tmp_path / "privacy.txt").read_text()
    (tmp_path / "ledger.jsonl").unlink()
    run(tmp_path, **FAILS)  # finished, and not described as if it had gone as planned
    assert reason in (tmp_path / "privacy.txt").read_text()
    (tmp_path / "ledger.jsonl").unlink()
    longer = run(tmp_path, **FAILS | {"rounds": 8})  # which stays so, also where the ledger is lost
    assert longer[-1]["epsilon"]["released_model"] is None
    assert reason in (tmp_path / "privacy.txt").read_text()


def test_a_failure_is_remembered_over_a_kill(monkeypatch, tmp_path):
    failing(monkeypatch, 3)
    with pytest.raises(NonFiniteUpdateError):
        run(tmp_path, **FAILS)
    shutil.copy(tmp_path / "ledger.jsonl", tmp_path / "before.jsonl")
    file = ledger_file.LedgerFile(tmp_path / "ledger.jsonl")
    mark = json.loads((tmp_path / "checkpoints/2/record.json").read_text())["ledger"]
    assert not file.resume(file.up_to(ledger_file.Mark(**mark))) and file.tried == 3
    again = ledger_file.LedgerFile(tmp_path / "ledger.jsonl")
    again.resume(again.up_to(ledger_file.Mark(**mark)))
    assert again.tried == 3 and ledger.read((tmp_path / "ledger.jsonl").read_text()).rounds == 2
    assert os.path.getsize(tmp_path / "ledger.jsonl") < os.path.getsize(tmp_path / "before.jsonl")
