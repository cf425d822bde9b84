"""What the two ends of a deployment refuse, by name, and that nothing changes by it."""

import os
import struct

import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

from deploy import federation

from cepam_jax.deploy import agreement, envelope, keys, store
from cepam_jax.deploy.envelope import Envelope, Refused
from cepam_jax.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    ConfigError,
    DatasetError,
    WorkdirInUseError,
)


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


def refused(end, data, name):
    """Whether an end refuses bytes by this name, and is what it was before."""
    before = getattr(end, "missing", None), getattr(end, "round", None), getattr(end, "joined", None)
    call = end.receive if hasattr(end, "receive") else end.answer
    with pytest.raises(Refused) as error:
        call(data)
    assert error.value.name == name
    assert before == (
        getattr(end, "missing", None),
        getattr(end, "round", None),
        getattr(end, "joined", None),
    )


def changed(data, at, value):
    return data[:at] + value + data[at + len(value) :]


def test_every_reason_has_a_test():
    text = open(__file__).read()
    untested = {name for name in envelope.REASONS if f'"{name}"' not in text}
    assert not untested


def test_what_is_no_message_of_this_run_is_refused(ends):
    server, drawn = ends.server, ends.drawn
    answer = ends.answers[drawn[0]]
    refused(server, b"", "malformed")
    refused(server, b"\xceP" + answer[2:], "malformed")  # the magic number of another protocol
    refused(server, answer[: envelope.OVERHEAD - 1], "malformed")
    refused(server, changed(answer, 3, b"\xff"), "malformed")
    refused(server, changed(answer, 2, b"\x02"), "version")
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
    refused(server, sealed(envelope.FAILED, 0), "diverged")
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
    joined = client.answer(server.hello())
    refused(server, changed(joined, 3, bytes([envelope.REPLY])), "stranger")
    refused(server, changed(joined, 30, b"\0\0\0"), "forged")
    server.receive(joined)
    server.receive(joined)  # the same nonce again is no other
    other = made.client(0, "client_other")
    refused(server, other.answer(server.hello()), "reenrolled")


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
        failed = other.answer(
            sealer(ends, other.number)(
                envelope.REQUEST, 1, nan + body[4:], ends.server._keys(other.number).down
            )
        )
        assert envelope.parse(failed, 999).kind == envelope.FAILED
        refused(again, sealed(envelope.HELLO, 0, os.urandom(16), made.agreement.digest), "foreign")
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
    client.answer(made.server("server_second").hello())
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
    for damaged in (whole[:-1], whole[:40] + b"\0" + whole[41:], b""):
        path.write_bytes(damaged)
        assert store.load(path)[0] == {"round": 1} and store.load(path)[2]
        with pytest.raises(CheckpointDamagedError):  # a client would have forgotten an answer
            store.load(path, older=False)
    path.unlink()
    with pytest.raises(CheckpointDamagedError):
        store.load(path, older=False)


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
