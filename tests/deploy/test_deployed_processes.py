"""Deployments over sockets: real processes on loopback, and what happens when they are killed."""

import asyncio
import os
import random
import signal
import subprocess
import sys

import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

import numpy as np
from conftest import ROOT
from deploy import federation

from cepam_jax.deploy import certificates, dialling, frames, spent, store
from cepam_jax.deploy.serving import Serving, Stalled, Waiting
from experiments import fault_campaign

pytestmark = pytest.mark.compiled_fast  # and so what its processes compile


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    certificates.make(folder / "tls", "127.0.0.1")
    return federation.made(folder, federation.small())


def nothing(event, **values):
    """A log that nobody reads."""


async def together(server, clients, tls=(None, None), waiting=None):
    """A server and clients on a socket of this process, until all is done; bytes by client."""
    serving, port = Serving(server, nothing, waiting or Waiting(again=0.2)), asyncio.Future()
    work = [asyncio.ensure_future(serving.run("127.0.0.1", 0, tls[0], port.set_result))]
    at = await port
    work += [asyncio.ensure_future(dialling.run(one, "127.0.0.1", at, tls[1], nothing)) for one in clients]
    try:
        await work[0]
        await asyncio.gather(*work)
    finally:
        for task in work:
            task.cancel()
    return serving.traffic


def test_over_tls_the_model_is_that_of_the_simulation(made):
    source, draws = federation.simulated(made)
    server = made.server("tls", source=source, draws=draws)
    clients = [made.client(k, f"tls{k}", source=source) for k in range(8)]
    folder = made.folder / "tls"
    tls = (
        frames.server_tls(made.folder / "tls/server.pem", made.folder / "tls/server.key"),
        frames.client_tls(made.folder / "tls/ca.pem"),
    )
    traffic = asyncio.run(together(server, clients, tls, Waiting(again=60)))  # nobody is asked twice
    state, sizes = federation.simulate(made)
    assert federation.equal(federation.jax.tree.leaves(state), federation.jax.tree.leaves(server.state))
    assert all(client.finished and client.answered == 3 for client in clients)
    for client, counted in traffic.items():
        # Beside the messages there are 200 bytes at most for each: envelope, frame, TLS and its handshake.
        assert sizes[:, client].sum() < counted.received < sizes[:, client].sum() + 8 * 200
        assert counted.sent > 3 * 4 * server.coordinates
    spent.write_model(server, folder / "model.npz")
    with np.load(folder / "model.npz") as found:
        assert sum(found[name].size for name in found) == server.coordinates


def test_a_round_that_nobody_ends_stalls_by_name_and_goes_on(made):
    server = made.server("stalled")
    clients = [made.client(k, f"stalled{k}") for k in range(8)]
    with pytest.raises(Stalled, match="round 1 waits for clients 7"):
        asyncio.run(together(server, clients[:7], waiting=Waiting(again=0.1, patience=6.0)))
    before = spent.epsilons(server)
    assert server.round == 0 and min(before["decoded_updates"]) > 0  # seven answers are out
    server.close()
    again = made.server("stalled")
    asyncio.run(together(again, clients))
    assert again.finished and all(client.answered == 3 for client in clients)
    assert again.ledger.rounds == 3


def test_epsilon_is_on_the_disk_before_the_model_is_sent(made):
    """What a client is asked in round 2 was written before: killed there, the server still knows it."""
    server = made.server("ahead")
    clients = [made.client(k, f"ahead{k}") for k in range(8)]
    federation.join(server, clients)
    federation.run_round(server, clients)
    request, one = server.request(3), spent.epsilons(server)
    server._lock.release()  # as a kill would
    again = made.server("ahead")
    assert again.request(3) == request and again.round == 1
    assert federation.equal(spent.epsilons(again).values(), one.values())
    record, _ = store.load(made.folder / "ahead" / "server.state")
    assert '"rounds": 1' in record["ledger"]


def test_late_clients_are_left_out_where_the_configuration_says_so(tmp_path):
    fields = {"links.name": "ethernet10g", "links.ends": "quorum", "links.quorum": 0.5, "rounds": 1}
    made = federation.made(tmp_path, federation.small("split", **fields, **{"mechanism.share": 0.5}))
    server, clients = made.server(), [made.client(k) for k in range(5)]
    federation.join(server, clients)
    for client in clients[:3]:
        server.receive(client.answer(server.request(client.number)))
    assert not server.enough and server.missing == (3, 4, 5, 6, 7)
    for client in clients[3:]:
        server.receive(client.answer(server.request(client.number)))
    assert server.enough and server.close_round()["late"] == (5, 6, 7)
    assert all(np.isfinite(leaf).all() for leaf in federation.jax.tree.leaves(server.state.params))
    assert np.isfinite(spent.epsilons(server)["server"]).all()


@pytest.mark.slow
def test_a_campaign_of_failures_with_processes_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = fault_campaign.prepared(tmp_path, 4)
    proxy, hung = asyncio.run(fault_campaign.run(tmp_path, random.Random(1), 280.0))
    assert not hung and sum(count for what, count in proxy.counts.items() if "killed" in what)
    assert fault_campaign.judged(tmp_path, found, proxy) == dict.fromkeys(fault_campaign.RIGHT, True)


@pytest.mark.slow
def test_the_demo_ends_quietly_by_ctrl_c_and_shows_no_secret(tmp_path):
    fields = ("rounds=2", "num_clients=3", "model=linear")
    command = [sys.executable, "-m", "cepam_jax.deploy.demo", f"--folder={tmp_path}"]
    command += ["--config=configs/digits.py:cepam_gaussian", *(f"--set={field}" for field in fields)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as demo:
        try:
            demo.communicate(timeout=8)
        except subprocess.TimeoutExpired:
            os.killpg(demo.pid, signal.SIGINT)
        _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130 and b"Traceback" not in said and b"interrupted" in said
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0 and "| client2 |" in done.stdout, done.stderr
    text = b"".join(path.read_bytes() for path in tmp_path.glob("*.log")) + done.stdout.encode()
    for path in tmp_path.glob("*.key"):
        assert path.read_bytes() not in text and path.read_bytes().hex().encode() not in text
        states = b"".join(one.read_bytes() for one in tmp_path.glob("*/*.state"))
        assert path.read_bytes() not in states and path.read_bytes().hex().encode() not in states
