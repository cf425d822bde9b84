"""Training with real bytes is the same training."""

import json

import pytest

from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.run.training import train
from configs import digits

pytestmark = [pytest.mark.usefixtures("no_picture"), pytest.mark.compiled_fast]


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


def config_of(variant, **fields):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.num_clients = "linear", 4, 2, 5
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        slow("cepam_gaussian", {"mechanism.lattice": "Z2", "clients_per_chunk": 3}),
        slow("cepam_laplace", {"mechanism.scales": "public"}),
        ("top_k", {"aggregator": "inverse_error"}),
        slow("sketched", {}),
        slow("clipped", {"schedule.knob": "bits", "schedule.end": 0.5}),
        slow("noise_laplace_sdq", {"mechanism.sparsify": "mask"}),
        ("fedavg", {}),
    ],
)
def test_same_trajectory_to_the_bit(variant, fields, tmp_path):
    runs = []
    for packed in (False, True):
        config = config_of(variant, wire=packed, **fields)
        runs.append(train(config, tmp_path / str(packed), progress=False))
    for plain, real in zip(*runs, strict=True):
        for name in ("loss", "accuracy", "train_loss", "uplink_bits", "snr", "update_norm"):
            assert plain.get(name) == real.get(name), name
    assert "uplink_bytes" not in runs[0][-1]
    last = runs[1][-1]
    # 5 clients, 2 rounds; short messages of few tensors: their headers and last words count.
    assert 0 <= 8 * last["uplink_bytes"] - 0.98 * last["uplink_bits"] < 0.04 * last["uplink_bits"] + 10 * 400


def test_an_invalid_update_is_reported_as_without_bytes(tmp_path):
    config = config_of("cepam_gaussian", wire=True)
    config.local.learning_rate = 3e38
    with pytest.raises(NonFiniteUpdateError, match="client 0 sent a NaN or infinite update in round 1"):
        train(config, tmp_path, progress=False)


def test_public_scales_need_a_mechanism_that_codes_with_scales(tmp_path):
    for variant, fields in (("clipped", {}), ("cepam_gaussian", {"mechanism.rotate": True})):
        config = config_of(variant, **{"mechanism.scales": "public", **fields})
        with pytest.raises(ConfigError, match="mechanism.scales is 'public'"):
            train(config, tmp_path, progress=False)


@pytest.mark.slow
@pytest.mark.compiled_fast
def test_a_run_with_public_scales_resumes(tmp_path):
    whole = train(
        config_of("cepam_gaussian", **{"mechanism.scales": "public"}), tmp_path / "a", progress=False
    )
    short = config_of("cepam_gaussian", **{"mechanism.scales": "public", "rounds": 2})
    train(short, tmp_path / "b", progress=False)
    again = config_of("cepam_gaussian", **{"mechanism.scales": "public"})
    resumed = train(again, tmp_path / "b", progress=False)
    assert json.dumps(whole[-1]["loss"]) == json.dumps(resumed[-1]["loss"])


@pytest.mark.slow
@pytest.mark.compiled_fast
@pytest.mark.parametrize(("variant", "factor"), [("split", 1.1), ("noise_gaussian_sdq", 1.1)])
def test_public_scales_count_the_noise_that_is_coded(variant, factor, tmp_path):
    """The last aggregate less its noise says nothing of the noise that was added before the quantizer."""
    bits = []
    for scales in ("own", "public"):
        fields = {"mechanism.scales": scales, "mechanism.gamma": 30.0, "rounds": 4, "eval_every": 4}
        lines = train(config_of(variant, **fields), tmp_path / scales, progress=False)
        bits.append(lines[-1]["bits_per_coordinate"])
    assert bits[1] < factor * bits[0]
