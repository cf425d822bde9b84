"""A deployed run and the simulation of the same configuration, given the same keys."""

import pytest

pytest.importorskip("cryptography", reason="NO CRYPTOGRAPHY: pip install -r requirements-deploy.txt")

import jax
import numpy as np
from deploy import federation

from cepam_jax.deploy import spent
from cepam_jax.run import traffic, training
from cepam_jax.run.checkpoints import Checkpoints

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

CASES = {
    "E8": ("cepam_gaussian", {"mechanism.lattice": "E8", "mechanism.per_client.gamma": (3.0,) + (30.0,) * 7}),
    "split": ("split", {"clients_per_round": 5, "aggregator": "examples"}),
    "bucketing": (
        "cepam_gaussian",
        {"aggregator": "trimmed_mean", "byzantine.before": "bucketing", "seeds.shared": 5},
    ),
    "clipped": ("clipped", {"server.optimizer": "adam", "server.learning_rate": 0.1}),
}


def deployed(made):
    """(the server after all rounds, bytes of each round's messages), given the simulation's keys."""
    source, draws = federation.simulated(made)
    server = made.server(source=source, draws=draws)
    clients = made.clients(source=source)
    federation.join(server, clients)
    sizes = []
    while not server.finished:
        found = federation.run_round(server, clients)["bytes"]
        sizes.append([found[client] for client in sorted(found)])
    return server, np.array(sizes)


@pytest.mark.parametrize("name", CASES)
def test_messages_and_model_are_those_of_the_simulation(name, tmp_path):
    """To the bit: the parts of a round and the keys are the same, and so is the compiled code."""
    variant, fields = CASES[name]
    made = federation.made(tmp_path, federation.small(variant, **fields))
    server, sizes = deployed(made)
    state, simulated = federation.simulate(made)
    assert np.array_equal(sizes, simulated)
    assert federation.equal(jax.tree.leaves(state), jax.tree.leaves(server.state))


def test_the_model_and_the_ledger_are_those_of_a_trained_run(tmp_path):
    """Of `experiments.train`, whose rounds are compiled together with the evaluation."""
    made = federation.made(tmp_path, federation.small())
    server, sizes = deployed(made)
    lines = training.train(made.config, tmp_path / "run", progress=False)
    trained = Checkpoints(tmp_path / "run/checkpoints").newest(server.state).state
    assert lines[-1]["messages"]["up"] == traffic.shortened(8 * sizes)
    assert federation.equal(jax.tree.leaves(trained), jax.tree.leaves(server.state))
    assert server.ledger.text() == (tmp_path / "run/ledger.jsonl").read_text()
    epsilon = {name: float(max(found)) for name, found in spent.epsilons(server).items()}
    assert {n: e if np.isfinite(e) else None for n, e in epsilon.items()} == lines[-1]["epsilon"]


def test_without_the_simulations_keys_another_model_comes_out(tmp_path):
    """The twin of the test above: it would notice."""
    made = federation.made(tmp_path, federation.small(rounds=1, eval_every=1))
    source, draws = federation.simulated(made)
    one, other = made.server("one", source=source, draws=draws), made.server("other")
    for name, server, options in (("a", one, {"source": source}), ("b", other, {})):
        clients = [made.client(number, f"{name}{number}", **options) for number in range(8)]
        federation.join(server, clients)
        federation.run_round(server, clients)
    assert not federation.equal(jax.tree.leaves(one.state.params), jax.tree.leaves(other.state.params))
