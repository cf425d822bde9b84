"""What a run claims, and what it refuses to claim."""

import math
import re

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError
from cepam_jax.federated import AGGREGATORS, Aggregator, ClientArrays, shared_key
from cepam_jax.federated.state import client_keys
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.noise import scaled_noise
from cepam_jax.mechanisms.registry import CONFIGURABLE, Entry
from cepam_jax.privacy import arithmetic, releases
from cepam_jax.run import build, guarantees
from cepam_jax.run.config import validate
from cepam_jax.run.training import train
from configs import digits, shakespeare

pytestmark = pytest.mark.compiled_fast

COUNTS = np.full(10, 140)


# One clipped gradient of every example in each round.
EXAMPLES = {
    "local.update_kind": "gradient",
    "local.sampling": "shuffle",
    "local.example_clip": 1.0,
    "mechanism.clip": "none",
}


def config_of(variant="cepam_gaussian", **fields):
    config = digits.get_config(variant)
    config.model, config.rounds, config.eval_every, config.num_clients = "linear", 4, 2, 10
    config.update_from_flattened_dict(fields)
    return config


def planned(config, counts, rounds):
    """Epsilons of rounds that are carried out as planned."""
    return guarantees.epsilons(config, counts, guarantees.plan(config, rounds))


def epsilon(config, adversary="released_model"):
    return planned(config, COUNTS, config.rounds)[adversary]


@pytest.mark.parametrize(
    ("variant", "fields", "text"),
    [
        ("cepam_gaussian", {"mechanism.clip": "none"}, "not clipped"),
        ("cepam_laplace", {"mechanism.clip": "l2"}, "Laplace noise needs an L1 clip"),
        ("cepam_laplace", {"mechanism.rotate": True}, "Laplace noise needs an L1 clip"),
        ("cepam_gaussian", {"mechanism.sparsify": "top_k"}, "not covered: which coordinates are largest"),
        (
            "cepam_gaussian",
            {"mechanism.sparsify": "top_k"},
            "sent without noise: which coordinates are largest",
        ),
        ("cepam_gaussian", {"aggregator": "examples"}, "not covered: numbers of examples"),
        ("cepam_gaussian", {"aggregator": "inverse_error"}, "not covered: weights by inverse error"),
        ("cepam_gaussian", {"local.normalize": True}, "not covered: numbers of local steps"),
        ("sdq", {}, "no noise hides the update"),
        ("cepam_gaussian", {}, "not covered: the messages on the wire"),
        ("cepam_gaussian", {}, "not covered: metrics.jsonl"),
        ("cepam_gaussian", {}, "not covered: the mean and deviation of all training pixels"),
        ("cepam_gaussian", {"aggregator": "inverse_error"}, "functions of the noise itself"),
        (
            "cepam_gaussian",
            {**EXAMPLES, "mechanism.error_feedback": True},
            "one example may move it without bound",
        ),
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


def test_a_step_that_takes_over_the_noise_is_accounted_for():
    """JoPEQ: 15,272 of 38,407 reported by the first release, 440,347 of 1,123,688 against the server."""
    fields = {
        "num_clients": 30,
        "rounds": 80,
        "mechanism.gamma": 100.0,
        "mechanism.step": 0.01,
        "schedule.knob": "step",
        "schedule.end": 3.4,
    }
    found = planned(config_of("jopeq", **fields), np.full(30, 47), 80)
    factor = 1 + 2.4 * np.arange(80) / 80
    square = 0.01**2 - (0.01 * factor) ** 2 / 12  # of the private noise, round by round
    for adversary, clients in (("released_model", 30), ("server", 1)):
        z = np.sum(1 / (clients * square)) ** -0.5
        expected = dp_accounting.get_epsilon_gaussian(z, 1e-5)
        assert found[adversary] == pytest.approx(expected, rel=1e-3)
    assert found["released_model"] == pytest.approx(38_407, rel=1e-3)
    assert found["server"] == pytest.approx(1_123_688, rel=1e-3)


@pytest.mark.parametrize(("gamma", "truth", "first_release"), [(20.0, 1.196, 0.147), (40.0, 2.70, 0.312)])
def test_examples_of_drawn_clients(gamma, truth, first_release):
    """1,000 clients of 60 examples, 10 a round, one step of 60, 80 rounds."""
    fields = {
        **EXAMPLES,
        "local.steps": 1,
        "local.batch_size": 60,
        "num_clients": 1000,
        "clients_per_round": 10,
        "rounds": 80,
        "mechanism.gamma": gamma,
    }
    found = planned(config_of(**fields), np.full(1000, 60), 80)["released_model"]
    # Whoever sees the draws (a client's whole update is no secret at example level) faces n rounds of noise
    # sqrt(10) / gamma on an example's 2/60.
    n = np.arange(1, 81)
    chance, mu = stats.binom.pmf(n, 80, 0.01), 2 / 60 * gamma / math.sqrt(10) * np.sqrt(n)
    assert np.sum(chance * releases.gaussian_delta(0.999 * found, mu)) > 1e-5
    assert np.sum(chance * releases.gaussian_delta(1.001 * found, mu)) < 1e-5
    assert found == pytest.approx(truth, rel=2e-3) and found > 8 * first_release


def test_noise_that_comes_back_is_not_counted_as_the_others():
    """K = 200, T = 40, gamma 10, replace: mu 8.94 accounted by the first release; about 51 in truth."""
    fields = {"num_clients": 200, "rounds": 40, "mechanism.gamma": 10.0, "privacy.relation": "replace"}
    with_memory = config_of(**fields, **{"mechanism.error_feedback": True})
    found = planned(with_memory, np.full(200, 7), 40)
    assert found["released_model"] == found["decoded_updates"]
    mu = 2 * 10 * math.sqrt(40)
    assert mu > 51 and found["released_model"] == pytest.approx(
        dp_accounting.get_epsilon_gaussian(1 / mu, 1e-5)
    )
    without = planned(config_of(**fields), np.full(200, 7), 40)["released_model"]
    assert without < found["released_model"] / 10


def test_an_aggregator_that_states_nothing_has_no_guarantee(monkeypatch):
    """A coordinate-wise median, with and without the statement that it reads decoded updates alone."""
    silent = Aggregator(lambda examples, errors: jnp.float32(1))
    monkeypatch.setitem(AGGREGATORS, "median", silent)
    config = config_of(aggregator="median", num_clients=30, rounds=4)
    assert set(planned(config, np.full(30, 47), 4).values()) == {None}
    assert "the aggregator states nothing" in guarantees.report_text(config, np.full(30, 47))
    stated = silent._replace(post_processing=True)
    monkeypatch.setitem(AGGREGATORS, "median", stated)
    found = planned(config, np.full(30, 47), 4)
    summed = planned(config_of(num_clients=30), np.full(30, 47), 4)["released_model"]
    assert found["released_model"] == found["decoded_updates"] > 3 * summed


FALSE = {
    "public_weights of the aggregator is": Aggregator(
        lambda examples, errors: examples**2, public_weights=lambda counts: np.ones(len(counts))
    ),
    "states public_weights, but its `weigh` reads errors": Aggregator(
        lambda examples, errors: jnp.where(errors.max() < 1e-9, 1e6, 1.0),
        public_weights=lambda counts: np.ones(len(counts)),
    ),
    "states post_processing, but its `weigh` reads errors": Aggregator(
        lambda examples, errors: errors.max(), post_processing=True
    ),
}


@pytest.mark.parametrize("text", FALSE)
def test_a_plugin_that_states_other_weights_than_it_gives_is_refused(text, monkeypatch, tmp_path):
    """Only federations in Python were looked at: the epsilon of a plain mean was printed."""
    monkeypatch.setitem(AGGREGATORS, "false", FALSE[text])
    config = config_of(aggregator="false", **{"partition.kind": "quantity"})
    with pytest.raises(ConfigError, match=text):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=text):
        guarantees.report_text(config, np.arange(1, 11))


@pytest.mark.parametrize(
    "variant", ["cepam_gaussian", "cepam_laplace", "jopeq", "split", "noise_laplace_sdq"]
)
@pytest.mark.parametrize("knob", ["gamma", "step", "fraction"])
@pytest.mark.parametrize("per_round", [0, 3])
def test_every_schedule_meets_every_law_and_draw(variant, knob, per_round):
    """Gaussian noise with all clients was all that was ever run: a TypeError for the others."""
    fields = {"schedule.knob": knob, "schedule.end": 0.5, "clients_per_round": per_round}
    config = config_of(variant, **fields)
    validate(config)
    found = planned(config, COUNTS, config.rounds)
    assert found["decoded_updates"] >= found["released_model"] > 0


def test_noise_that_rounding_may_remove_is_not_counted():
    """Rounded to a coarse step the others send nothing: 5.05 printed for them, at least 6.09 in truth."""
    fields = {"num_clients": 50, "rounds": 1, "mechanism.gamma": 8.0, "mechanism.step": 1.0}
    rounded = config_of("noise_gaussian_rounding", **fields)
    found = planned(rounded, np.full(50, 10), 1)
    assert found["released_model"] == found["decoded_updates"] > 6.09
    dithered = config_of("noise_gaussian_sdq", **fields)
    assert planned(dithered, np.full(50, 10), 1)["released_model"] == pytest.approx(5.05, rel=0.01)


@pytest.mark.parametrize(("normalize", "printed"), [(False, 0.561), (True, 4.438)])
def test_step_weights_betray_who_was_drawn(normalize, printed):
    """FedNova's factor tells whether the one large client was drawn, so its draws count as seen."""
    fields = {
        "num_clients": 1000,
        "clients_per_round": 10,
        "rounds": 80,
        "privacy.relation": "replace",
        "mechanism.gamma": 1.0,
        "local.steps_by_size": True,
        "local.normalize": normalize,
    }
    counts = np.r_[1500, np.full(999, 100)]
    found = planned(config_of(**fields), counts, 80)["released_model"]
    assert found == pytest.approx(printed, rel=0.02)


@pytest.mark.parametrize(
    ("variant", "gamma", "chance"),
    [("noise_gaussian", 2.0, 6.5e-4), ("noise_laplace", 8.0, 2.65e-4), ("cepam_gaussian", 4.0, 1.28e-3)],
)
def test_an_update_beyond_the_noises_range_is_counted(variant, gamma, chance):
    """The chances of an attack on the real mechanisms: an update on one coordinate, where zero never is."""
    config = config_of(variant, rounds=1, **{"mechanism.gamma": gamma})
    text = guarantees.report_text(config, COUNTS)
    found = float(re.search(r"probability (\S+) over the run", text)[1])
    assert found == pytest.approx(chance, rel=0.05)
    assert "more than delta = 1e-05" in text
    quiet = guarantees.report_text(config_of(variant, rounds=1, **{"mechanism.gamma": 0.5}), COUNTS)
    assert "over the run" in quiet and "more than delta" not in quiet


def test_the_size_of_what_32_bits_leave_out_is_stated():
    text = guarantees.report_text(config_of(rounds=80), COUNTS, coordinates=25_818)
    blocks = 25_818 * 80 * 10
    distance = arithmetic.total_variation("gaussian", 1, blocks)
    assert f"to {distance:.1e} in total variation over all {blocks:,} blocks" in text
    rotated = guarantees.report_text(config_of(**{"mechanism.rotate": True}), COUNTS, coordinates=25_818)
    assert f"over all {32_768 * 4 * 10:,} blocks" in rotated  # padded to a power of two
    plain = guarantees.report_text(config_of("noise_gaussian"), COUNTS, coordinates=25_818)
    assert "32-bit arithmetic" in plain and "total variation" not in plain


def test_not_even_one_round():
    """ZeroDivisionError, ValueError from a library or IndexError, by variant, in the first release."""
    config = config_of(**{"privacy.target_epsilon": 8.0, "privacy.calibrate": False})
    with pytest.raises(ConfigError, match="target_epsilon is 8, but the first round alone spends epsilon = "):
        guarantees.rounds_within_budget(config, COUNTS)
    nothing = config_of("sdq", **{"privacy.target_epsilon": 8.0, "privacy.calibrate": False})
    with pytest.raises(ConfigError, match="gives no guarantee .no noise hides"):
        guarantees.rounds_within_budget(nothing, COUNTS)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mechanism.gamma": 1e-50}, "mechanism.gamma is 1e-50; it must be a positive number .between"),
        ({"mechanism.clip_norm": 1e-40}, "which 32-bit floats hold"),
        ({"mechanism.gamma": 1e-31}, "mechanism.gamma is 1e-31; it must be such that the noise's deviation"),
        ({"mechanism.clip_norm": 1e-31}, "lies between 1e-30 and 1e[+]30"),
        ({"schedule.knob": "fraction", "schedule.end": 400.0}, "schedule.end is 400.0; it must be such that"),
        ({"schedule.knob": "bits", "schedule.end": 4.0}, "it becomes 16"),
        ({"schedule.knob": "levels", "schedule.end": 0.01}, "an integer of at least 2"),
        ({"schedule.knob": "gamma", "schedule.end": 1e-40}, "schedule.end is 1e-40"),
    ],
)
def test_knobs_stay_in_range(fields, text):
    with pytest.raises(ConfigError, match=text):
        validate(config_of(**fields))


def test_owners_whose_examples_lie_with_several_clients_are_not_covered():
    """Of a play with its speakers as clients, and dealt out: a client is then no speaker, the report says."""
    said = {}
    for kind, split in (("natural", "speakers"), ("iid", "speakers"), ("iid", "public")):
        config = shakespeare.get_config("cepam_gaussian")
        config.partition.kind, config.text.split = kind, split
        config.evaluation.clients = "none"
        data = sources.load_examples("shakespeare", "", sources.options_of(config))
        found = build.split_of(config, data)
        said[kind, split] = guarantees.report_text(config, found.counts, holders=found.holders)
        assert (found.holders > 1) == ((kind, split) == ("iid", "speakers"))
    owner, character = "an owner: the examples of one, a speaker or a hospital, lie with", "a character:"
    assert [owner in text for text in said.values()] == [False, True, False]
    assert [character in text for text in said.values()] == [False, True, True]
    assert len({text.splitlines()[1] for text in said.values()}) == 1  # epsilons are as they were
    config = config_of(**EXAMPLES)
    text = guarantees.report_text(config, COUNTS, holders=3)
    assert "example level" in text and f"{owner} up to 3 clients, and an epsilon protects one example" in text
    assert "partition.kind='natural'" not in text  # owners as clients would protect no owner


def test_a_target_is_met_and_budgets_end(tmp_path, capsys):
    config = config_of(**{"privacy.target_epsilon": 20.0})
    lines = train(config, tmp_path / "calibrated", progress=False)
    assert 19.9 < lines[-1]["epsilon"]["released_model"] <= 20.0
    assert lines[-1]["epsilon"]["server"] is None
    assert lines[1]["epsilon"]["released_model"] < lines[-1]["epsilon"]["released_model"]
    text = (tmp_path / "calibrated/privacy.txt").read_text()
    assert "epsilon = 20 at delta = 1e-05" in text
    assert f"in total variation over all {650 * 4 * 10:,} blocks" in text
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
        fed = ClientArrays(*[None] * 6, jax.random.key(seeds[0]), shared_key(seeds[1]))

        def keys(number, client, fed=fed):
            training, mechanism = client_keys(fed, number, client)
            return [jax.random.key_data(k) for k in (training, mechanism.shared, mechanism.private)]

        rounds, clients = np.meshgrid(np.arange(40), np.arange(50))
        found = jax.vmap(keys)(rounds.ravel(), clients.ravel())
        words.append(np.stack(found).reshape(3, -1, 2))
    # Run 2 has the training seed of run 1, run 3 its shared seed: 3 x 3 kinds of keys less 3 repeated.
    distinct = {tuple(w) for run in words for kind in run for w in kind.tolist()}
    assert len(distinct) == 6 * 2000


def test_noise_that_depends_on_the_shapes_of_updates_is_refused(monkeypatch, tmp_path):
    """The accountant read what the mechanism states for one number: for 650 it added a 25th of that noise."""

    def build(settings, coder, shapes):
        d = sum(math.prod(shape) for shape in shapes)
        noise = scaled_noise("gaussian", lambda knobs: knobs.sigma / math.sqrt(d), ("sigma",), "shrinking")
        return chain(noise, mechanisms.identity())

    monkeypatch.setitem(CONFIGURABLE, "shrinking", Entry(build))
    config = config_of(**{"mechanism.name": "shrinking"})
    with pytest.raises(ConfigError, match="clip_l2.shrinking.identity states other facts .* outsiders is"):
        train(config, tmp_path, progress=False)
