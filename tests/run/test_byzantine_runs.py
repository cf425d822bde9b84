"""Robust rules, lies and checks in configured runs: what is refused, what is accounted, what is resumed."""

import numpy as np
import pytest

import cepam_jax
from cepam_jax import mechanisms, privacy, tasks
from cepam_jax.errors import ConfigError
from cepam_jax.federated import ATTACKS, Byzantine, byzantine, robust
from cepam_jax.federated.aggregation import RULES
from cepam_jax.run import guarantees, training
from cepam_jax.run.config import validate
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TIMES = ("seconds", "seconds_per_round")


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"model": "linear", "rounds": 4, "eval_every": 2, **fields})
    return config


def epsilons(config):
    found = privacy.report(guarantees.federation_of(config, np.full(config.num_clients, 100)), 1e-5)
    return {row.adversary: float(np.max(row.epsilon)) for row in found}


@pytest.mark.parametrize(
    "fields",
    [
        *({"aggregator": rule, "byzantine.tolerated": 1} for rule in RULES),
        *({"aggregator": rule, "byzantine.check": True} for rule in ("mean", "examples")),
        {"byzantine.check": True, "byzantine.pairs": True},
        {"aggregator": "multi_krum", "byzantine.check": True, "byzantine.pairs": True},
        {"byzantine.attack": "mimic", "byzantine.clients": 1},
        {"byzantine.attack": "label_flip", "byzantine.clients": 1},
        {"aggregator": "krum", "byzantine.noise": "known", "byzantine.before": "mixing"},
        {"aggregator": "median", "clients_per_round": 5},
        {"aggregator": "median", "local.worker_momentum": 0.9},
    ],
)
def test_nobody_counts_on_the_noise_of_others(fields):
    """The released model is accounted as the decoded updates are; the mean's epsilon would be smaller."""
    config = config_of(**fields)
    validate(config)
    found = epsilons(config)
    assert found["released_model"] == found["decoded_updates"] == found["colluding_clients"] < np.inf
    if "clients_per_round" not in fields:
        assert epsilons(config_of())["released_model"] < found["released_model"]


def test_momentum_at_the_workers_alone_changes_no_epsilon():
    """The clip bounds what is sent in each round, whatever it remembers of the client's data."""
    assert epsilons(config_of(**{"local.worker_momentum": 0.9})) == epsilons(config_of())


def test_momentum_at_the_workers_betrays_earlier_draws():
    """So nobody may count on hidden draws; the twin without momentum does."""
    drawn = {"clients_per_round": 2, "mechanism.gamma": 1.0, "privacy.relation": "replace", "rounds": 20}
    with_it, without = (
        guarantees.federation_of(config_of(**drawn, **more), np.full(10, 100))
        for more in ({"local.worker_momentum": 0.5}, {})
    )
    assert without.hidden and not with_it.hidden


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"aggregator": "krum", "byzantine.tolerated": 4}, "at least 11 updates"),
        ({"aggregator": "trimmed_mean", "byzantine.tolerated": 5}, "at least 11 updates"),
        (
            {"aggregator": "median", "byzantine.tolerated": 3, "byzantine.before": "bucketing"},
            "at least 13 updates a round in groups of 2, and there are 10",
        ),
        (
            {"aggregator": "smallest_diameter", "byzantine.tolerated": 9, "num_clients": 30},
            "at most 200,000 sets",
        ),
        (
            {"aggregator": "multi_krum", "byzantine.attack": "mimic", "byzantine.clients": 1},
            "multi_krum that tolerates none is the mean",
        ),
        ({"byzantine.check": True, "local.normalize": True}, "False where clients lie or are checked"),
        ({"byzantine.tolerated": 1}, "0 unless config.aggregator is one of median"),
        ({"byzantine.before": "mixing"}, "'none' unless"),
        ({"byzantine.attack": "mimic"}, "positive where config.byzantine.attack"),
        ({"byzantine.clients": 1}, "0 where it is 'none'"),
        ({"byzantine.attack": "mimic", "byzantine.clients": 10}, "somebody is honest"),
        ({"local.worker_momentum": 0.5, "local.normalize": True}, "worker_momentum"),
        (
            {"byzantine.pairs": True, "byzantine.check": True, "mechanism.error_feedback": True},
            "not told that they were refused",
        ),
        ({"byzantine.pairs": True}, "False unless config.byzantine.check is True"),
    ],
)
def test_what_cannot_be_borne_is_refused_before_anything_is_compiled(fields, text):
    with pytest.raises(ConfigError, match=text):
        validate(config_of(**fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"aggregator": "inverse_error"}, "weighs by errors or by noise"),
        ({"aggregator": "precision"}, "weighs by errors or by noise"),
        ({"mechanism.name": "clipped"}, "no law of its whole error"),
        ({"mechanism.clip": "none"}, "does not clip"),
        ({"mechanism.quantize": "weights", "mechanism.clip": "none"}, "does not clip"),
    ],
)
def test_a_check_that_has_no_limit_is_refused(fields, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        training.train(config_of(**{"byzantine.check": True, **fields}), tmp_path, progress=False)


def test_a_check_of_pairs_without_noise_is_refused(tmp_path):
    fields = {"mechanism.name": "identity", "byzantine.check": True, "byzantine.pairs": True}
    with pytest.raises(ConfigError, match="nothing keeps two honest updates apart"):
        training.train(config_of(**fields), tmp_path, progress=False)


@pytest.mark.compiled_fast(mlir=True)
def test_a_run_with_lies_is_resumed_to_the_bit_and_swept(tmp_path):
    """The last aggregate and the clients' momentum are in the checkpoint; liars differ by seed."""
    fields = {
        "aggregator": "centered_clipping",
        "byzantine.attack": "dither_abuse",
        "byzantine.clients": 2,
        "byzantine.check": True,
        "byzantine.pairs": True,
        "local.worker_momentum": 0.9,
    }
    configs = [config_of(**fields, **{"seeds.partition": seed}) for seed in range(2)]
    together = training.train_many(configs, [tmp_path / f"many{n}" for n in range(2)], progress=False)
    training.train(config_of(**fields, rounds=2), tmp_path / "alone", progress=False)
    alone = training.train(configs[0], tmp_path / "alone", progress=False)
    for one, other in zip(alone, together[0], strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }
    assert alone[-1]["lies_per_round"] == 2 and alone[-1]["refused_honest_per_round"] == 0
    first, second = (byzantine.liars_of(config)[0] for config in configs)
    assert first.sum() == second.sum() == 2 and (first != second).any()


def test_a_liar_alone_ruins_the_mean_and_no_robust_rule(tmp_path):
    lie = {"byzantine.attack": "clip_abuse", "byzantine.clients": 1, "rounds": 20, "eval_every": 20}
    cases = {
        "mean": {},
        "checked": {"byzantine.check": True},
        "median": {"aggregator": "median"},
    }
    found = {
        name: training.train(config_of(**lie, **fields), tmp_path / name, progress=False)[-1]["accuracy"]
        for name, fields in cases.items()
    }
    assert found["mean"] < 0.5 and min(found["checked"], found["median"]) > 0.8, found


def test_from_python():
    """A federation with liars, and what does not fit."""
    import flax.linen as nn  # noqa: PLC0415

    random = np.random.default_rng(0)
    x, y = random.normal(size=(80, 4)).astype(np.float32), random.integers(0, 3, 80)
    task = tasks.classification(nn.Dense(3), example=x[0], num_classes=3)
    clients = cepam_jax.clients({"inputs": x, "labels": y}, number=8)
    quantizer = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))

    def federation(aggregator, lies):
        return cepam_jax.Federation(
            task, clients, quantizer, sigma=0.1, clip=1.0, aggregator=aggregator, byzantine=lies
        )

    for attack in ("mimic", "label_flip", ATTACKS["clip_abuse"]):
        lies = Byzantine(attack, liars=(2, 5), false_alarm=1e-9)
        made = federation(robust("krum", tolerated=2), lies)
        _, report = made.step(made.initialize())
        np.testing.assert_array_equal(np.flatnonzero(report.participants.lies), [2, 5])
        assert np.asarray(report.participants.admitted)[[0, 1, 3, 4, 6, 7]].all()
        found = made.epsilons()
        np.testing.assert_array_equal(found["released_model"], found["decoded_updates"])
    made = federation("mean", Byzantine("evict", liars=(2, 5), false_alarm=0.01, pairs=True))
    _, report = made.step(made.initialize())
    admitted = np.asarray(report.participants.admitted)
    assert admitted[[2, 5]].sum() == 0 and admitted.sum() == 4
    np.testing.assert_array_equal(made.epsilons()["released_model"], made.epsilons()["decoded_updates"])
    with pytest.raises(ConfigError, match="error_feedback"):
        cepam_jax.Federation(
            task,
            clients,
            quantizer,
            sigma=0.1,
            clip=1.0,
            byzantine=Byzantine(false_alarm=0.01, pairs=True),
            error_feedback=True,
        )
    for lies, text in (
        (Byzantine("mimic"), "liars"),
        (Byzantine(None, (1,)), "liars"),
        (Byzantine("mimic", (8,)), "liars"),
        (Byzantine("mimic", (1, 1)), "liars"),
        (Byzantine("mimic", 5), "liars"),
        (Byzantine("mimic", (True,)), "liars"),
        (Byzantine("mimic", (1,), strength="2"), "strength"),
        (Byzantine("lie", (1,)), "attack"),
        (Byzantine("mimic", (1,), strength=-1.0), "strength"),
        (Byzantine(false_alarm=0.0), "false_alarm"),
        ("mimic", "byzantine"),
    ):
        with pytest.raises(ConfigError, match=text):
            federation("mean", lies)
    with pytest.raises(ConfigError, match="at least 9 updates"):
        federation(robust("krum", tolerated=3), None).initialize()
