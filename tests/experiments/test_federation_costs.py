"""Parts of the benchmark of a deployment and of the count of Flower's bytes; test_docs.py runs the whole."""

import importlib
import socket
import ssl
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

from conftest import ROOT

from cepam_jax.data import sources
from cepam_jax.deploy import certificates
from cepam_jax.run import build
from configs import hospitals
from experiments import flower_bytes, flower_network
from experiments.benchmarks import deploy
from experiments.counting import Relay, Requests

pytestmark = pytest.mark.slow


def test_clients_share_processes_as_evenly_as_can_be():
    names = tuple(f"client{k}" for k in range(7))
    groups = deploy.shared(names, 3)
    assert sum(groups, ()) == names and sorted(map(len, groups)) == [2, 2, 3]
    assert deploy.shared(names[:2], 3) == [("client0",), ("client1",)]


def test_a_round_is_the_median_between_ends_and_cpu_begins_with_the_second(tmp_path):
    assert deploy.period([5.0, 5.5, 5.75, 9.0]) == 0.5
    watch = deploy.Watch(tmp_path / "none")
    watch.cpu = [(0, 3.0), (1, 4.0), (1, 4.1), (3, 4.6), (5, 5.2), (5, 9.0)]
    assert watch.cpu_of_round(5) == pytest.approx(1.2 / 4)


def test_a_watch_sees_the_memory_and_the_time_of_a_process(tmp_path):
    code = "x = bytearray(64 * 2**20)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        try:
            watch = deploy.Watch(tmp_path / "none")
            for _ in range(3000):  # a minute at least
                watch({"server": busy})
                if len(watch.cpu) >= 2 and watch.cpu[-1][1] >= 0.2:
                    break
        finally:
            busy.kill()
    assert watch.cpu[-1][0] == 0 and watch.cpu[-1][1] >= 0.2 and 64 < watch.peaks["server"] < 300


def test_the_table_of_flowers_bytes_compares_the_two_runs():
    one = flower_bytes.Found(1000, 50, {"/a/push-message": (2, 100, 300), "/a/pull": (4, 200, 100)}, 1.0, 0.5)
    other = flower_bytes.Found(
        4000, 150, {"/a/push-message": (9, 900, 1500), "/a/pull": (9, 1100, 50)}, 1.0, 1.0
    )
    lines = flower_bytes.table({"CEPAM": one, "FedAvg": other}, 2).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["of a round and client", "CEPAM", "FedAvg", "times less"]
    assert rows[2:10] == [
        ["bytes up, all", "500", "2,000", "4.0"],
        ["of these, pushed bodies", "150", "750", "5.0"],
        ["other bodies", "50", "25", "0.5"],
        ["heads of HTTP's requests", "150", "1,000", "6.7"],
        ["TLS", "150", "225", "1.5"],
        ["bytes down, all", "25", "75", "3.0"],
        ["requests", "3.0", "9.0", "3.0"],
        ["test accuracy", "0.5000", "1.0000", ""],
    ]
    assert ["CEPAM", "push-message", "1.00", "50", "150"] in rows


@pytest.mark.parametrize("fails", ["the command", "a process", "time"])
def test_flowers_command_is_not_waited_for_when_it_cannot_end(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(flower_network, "PROGRAMS", tmp_path)
    program, log = tmp_path / "flwr", tmp_path / "log"
    program.write_text("#!/bin/sh\n" + ("echo no; exit 3\n" if fails == "the command" else "exec sleep 60\n"))
    program.chmod(0o700)
    log.write_text("")
    code = "exit(4)" if fails == "a process" else "import time; time.sleep(60)"
    said = {
        "the command": "^flwr run ended with code 3:\nno$",
        "a process": "^the SuperLink ended with code 4",
        "time": "^flwr run did not end in 0 s",
    }
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        if fails == "a process":
            other.wait(20)
        running, seconds = {"the SuperLink": (other, log)}, 0.3 if fails == "time" else 20.0
        try:
            with pytest.raises(RuntimeError, match=said[fails]):
                flower_network.flwr("run", log=tmp_path / "run.log", running=running, seconds=seconds)
        finally:
            other.kill()


def test_requests_are_counted_by_path_wherever_the_stream_is_cut():
    parts = [
        b"POST /a?x=1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"hello",
        b"GET /b HTTP/1.1\r\nHost: c\r\n\r\n",
    ]
    parts += [b"POST /a HTTP/1.1\r\ncontent-length: 3\r\n\r\n", b"\r\n\r"]
    whole = b"".join(parts)
    for size in (1, 3, 7, len(whole)):
        found = Requests()
        for i in range(0, len(whole), size):
            found.feed(whole[i : i + size])
        assert found.number == {"/a": 2, "/b": 1} and found.bodies == {"/a": 8, "/b": 0}
        assert found.heads == {"/a": len(parts[0]) + len(parts[3]), "/b": len(parts[2])}
    with pytest.raises(ValueError, match="chunks"):
        Requests().feed(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_a_relay_hands_on_and_counts_what_passes(tmp_path):
    certificates.make(tmp_path, "127.0.0.1")
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    dials = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    request = b"POST /push HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + 1000 * b"x"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Relay(listener.getsockname()[1], tmp_path) as relay,
    ):
        plain = socket.create_connection(("127.0.0.1", relay.port))
        there = None
        with dials.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=True) as client:
            there = own.wrap_socket(listener.accept()[0], server_side=True)
            with there:
                before = relay.traffic()
                client.sendall(request)
                got = b""
                while len(got) < len(request):
                    got += there.recv(4096)
                there.sendall(b"answer")
                assert got == request and client.recv(6) == b"answer"
                for _ in range(1000):  # what is sent counts when the other side's system has acknowledged it
                    up, down = (b - a for a, b in zip(before, relay.traffic(), strict=True))
                    if down > 6:
                        break
                    time.sleep(0.01)
        found = relay.requests
    assert found.number == {"/push": 1} and found.bodies == {"/push": 1000} and not relay.failed
    # Beside the bytes a record of TLS 1.3 has 22; tickets of the server are no part of what passes.
    assert len(request) < up < len(request) + 200 and 6 < down < 200


def test_the_network_in_numpy_has_the_gradients_and_steps_of_the_configuration(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples/flower_fedavg"))
    network = importlib.import_module("fedavg_numpy.network")
    config, data = hospitals.get_config("fedavg"), sources.load_examples("hospitals")
    task = build.task_of(config, data.specification)
    model = task.initialize(jax.random.key(3))
    batch = {name: array[:50] for name, array in data.train.items()}
    x = ((batch["x"] - data.constants["mean"]) / data.constants["std"]).astype(np.float32)

    def named(tree):
        leaves = jax.tree_util.tree_leaves_with_path((tree, {}))
        return {flower_bytes.short(jax.tree_util.keystr(at)): np.asarray(leaf) for at, leaf in leaves}

    def loss(params):
        return task.loss(model._replace(params=params), batch, data.constants, jax.random.key(0))[0]

    own, value = named(model.params), batch["label"].astype(np.float32)
    assert network.loss(own, x, value) == pytest.approx(float(loss(model.params)), rel=1e-5)
    found, wanted = network.gradient(own, x, value), named(jax.grad(loss)(model.params))
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-6)
    # One example alone is what every batch draws, so that the steps are known: v = m v + g, then w = w - r v.
    after = network.trained(own, x[:1], value[:1], 3, 4, 0.1, 0.5, np.random.default_rng(0))
    expected, trace = dict(own), {name: np.zeros_like(array) for name, array in own.items()}
    for _ in range(3):
        for name, array in network.gradient(dict(expected), x[:1], value[:1]).items():
            trace[name] = 0.5 * trace[name] + array
        expected = {name: expected[name] - 0.1 * trace[name] for name in expected}
    for name, array in after.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(network.loss(after, x, value))
