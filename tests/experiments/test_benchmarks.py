"""The benchmarks measure what they say; how fast things are is not tested."""

import json
import sys
from types import SimpleNamespace

import jax
import pytest

from cepam_jax import mechanisms
from experiments.benchmarks import accelerator, processes, profile, quantizer
from experiments.benchmarks import workloads as w

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def test_one_process_reports_what_it_did():
    found = processes.ours("--model=mlp", "--clients=3", "--steps=1", "--rounds=2", "--mechanism=cepam Z1")
    assert found["coordinates"] == 25818 and found["clients"] == 3 and len(found["seconds_per_round"]) == 2
    assert 50 < found["peak_mb"] < 5000 and found["buffers_mb"] > 4 * 25818 / 1e6
    assert found["import_s"] > 0 and found["compile_s"] > 0


def test_a_process_that_fails_says_why():
    assert "must be one of" in processes.ours("--model=resnet")["error"]
    assert "No such file" in processes.measured(["/nowhere/python"])["error"]
    assert "1 / 0" in processes.measured([sys.executable, "-c", "raise ValueError('1 / 0')"])["error"]


def test_peers_that_are_missing_are_named(tmp_path, called):
    output = tmp_path / "peers.json"
    done = called(
        *("experiments.benchmarks.peers", "--models=mlp", "--clients=2", "--rounds=1", "--turns=1"),
        *("--torch=/nowhere/python", "--pfl=/nowhere/python", "--fedjax=/nowhere/python"),
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    lines = {line["peer"]: line for line in json.loads(output.read_text())}
    assert lines["cepam_jax"]["seconds"] > 0 and lines["cepam_jax Z1"]["seconds"] > 0
    for peer in ("torch", "pfl", "fedjax"):
        assert "/nowhere/python" in lines[peer]["error"]
        assert "not run" in next(line for line in done.stdout.splitlines() if f"| {peer} " in line)


def test_memory_follows_the_chunk_and_not_the_clients():
    def buffers(clients, per_chunk):
        function, arguments, _ = w.one_round("mlp", w.MECHANISMS["cepam Z1"], clients, 1, per_chunk)
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    few, many, wide = buffers(4, 2), buffers(400, 2), buffers(400, 20)
    assert many < 1.05 * few
    assert wide > 5 * many  # the measurement can tell


def test_a_robust_rule_takes_the_memory_of_all_updates_and_a_few_copies():
    def buffers(rule, clients):
        function, arguments, d = w.one_round("mlp", w.MECHANISMS["fedavg"], clients, 1, 1, rule)
        memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
        return memory.temp_size_in_bytes / (4 * clients * d)

    assert 1 <= buffers("trimmed_mean", 200) < 4.5
    assert buffers("mean", 200) < 0.5  # which streams


def test_messages_of_large_updates_take_the_memory_of_one_client():
    def copies(mechanism, per_chunk):
        function, arguments, d = w.one_round("dense1M", w.MECHANISMS[mechanism], 4, 1, per_chunk)
        memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
        return memory.temp_size_in_bytes / 4 / d

    # Training itself needs copies of the model for each client under one vmap; CEPAM adds a dozen for the
    # client whose message is made (two of them to choose the laws of its tensors), and none for each of four.
    assert copies("cepam Z1", 4) - copies("fedavg", 4) < 12


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("pfl_cifar10", 1_626_442), ("blazefl_cifar10", 62_006), (w.LARGE, 124_439_808)],
)
def test_workloads_of_others_have_their_networks(model, parameters):
    start = jax.eval_shape(w.named_task(model).initialize, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(start.params)) == parameters


def test_the_next_token_is_learned_from_windows():
    arrays = w.arrays_of(w.LARGE, 3, 1, 2)
    assert arrays.rows.tolist() == [[0, 1], [2, 3], [4, 5]]  # everyone has examples of its own
    batch = {name: values[:2] for name, values in arrays.examples.items()}
    task = w.named_task(w.LARGE)
    start = jax.eval_shape(task.initialize, jax.random.key(0))
    loss, _ = jax.eval_shape(task.loss, start, batch, {}, jax.random.key(1))
    assert loss.shape == ()


def test_own_times_of_nested_events():
    def event(name, start, duration):
        return SimpleNamespace(name=name, start_ns=start, duration_ns=duration)

    events = [
        event("loop", 0, 10e6),
        event("a", 1e6, 2e6),
        event("a", 4e6, 2e6),
        event("inside", 4.5e6, 1e6),
        event("b", 12e6, 1e6),
    ]
    found = profile.own_times(events)
    assert found["loop"] == [pytest.approx(6)]
    assert sorted(found["a"]) == [pytest.approx(1), pytest.approx(2)]
    assert found["inside"] == [pytest.approx(1)] and found["b"] == [pytest.approx(1)]


def test_random_words_per_coordinate():
    words = lambda **options: quantizer.words_per_coordinate(mechanisms.lrsuq(**options))  # noqa: E731
    assert words() == 2  # a layer and a dither
    # Two words for the layer of a block, two for each proposal; a ball in a square accepts pi/4 of them.
    assert words(lattice="Z2") == pytest.approx((2 + 2 / 0.7854) / 2, rel=1e-3)
    assert quantizer.words_per_coordinate(mechanisms.identity()) == 0


def event(start, duration):
    return SimpleNamespace(start_ns=start, duration_ns=duration)


def test_spans_of_devices_leave_out_the_host_and_other_lines():
    def plane(name, **lines):
        return SimpleNamespace(
            name=name,
            lines=[
                SimpleNamespace(name=line.replace("_", " "), events=events) for line, events in lines.items()
            ],
        )

    planes = [
        plane("/host:CPU", XLA_Ops=[event(0, 100)]),
        plane("/device:GPU:0", Stream_13=[event(30, 5), event(10, 10)], Steps=[event(0, 100)]),
        plane("/device:CPU:0", XLA_Ops=[event(0, 100)]),
    ]
    assert accelerator.device_spans(planes) == [(10, 20), (30, 35)]


def test_idle_is_what_no_operation_covers():
    assert accelerator.idle_of([(0, 10), (5, 8), (20, 30), (30, 40)]) == pytest.approx(10 / 40)
    assert accelerator.idle_of([(0, 10), (2, 12)]) == 0
    assert accelerator.idle_of([]) is None


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path, capsys):
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED\nand a long trace")

    def works():
        return [{"what": "copy", "unit": "GB/s", "value": 3.0, "of memory": 0.5}]

    output = tmp_path / "found.json"
    found = accelerator.collect([("large", fails), ("small", works)], 1, str(output))
    assert json.loads(output.read_text()) == found
    assert found["failed"] == {"large": "RuntimeError: RESOURCE_EXHAUSTED"} and found["rows"] == works()
    assert "copy | 3 GB/s | 0.50 of memory" in capsys.readouterr().out
    late = accelerator.collect([("first", works), ("second", works)], 0, "")
    assert late["no time"] == ["second"] and len(late["rows"]) == 1
