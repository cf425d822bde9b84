"""Needs in, gamma out: epsilon as the final report has it, bits as messages have them, refusals by name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms, privacy, wire
from cepam_jax.data import sources
from cepam_jax.errors import CheckpointMismatchError, ConfigError
from cepam_jax.federated import uplink
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.federated.control import CONTROLS, Control
from cepam_jax.privacy.accounting import rounded_up
from cepam_jax.run import allowed, build, guarantees, message_limits, needs, training
from cepam_jax.run.config import validate
from cepam_jax.tasks.base import TASKS
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

CLIENTS = 6
SHAPES = ((10,), (64, 10))
COUNTS = np.full(CLIENTS, 100)


def config_of(variant="cepam_gaussian", **changes):
    c = digits.get_config(variant)
    c.model, c.num_clients, c.rounds, c.eval_every = "linear", CLIENTS, 10, 5
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    validate(c)
    return c


def found(config, counts=COUNTS):
    return allowed.largest(config, counts, SHAPES)


def epsilons(config, gamma, adversary, counts=COUNTS):
    changed = config.copy_and_resolve_references()
    changed.mechanism.per_client.gamma = tuple(map(float, gamma))
    rows = privacy.report(guarantees.federation_of(changed, counts), config.privacy.delta)
    return {row.adversary: row.epsilon for row in rows}[adversary]


TARGETS = (20.0, 20.0, 50.0, 200.0, 1000.0, 0.0)
OWN = [
    ("decoded_updates", {}),
    ("colluding_clients", {"privacy__relation": "replace"}),
    ("decoded_updates", {"clients_per_round": 3}),
    ("decoded_updates", {"schedule__knob": "gamma", "schedule__end": 4.0}),
    ("decoded_updates", {"mechanism__error_feedback": True}),
    ("decoded_updates", {"mechanism__lattice": "E8"}),
    ("decoded_updates", {"mechanism__sparsify": "mask"}),
    ("decoded_updates", {"aggregator": "median"}),
    ("server", {"mechanism__name": "split"}),
    ("server", {"mechanism__name": "noise"}),
    ("server", {"mechanism__name": "noise_sdq"}),
    ("decoded_updates", {"mechanism__name": "rotated", "mechanism__lattice": "E8"}),
]


@pytest.mark.parametrize(("adversary", "changes"), OWN)
def test_each_client_has_the_epsilon_it_needs_and_no_more_noise_than_that(adversary, changes):
    config = config_of(needs__epsilon=TARGETS, needs__adversary=adversary, mechanism__gamma=7.0, **changes)
    gamma = found(config).gamma
    asked = np.array(TARGETS) > 0
    targets = np.array(TARGETS)[asked]
    assert gamma[-1] == 7.0  # asks for nothing
    assert np.all(epsilons(config, gamma, adversary)[asked] <= targets)
    assert np.all(epsilons(config, 1.001 * gamma, adversary)[asked] > targets)
    assert gamma[0] == gamma[1] < gamma[2] < gamma[3] < gamma[4]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy__relation": "replace"},
        {"aggregator": "examples"},
        {"aggregator": "precision"},
        {"aggregator": "precision", "precision__tau": 0.3},
        {"clients_per_round": 3},
        {"mechanism__name": "split"},
        {"schedule__knob": "gamma", "schedule__end": 0.5},
    ],
)
@pytest.mark.parametrize("targets", [(30.0,) * CLIENTS, TARGETS])
def test_against_the_released_model_all_noises_count_and_nobody_is_over(changes, targets):
    counts = np.array([50, 100, 100, 200, 100, 400])
    config = config_of(needs__epsilon=targets, mechanism__gamma=7.0, **changes)
    gamma = found(config, counts).gamma
    asked = np.array(targets) > 0
    limit = np.array(targets)[asked]
    assert np.all(epsilons(config, gamma, "released_model", counts)[asked] <= limit)
    # One bound for all who ask: with a larger one somebody is over.
    raised = np.where(asked & np.isclose(gamma, gamma[asked].max(), rtol=1e-6), 1.001 * gamma, gamma)
    own = config_of(
        needs__epsilon=targets, needs__adversary="decoded_updates", mechanism__gamma=7.0, **changes
    )
    alone = found(own, counts).gamma
    assert np.all(gamma[asked] >= alone[asked])  # nobody adds more noise than it would need alone
    over = np.any(epsilons(config, raised, "released_model", counts)[asked] > limit)
    assert over or np.allclose(gamma[asked], alone[asked])


def test_laplace_noise_has_needs_too():
    targets = (2000.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    config = config_of("cepam_laplace", needs__epsilon=targets, needs__adversary="decoded_updates")
    gamma = found(config).gamma
    assert epsilons(config, gamma, "decoded_updates")[0] <= 2000
    assert epsilons(config, 1.01 * gamma, "decoded_updates")[0] > 2000


def test_all_needs_of_a_client_hold_and_the_strictest_decides():
    profiles = (
        "a: epsilon 100 against decoded_updates, epsilon 9 against released_model, bits 1500; b: bits 400"
    )
    config = config_of(
        needs__profiles=profiles, needs__clients="3 a, 2 b, 1 a", needs__bits=(0.0,) * 5 + (100.0,)
    )
    one = found(config)
    assert one.needs[0] == needs.Need((("decoded_updates", 100.0), ("released_model", 9.0)), 1500.0, "a")
    assert one.needs[5].bits == 100
    a = [0, 1, 2, 5]
    assert np.all(epsilons(config, one.gamma, "decoded_updates")[a] <= 100)
    assert np.all(epsilons(config, one.gamma, "released_model")[a] <= 9)
    assert one.limits == ["epsilon"] * 3 + ["bits"] * 3
    assert np.all(one.bits <= [1500, 1500, 1500, 400, 400, 100])
    assert "a clients 0 to 2 need epsilon 100 against decoded_updates" in one.text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism__lattice": "E8"}, "blocks on E8 are coded"),
        ({"mechanism__name": "split"}, "noise of the client's own is added before the quantizer"),
        ({"mechanism__name": "noise_sdq"}, "noise of the client's own is added before the quantizer"),
        ({"mechanism__name": "rotated", "mechanism__lattice": "E8"}, "do not follow from gamma|blocks on E8"),
        ({"mechanism__sparsify": "mask"}, "which coordinates are sent"),
        ({"mechanism__name": "sdq", "mechanism__rate": "sigma"}, "do not follow from gamma"),
        ({"mechanism__sparsify": "top_k"}, "which coordinates are sent"),
        ({"mechanism__clip": "none"}, "updates are not clipped"),
        ({"mechanism__scales": "public"}, "scales follow from the last aggregate"),
        ({"mechanism__coding": "gaussian"}, "too thin"),
        ({"mechanism__name": "clipped", "mechanism__clip": "none"}, "has none"),
    ],
)
def test_bits_of_messages_that_no_theorem_covers_are_refused_by_name(changes, message):
    config = config_of(needs__bits=(500.0,) * CLIENTS, **changes)
    with pytest.raises(ConfigError, match=message):
        found(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"needs__profiles": "h: epsilon 5 against server", "needs__clients": "5 h, h"},
            r"client 0 \(h\) needs epsilon 5 against server .* no guarantee: no noise hides the update",
        ),
        (
            {"needs__bits": (0.0, 0.0, 30.0, 0.0, 0.0, 0.0)},
            r"client 2 needs .* 30 bits are 1 too few: 31 are",
        ),
        ({"needs__bits": (34.0,) * CLIENTS}, r"client 0 .* 34 bits are .* too few: 31 are sent beside"),
        (
            {"needs__bits": (80.0,) * CLIENTS, "wire": True},
            r"80 bits are .* too few: .* by the header, the ends of the coder and the scales",
        ),
        (
            {"needs__bits": (20000.0,) * CLIENTS, "mechanism__name": "noise"},
            "20000 bits are 800 too few: every message has 20800",
        ),
    ],
)
def test_needs_that_cannot_be_met_say_whose_and_by_how_much(changes, message):
    with pytest.raises(ConfigError, match=message):
        found(config_of(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"needs__profiles": "h epsilon 5"}, "needs.profiles .* is no profile with a name of its own"),
        ({"needs__profiles": "h: epsilon 5; h: bits 3"}, "is no profile with a name of its own"),
        ({"needs__profiles": "h: epsilon -1"}, "must have a positive number"),
        ({"needs__profiles": "h: epsilon 5 against nobody"}, "against one of released_model"),
        ({"needs__profiles": "h: bits nan"}, "must have a positive number"),
        ({"needs__profiles": "h: bits 5, bits 6"}, "each once"),
        ({"needs__profiles": "h: rate 5"}, "both a rate and a deadline"),
        ({"needs__profiles": "h: bits 5 please"}, "must be one of the parts"),
        (
            {"needs__profiles": "h: bits 5", "needs__clients": "5 h"},
            "5 clients have profiles; they must be 6",
        ),
        ({"needs__profiles": "h: bits 5", "needs__clients": "6 g"}, "must be a number and one of: h"),
        ({"needs__profiles": "h: bits 5", "needs__clients": "999999999999 h"}, "more than the 6 clients"),
        ({"needs__bits": (1.0,)}, "needs.bits .* one number for each"),
        ({"needs__bits": (float("nan"),) * 6}, "needs.bits"),
        ({"needs__rate": (1.0,) * 6}, "needs.rate .*needs.deadline"),
        ({"needs__bits": (1e3,) * 6, "privacy__target_epsilon": 3.0}, "privacy.target_epsilon .* 0 where"),
        ({"needs__bits": (1e3,) * 6, "mechanism__per_client__gamma": (1.0,) * 6}, "per_client.gamma"),
        ({"needs__peak": 0.5}, "needs.peak"),
    ],
)
def test_needs_that_cannot_be_read_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_a_rule_that_reads_results_holds_no_gamma():
    CONTROLS.register("reads_for_needs", lambda config: Control(lambda s, k, n: k, observe=lambda s, r: s))
    try:
        config = config_of(needs__bits=(900.0,) * CLIENTS, control="reads_for_needs")
        with pytest.raises(ConfigError, match="sets knobs by what was released"):
            found(config)
    finally:
        CONTROLS.pop("reads_for_needs")


def test_a_link_is_its_rate_times_the_deadline():
    config = config_of(
        needs__rate=(0.0, *[1e4] * 5), needs__deadline=(0.0, *[0.05] * 5), mechanism__gamma=3.0
    )
    one = found(config)
    assert one.gamma[0] == 3 and np.all(one.bits[1:] <= 500) and np.all(one.bits[1:] > 499)
    assert np.isnan(one.bits[0])


def test_a_schedule_keeps_the_bits_of_its_largest_gamma():
    plain = found(config_of(needs__bits=(900.0,) * CLIENTS)).gamma
    grows = found(config_of(needs__bits=(900.0,) * CLIENTS, schedule__knob="gamma", schedule__end=3.0)).gamma
    falls = found(config_of(needs__bits=(900.0,) * CLIENTS, schedule__knob="gamma", schedule__end=0.3)).gamma
    last = 1 + 2 * 9 / 10  # the factor of the last of 10 rounds
    np.testing.assert_allclose(grows * last, plain, rtol=1e-4)
    np.testing.assert_allclose(falls, plain, rtol=1e-4)


def _trained(tmp_path, name="run", **changes):
    config = config_of(
        needs__profiles="hospital: epsilon 100 against decoded_updates; clinic: epsilon 5000, bits 700",
        needs__clients="2 hospital, 4 clinic",
        mechanism__clip_norm=0.3,  # every update is clipped: messages are as long as they get
        **changes,
    )
    return config, training.train(config, tmp_path / name, progress=False)


@pytest.mark.parametrize(
    "changes", [{}, {"wire": True}, {"clients_per_round": 4}, {"mechanism__rotate": True}]
)
def test_a_run_keeps_to_its_needs(tmp_path, changes):
    config, lines = _trained(tmp_path, **changes)
    for line in lines[1:]:
        assert line["needs"]["clients_over_epsilon"] == 0
        assert line["needs"]["within_bits"] >= 0.99
        assert line["update_norm"] > 1.5 * line["clipped_norm"]  # clipped
        peak = line["needs"]["largest_peak"]
        assert peak is None if changes.get("mechanism__rotate") else 1 < peak < config.needs.peak
        assert line["epsilon"]["released_model"] <= 5000
    assert "clinic clients 2 to 5 need epsilon 5000" in (tmp_path / "run/needs.txt").read_text()
    first = (tmp_path / "run/privacy.txt").read_text().splitlines()[0]
    assert first.startswith("released_model: epsilon = ")
    assert rounded_up(lines[-1]["epsilon"]["released_model"]) in first


def test_the_largest_peak_by_hand():
    """Of tensors with their own scales; one of zeros has none; mixed coordinates are not looked at."""
    x = np.float32([3, -3, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    one = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))
    assert uplink._peak(one, x) == pytest.approx(np.sqrt(28 / 16) / (10 / 16), rel=1e-5)
    apart = mechanisms.build(config_of().mechanism, ((3,), (3,), (10,)))
    assert uplink._peak(apart, x) == pytest.approx(np.sqrt(0.1) / 0.1, rel=1e-5)
    assert uplink._peak(one, 0 * x) == 0
    turned = mechanisms.chain(mechanisms.clip("l2"), mechanisms.rotate(), mechanisms.lrsuq("gaussian"))
    assert uplink._peak(turned, x) is None and uplink._peak(mechanisms.identity(), x) is None


def test_runs_that_are_over_are_seen(tmp_path, monkeypatch):
    """The twin: with twice the gammas that were found, the line of metrics says so."""
    largest = allowed.largest

    def twice(*given):
        one = largest(*given)
        return one._replace(gamma=2 * one.gamma)

    monkeypatch.setattr(allowed, "largest", twice)
    _, lines = _trained(tmp_path)
    assert lines[-1]["needs"]["clients_over_epsilon"] == 2  # the hospitals
    assert lines[-1]["needs"]["within_bits"] < 0.5


def test_needs_belong_to_a_run_and_continue_with_it(tmp_path):
    config, lines = _trained(tmp_path)
    shorter, _ = _trained(tmp_path, "again")
    for other in ({"needs.clients": "3 hospital, 3 clinic"}, {"rounds": 20}):
        changed = shorter.copy_and_resolve_references()
        changed.update_from_flattened_dict(other)
        with pytest.raises(CheckpointMismatchError):
            training.train(changed, tmp_path / "again", progress=False)
    again = training.train(config, tmp_path / "run", progress=False)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


@pytest.mark.compiled_fast(mlir=True)
def test_a_sweep_over_seeds_has_each_run_s_gammas(tmp_path):
    config, alone = _trained(tmp_path)
    other = config.copy_and_resolve_references()
    other.seeds.training = 5
    both = training.train_many([config, other], [tmp_path / "a", tmp_path / "b"], progress=False)
    assert both[0][-1]["epsilon"] == alone[-1]["epsilon"]
    np.testing.assert_allclose(both[0][-1]["loss"], alone[-1]["loss"], rtol=1e-5)
    assert both[1][-1]["loss"] != both[0][-1]["loss"]


def test_the_frame_of_a_message_is_what_wire_writes():
    from cepam_jax.wire import header  # noqa: PLC0415

    front = header.Header(header.BARE, 0, (0, 0, 0, 0), 650, 10, 6)
    bare = header.write(front, header.Expectation(b"", b"", b"", b""), b"")
    assert header.BARE_BYTES == len(bare)


def test_trained_updates_are_not_as_peaked_as_bits_are_planned_for():
    """Tensor by tensor, before any noise: far below the default of needs.peak."""
    c = digits.get_config("cepam_gaussian")
    c.num_clients = 4
    data = sources.load_examples("digits", "")
    split = build.split_of(c, data)
    task = TASKS["image_classification"](c, data.specification)
    model = task.initialize(jax.random.key(0))
    plan = build.plan_of(c, task, model, None, "cpu")
    arrays = jax.tree.map(jnp.asarray, build.client_arrays(c, split))
    arrays = arrays._replace(examples=jax.tree.map(jnp.asarray, data.train), constants=data.constants)
    run = jax.jit(
        lambda model, k: plan.local_update.run(model, arrays, k, arrays.training_key, None, 0).update
    )
    edges = np.cumsum((0, *plan.segments))
    for client in range(4):
        update = np.asarray(run(model, client))
        for start, stop in itertools.pairwise(edges):
            tensor = update[start:stop]
            assert np.sqrt(np.mean(tensor**2)) / np.mean(np.abs(tensor)) < 2.0 < c.needs.peak


@pytest.mark.parametrize("d", [650, 25_818])
@pytest.mark.parametrize("size", [0.03, 0.3, 3.0, 30.0])
def test_packed_messages_take_no_more_than_is_set_aside(d, size):
    segments, rng = (10, d - 10), np.random.default_rng(2)
    mechanism = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian", "Z1", segments))
    found = message_limits.messages_of(mechanism, AGGREGATORS["mean"], segments, True, 3.0)
    knobs = mechanisms.Knobs(sigma=1.0, clip=1e6)
    encode, bits = jax.jit(mechanism.encode), jax.jit(mechanism.bits)
    for word in range(20):
        keys = mechanisms.Keys(jax.random.key(word), jax.random.key(0))
        message = encode(keys, jnp.float32(size * rng.laplace(size=d)), knobs)
        ideal = float(bits(keys.shared, message, knobs))
        packed = wire.pack(message, mechanism, keys.shared, knobs, bare=True)
        assert ideal < 8 * len(packed) <= found.real(ideal)
        assert found.real(found.ideal(1234.5)) == pytest.approx(1234.5)
