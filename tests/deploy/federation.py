"""Small federations of hospitals for the tests of deployments, in process and without sockets."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.data import sources
from cepam_jax.deploy import agreement, joining, keys, step
from cepam_jax.deploy.client import Client
from cepam_jax.deploy.server import Server
from cepam_jax.federated.rounds import make_round
from cepam_jax.federated.state import client_keys
from cepam_jax.run import build
from configs import hospitals


class Made(NamedTuple):
    """A federation: its agreement, the folder of its keys, and what simulates it."""

    agreement: agreement.Agreement
    folder: Path
    config: Any
    split: Any
    data: Any

    def server(self, name: str = "server", **options) -> Server:
        """Its server, in a directory of this name."""
        private = keys.read_private(self.folder / "server.key")
        return Server(self.folder / name, self.agreement, private, **options)

    def client(self, number: int, name: str = "", **options) -> Client:
        """A client, in a directory of this name."""
        private = keys.read_private(self.folder / f"{number}.key")
        own = {name: array[self.split.client(number)] for name, array in self.data.train.items()}
        return Client(self.folder / (name or f"client{number}"), self.agreement, private, own, **options)

    def clients(self, **options) -> list[Client]:
        """All clients."""
        return [self.client(number, **options) for number in range(self.config.num_clients)]


def small(variant: str = "cepam_gaussian", **fields) -> Any:
    """The configuration of a few short rounds of logistic regression over the eight hospitals."""
    config = hospitals.get_config(variant)
    config.model, config.rounds, config.eval_every, config.local.steps, config.wire = "linear", 3, 3, 2, True
    config.update_from_flattened_dict(fields)
    return config


def made(folder: Path, config: Any) -> Made:
    """A federation with keys in a folder."""
    data = sources.load_examples("hospitals")
    split = build.split_of(config, data)
    server = keys.write_private(folder / "server.key")
    clients = [keys.write_private(folder / f"{k}.key") for k in range(config.num_clients)]
    found = agreement.make(config, data, split, server, clients)
    return Made(found, folder, config, split, data)


def simulated(federation: Made) -> tuple[keys.Source, Any]:
    """(the keys of the simulation of a federation, its key of who is drawn)."""
    arrays = build.client_arrays(federation.config, federation.split)

    def shared(master, number, client):
        return client_keys(arrays, number, client)[1].shared

    def private(number, client):
        training, both = client_keys(arrays, number, client)
        return training, both.private

    return keys.Source(shared, private), arrays.training_key


def simulate(federation: Made) -> tuple[Any, np.ndarray]:
    """(State after all rounds of the simulation, bytes int[rounds, participants] of its messages)."""
    _, _, plan = federation.agreement.parts()
    config, data = federation.config, federation.data
    arrays = build.client_arrays(config, federation.split)
    arrays = arrays._replace(examples=dict(data.train), constants=dict(data.constants))
    state, sizes, run = step.common(federation.agreement).start, [], jax.jit(make_round(plan))
    for _ in range(config.rounds):
        state, report = run(state, arrays)
        sizes.append(np.asarray(report.participants.bytes))
    return state, np.array(sizes)


def joined(server: Server, client: Client) -> tuple[bytes, bytes]:
    """(what a client answers to a new greeting of the server, that greeting's challenge)."""
    challenge = joining.challenge()
    return client.answer(server.hello(challenge)), challenge


def join(server: Server, clients: list[Client]) -> None:
    """All clients join."""
    for client in clients:
        assert server.receive(*joined(server, client)) == client.number


def run_round(server: Server, clients: list[Client]) -> dict:
    """One round without failures."""
    for number in server.drawn:
        server.receive(clients[number].answer(server.request(number)))
    return server.close_round()


def equal(one: Any, other: Any) -> bool:
    """Whether two lists of arrays are the same to the bit."""
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
