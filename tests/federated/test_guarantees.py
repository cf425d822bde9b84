"""What a run claims, and what it refuses to claim."""

import jax
import numpy as np
import pytest

from cepam_jax.errors import ConfigError
from cepam_jax.federated import guarantees
from cepam_jax.federated.program import shared_key
from cepam_jax.federated.rounds import Federation, client_keys
from cepam_jax.federated.training import train
from configs import digits

COUNTS = np.full(10, 140)


def config_of(variant="cepam_gaussian", **fields):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.num_clients = "linear", 4, 2, 10
    config.update_from_flattened_dict(fields)
    return config


def epsilon(config, adversary="released_model"):
    return guarantees.epsilons(config, COUNTS, config.rounds)[adversary]


@pytest.mark.parametrize(
    ("variant", "fields", "text"),
    [
        ("cepam_gaussian", {"mechanism.clip": "none"}, "not clipped"),
        ("cepam_laplace", {"mechanism.clip": "l2"}, "Laplace noise needs an L1 clip"),
        ("cepam_laplace", {"mechanism.rotate": True}, "Laplace noise needs an L1 clip"),
        ("cepam_gaussian", {"mechanism.sparsify": "top_k"}, "not covered: which coordinates are largest"),
        ("cepam_gaussian", {"aggregator": "examples"}, "not covered: numbers of examples"),
        ("cepam_gaussian", {"aggregator": "inverse_error"}, "not covered: weights by inverse error"),
        ("cepam_gaussian", {"local.normalize": True}, "not covered: numbers of local steps"),
        ("sdq", {}, "no noise hides the update"),
        ("cepam_gaussian", {}, "not covered: the messages on the wire"),
    ],
)
def test_the_report_says_what_is_not_covered(variant, fields, text):
    assert text in guarantees.report_text(config_of(variant, **fields), COUNTS)


def test_masks_leave_a_client_its_own_noise():
    masked = config_of(**{"mechanism.sparsify": "mask"})
    assert epsilon(masked) == pytest.approx(epsilon(masked, "decoded_updates"))
    assert epsilon(config_of()) < epsilon(masked)


def test_schedules_count_round_by_round():
    plain = epsilon(config_of())
    fading = epsilon(config_of(**{"schedule.knob": "gamma", "schedule.end": 0.1}))
    assert fading < plain


def test_a_target_is_met_and_budgets_end(tmp_path, capsys):
    config = config_of(**{"privacy.target_epsilon": 20.0})
    lines = train(config, tmp_path / "calibrated", progress=False)
    assert 19.9 < lines[-1]["epsilon"]["released_model"] <= 20.0
    assert lines[-1]["epsilon"]["server"] is None
    assert lines[1]["epsilon"]["released_model"] < lines[-1]["epsilon"]["released_model"]
    assert "epsilon = 20 at delta = 1e-05" in (tmp_path / "calibrated/privacy.txt").read_text()
    gamma = guarantees.calibrated(config, COUNTS).mechanism.gamma
    fields = {
        "privacy.target_epsilon": 20.0,
        "privacy.calibrate": False,
        "mechanism.gamma": gamma,
        "rounds": 9,
    }
    stopped = train(config_of(**fields), tmp_path / "stopped", progress=False)
    assert stopped[-1]["round"] == 4
    assert "ends after round 4 of 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"privacy.target_epsilon": 1.0, "mechanism.clip": "none"}, "no gamma gives an epsilon"),
        ({"local.example_clip": 1.0}, "config.local.example_clip is 1.0; it must be 0 unless"),
        ({"mechanism.name": "split", "mechanism.target": "laplace"}, "config.mechanism.target is 'laplace'"),
    ],
)
def test_impossible_requests_are_named(fields, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        train(config_of(**fields), tmp_path, progress=False)


def test_example_level(tmp_path):
    fields = {
        "local.update_kind": "gradient",
        "local.sampling": "shuffle",
        "local.example_clip": 0.5,
        "mechanism.clip": "none",
        "mechanism.gamma": 100.0,
        "server.learning_rate": 1.0,
    }
    config = config_of(**fields)
    lines = train(config, tmp_path, progress=False)
    assert lines[-1]["loss"] < lines[0]["loss"]
    # The update is a mean of clipped gradients: no longer than the clip, as a mean over clients at most.
    assert lines[-1]["update_norm"] <= 0.5 + 1e-5
    text = guarantees.report_text(config, COUNTS)
    assert "example level, replace" in text
    few = guarantees.federation_of(config, np.full(10, 48))
    batch = config.local.steps * config.local.batch_size
    np.testing.assert_allclose(few.clip, np.ceil(batch / 48) * 0.5 / batch)


def test_no_key_is_used_twice():
    """Training, private and shared keys of 40 rounds and 50 clients, and of another run: all different."""
    words = []
    for seeds in ((0, 0), (0, 1), (1, 0)):
        fed = Federation(*[None] * 5, jax.random.key(seeds[0]), shared_key(seeds[1]))

        def keys(number, client, fed=fed):
            training, mechanism = client_keys(fed, number, client)
            return [jax.random.key_data(k) for k in (training, mechanism.shared, mechanism.private)]

        rounds, clients = np.meshgrid(np.arange(40), np.arange(50))
        found = jax.vmap(keys)(rounds.ravel(), clients.ravel())
        words.append(np.stack(found).reshape(3, -1, 2))
    # Run 2 has the training seed of run 1, run 3 its shared seed: 3 x 3 kinds of keys less 3 repeated.
    distinct = {tuple(w) for run in words for kind in run for w in kind.tolist()}
    assert len(distinct) == 6 * 2000
