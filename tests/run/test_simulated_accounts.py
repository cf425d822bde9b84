"""`Federation` from Python: what its privacy report says of the rounds that were run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_federation import CLIENTS, NOISE, RISING, TASK, after, bounded, federation, same

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError, NonFiniteUpdateError
from cepam_jax.federated.state import client_keys
from cepam_jax.privacy.accounting import rounded_up
from cepam_jax.run import build, guarantees, ledger, training
from cepam_jax.simulation import Seeds
from configs import digits

pytestmark = pytest.mark.compiled_fast


def test_a_rule_with_a_state_is_accounted_as_applied():
    found = {}
    explicit = federated.scheduled({"gamma": lambda number: 1.7**number})
    for name, rule in (("rule", RISING), ("explicit", explicit), ("constant", None)):
        fed = federation(control=rule)
        after(fed, 4)
        found[name] = fed.epsilons()["released_model"].max()
        assert f"epsilon = {rounded_up(found[name])}" in fed.privacy()
        assert fed.privacy(planned_rounds=4) == fed.privacy()
    assert (
        found["rule"] == pytest.approx(found["explicit"], rel=1e-5) and found["rule"] > 2 * found["constant"]
    )
    assert [float(entry.knobs.sigma) for entry in fed.ledger.entries] == [0.5]


def test_knobs_of_each_client_are_accounted_as_applied():
    sigmas, clips = np.array([0.5, 1.0, 2.0, 4.0]), np.array([1.0, 1.0, 2.0, 1.0])
    fed = federation(sigma=sigmas, clip=clips)
    after(fed, 2)
    alone = fed.epsilons()["decoded_updates"]
    z = sigmas / clips
    for values in (alone, z):
        assert values[1] == values[2]
    assert (np.diff(alone[[0, 1, 3]]) < 0).all()
    fed = federation(clip=1.0, control=federated.scheduled({"clip": lambda n: 1.0 + n}))
    after(fed, 2)  # gamma 2, then 4
    twice = federation(control=federated.scheduled({"gamma": lambda n: 1.0 + n}))
    after(twice, 2)
    assert fed.epsilons()["released_model"].max() == pytest.approx(twice.epsilons()["released_model"].max())


def test_a_median_leaves_each_client_its_own_noise():
    fed, summed = federation(aggregator="median"), federation()
    for one in (fed, summed):
        after(one, 1)
    median, mean = fed.epsilons(), summed.epsilons()
    assert (median["released_model"] == median["decoded_updates"]).all()
    assert (median["released_model"] > mean["released_model"]).all() and np.isfinite(
        median["released_model"]
    ).all()


def silent_update(fed):
    return federated.LocalUpdate(fed.plan.local_update.run)


SILENT = {
    "aggregator": (
        lambda: {"aggregator": federated.Aggregator(lambda examples, errors: jnp.float32(1))},
        "the aggregator states nothing about privacy",
    ),
    "control": (
        lambda: {"control": federated.Control(lambda s, k, n: k, observe=lambda s, released: s)},
        "the rule that sets the knobs reads earlier results",
    ),
    "local": (lambda: {"local": silent_update(federation())}, "local training states nothing about privacy"),
    "mechanism": (
        lambda: {"mechanism": NOISE._replace(about=NOISE.about._replace(outsiders=None, server=None))},
        "no noise hides the update",
    ),
    "no clip": (
        lambda: {"mechanism": mechanisms.additive("gaussian"), "clip": None},
        "updates are not clipped",
    ),
    "top_k": (
        lambda: {
            "mechanism": mechanisms.chain(mechanisms.clip("l2"), mechanisms.top_k(), mechanisms.lrsuq()),
            "sigma": None,
            "clip": None,
            "knobs": mechanisms.Knobs(sigma=0.5, clip=1.0, fraction=0.5),
        },
        "sent without noise",
    ),
}


@pytest.mark.parametrize("part", SILENT)
def test_a_part_that_states_nothing_has_no_guarantee(part):
    changes, reason = SILENT[part]
    fed = federation(**changes())
    assert fed.privacy() == "no round was run: nothing is released"
    assert {value.max() for value in fed.epsilons().values()} == {0.0}
    after(fed, 1)
    assert {value.min() for value in fed.epsilons().values()} == {math.inf}
    assert f"released_model: no guarantee ({reason}" in fed.privacy()


def test_a_local_update_that_states_its_influence_has_a_guarantee():
    update = silent_update(federation())._replace(influence=federated.Influence())
    fed, usual = federation(local=update, participants=2), federation(participants=2)
    for one in (fed, usual):
        after(one, 1)
    ours, theirs = fed.epsilons(), usual.epsilons()
    assert (ours["decoded_updates"] == theirs["decoded_updates"]).all()
    # What it divides its updates by may tell who was drawn, so draws are not taken as hidden.
    assert (ours["released_model"] >= theirs["released_model"]).all()
    assert not fed._parts.hidden and usual._parts.hidden


def test_statements_of_weights_must_be_true():
    rule = federated.Aggregator(
        lambda examples, errors: examples, public_weights=lambda counts: np.ones(len(counts))
    )
    with pytest.raises(
        ConfigError, match="public_weights of the aggregator is .* it must be what `weigh` gives"
    ):
        federation(aggregator=rule)


READS_ERRORS = {
    "a function of them": lambda examples, errors: 1 / (1 + errors.mean()),
    "beyond whatever is tried": lambda examples, errors: jnp.where(errors.max() < 1e-9, 1e6, 1.0),
    "inside a compiled function": jax.jit(lambda examples, errors: examples + errors[0]),
}


@pytest.mark.parametrize("weigh", READS_ERRORS)
@pytest.mark.parametrize("stated", ["public_weights", "post_processing"])
def test_weights_that_read_errors_are_no_function_of_decoded_updates(weigh, stated):
    rule = federated.Aggregator(READS_ERRORS[weigh])
    federation(aggregator=rule)  # which states nothing, and has no guarantee
    what = {"public_weights": lambda counts: np.ones(len(counts)), "post_processing": True}
    with pytest.raises(ConfigError, match=f"the aggregator states {stated}, but its `weigh` reads errors"):
        federation(aggregator=rule._replace(**{stated: what[stated]}))


def test_weights_that_do_not_read_errors_may_be_post_processing():
    weigh = jax.jit(lambda examples, errors: jnp.sqrt(examples) * jnp.ones_like(errors))
    fed = federation(aggregator=federated.Aggregator(weigh, per_tensor=True, post_processing=True))
    found = fed.epsilons(planned_rounds=1)
    assert (found["released_model"] == found["decoded_updates"]).all()
    assert np.isfinite(found["released_model"]).all()


def test_steps_are_counted_as_often_as_they_are_taken():
    fed = federation()
    start = fed.initialize()
    state = after(fed, 1, start)
    once = fed.epsilons()["released_model"].max()
    again, _ = fed.step(start)
    same(state.params, again.params)
    assert fed.ledger.rounds == 2
    twice = fed.epsilons()["released_model"].max()
    straight = federation()
    after(straight, 2)
    assert twice == straight.epsilons()["released_model"].max() > once


def test_noise_that_is_used_again_for_another_update_leaves_no_guarantee():
    fed = federation()
    start = fed.initialize()
    after(fed, 1, start)
    other = start._replace(params=jax.tree.map(lambda a: a + 1, start.params))
    after(fed, 1, other)
    text = fed.privacy()
    assert "no guarantee (round 1 was run from different states with the same noise" in text
    assert "1 of the states that rounds began from were not made by this federation" in text


def test_rounds_that_another_federation_ran_are_not_forgotten():
    first = federation()
    state = after(first, 3)
    second = federation()
    after(second, 1, state)
    assert "a state came with 3 rounds that are not in this federation's ledger" in second.privacy()
    third = federation(ledger=ledger.read(first.ledger.text()))
    after(third, 1, state)
    whole = federation()
    after(whole, 4)
    assert "no guarantee" not in third.privacy().splitlines()[0]
    after(third, 1)  # round 1 again, of which this process cannot know from which state it ran before
    assert "round 1 was run from different states with the same noise" in third.privacy()
    third = federation(ledger=first.ledger)
    after(third, 1, state)
    assert third.epsilons()["released_model"].max() == whole.epsilons()["released_model"].max()


def test_a_rule_that_is_steered_by_hand_leaves_no_guarantee():
    """A rule that reads results has none, and neither has one whose state is set by what was read."""
    fed = federation(control=RISING)
    state = after(fed, 1)
    assert "no guarantee" not in fed.privacy().splitlines()[0]
    after(fed, 1, state._replace(control=state.control * 2))
    assert "round 2 applied other knobs than its rule plans" in fed.privacy().splitlines()[0]
    skipped = federation(control=federated.scheduled({"gamma": lambda n: 1.0 + n}))
    start = skipped.initialize()
    for _ in range(4):  # repeated steps do not make room for rounds that were not run
        skipped.step(start)
    after(skipped, 1, start._replace(round=jnp.int32(3)))
    assert "a state came with 2 rounds that are not in" in skipped.privacy().splitlines()[0]


def test_a_round_that_was_not_applied_is_counted_for_what_was_sent():
    bad = federation(optimizer=optax.sgd(1e38), steps=3)
    state = bad.initialize()
    with pytest.raises(
        NonFiniteUpdateError, match="client 0 sent a NaN or infinite update in round 1: its local"
    ):
        bad.step(state)
    assert (bad.ledger.rounds, bad.ledger.applied, bad.ledger.failures) == (1, 0, 1)
    once, text = bad.epsilons()["decoded_updates"].max(), bad.privacy()
    straight = federation()
    after(straight, 1)
    assert once == straight.epsilons()["decoded_updates"].max()
    assert "not covered: 1 rounds that failed and were not applied: their updates are counted" in text
    assert (
        "NaN or infinite" not in text.splitlines()[0] and np.isfinite(state.params["Dense_0"]["kernel"]).all()
    )
    small = federation(mechanisms.additive("gaussian"), sigma=1e-9, clip=None)
    with pytest.raises(
        NonFiniteUpdateError, match="gaussian-noise.identity cannot code it: what it decodes to"
    ):
        small.step(small.initialize())
    rule = federated.Control(lambda s, k, n: k._replace(sigma=k.sigma - 0.5 * n))
    fed = federation(control=rule)
    with pytest.raises(NonFiniteUpdateError, match="control rule set a knob in round 2 .* knob sigma is 0.0"):
        after(fed, 2)
    assert fed.ledger.rounds == 1 and not fed.ledger.failures  # without a knob nothing decodes to a number
    some = federation(
        control=federated.Control(
            lambda s, k, n: k._replace(sigma=k.sigma - 0.5 * n * jnp.array([0, 1.0, 0, 2.0]))
        )
    )
    with pytest.raises(NonFiniteUpdateError, match="knob sigma is 0.0"):
        after(some, 2)
    assert some.ledger.failures == 1 and np.isfinite(some.epsilons()["decoded_updates"]).all()
    server = federation(server=optax.sgd(3e38), sigma=1e3)
    with pytest.raises(NonFiniteUpdateError, match="the global model became NaN or infinite in round 1"):
        after(server, 1)


def test_noise_of_a_round_that_failed_is_not_used_for_other_updates():
    rule = federated.Control(lambda s, k, n: k._replace(sigma=k.sigma - 0.5 * n))
    fed = federation(control=rule)
    state = after(fed, 1)
    with pytest.raises(NonFiniteUpdateError):
        fed.step(state)
    assert np.isfinite(fed.epsilons()["released_model"]).all()
    with pytest.raises(NonFiniteUpdateError):
        fed.step(state._replace(params=jax.tree.map(lambda a: a + 1, state.params)))
    assert "no guarantee (round 2 was run from different states" in fed.privacy()


def test_a_round_that_failed_is_not_run_again_by_another_process():
    """Its updates were sent with its noise, which then hides two of each client."""
    fed = federation(optimizer=lambda n: optax.sgd(jnp.where(n == 2, jnp.inf, 0.1)))
    state = after(fed, 2)
    with pytest.raises(NonFiniteUpdateError):
        fed.step(state)
    again = federation(optimizer=optax.sgd(0.1), ledger=ledger.read(fed.ledger.text()))
    again.step(state)
    assert "no guarantee (round 3 was run from different states with the same noise" in again.privacy()


def test_a_ledger_that_was_given_is_gone_on_from():
    first = federation()
    after(first, 2)
    second = federation(sigma=0.5, ledger=first.ledger)
    after(second, 1)
    assert "no guarantee (round 1 was run from different states with the same noise" in second.privacy()


def test_noise_that_another_federation_chose_is_planned_by_nobody():
    """Perhaps by what was released before: of a rule that is steered by hand that is refused, too."""
    first = federation()
    state = after(first, 2)
    other = federation(sigma=0.2, ledger=first.ledger)
    other.step(state)
    assert "no guarantee (rounds of the ledger applied other knobs than this" in other.privacy()
    same_plan = federation(control=RISING)
    state = after(same_plan, 2)
    goes_on = federation(control=RISING, ledger=same_plan.ledger)
    goes_on.step(state)
    assert "no guarantee" not in goes_on.privacy().splitlines()[0]


def test_a_public_seed_is_no_secret():
    """Who knows the seed of the first model would know all noise, were they one number."""
    quantizer = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))
    for seed, public in ((3, True), (Seeds(1, 3, 3), False), (Seeds(3, 4, 3), True)):
        fed = federation(quantizer, seeded=True, seed=seed)
        after(fed, 1)
        said = "no guarantee (clients make the first model from a public seed" in fed.privacy()
        assert said == public
    config = digits.get_config("cepam_gaussian")
    config.downlink.name, config.downlink.start = "clipped", "seed"
    for model in (0, 1):
        config.seeds.model = model
        text = guarantees.report_text(config, np.full(config.num_clients, 100))
        assert ("clients make the first model from a public seed" in text) == (model == 0)


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_noise_does_not_follow_jaxs_default_generator(generator):
    """Under `unsafe_rbg` round 1 of client 0 would have the noise of round 0 of client 1."""
    usual = federation()
    config, split = digits.get_config("cepam_gaussian"), CLIENTS.split
    config.num_clients = 4
    with jax.default_prng_impl(generator):
        for arrays in (federation().arrays, build.client_arrays(config, split)):
            keys = [client_keys(arrays, n, k) for n in range(4) for k in range(4)]
            words = [jax.random.key_data(key) for training, both in keys for key in (training, *both)]
            assert len({tuple(np.asarray(word).tolist()) for word in words}) == 3 * 16
        same(
            jax.random.key_data(federation().arrays.training_key),
            jax.random.key_data(usual.arrays.training_key),
        )


@pytest.mark.parametrize(
    ("steps", "law", "norm", "covered"),
    [
        ([], "gaussian", "l2", True),
        ([], "laplace", "l1", True),
        ([mechanisms.rotate()], "gaussian", "l2", True),
        ([mechanisms.clip("l2")], "gaussian", "l2", True),
        # Scaled down to the L1 ball, two updates may move sqrt(d) times as far apart in L2.
        ([mechanisms.clip("l1")], "gaussian", "l2", False),
        ([mechanisms.clip("l1")], "laplace", "l1", False),
        ([mechanisms.clip("l2")], "laplace", "l1", False),
        ([mechanisms.rotate()], "laplace", "l1", False),
    ],
)
def test_a_bound_of_local_training_counts_where_the_noise_comes_in(steps, law, norm, covered):
    clip = 1.0 if any(step.about.clip for step in steps) else None
    mechanism = mechanisms.chain(*steps, mechanisms.lrsuq(law))
    fed = federation(mechanism, clip=clip, local=bounded(norm))
    found = fed.epsilons(planned_rounds=1)["decoded_updates"]
    assert np.isfinite(found).all() == covered
    assert ("may move two farther apart" in fed.privacy(planned_rounds=1)) != covered


def test_no_bound_holds_behind_a_step_that_does_not_state_that_it_keeps_it():
    louder = mechanisms.Transform(
        "louder", lambda keys, x, knobs: (100 * x, None), lambda shared, y, side, knobs, d: y / 100
    )
    fed = federation(mechanisms.chain(mechanisms.clip("l2"), louder, mechanisms.lrsuq()))
    assert np.isinf(fed.epsilons(planned_rounds=1)["released_model"]).all()
    lost = "released_model: no guarantee (the transform louder states no norm that it keeps: no bound"
    assert lost in fed.privacy(planned_rounds=1)
    nested = mechanisms.chain(louder, mechanisms.lrsuq())
    outer = federation(mechanisms.chain(mechanisms.clip("l2"), nested))
    assert "transform louder+lrsuq-gaussian-Z1 states no norm" in outer.privacy(planned_rounds=1)
    for unclipped in (nested, mechanisms.chain(mechanisms.rotate(), mechanisms.lrsuq())):
        text = federation(unclipped, clip=None).privacy(planned_rounds=1)
        assert "released_model: no guarantee (updates are not clipped" in text
    again = mechanisms.chain(mechanisms.clip("l2"), louder, mechanisms.clip("l2"), mechanisms.lrsuq())
    assert "no guarantee" not in federation(again).privacy(planned_rounds=1).splitlines()[0]
    kept = louder._replace(forward=lambda keys, x, knobs: (x, None), inverse=None, keeps=("l2",))
    fed = federation(mechanisms.chain(mechanisms.clip("l2"), kept, mechanisms.lrsuq()))
    assert np.isfinite(fed.epsilons(planned_rounds=1)["released_model"]).all()


def test_what_is_remembered_is_bounded_by_a_clip_of_the_mechanism_alone():
    local = bounded("l2")
    fed = federation(mechanisms.additive("gaussian"), clip=None, local=local, error_feedback=True)
    assert "no guarantee (error feedback adds what" in fed.privacy(planned_rounds=1)


def test_weights_of_tensors_are_no_public_weights_of_clients():
    rule = federated.Aggregator(
        lambda examples, errors: jnp.ones_like(errors),
        per_tensor=True,
        public_weights=lambda counts: np.ones(len(counts)),
    )
    with pytest.raises(ConfigError, match="weighs tensor by tensor states no public weights"):
        federation(aggregator=rule)


@pytest.mark.parametrize("changes", [{}, {"update_kind": "gradient"}, {"sampling": "shuffle"}])
def test_examples_are_clipped_where_a_local_update_states_it(changes):
    settings = federated.LocalTraining(1, 8, example_clip=1.0, **changes)
    with pytest.raises(ConfigError, match="example_clip is 1.0; it must be 0 unless update_kind is 'gradi"):
        federated.make_local_update(TASK, settings)


def test_bounds_that_a_rule_moves_apart_are_each_clients_own():
    rule = federated.Control(lambda s, k, n: k._replace(clip=k.clip * jnp.array([1.0, 0.01, 0.01, 0.01])))
    usual = federation().epsilons(planned_rounds=1)["released_model"]
    found = federation(control=rule).epsilons(planned_rounds=1)["released_model"]
    # The others' noise is what it was, and so is the first client's bound.
    assert found[0] == pytest.approx(usual[0]) and (found[1:] < found[0] / 10).all()


def test_public_scales_go_by_noise_that_is_there(tmp_path):
    """A dither has none to subtract; without knob sigma the first round ended in a TypeError.

    With a configuration a gamma that means nothing there moved the coder by octaves.
    """

    def scale(sigma, last):
        sizes = [leaf.size for leaf in jax.tree.leaves(TASK.initialize(jax.random.key(0)).params)]
        quantizer = last(scales="public", segments=tuple(sizes))
        knobs = mechanisms.Knobs(clip=1.0, step=0.01 if sigma is None else None, sigma=sigma)
        chain = mechanisms.chain(mechanisms.clip("l2"), quantizer)
        return np.asarray(after(federation(chain, sigma=None, clip=None, knobs=knobs), 1).scale)

    assert np.isfinite(scale(None, mechanisms.sdq)).all()
    assert (scale(0.001, mechanisms.lrsuq) != scale(3.0, mechanisms.lrsuq)).any()
    bits = []
    for gamma in (10.0, 1e5):
        config = digits.get_config("sdq")
        few = {"model": "linear", "rounds": 2, "eval_every": 2, "mechanism.scales": "public"}
        config.update_from_flattened_dict(few | {"mechanism.gamma": gamma})
        bits.append(training.train(config, tmp_path / str(gamma), progress=False)[-1]["uplink_bits"])
    assert bits[0] == bits[1]


def test_example_level_guarantees():
    clipped = {"update_kind": "gradient", "sampling": "shuffle", "example_clip": 1.0, "clip": None}
    fed = federation(mechanisms.additive("gaussian"), **clipped, batch_size=20)
    after(fed, 1)
    assert "example level, replace" in fed.privacy()
    for changes, message in (
        ({"update_kind": "weights"}, "example_clip is 1.0; it must be 0 unless update_kind is 'gradient'"),
        ({"sampling": "replacement"}, "example_clip is 1.0; it must be 0 .* and sampling is 'shuffle'"),
    ):
        with pytest.raises(ConfigError, match=message):
            federation(mechanisms.additive("gaussian"), **clipped | changes)
    with pytest.raises(ConfigError, match="clip of the mechanism is 'l2'; it must be 'none' where exam"):
        federation(**clipped | {"clip": 1.0})


def test_who_is_late_is_left_out_and_loses_the_guarantee_of_shared_noise():
    links = federated.Links(up=[1.0, 1e9, 1e9, 1e9], down=1e9, deadline=5.0)
    quantizer = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq())
    fed = federation(quantizer, links=links, seeded=True)
    _, report = fed.step(fed.initialize())
    np.testing.assert_array_equal(report.participants.late, [1, 0, 0, 0])
    np.testing.assert_array_equal(report.participants.weight, [0, 1, 1, 1])
    assert not np.asarray(report.participants.down_bits).any()
    assert np.isinf(fed.epsilons()["released_model"]).all() and "who is late follows" in fed.privacy()
    noise = federation(NOISE, links=links, ledger=None)
    noise.step(noise.initialize())
    found = noise.epsilons()
    assert np.isfinite(found["server"]).all()
    np.testing.assert_array_equal(found["released_model"], found["server"])
    waits = federation(NOISE)
    waits.step(waits.initialize())
    assert (waits.epsilons()["released_model"] < found["released_model"]).all()
