"""The transport of a deployment against peers that do not read, flood, lie or are away; without any training.

Servers and clients here are stand-ins with the few methods that a transport calls, so nothing is compiled.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import socket
import sys
import threading
import time
import types

import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

import numpy as np

from cepam_jax.deploy import (
    certificates,
    commands,
    dialling,
    envelope,
    frames,
    join,
    joining,
    relay,
    serve,
    serving,
)
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.serving import Serving, Stalled, Waiting
from cepam_jax.deploy.worker import Worker
from cepam_jax.errors import ConfigError, DatasetError, NonFiniteUpdateError, WorkdirInUseError

FULL = OSError(28, "No space left on device", "/state/client.state")
LIMITS = {"ends": "slowest", "deadline": 0.0}


class Rounds:
    """A server's rounds, in which a message is JOIN or REPLY and a client's number."""

    def __init__(self, clients=2, rounds=1, request=b"request", enough=None, **limits):
        links = types.SimpleNamespace(**(LIMITS | limits))
        config = types.SimpleNamespace(links=links)
        self.agreement = types.SimpleNamespace(config=config, clients=range(clients))
        self.drawn, self._rounds, self._request, self.limit = tuple(range(clients)), rounds, request, 10**6
        self._enough = clients if enough is None else enough
        self.joined, self.arrived, self.round, self.asked, self.fails = set(), set(), 0, [], None
        self.late, self.failed = [], ""

    finished = property(lambda self: bool(self.failed) or self.round >= self._rounds)
    missing = property(lambda self: tuple(k for k in self.drawn if k not in self.arrived))
    enough = property(lambda self: len(self.arrived) >= self._enough)

    def hello(self, challenge):
        return b"hello " + challenge.hex().encode()

    def request(self, client):
        self.asked.append((self.round, client))
        return self._request

    def done(self, client):
        return b"done"

    def receive(self, data, challenge=None):
        if self.fails is not None:
            raise self.fails
        kind, client, *answered = data.split(b" ") if b" " in data else (b"", b"")
        if kind not in (b"JOIN", b"REPLY"):
            raise Refused("forged")
        if kind != b"JOIN" and challenge is not None:
            raise Refused("unexpected")
        if kind == b"JOIN" and (not challenge or answered != [challenge.hex().encode()]):
            raise Refused("recorded")
        (self.joined if kind == b"JOIN" else self.arrived).add(int(client))
        return int(client)

    def close_round(self):
        self.late.append(self.missing)
        self.round, self.arrived = self.round + 1, set()
        return {"round": self.round, "late": self.late[-1], "bytes": {0: 1234, 1: 766}}


class Answers:
    """A client: it joins, answers requests, and ends when it is told."""

    limit = 10**6

    def __init__(self, number=0, fails=None):
        self.number, self.finished, self.answered, self.fails, self.asked = number, False, 0, fails, 0

    def answer(self, data):
        if data.startswith(b"hello "):
            return b"JOIN %d %s" % (self.number, data.removeprefix(b"hello "))
        self.asked += 1
        if data == b"done":
            self.finished = True
            return b""
        if self.fails is not None:
            raise self.fails
        self.answered += 1
        return b"REPLY %d" % self.number


class Log(list):
    """Events as (name, values)."""

    def __call__(self, event, **values):
        self.append((event, values))

    def named(self, name):
        return [values for event, values in self if event == name]


@contextlib.asynccontextmanager
async def served(server, waiting=None, log=None):
    """(its Serving, the task of its rounds, its port)."""
    port = asyncio.Future()
    found = Serving(
        server, Log() if log is None else log, waiting or Waiting(again=0.3, patience=20.0, closing=0.5)
    )
    work = asyncio.ensure_future(found.run("127.0.0.1", 0, None, port.set_result))
    try:
        yield found, work, await port
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def joined(port, client, buffer=0):
    """(reader, writer) of a connection on which a client has joined; it reads no further."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    greeting = await frames.read(reader, 100)
    await frames.write(writer, b"JOIN %d %s" % (client, greeting.removeprefix(b"hello ")))
    return reader, writer  # who drops them closes the connection


def ends(work, seconds=20.0):
    """Runs it; a hang fails."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def test_a_client_that_does_not_read_holds_up_nobody():
    """Its request, of more than all buffers, is given up after `again`, and so is its farewell."""
    server, log = Rounds(rounds=2, request=b"x" * (16 << 20), enough=1), Log()
    other = Answers(1)
    other.limit = 17 << 20

    async def work():
        async with served(server, log=log) as (_, rounds, port):
            held = await joined(port, 0, 4096)
            client = asyncio.ensure_future(dialling.run(other, "127.0.0.1", port, None, Log()))
            await rounds
            await client
            held[1].transport.abort()

    ends(work())
    assert other.answered == 2 and server.late == [(0,), (0,)]
    assert server.asked.count((0, 0)) == 1, "no second request is sent behind one that is not read"


def test_who_does_not_read_is_cut_off():
    server, log = Rounds(clients=1, request=b"x" * (16 << 20)), Log()

    async def work():
        async with served(server, Waiting(again=0.2), log) as (_, _, port):
            held = await joined(port, 0, 4096)
            while not log.named("left"):
                await asyncio.sleep(0.02)
            held[1].transport.abort()

    ends(work())


@pytest.mark.parametrize("error", [FULL, WorkdirInUseError("replaced")])
def test_a_state_that_cannot_be_written_ends_the_client(error):
    """One that swallowed it would dial and compute for ever, or send what it does not know to be sent."""
    server, client, log = Rounds(clients=1), Answers(fails=error), Log()

    async def work():
        async with served(server) as (_, _, port):
            await dialling.run(client, "127.0.0.1", port, None, log)

    with pytest.raises(type(error)) as found:
        ends(work())
    assert found.value is error and client.asked == 1 and not log.named("cut")


@pytest.mark.parametrize("error", [FULL, WorkdirInUseError("replaced")])
def test_a_state_that_cannot_be_written_ends_the_worker(error, tmp_path):
    os.chmod(tmp_path, 0o700)
    path, client = tmp_path / "worker.sock", Answers(fails=error)

    async def work():
        running = asyncio.ensure_future(Worker(client).run(path))
        while not path.exists():
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):  # no answer
            await asyncio.to_thread(relay.ask, str(path), b"request", 5.0)
        await running

    with pytest.raises(type(error)) as found:
        ends(work())
    assert found.value is error


def test_a_state_that_cannot_be_written_ends_the_server_and_names_the_file(capsys):
    server = Rounds()

    async def work():
        async with served(server) as (_, rounds, port):
            server.fails = FULL
            await joined(port, 0)
            await asyncio.wait_for(rounds, 5.0)

    with pytest.raises(SystemExit) as ended:
        commands.end_with(work())
    assert ended.value.code == 1 and "/state/client.state" in capsys.readouterr().err


@pytest.mark.parametrize("before", [False, True])
def test_clients_of_a_run_that_diverged_are_told_of_its_end(before):
    """In this process or in an earlier one; otherwise they would dial for ever."""

    class Diverging(Rounds):
        def close_round(self):
            self.failed = "round 1: the model was not finite"
            raise NonFiniteUpdateError(self.failed)

    server, answers = Diverging(clients=1), Answers()
    if before:  # who has joined is remembered
        server.failed, server.joined = "round 1: the model was not finite", {0}

    async def work():
        async with served(server) as (_, rounds, port):
            await asyncio.wait_for(dialling.run(answers, "127.0.0.1", port, None, Log()), 10.0)
            await rounds

    with pytest.raises(NonFiniteUpdateError, match="round 1"):
        asyncio.run(work())
    assert answers.finished and answers.answered == (0 if before else 1)


def test_who_dials_seldom_still_hears_the_end():
    assert Waiting().closing > dialling._LONGEST


def test_what_ended_a_run_is_told_even_if_its_report_cannot_be_written(tmp_path, capsys):
    with pytest.raises(Stalled), commands.leaving(tmp_path / "absent" / "privacy.txt", lambda: "text"):
        raise Stalled("round 1")
    assert "absent" in json.loads(capsys.readouterr().out)["detail"]


def test_a_stranger_may_send_what_a_client_joins_with_and_no_more():
    server, log = Rounds(), Log()

    async def said(port, length):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await frames.read(reader, 100)
        writer.write(length.to_bytes(4, "little") + bytes(min(length, 100)))
        await reader.read()  # until the server ends it
        writer.close()

    async def work():
        async with served(server, log=log) as (_, _, port):
            for length in [joining.JOINING + 1, *[joining.JOINING] * 20]:
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(said(port, length), 5.0)

    ends(work())
    first = log.named("refused")[0]
    assert first["reason"] == "oversized" and f"at most {joining.JOINING}" in first["detail"]
    assert len(log.named("refused")) <= 4, "one line a second"


def test_a_recorded_answer_as_the_first_message_brings_nobody_in():
    """It would take the place of the client that wrote it, and be sent that client's requests."""
    server, log = Rounds(), Log()

    async def work():
        async with served(server, log=log) as (_, _, port):
            held, own = await joined(port, 0)
            await frames.read(held, 100)  # its request
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await frames.read(reader, 100)
            await frames.write(writer, b"REPLY 0")
            assert not await asyncio.wait_for(reader.read(), 5.0), "it is ended, and told nothing"
            writer.close()
            await frames.write(own, b"REPLY 0")  # its own connection stands
            while 0 in server.missing:
                await asyncio.sleep(0.01)
            own.close()

    with contextlib.suppress(ConnectionError):
        ends(work())
    assert log.named("refused")[0]["reason"] == "unexpected" and len(log.named("joined")) == 1


def test_the_lines_about_strangers_are_counted(monkeypatch):
    now, log = [100.0], Log()
    monkeypatch.setattr(serving.time, "monotonic", lambda: now[0])
    strangers = serving._Strangers(log)
    for step in range(25):
        now[0] = 100.0 + step / 10
        strangers.refused("forged", "")
    assert [line["untold"] for line in log.named("refused")] == [0, 9, 9]


def test_only_so_many_connections_wait_to_join():
    server, log = Rounds(clients=2), Log()
    most = 2 * 2 + 16

    async def work():
        async with served(server, log=log) as (_, _, port):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(most)]
            greetings = {await frames.read(reader, 100) for reader, _ in held}
            assert len(greetings) == most and all(one.startswith(b"hello ") for one in greetings)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(frames.read(reader, 100), 5.0)
            writer.close()
            held.pop()[1].transport.abort()
            await asyncio.sleep(0.1)
            await joined(port, 0)  # there is a place again
            for _, other in held:
                other.transport.abort()

    ends(work())
    assert log.named("refused")[0]["reason"] == "crowded"


def test_both_ends_notice_a_peer_that_has_vanished():
    async def work():
        seen = asyncio.Future()

        async def connected(reader, writer):
            frames.prepare(writer)
            seen.set_result(writer)

        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        frames.prepare(writer)
        found = []
        for end in (writer, await seen):
            its = end.get_extra_info("socket")
            found.append(its.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            if sys.platform == "linux":
                names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                assert [its.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [30, 10, 3]
            end.close()
        listener.close()
        return found

    assert ends(work()) == [1, 1]


def test_a_client_that_is_not_greeted_dials_again(monkeypatch):
    monkeypatch.setattr(dialling, "_GREETED", 0.2)
    client, log, dials = Answers(), Log(), []

    async def connected(reader, writer):
        dials.append(writer)
        if len(dials) > 1:
            await frames.write(writer, b"done")

    async def work():
        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        await dialling.run(client, "127.0.0.1", port, None, log)
        listener.close()

    ends(work())
    assert len(dials) == 2 and log.named("cut") == [{"why": "TimeoutError"}]


def test_a_client_that_is_refused_dials_more_and_more_seldom_and_gives_up(monkeypatch):
    """It dialled ten times a second for ever, since each connection began the count anew."""
    client, log, slept = Answers(), Log(), []
    monkeypatch.setattr(dialling, "_FIRST", 0.01)
    monkeypatch.setattr(dialling, "_LONGEST", 0.04)
    sleep = asyncio.sleep

    async def noted(seconds):
        slept.append(seconds)
        await sleep(seconds)

    async def connected(reader, writer):
        await frames.write(writer, b"hello there")
        await frames.read(reader, 100)
        if len(slept) == 4:  # once it is asked, and the count begins anew
            await frames.write(writer, b"request")
            await frames.read(reader, 100)
        writer.close()

    async def work():
        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        monkeypatch.setattr(dialling.asyncio, "sleep", noted)
        try:
            await dialling.run(client, "127.0.0.1", port, None, log, attempts=6)
        finally:
            listener.close()

    with pytest.raises(ConnectionError, match="6 times in vain: the server closed after the join"):
        ends(work())
    assert slept == [0.01, 0.02, 0.04, 0.04, 0.01, 0.02, 0.04, 0.04, 0.04, 0.04]
    said = ["closed after the join" in line["why"] for line in log.named("cut")]
    assert said == [True] * 4 + [False] + [True] * 6


def test_what_a_client_itself_is_refused_for_is_logged_whatever_strangers_do():
    server, log = Rounds(), Log()

    def receive(data, challenge=None):
        if data.startswith(b"REPLY"):
            raise Refused("forged")
        raise Refused("rolledback", "it says that", client=1)

    server.receive = receive

    async def work():
        async with served(server, log=log) as (_, _, port):
            for data in [b"REPLY 0", b"REPLY 0", b"JOIN 1", b"JOIN 1"]:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await frames.read(reader, 100)
                await frames.write(writer, data)
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()

    ends(work())
    found = [(line["reason"], line["client"]) for line in log.named("refused")]
    assert found == [("forged", None), ("rolledback", 1), ("rolledback", 1)]


def test_a_client_reads_on_while_it_computes():
    """A server that asks again would cut it otherwise, since nobody takes its message."""
    client = Answers()
    client.limit = 17 << 20

    async def connected(reader, writer):
        frames.prepare(writer)
        await frames.write(writer, b"x" * (16 << 20))
        await asyncio.wait_for(frames.write(writer, b"x" * (16 << 20)), 10.0)
        free.set()
        await frames.read(reader, 100)
        await frames.write(writer, b"done")

    free, slow = threading.Event(), client.answer

    def answer(data):
        assert free.wait(15.0) or data == b"done"
        return slow(data)

    client.answer = answer

    async def work():
        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        await dialling.run(client, "127.0.0.1", port, None, Log())
        listener.close()

    ends(work())
    assert client.finished


def test_the_deadline_of_a_round_begins_when_somebody_is_asked():
    server, log = Rounds(clients=1, rounds=2, ends="deadline", deadline=0.2), Log()

    async def work():
        async with served(server, log=log) as (_, rounds, port):
            await asyncio.sleep(0.6)
            assert server.round == 0, "no round passes while nobody is there"
            held = await joined(port, 0)
            await rounds
            held[1].close()

    ends(work())
    assert server.late == [(0,), (0,)]


def test_who_was_asked_in_vain_is_asked_again_whatever_others_send():
    """Each message of another client used to begin the wait anew."""
    server = Rounds(clients=2)

    async def work():
        async with served(server, Waiting(again=0.4)) as (_, _, port):
            held = await joined(port, 0)
            _, other = await joined(port, 1)
            begun = time.monotonic()
            for _ in range(12):
                await frames.write(other, b"REPLY 1")
                await asyncio.sleep(0.1)
            held[1].close()
            return time.monotonic() - begun

    seconds = ends(work())
    assert 2 <= server.asked.count((0, 0)) <= 2 + seconds / 0.4


def test_nothing_is_sent_over_a_connection_that_is_being_ended():
    """It would be dropped unseen, and whoever was asked so would count as asked."""

    async def work():
        async with served(Rounds()) as (found, _, port):
            held = await joined(port, 0)
            while 0 not in found._links:
                await asyncio.sleep(0.01)
            link, sent = found._links[0], []
            assert link.free or link.busy
            link.writer.transport.abort()
            assert not link.free
            with pytest.raises(ConnectionResetError):
                await frames.write(link.writer, b"request")
            link.send(b"request", 1.0, lambda: sent.append(1), lambda: sent.append(2))
            await asyncio.sleep(0.05)
            held[1].close()
            return sent

    assert ends(work()) == [2]


def test_a_server_that_is_stopped_while_it_is_woken_stops():
    """wait_for of Python 3.11 lost the cancellation then, and the server waited on."""

    async def work():
        async with served(Rounds()) as (found, rounds, port):
            held = await joined(port, 0)
            found._wake.set()
            rounds.cancel()
            await asyncio.wait([rounds], timeout=5.0)
            held[1].close()
            return rounds.cancelled()

    assert ends(work())


def test_a_round_trip_over_tls_with_what_is_logged(tmp_path):
    certificates.make(tmp_path, "127.0.0.1")
    server, log = Rounds(rounds=3), Log()
    told = Log()

    async def work():
        at = asyncio.Future()
        tls = frames.server_tls(tmp_path / "server.pem", tmp_path / "server.key")
        found = Serving(server, log, Waiting(again=5.0))
        rounds = asyncio.ensure_future(found.run("127.0.0.1", 0, tls, at.set_result))
        tls = frames.client_tls(tmp_path / "ca.pem")
        clients = [dialling.run(Answers(k), "127.0.0.1", await at, tls, told) for k in range(2)]
        await asyncio.gather(rounds, *clients)
        return found

    found = ends(work())
    assert sorted(server.asked) == [(r, k) for r in range(3) for k in range(2)]
    assert all(count.received > 0 for count in found.traffic.values())
    assert found.sums["messages"] == found.carried == 3 * 2000
    assert found.sums["received"] == sum(count.received for count in found.traffic.values())
    text = json.dumps([*log, *told])
    assert len(log.named("round")) == 3 and len(told.named("answered")) == 2 * (1 + 3)
    assert "bytes" not in text and "1234" not in text, "the length of one message is in no log"


def test_what_is_logged_of_bytes_are_sums_over_clients_of_whom_two_have_answered():
    """From those of one client that answered once follows how long its message was."""
    server, told = Rounds(rounds=2), []
    found = Serving(server, Log())
    found._ended = {0: [frames.Traffic(5000, 700)], 1: [frames.Traffic(5000, 900), frames.Traffic(1, 1)]}
    assert found.sums is None
    for sizes in ({}, {0: 300}, {0: 400}, {1: 500}):
        server.close_round = lambda sizes=sizes: {"round": 1, "late": (), "bytes": dict(sizes)}
        found._close_round()
        told.append(found.sums)
    assert told == [None, None, None, {"sent": 10001, "received": 1601, "messages": 1200}]


def test_without_tls_only_this_machine_is_dialled_unless_that_is_meant(capsys):
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        commands.check_secrecy(host, False, False, "--authority")
    commands.check_secrecy("example.org", True, False, "--authority")
    assert not capsys.readouterr().out
    for host in ("example.org", "0.0.0.0", "10.0.0.1", "localhost.example.org"):
        with pytest.raises(ConfigError, match="without --authority messages can be read"):
            commands.check_secrecy(host, False, False, "--authority")
    commands.check_secrecy("example.org", False, True, "--authority")
    (line,) = capsys.readouterr().out.splitlines()
    assert "protect nobody" in json.loads(line)["means"]


@pytest.mark.parametrize("text", ["host", "host:", ":7443", "host:x", "host:70000", "", "host:-1"])
def test_an_address_without_a_port_is_refused_before_anything_is_read(text):
    given = argparse.Namespace(server=text, listen=text, authority=None, certificate=None)
    for command, name in ((join.join, "--server"), (serve.serve, "--listen")):
        with pytest.raises(ConfigError, match=f"{name} is .*it must be host:port"):
            ends(command(given))
    assert commands.address_of("--server", "[::1]:7443") == ("::1", 7443)


def test_a_file_whose_arrays_do_not_belong_together_is_refused(tmp_path):
    cases = {
        "lengths": ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, ConfigError),
        "scalar": ({"x": np.zeros((3, 2)), "y": np.float64(1.0)}, ConfigError),
        "empty": ({}, ConfigError),
    }
    for name, (arrays, error) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(error, match="lengths of its arrays"):
            commands.examples_of(None, 0, str(tmp_path / f"{name}.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "lengths.npz").read_bytes()[:60])
    (tmp_path / "nothing.npz").write_bytes(b"")
    for name in ("one.npy", "cut.npz", "nothing.npz"):
        with pytest.raises(DatasetError, match=r"is no \.npz file"):
            commands.examples_of(None, 0, str(tmp_path / name))
    np.savez(tmp_path / "good.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    assert commands.examples_of(None, 0, str(tmp_path / "good.npz"))["x"].shape == (3, 2)


def test_only_bytes_are_a_body():
    assert relay.body_of({"body": b"abc"}, "body", 3) == b"abc"
    for record in (None, {}, {"body": 10**12}, {"body": [1, 2]}, {"body": "abc"}, {"body": b"abcd"}):
        assert relay.body_of(record, "body", 3) is None
    assert envelope.OVERHEAD < joining.JOINING < 100


@pytest.fixture
def flower(monkeypatch):
    """(the app's server, its client, a clock); without Flower, with stand-ins for what they import."""
    if importlib.util.find_spec("flwr") is None:

        class App:
            main = query = lambda self: lambda function: function

        stand_ins = {
            "flwr": {},
            "flwr.app": {
                "ConfigRecord": dict,
                "RecordDict": dict,
                "Context": object,
                "Message": types.SimpleNamespace,
            },
            "flwr.serverapp": {"Grid": object, "ServerApp": App},
            "flwr.clientapp": {"ClientApp": App},
        }
        for name, members in stand_ins.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
    names = ("cepam_jax.deploy.flower_client", "cepam_jax.deploy.flower_server")
    client, server = map(importlib.import_module, names)
    clock = Clock()
    monkeypatch.setattr(server, "time", clock)
    for module in (server, client):  # outside of a run Flower's own cannot be made
        monkeypatch.setattr(module, "Message", types.SimpleNamespace)
    yield server, client, clock
    for name in names:  # they may hold stand-ins, which no other test is to see
        sys.modules.pop(name, None)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Grid:
    """Flower's, with nodes that answer at once: node -> what it answers with, from the message's bytes."""

    def __init__(self, clock, nodes, since=0.0):
        self._clock, self._nodes, self._since, self.pushed, self._replies = clock, nodes, since, [], {}

    def get_node_ids(self):
        return list(self._nodes) if self._clock.now >= self._since else []

    def push_messages(self, messages):
        names = []
        for message in messages:
            content = getattr(message.content, "config_records", message.content)
            self.pushed.append((self._clock.now, message.dst_node_id))
            names.append(f"message{len(self.pushed)}")
            self._replies[names[-1]] = reply(
                names[-1], self._nodes[message.dst_node_id](content["cepam_jax"]["body"])
            )
        return names

    def pull_messages(self, names):
        return [self._replies.pop(name) for name in names if name in self._replies]


def reply(name, answer):
    """A message of Flower in reply to another: None is an error, and else the record, or what is none."""
    return types.SimpleNamespace(
        metadata=types.SimpleNamespace(reply_to_message_id=name),
        has_error=lambda: answer is None,
        error=types.SimpleNamespace(reason="crashed"),
        has_content=lambda: True,
        content=types.SimpleNamespace(config_records={} if answer == "nothing" else {"cepam_jax": answer}),
    )


def honest(number):
    """What a node answers whose worker is this client."""
    client = Answers(number)
    return lambda body: {"body": client.answer(body), "refused": False}


BAD = {
    "number": {"body": 10**12, "refused": False},
    "long": {"body": bytes(joining.JOINING + 1), "refused": False},
    "nameless": {"refused": False},
    "half": {"body": b"JOIN 0"},
    "recordless": "nothing",
    "error": None,
    "declined": {"body": b"foreign", "refused": True},
}


@pytest.mark.parametrize("name", BAD)
def test_a_node_that_answers_nonsense_is_logged_and_left_alone_for_a_while(name, flower):
    """Flower's nodes may answer anything; at first one in two does so, and then it comes to its senses."""
    module, _, clock = flower
    server, log, good = Rounds(clients=2), Log(), honest(1)
    nodes = {10: honest(0), 11: lambda body: good(body) if clock.now > 100 else BAD[name]}
    grid = Grid(clock, nodes)
    module.Carrier(server, grid, log, Waiting(again=60.0, patience=900.0)).run()
    assert server.finished and server.late == [()]
    times = [when for when, node in grid.pushed if node == 11 and when < 130]
    assert len(times) >= 3 and times[0] == 0 and times[1] >= 60 and times[2] >= 120
    (event,) = {event for event, values in log if values.get("node") == 11}
    assert event == {"error": "failed", "declined": "declined"}.get(name, "malformed")
    assert "bytes" not in log.named("round")[0]


def test_flowers_node_that_was_never_greeted_gives_no_answer_of_a_round(flower):
    """A recorded answer of the open round is not its writer's node."""
    module, _, clock = flower
    server, log = Rounds(clients=2), Log()
    nodes = {10: honest(0), 11: honest(1), 12: lambda body: {"body": b"REPLY 1", "refused": False}}
    carrier = module.Carrier(server, Grid(clock, nodes), log, Waiting(again=60.0, patience=900.0))
    carrier.run()
    assert server.finished and carrier._nodes == {0: 10, 1: 11}
    assert [line["reason"] for line in log.named("refused")] == ["unexpected"]


def test_flowers_client_whose_worker_was_started_again_is_greeted_again(flower):
    """Before its first request is on its disk, a client knows of no run."""
    module, _, clock = flower
    server, log, worker, greeted = Rounds(clients=1), Log(), honest(0), []

    def node(body):
        if body.startswith(b"hello "):
            greeted.append(clock.now)
        if len(greeted) == 1 and body == b"request":  # started again behind the first greeting
            return {"body": b"foreign", "refused": True}
        return worker(body)

    grid = Grid(clock, {10: node})
    module.Carrier(server, grid, log, Waiting(again=60.0, patience=900.0)).run()
    assert server.finished and len(greeted) == 2 and greeted[1] >= 60
    assert log.named("declined") == [{"node": 10, "client": 0, "reason": "foreign"}]


def test_flowers_deadline_begins_when_somebody_is_asked(flower):
    module, _, clock = flower
    server = Rounds(clients=2, ends="deadline", deadline=5.0)
    module.Carrier(server, Grid(clock, {10: honest(0)}, since=100.0), Log(), Waiting(patience=900.0)).run()
    assert clock.now > 105 and server.late == [(1,)]


def test_flowers_client_hands_on_bytes_alone(flower, monkeypatch):
    _, module, _ = flower
    handed = []
    monkeypatch.setattr(relay, "ask", lambda path, body: (handed.append(body) or True, b"answer"))
    context = types.SimpleNamespace(node_config={"worker": "/worker.sock"})

    def answered(records):
        content = types.SimpleNamespace(config_records=records)
        found = module.answer(types.SimpleNamespace(content=content), context).content
        return getattr(found, "config_records", found)["cepam_jax"]

    for body in (10**12, [1.0], "text"):
        found = answered({"cepam_jax": {"body": body}})
        assert found["refused"] and found["body"] == b"malformed"
    assert answered({})["refused"] and not handed
    found = answered({"cepam_jax": {"body": b"request"}})
    assert not found["refused"] and found["body"] == b"answer" and handed == [b"request"]
