"""Runs that meet NaN or infinity: what is blamed, what is kept, what is written."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.test_rounds import CLIENTS, SIZE, as_local_update, federation, local_update, make, start

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.federated import Report, RoundReport, rounds
from cepam_jax.run import build, evaluation, records, training
from cepam_jax.run.metrics import read_lines
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def small(variant="cepam_gaussian", **changes):
    config = digits.get_config(variant)
    changes = {"model": "linear", "rounds": 4, "eval_every": 2, "local.steps": 2, **changes}
    config.update_from_flattened_dict(changes)
    return config


def beyond(limit):
    """A mechanism that decodes to NaN what is larger than a limit, as real ones do beyond their range."""
    plain = mechanisms.identity()
    return plain._replace(
        decode=lambda *a: jnp.where(jnp.abs(plain.decode(*a)).max() > limit, jnp.nan, plain.decode(*a))
    )


def poisoned(clients, poison):
    def update(params, data, row, count, steps, key):
        update, loss, scale = local_update(params, data, row, count, steps, key)
        return jnp.where(jnp.isin(row[0], jnp.array(clients)), poison, update), loss, scale

    return as_local_update(update)


CASES = {
    "a client's NaN": ({"local_update": poisoned([4], np.nan)}, (4, rounds.LOCAL)),
    "a client's infinity": ({"local_update": poisoned([5, 2], np.inf)}, (2, rounds.LOCAL)),
    "no code for it": (
        {"local_update": poisoned([3, 5], 1e9), "mechanism": beyond(1e6)},
        (3, rounds.MECHANISM),
    ),
    # A client's NaN comes out of the mechanism as NaN too: the client is to blame, whoever comes first.
    "both": (
        {
            "local_update": poisoned([4], np.nan),
            "mechanism": beyond(0.0),
        },
        (4, rounds.LOCAL),
    ),
    "the sum overflows": (
        {"local_update": poisoned([3, 5, 6], 3e38), "mechanism": mechanisms.identity()},
        (0, rounds.MODEL),
    ),
    "the server's step overflows": (
        {"server": optax.sgd(3e38), "mechanism": mechanisms.identity()},
        (0, rounds.MODEL),
    ),
}


@pytest.mark.parametrize("per_chunk", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_named_and_the_round_not_applied(case, per_chunk):
    changes, expected = CASES[case]
    _, run, _ = make(per_chunk=per_chunk, **changes)
    state, report = jax.jit(run)(start(), federation())
    assert rounds.failure(state.invalid_client) == expected
    assert int(state.round) == 0 and not bool(report.ran)
    np.testing.assert_array_equal(state.params["w"], start().params["w"])


def test_a_valid_round_has_no_cause():
    state, _ = make(mechanism=beyond(1e6))[1](start(), federation())
    assert int(state.invalid_client) == -1 and int(state.round) == 1
    assert CLIENTS < 2**28 and SIZE  # the bits below the cause hold every client's number


def test_a_diverging_client_is_told_to_slow_down(tmp_path):
    message = (
        r"client 0 sent a NaN or infinite update in round 1: its local training diverged; it was not "
        r"averaged, nothing was saved before round 1. Lower config.local.learning_rate \(now 1e\+38\)\.$"
    )
    with pytest.raises(NonFiniteUpdateError, match=message):
        training.train(small("fedavg", **{"local.learning_rate": 1e38}), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("variant", "changes", "advice"),
    [
        (
            "cepam_gaussian",
            {},
            "make config.mechanism.gamma smaller (now 100), or choose another config.mechan",
        ),
        ("cepam_gaussian", {"mechanism.per_client.gamma": (7.0,) * 10}, "gamma smaller (now 7)"),
        ("jopeq", {}, "make config.mechanism.step larger (now 0.005), or choose another"),
        ("noise_gaussian_sdq", {}, "make config.mechanism.step larger (now 0.005)"),
        (
            "k_level",
            {},
            "clip updates (config.mechanism.clip, now 'none'), or lower config.local.learning_rate",
        ),
    ],
)
def test_a_mechanism_out_of_its_range_is_not_blamed_on_the_client(
    variant, changes, advice, tmp_path, monkeypatch
):
    config = small(variant, **changes)
    real = mechanisms.build

    def limited(*arguments):
        mechanism = real(*arguments)
        return mechanism._replace(decode=lambda *a: mechanism.decode(*a) * jnp.nan)

    monkeypatch.setattr(mechanisms, "build", limited)
    build._program.cache_clear()
    with pytest.raises(NonFiniteUpdateError) as error:
        training.train(config, tmp_path, progress=False)
    build._program.cache_clear()
    text = str(error.value)
    assert text.startswith("the update of client 0 in round 1 was finite, but config.mechanism.name = ")
    assert advice in text and ("config.local.learning_rate" in text) == (config.mechanism.clip == "none")


def test_a_model_that_overflows_in_the_last_round_is_no_success(tmp_path):
    config = small("fedavg", **{"rounds": 1, "server.learning_rate": 3e38, "local.learning_rate": 10.0})
    message = "the global model became NaN or infinite in round 1, from updates that were finite"
    with pytest.raises(NonFiniteUpdateError, match=message):
        training.train(config, tmp_path, progress=False)
    assert [line["round"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0]
    (lines,) = training.train_many([config], [tmp_path], progress=False, keep_failures=True)
    assert [line["round"] for line in lines] == [0]


@pytest.mark.parametrize("variant", ["clipped", "k_level"])
def test_finite_divergence_writes_null(variant, tmp_path, capsys):
    """Squares overflow long before updates do; JSON has no infinity."""
    config = small(variant, **{"local.learning_rate": 1e22, "rounds": 2, "eval_every": 1})
    (lines,) = training.train_many([config], [tmp_path], progress=False, keep_failures=True)
    assert lines == read_lines(tmp_path / "metrics.jsonl")
    assert len(lines) > 1 and lines[1]["snr"] is None
    if any(line["loss"] is None for line in lines):
        assert capsys.readouterr().err.count("the test loss after round") == 1


@pytest.mark.filterwarnings("error")
def test_every_number_of_a_line_is_finite_or_null():
    for value in (np.nan, np.inf, -np.inf):
        each = Report(*[np.array([[value], [1.0]])] * len(Report._fields))
        each = each._replace(present=None)  # nobody is drawn alone: each place has a participant
        report = RoundReport(np.array([True, True]), each, mechanisms.Knobs(), np.ones(2))
        task = build.program(small(), sources.load_examples("digits").specification).task
        sums = evaluation.Evaluation({name: np.float32(value) for name in ("loss", "accuracy")})
        line = {**records.evaluated(task, sums, 10), **records.summarize(report, 10, 1.0)}
        numbers = {name: number for name, number in line.items() if name not in ("round", "seconds")}
        assert numbers.pop("seconds_per_round") == 0.5
        assert set(numbers.values()) == {None} and set(numbers) >= {"loss", "accuracy", "snr"}, line
        assert "nan" in records.progress_text(line, task)


def test_a_finite_model_with_an_infinite_loss_says_so(tmp_path, capsys, monkeypatch):
    real = evaluation.make_evaluate

    def infinite(*arguments):
        def evaluate(*more):
            found = real(*arguments)(*more)
            return found._replace(test={**found.test, "loss": found.test["loss"] + jnp.inf})

        return evaluate

    monkeypatch.setattr(evaluation, "make_evaluate", infinite)
    build._program.cache_clear()
    lines = training.train(small(), tmp_path, progress=False)
    build._program.cache_clear()
    assert [line["loss"] for line in lines] == [None] * 3
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "the test loss after round 0 is NaN or infinite, though the model" in said
    )
