"""Secure sums in configured runs and from Python: resumed to the bit, swept, what ledger and report say."""

import json

import flax.linen as nn
import numpy as np
import optax
import pytest

import cepam_jax
from cepam_jax import mechanisms, tasks
from cepam_jax.errors import ConfigError
from cepam_jax.run import ledger, training
from configs import digits

pytestmark = [pytest.mark.compiled_fast(mlir=True), pytest.mark.slow]  # sweeps are their runs to the bit

TIMES = ("seconds", "seconds_per_round")
FIELDS = {
    "model": "linear",
    "mechanism.name": "secure_sum",
    "mechanism.gamma": 5.0,
    "mechanism.secure.survivors": 8,
    "mechanism.secure.colluders": 3,
    "mechanism.secure.lost": 0.15,
    "rounds": 6,
    "eval_every": 2,
}


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict(FIELDS | fields)
    return config


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds together, and the first of them alone and interrupted."""
    root = tmp_path_factory.mktemp("sums")
    configs = [config_of(**{"seeds.training": seed}) for seed in range(2)]
    together = training.train_many(configs, [root / f"many{n}" for n in range(2)], progress=False)
    training.train(config_of(rounds=4), root / "alone", progress=False)
    alone = training.train(configs[0], root / "alone", progress=False)
    return root, together, alone


def test_a_run_is_resumed_to_the_bit_and_swept(runs):
    root, together, alone = runs
    assert without_times(alone) == without_times(together[0])
    assert (root / "alone/ledger.jsonl").read_text() == (root / "many0/ledger.jsonl").read_text()


def test_the_ledger_and_the_report_say_who_arrived_and_what_is_counted(runs):
    root, together, _ = runs
    lines = [json.loads(line) for line in (root / "many0/ledger.jsonl").read_text().splitlines()]
    assert lines[0]["parts"]["summed"] == [8, 3, 1.5]
    arrived = [count for line in lines for count in line.get("arrived", ())]
    assert len(arrived) == 6 and set(arrived) <= set(range(11)) and len(set(arrived)) > 1
    text = (root / "many0/privacy.txt").read_text()
    assert "server: epsilon" in text and "the noise of 8 participants" in text
    assert "server_and_colluders: epsilon" in text and "the noise of 5 participants" in text
    assert "taken for granted" in text
    epsilon = together[0][-1]["epsilon"]
    assert epsilon["released_model"] == epsilon["server"] < epsilon["server_and_colluders"]
    assert epsilon["server_and_colluders"] < epsilon["decoded_updates"]
    read = ledger.read((root / "many0/ledger.jsonl").read_text())
    assert ledger.read(read.text()) == read


def test_a_ledger_of_another_sum_is_refused(runs, tmp_path):
    """Fewer messages would have been opened: the noise of the rounds before was another."""
    root, *_ = runs
    with pytest.raises(ConfigError, match="survivors"):
        training.train(config_of(**{"mechanism.secure.survivors": 11}), tmp_path, progress=False)
    text = (root / "many0/ledger.jsonl").read_text().replace("[8, 3, 1.5]", "[9, 3, 1.5]")
    (root / "many0/ledger.jsonl").write_text(text)
    found = training.train(config_of(), root / "many0", progress=False)
    assert found  # the run is over; its ledger was mended or is its own again
    config = config_of(**{"mechanism.secure.survivors": 7})
    with pytest.raises(Exception, match="survivors"):
        training.train(config, root / "many1", progress=False)


def test_from_python():
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 200)
    x = (random.normal(size=(200, 4)) + 3 * np.eye(3, 4)[y]).astype(np.float32)
    clients = cepam_jax.clients({"inputs": x, "labels": y}, owners=np.arange(200) % 10)

    def federation(sigma=0.05, **more):
        quantizer = mechanisms.chain(mechanisms.clip("l2"), mechanisms.secure_sum(survivors=9))
        task = tasks.classification(nn.Dense(3), example=x[0])
        return cepam_jax.Federation(
            task, clients, quantizer, sigma=sigma, clip=1.0, optimizer=optax.sgd(0.5), steps=3, **more
        )

    one = federation()
    state = one.initialize()
    for _ in range(3):
        state, _ = one.step(state)
    found = one.epsilons()
    np.testing.assert_array_equal(found["server"], found["released_model"])
    assert (found["server"] < found["decoded_updates"]).all() and "server_and_colluders" not in found
    assert one.evaluate(state, {"inputs": x, "labels": y})["accuracy"] > 0.6
    assert one.ledger.entries[0].arrived == (10, 10, 10)
    with pytest.raises(ConfigError, match="error feedback"):
        federation(error_feedback=True).initialize()
    with pytest.raises(ConfigError, match="share one step"):
        federation(sigma=np.linspace(0.05, 0.06, 10))
