"""What the two ends of a deployment refuse, by name, and that nothing changes by it."""

import ast
import contextlib
import json
import os
import struct

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

from deploy import federation

from cepam_jax import privacy
from cepam_jax.deploy import agreement, envelope, joining, keys, spent, store
from cepam_jax.deploy.client import Client
from cepam_jax.deploy.envelope import Envelope, Refused
from cepam_jax.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    ConfigError,
    DatasetError,
    WorkdirInUseError,
)
from cepam_jax.run import allowed, guarantees

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A federation in which five of eight hospitals are drawn; its programs are compiled once."""
    config = federation.small(clients_per_round=5)
    return federation.made(tmp_path_factory.mktemp("made"), config)


class Ends:
    """A server whose first round is open, its clients, and the answers of those who were drawn."""

    def __init__(self, made, name):
        self.made, self.name = made, name
        self.server = made.server(f"server_{name}")
        self.clients = [made.client(k, f"client_{name}{k}") for k in range(8)]
        federation.join(self.server, self.clients)
        self.drawn = self.server.drawn
        self.requests = {k: self.server.request(k) for k in self.drawn}
        self.answers = {k: self.clients[k].answer(self.requests[k]) for k in self.drawn}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.close()
        for client in self.clients:
            client.close()


@pytest.fixture(scope="module")
def ends(made):
    with Ends(made, "ends") as found:
        yield found


def refused(end, data, name, *challenge, whose=None):
    """Whether an end refuses bytes by this name, and is what it was before.

    `whose`: which client is named, as it has just written them itself.
    """
    before = getattr(end, "missing", None), getattr(end, "round", None), getattr(end, "joined", None)
    call = end.receive if hasattr(end, "receive") else end.answer
    with pytest.raises(Refused) as error:
        call(data, *challenge)
    assert error.value.name == name and error.value.client == whose
    assert whose is None or f"(client {whose}: " in str(error.value)
    assert before == (
        getattr(end, "missing", None),
        getattr(end, "round", None),
        getattr(end, "joined", None),
    )


def changed(data, at, value):
    return data[:at] + value + data[at + len(value) :]


def test_every_reason_has_a_test():
    """A call of `refused` that names it; a reason that nothing raises any more would have none."""
    calls = [node for node in ast.walk(ast.parse(open(__file__).read())) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "refused"]
    tested = {word.value for call in calls for word in call.args if isinstance(word, ast.Constant)}
    assert tested >= envelope.REASONS.keys()


def test_what_is_no_message_of_this_run_is_refused(ends):
    server, drawn = ends.server, ends.drawn
    answer = ends.answers[drawn[0]]
    refused(server, b"", "malformed")
    refused(server, b"\xceP" + answer[2:], "malformed")  # the magic number of another protocol
    refused(server, answer[: envelope.OVERHEAD - 1], "malformed")
    refused(server, changed(answer, 3, b"\xff"), "malformed")
    refused(server, changed(answer, 2, b"\x01"), "version")
    refused(server, answer + bytes(server.limit), "oversized")
    refused(server, changed(answer, 4, bytes(8)), "foreign")
    refused(server, changed(answer, 12, bytes(8)), "foreign")
    refused(server, changed(answer, 24, struct.pack("<I", 8)), "stranger")


def test_what_was_altered_or_written_by_another_is_refused(ends):
    server, drawn = ends.server, ends.drawn
    answer = ends.answers[drawn[0]]
    for at in (20, 28, len(answer) - 1):  # round, body, tag
        refused(server, changed(answer, at, bytes([answer[at] ^ 1])), "forged")
    refused(server, changed(answer, 24, struct.pack("<I", drawn[1])), "forged")  # one client as another
    refused(server, ends.requests[drawn[0]], "forged")  # the server's own words come back


def test_a_round_takes_one_answer_of_each_who_was_drawn(ends, made):
    server, clients, drawn = ends.server, ends.clients, ends.drawn
    server.receive(ends.answers[drawn[0]])
    refused(server, ends.answers[drawn[0]], "replay")
    absent = next(k for k in range(8) if k not in drawn)
    sealed = sealer(ends, absent)
    refused(server, sealed(envelope.REPLY, 0, b"x"), "undrawn")
    sealed = sealer(ends, drawn[1])
    refused(server, sealed(envelope.REPLY, 0, b"x"), "corrupt")
    refused(server, sealed(envelope.REPLY, 1, b"x"), "early")
    refused(server, sealed(envelope.DONE, 0), "unexpected")
    wrong = ends.answers[drawn[2]][28:-16]  # whole, but with the words of another client
    refused(server, sealed(envelope.REPLY, 0, wrong), "corrupt")
    for k in drawn[1:]:
        server.receive(ends.answers[k])
    server.close_round()
    refused(server, ends.answers[drawn[0]], "stale")
    assert server.refusals["corrupt"] == 2
    assert clients[drawn[0]].answered == 1


def sealer(ends, client):
    """What writes with the keys of a client, whatever it likes."""
    derived = ends.server._keys(client)
    run, digest = ends.server._run, ends.made.agreement.digest

    def sealed(kind, number, body=b"", key=derived.up):
        return envelope.seal(Envelope(kind, run[:8], digest[:8], number, client, body), key)

    return sealed


def test_who_has_not_joined_is_a_stranger(made):
    server, client = made.server("server_alone"), made.client(0, "client_alone")
    joined, challenge = federation.joined(server, client)
    refused(server, changed(joined, 3, bytes([envelope.REPLY])), "stranger")
    refused(server, changed(joined, 30, b"\0\0\0"), "forged")
    refused(server, joined, "recorded")  # as if no greeting had been sent
    refused(server, joined, "recorded", b"")
    refused(server, joined, "recorded", joining.challenge())
    server.receive(joined, challenge)
    server.receive(*federation.joined(server, client))  # the same nonce again is no other
    refused(server, joined, "recorded")  # twice on its own connection
    refused(server, joined, "recorded", joining.challenge())  # who recorded it does not come in with it
    refused(
        server, says(server, made, 0, joining.answer(b"n" * 16, challenge, 0)[:-1]), "malformed", challenge
    )
    other = made.client(0, "client_other")
    answer, challenge = federation.joined(server, other)
    refused(server, answer, "reenrolled", challenge, whose=0)


def says(server, made, client, body):
    """What a client with the key of this one would join with, whatever it likes."""
    run, digest = server._run, made.agreement.digest
    key = keys.joining(server._secrets[client], run, digest, client)
    return envelope.seal(Envelope(envelope.JOIN, run[:8], digest[:8], 0, client, body), key)


def test_directories_that_were_put_back_are_noticed(tmp_path):
    """An earlier state would use keys again, or forget what was spent; it is refused by name."""
    fields = {"partition.kind": "iid", "evaluation.clients": "none"}
    made = federation.made(tmp_path, federation.small(num_clients=2, **fields))
    server, clients, copies = made.server(), made.clients(), []
    states = [tmp_path / "server" / "server.state", tmp_path / "client1" / "client.state"]
    federation.join(server, clients)
    fresh = joining.challenge()
    for number in range(3):
        copies.append([path.read_bytes() for path in states])
        for k in range(2):
            server.receive(clients[k].answer(server.request(k)))
        # What a client has answered is known before the round is closed.
        nonce = server.members.nonces[1]
        refused(
            server, says(server, made, 1, joining.answer(nonce, fresh, number)), "rolledback", fresh, whose=1
        )
        if number < 2:
            more = says(server, made, 1, joining.answer(nonce, fresh, number + 2))
            refused(server, more, "ahead", fresh, whose=1)
        server.receive(says(server, made, 1, joining.answer(nonce, fresh, number + 1)), fresh)
        if number < 2:
            server.close_round()
    server.close()
    clients[1].close()
    with contextlib.closing(
        made.server()
    ) as server:  # two rounds are closed, and answers to the third are out
        assert server.round == 2
        states[1].write_bytes(copies[1][1])  # it has forgotten that it answered the second
        with contextlib.closing(made.client(1)) as client:
            answer, challenge = federation.joined(server, client)
            refused(server, answer, "rolledback", challenge, whose=1)
        states[1].write_bytes(copies[2][1])  # as if it had been killed before the third
        with contextlib.closing(made.client(1)) as client:
            federation.join(server, [client])
    states[0].write_bytes(copies[0][0])  # the server has forgotten two rounds, and what was spent in them
    with contextlib.closing(made.server()) as server:
        assert server.round == 0 and "does not know of" not in spent.report(server)
        answer, challenge = federation.joined(server, clients[0])
        refused(server, answer, "ahead", challenge, whose=0)
        refused(clients[0], server.request(0), "stale")  # nor would it answer
    clients[0].close()
    with contextlib.closing(made.server()) as server:  # that too much was forgotten is not forgotten
        text = spent.report(server)
        assert "client 0 has answered through round 3" in text and "may be too small" in text


def test_who_has_not_joined_here_is_heard_with_nothing_but_a_join(made):
    """A recorded answer of the open round, as the first thing said, is not its writer."""
    with Ends(made, "recorded") as ends:
        for challenge in (joining.challenge(), b""):  # over a socket, and of a node that was not greeted
            refused(ends.server, ends.answers[ends.drawn[0]], "unexpected", challenge)
        assert ends.server.missing == ends.drawn


def test_a_server_that_was_put_back_by_one_round_is_noticed_by_all_whom_it_asked(tmp_path):
    """With a quorum a round closes with others to another model: two releases, where one is counted."""
    fields = {"partition.kind": "iid", "evaluation.clients": "none", "num_clients": 3}
    fields |= {"links.name": "ethernet10g", "links.ends": "quorum", "links.quorum": 0.6}
    made = federation.made(tmp_path, federation.small(**fields))
    server, clients, state = made.server(), made.clients(), tmp_path / "server" / "server.state"
    federation.join(server, clients)
    before = state.read_bytes()
    first = [client.answer(server.request(client.number)) for client in clients]
    for answer in first[:2]:
        server.receive(answer)
    server.close_round()

    def killed(*arguments):
        raise KeyboardInterrupt

    requests = [server.request(k) for k in range(3)]
    clients[0].answer(requests[0])
    asked = clients[1]
    asked._made = killed  # while it trains, before it has answered
    with pytest.raises(KeyboardInterrupt):
        asked.answer(requests[1])
    asked.close()
    server.close()
    state.write_bytes(before)
    with contextlib.closing(made.server()) as server, contextlib.closing(made.client(1)) as asked:
        assert server.round == 0 and asked.answered == 1
        for answer in first[1:]:
            server.receive(answer)
        server.close_round()
        others = [server.request(k) for k in range(3)]
        assert all(one != other for one, other in zip(requests, others, strict=True))
        refused(clients[0], others[0], "twice")
        refused(asked, others[1], "twice")  # it was asked only
        assert asked.answer(requests[1]) and asked.answered == 2
        clients[2].answer(others[2])  # it was not asked in between, and knows nothing
    for client in (clients[0], clients[2]):
        client.close()


def test_an_answer_that_came_too_late_is_remembered(tmp_path):
    """What a client has answered is known by its late answers too, and by what it said when it joined."""
    fields = {"partition.kind": "iid", "evaluation.clients": "none", "num_clients": 3}
    fields |= {"links.name": "ethernet10g", "links.ends": "quorum", "links.quorum": 0.6}
    made = federation.made(tmp_path, federation.small(**fields))
    server, clients = made.server(), made.clients()
    federation.join(server, clients)
    fresh = joining.challenge()
    late = clients[2].answer(server.request(2))
    for k in (0, 1):
        server.receive(clients[k].answer(server.request(k)))
    server.close_round()
    refused(server, late, "stale")
    clients[1].answer(server.request(1))  # which is lost on its way
    server.receive(*federation.joined(server, clients[1]))
    server.close()
    with contextlib.closing(made.server()) as server:  # it is on the disk
        for k, through in ((2, 1), (1, 2)):
            nonce = server.members.nonces[k]
            less = says(server, made, k, joining.answer(nonce, fresh, through - 1))
            refused(server, less, "rolledback", fresh, whose=k)
            server.receive(says(server, made, k, joining.answer(nonce, fresh, through)), fresh)
    for client in clients:
        client.close()


def test_a_client_answers_each_round_once(made):
    with Ends(made, "once") as ends:
        client = ends.clients[ends.drawn[0]]
        number = client.number
        assert client.answer(ends.requests[number]) == ends.answers[number]
        client.close()
        again = made.client(number, f"client_once{number}")
        assert again.answer(ends.requests[number]) == ends.answers[number]  # from its disk
        derived = ends.server._keys(number)
        body = ends.requests[number][28:-16]
        sealed = sealer(ends, number)

        def request(at, body):
            return sealed(envelope.REQUEST, at, body, derived.down)

        refused(again, request(0, changed(body, 0, b"\x01")), "twice")  # another model
        refused(again, request(3, body), "finished")
        refused(again, request(1, body[4:]), "malformed")
        refused(again, sealed(envelope.REQUEST, 1, body), "forged")  # by the key of the other way
        for at in (1, 2):
            again.answer(request(at, body))
        refused(again, request(0, body), "stale")
        nan = struct.pack("<f", float("nan"))
        assert again.answered == 3 and envelope.parse(ends.answers[number], 999).round == 0
        other = next(c for c in ends.clients if c.number != number)
        # Training that leaves no numbers is told to nobody: noise alone is sent.
        noise = other.answer(
            sealer(ends, other.number)(
                envelope.REQUEST, 1, nan + body[4:], ends.server._keys(other.number).down
            )
        )
        assert envelope.parse(noise, 9999).kind == envelope.REPLY and other.diverged == 1
        other_run = os.urandom(16) + joining.challenge()
        refused(again, sealed(envelope.HELLO, 0, other_run, made.agreement.digest), "foreign")
        refused(again, sealed(envelope.HELLO, 0, other_run[:16], made.agreement.digest), "malformed")
        again.close()


def test_messages_of_other_runs_and_clients_are_nothing_to_a_client(ends, made):
    client = ends.clients[ends.drawn[0]]
    refused(client, ends.requests[ends.drawn[1]], "stranger")
    refused(client, changed(ends.requests[client.number], 4, bytes(8)), "foreign")
    refused(client, changed(ends.requests[client.number], 12, bytes(8)), "foreign")
    newcomer = made.client(client.number, "client_newcomer")
    refused(newcomer, ends.requests[client.number], "foreign")  # before it has heard of a run
    assert newcomer.answered == 0


def test_two_processes_in_one_directory_are_refused(ends, made):
    with pytest.raises(WorkdirInUseError):
        made.server("server_ends")
    with pytest.raises(WorkdirInUseError):
        made.client(0, "client_ends0")


def test_directories_of_other_agreements_and_other_keys_are_refused(made, tmp_path):
    other = federation.made(tmp_path, federation.small(clients_per_round=4))
    made.server("server_first").close()
    client = made.client(0, "client_first")
    federation.joined(made.server("server_second"), client)
    client.close()
    moved = other._replace(folder=made.folder)
    for call in (lambda: moved.server("server_first"), lambda: moved.client(0, "client_first")):
        with pytest.raises(ConfigError, match="public key is"):  # of another agreement, so of other keys
            call()
    text = made.agreement.text.replace('"rounds":3', '"rounds":2')
    longer = made._replace(agreement=agreement.read(text))
    for call in (lambda: longer.server("server_first"), lambda: longer.client(0, "client_first")):
        with pytest.raises(CheckpointMismatchError, match="another agreement"):
            call()
    few = {name: array[:2] for name, array in made.data.train.items()}
    with pytest.raises(DatasetError, match="for client 0"):
        federation.Client(tmp_path / "c", made.agreement, keys.read_private(made.folder / "0.key"), few)


def test_a_damaged_state_is_noticed(made, tmp_path):
    path = tmp_path / "state"
    for number in range(3):
        store.save(path, {"round": number}, {"a": federation.np.arange(number + 1)})
    assert store.load(path)[0] == {"round": 2}
    whole = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.iterdir()] == ["state"]
    for damaged in (whole[:-1], whole[:40] + b"\0" + whole[41:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointDamagedError):  # an older one would have forgotten an answer
            store.load(path)
    path.unlink()
    assert store.load(path) is None


def test_what_could_not_be_written_has_not_happened(ends, made, monkeypatch):
    """An answer that is not on the disk leaves neither at once nor when it is asked for again."""
    client = ends.clients[ends.drawn[0]]
    answered, known = client.answered, dict(client._answers)
    derived = ends.server._keys(client.number)
    body = envelope.parse(ends.requests[client.number], 10**6).body
    asked = sealer(ends, client.number)(envelope.REQUEST, 2, body, derived.down)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                client.answer(asked)
            assert client.answered == answered and client._answers == known
    first = client.answer(asked)
    assert client.answered == answered + 1 and client.answer(asked) == first


def test_a_greeting_alone_binds_a_client_to_nothing(ends, made):
    """All who know the agreement can write one."""
    newcomer = made.client(ends.drawn[0], "client_greeted")
    digest = made.agreement.digest
    for run in (os.urandom(16), ends.server._run):
        asked = envelope.Envelope(envelope.HELLO, run[:8], digest[:8], 0, 0, run + joining.challenge())
        joined = envelope.parse(newcomer.answer(envelope.seal(asked, digest)), 99)
        assert joined.kind == envelope.JOIN and joined.run == run[:8]
    newcomer.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rounds": 500}, "rounds of the agreement is 500"),
        ({"counts": [1]}, "number of counts is 1"),
        ({"names": ["a"]}, "number of names is 1"),
        ({"server": "upper"}, "spelt otherwise"),
        ({"clients": "twice"}, "the same twice"),
    ],
)
def test_an_agreement_that_was_tampered_with_is_refused(made, change, text):
    found = json.loads(made.agreement.text)
    if change == {"server": "upper"}:
        change = {"server": found["server"].upper()}
    if change == {"clients": "twice"}:
        change = {"clients": [found["clients"][0]] * len(found["clients"])}
    with pytest.raises(ConfigError, match=text):
        agreement.read(json.dumps(found | change))


@pytest.mark.parametrize("name", ["cepam_jax", "jax", "jaxlib", "sources"])
def test_other_versions_than_were_agreed_to_are_refused_by_name(made, name):
    """Others may compute other bits, and what is decoded would be another message."""
    found = json.loads(made.agreement.text)
    assert agreement.read(made.agreement.text).digest == made.agreement.digest
    other = {"versions": found["versions"] | {name: "0.0.1"}}
    with pytest.raises(ConfigError, match=rf"^version of {name} is .* 0\.0\.1, as was agreed to"):
        agreement.read(json.dumps(found | other))
    none = {"versions": {key: value for key, value in found["versions"].items() if key != name}}
    with pytest.raises(ConfigError, match=f"^version of {name} is .* the agreement names none") as error:
        agreement.read(json.dumps(found | none))
    assert "None" not in str(error.value)
    more = {"versions": found["versions"] | {"numpy": "1"}}
    with pytest.raises(ConfigError, match=r"^version of numpy is .*not known here.* 1, as was agreed to"):
        agreement.read(json.dumps(found | more))
    for schema in (1, 2, 3):
        with pytest.raises(ConfigError, match=rf"^schema of the agreement is {schema}"):
            agreement.read(json.dumps(found | {"schema": schema}))


def test_two_commits_are_two_versions(tmp_path):
    """Whatever in the sources differs, their names or where one ends; not how a system ends lines."""
    cases = [{"a.py": b"1\n"}, {"a.py": b"2\n"}, {"b.py": b"1\n"}, {"a.py": b"1\n", "x/b.py": b""}]
    cases += [{"a.py": b"", "x/b.py": b"1\n"}, {"a.py": b"1\r\n", "note.txt": b"", "a.pyc": b"3"}]
    digests = []
    for number, files in enumerate(cases):
        for name, text in files.items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        digests.append(agreement._sources(tmp_path / str(number)))
    assert len(set(digests)) == 5 and digests[5] == digests[0]


def test_nothing_is_counted_on_draws(ends):
    """Whoever watches the links knows who was drawn; the report says so, and that a round is open."""
    text = spent.report(ends.server)
    assert "nothing is counted on hidden draws" in text and "metrics.jsonl" not in text
    assert "the open round" in text and "rounds that failed" not in text


def test_a_deployment_says_that_owners_are_dealt_out(tmp_path):
    """As a simulation does: two clients that each hold patients of all hospitals are no hospitals."""
    fields = {"num_clients": 2, "evaluation.clients": "none"}
    for kind in ("iid", "natural"):
        (tmp_path / kind).mkdir()
    dealt = federation.made(tmp_path / "iid", federation.small(**fields, **{"partition.kind": "iid"}))
    said = "an owner: the examples of one, a speaker or a hospital, lie with up to 2 clients"
    assert dealt.agreement.holders == 2 and said in spent.report(dealt.server())
    found = json.loads(dealt.agreement.text)
    for wrong in (0, 3, "2", None):
        with pytest.raises(ConfigError, match="holders of the agreement is .*from 1 to 2"):
            agreement.read(json.dumps(found | {"holders": wrong}))
    whole = federation.made(tmp_path / "natural", federation.small(**fields))
    assert whole.agreement.holders == 1 and "an owner:" not in spent.report(whole.server())


@pytest.mark.parametrize("relation", ["add_remove", "replace"])
def test_gamma_and_rounds_are_chosen_without_hidden_draws(relation):
    """With them a target was met that the deployment's own report exceeds."""
    counts = np.full(200, 7)
    config = federation.small(num_clients=200, clients_per_round=10, rounds=40)
    config.privacy.relation, config.privacy.target_epsilon = relation, 1.5

    def spent_by(chosen, rounds, watched):
        found = guarantees.federation_of(chosen, counts, rounds, watched=watched)
        return float(privacy.report(found, config.privacy.delta)[0].epsilon.max())

    for watched in (True, False):
        chosen = guarantees.calibrated(config, counts, watched)
        assert spent_by(chosen, 40, watched) == pytest.approx(1.5, rel=1e-3)
    assert spent_by(chosen, 40, watched=True) > 1.6  # the twin counts on what cannot be known
    chosen = guarantees.calibrated(config, counts, watched=True)
    chosen.rounds = 80
    rounds = guarantees.rounds_within_budget(chosen, counts, watched=True)
    assert spent_by(chosen, rounds, True) <= 1.5 < spent_by(chosen, rounds + 1, True)
    assert rounds < guarantees.rounds_within_budget(chosen, counts)
    config.privacy.target_epsilon = 0.0
    config.needs.profiles, config.needs.clients = "all: epsilon 1.5 against released_model", "200 all"
    segments = ((650,),)
    few, many = (allowed.largest(config, counts, segments, watched).gamma[0] for watched in (True, False))
    assert few < 0.95 * many


def test_keys_are_the_owners_alone(tmp_path):
    keys.write_private(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        keys.write_private(tmp_path / "a")
    os.chmod(tmp_path / "a", 0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        keys.read_private(tmp_path / "a")
    derived = keys.derive(b"s" * 32, b"r" * 16, b"n" * 16, b"a" * 32, 0)
    assert str(derived) == "Derived(...)" and len({derived.master, derived.up, derived.down}) == 3
    with pytest.raises(ConfigError, match="leads to no secret"):
        keys.agree(keys.read_private(_private(tmp_path)), "00" * 32)


def _private(folder):
    keys.write_private(folder / "b")
    return folder / "b"


def test_no_two_rounds_clients_or_runs_have_a_key_in_common():
    words = [
        tuple(federation.jax.random.key_data(keys.shared_of_round(found.master, number, client)).tolist())
        for run in (b"r" * 16, b"q" * 16)
        for nonce in (b"n" * 16, b"m" * 16)
        for client in range(3)
        for number in range(10)
        for found in [keys.derive(b"s" * 32, run, nonce, b"a" * 32, client)]
    ]
    assert len(set(words)) == len(words) == 120


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("downlink.name", "clipped"),
        ("mechanism.error_feedback", True),
        ("participation.sampling", "poisson"),
        ("local.worker_momentum", 0.5),
        ("local.normalize", True),
        ("aggregator", "inverse_error"),
    ],
)
def test_what_a_deployment_does_not_do_is_refused_by_name(field, value):
    config = federation.small(**{field: value})
    with pytest.raises(ConfigError, match=rf"config\.{field} is .*{value}.* in a deployment"):
        agreement.check(config)


def test_needs_become_gammas_in_the_agreement(tmp_path):
    """With the gammas found the needs themselves would be refused, by whoever reads the agreement."""
    needs = {"needs.profiles": "all: epsilon 100 against decoded_updates", "needs.clients": "8 all"}
    found = federation.made(tmp_path, federation.small(**needs)).agreement.config
    gammas = found.mechanism.per_client.gamma
    assert len(set(gammas)) == 1 and gammas[0] != federation.small().mechanism.gamma
    assert not found.needs.profiles and not found.needs.clients


def test_a_clients_own_examples_are_checked_by_the_task(made, tmp_path):
    private = keys.read_private(made.folder / "0.key")
    own = {name: array[made.split.client(0)] for name, array in made.data.train.items()}
    wrong = own | {"label": np.full_like(own["label"], 7)}
    with pytest.raises(DatasetError, match="must be 0 or 1"):
        Client(tmp_path, made.agreement, private, wrong)
    missing = own["x"].copy()
    missing[0, 3] = np.nan
    with pytest.raises(DatasetError, match=r"client 0's examples\['x'\] holds NaN or infinite"):
        Client(tmp_path, made.agreement, private, own | {"x": missing})
    names = np.array(["of a patient"] * len(missing))
    Client(tmp_path, made.agreement, private, own | {"names": names}).close()  # nobody asked for them


def test_an_update_that_cannot_be_coded_is_sent_as_zeros(tmp_path):
    """The server would refuse it whenever it came, and the round would wait for ever."""
    fields = {"mechanism.clip": "none", "mechanism.rate": "step", "mechanism.step": 1e-6}
    made = federation.made(tmp_path, federation.small("sdq", **fields))
    clients = made.clients()
    with contextlib.closing(made.server()) as server:
        federation.join(server, clients)
        federation.run_round(server, clients)
        assert server.round == 1 and not server.refusals
    assert all(client.diverged == 1 for client in clients)
    for client in clients:
        client.close()


def test_a_private_key_in_place_of_a_public_one_is_not_shown(made, tmp_path):
    secret = made.folder / "server.key"
    text = tmp_path / "text.key"
    text.write_text("secret" * 6)
    for path in (secret, text):
        with pytest.raises(ConfigError, match=r"is no public key; give the file that ends in \.pub") as error:
            keys.read_public(path)
        assert "secretsecret" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        keys.public(text.read_text())
    assert "secretsecret" not in str(error.value)
    with pytest.raises(ConfigError, match="it must be an agreement"):
        agreement.load(secret)
