"""Finished models as files: quantization, the packed format, ONNX and jax.export, run without the package.

Tests that need onnxruntime are skipped loudly where it is missing: pip install -r requirements-export.txt.
"""

import shutil
import subprocess
import sys
import warnings
import zlib
from importlib import util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cepam_jax.errors import ConfigError
from cepam_jax.export import formats, loader, operations, packed, predictor, quantize, rates, translate
from cepam_jax.export.graph import Graph
from cepam_jax.export.quantize import Setting
from cepam_jax.mechanisms import clip_thresholds
from cepam_jax.run import build, finished, training
from cepam_jax.tasks.base import TASKS
from configs import digits, shakespeare
from experiments import exported

pytestmark = pytest.mark.compiled_fast

needs_flatbuffers = pytest.mark.skipif(
    util.find_spec("flatbuffers") is None,
    reason="jax.export needs flatbuffers: pip install -r requirements-export.txt",
)


def need_runtime():
    if util.find_spec("onnxruntime") is None:
        message = "NO ONNXRUNTIME: exported files are not run; pip install -r requirements-export.txt"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of digits: (its directory, what it left)."""
    config = digits.get_config("fedavg")
    config.rounds = config.eval_every = 4
    place = tmp_path_factory.mktemp("runs") / "digits"
    training.train(config, place, progress=False)
    return place, finished.load(place)


@pytest.fixture(scope="module")
def model(run):
    found = run[1]
    return formats.exporter(predictor.predictor(found.config, found.data, found.model))


def of_network(config, data):
    """An exporter of an untrained model whose parameters are not zero anywhere."""
    task = build.task_of(config, data.specification)
    model = jax.jit(task.initialize)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(model)
    random = np.random.default_rng(0)
    leaves = [np.asarray(x) + 0.05 * random.normal(size=x.shape).astype(np.float32) for x in leaves]
    return predictor.predictor(config, data, jax.tree.unflatten(structure, leaves)), task


def text():
    from cepam_jax.data import sources  # noqa: PLC0415

    config = shakespeare.get_config("fedavg")
    config.model, config.text.context, config.text.stride = "transformer_tiny", 8, 500
    return config, sources.load_examples("shakespeare", "", sources.options_of(config))


SETTINGS = [
    Setting(8),
    Setting(4),
    Setting(3, "max"),
    Setting(2, "percentile"),
    Setting(4, prune=0.4),
    Setting(rate=2.4),
]


# ---- Rounding ---------------------------------------------------------------------------------------------


def test_steps_are_the_powers_of_two_that_they_say():
    numbers = np.arange(1, loader.STEPS)
    np.testing.assert_allclose(loader.steps(numbers)[2000:], 2.0 ** ((numbers[2000:] - 4800) / 32), rtol=2e-7)
    assert np.all(np.diff(loader.steps(numbers).astype(np.float64)) >= 0)
    assert loader.steps(np.array([0, 4800])).tolist() == [0, 1]


@pytest.mark.parametrize("clip", clip_thresholds.THRESHOLDS)
@pytest.mark.parametrize("bits", quantize.BITS)
def test_errors_are_at_most_a_step_inside_the_clip_and_codes_have_their_bits(bits, clip):
    random = np.random.default_rng(1)
    values = random.normal(size=(30, 20)).astype(np.float32) * np.geomspace(0.01, 10, 20, dtype=np.float32)
    weight = quantize.quantize({"a/kernel": values}, Setting(bits, clip))["a/kernel"]
    steps, largest = loader.steps(weight.numbers), 2 ** (bits - 1) - 1
    assert weight.axis == 1 and np.abs(weight.codes).max() <= largest
    bound = steps * largest
    inside = np.abs(values) <= bound
    # Nearest, or the other side where that balances a channel's errors.
    assert np.all((np.abs(weight.values - values) <= steps * 1.0001) | ~inside)
    assert np.all(np.abs(weight.codes) == largest, where=np.abs(values) > bound + steps)
    if clip == "max":
        assert np.all(np.abs(values).max(0) <= bound * 1.0001) and np.all(
            bound <= np.abs(values).max(0) * 1.03
        )


def test_the_calibrated_clip_is_the_better_one_at_few_bits():
    values = np.random.default_rng(2).laplace(size=(400, 8)).astype(np.float32)

    def error(clip):
        found = quantize.quantize({"kernel": values}, Setting(3, clip))["kernel"]
        return np.square(found.values - values).mean()

    assert error("mse") < 0.5 * error("max")


def test_the_errors_of_a_channel_add_up_to_nearly_nothing():
    rows = (3 * np.random.default_rng(3).normal(size=(50, 200))).astype(np.float32)
    codes = quantize.balanced(rows, 127)
    assert np.abs((rows - codes).sum(1)).max() <= 0.5001
    assert np.abs((rows - np.rint(rows)).sum(1)).max() > 2  # which rounding alone does not do
    assert np.square(rows - codes).mean() < 1.1 * np.square(rows - np.rint(rows)).mean()
    assert not quantize.balanced(np.zeros((2, 3), np.float32), 7).any()


def test_pruning_zeroes_the_smallest_share():
    values = np.random.default_rng(4).normal(size=(40, 25)).astype(np.float32)
    found = quantize.quantize({"kernel": values}, Setting(8, prune=0.6))["kernel"].values
    small = np.abs(values) < np.quantile(np.abs(values), 0.6)
    assert not found[small].any() and np.count_nonzero(found) > 0.39 * values.size


@pytest.mark.parametrize("rate", [1.0, 2.0, 3.0])
def test_codes_of_a_rate_need_so_many_bits_and_are_not_cut_off(rate):
    random = np.random.default_rng(5)
    leaves = {"a/kernel": random.normal(size=(300, 64)), "b/kernel": 7 * random.normal(size=(40, 10))}
    found = quantize.quantize(leaves, Setting(rate=rate))
    total = sum(rates.entropy(w.codes) * w.codes.size for w in found.values())
    assert total / sum(w.codes.size for w in found.values()) == pytest.approx(rate, rel=0.03)
    for name, weight in found.items():
        assert np.abs(weight.values - leaves[name]).max() <= loader.steps(weight.numbers)[0] * 1.0001
    shares = rates.shared({"a": 19_200, "b": 400}, rate)
    assert shares["b"] - shares["a"] == pytest.approx(np.log2(19_200 / 400) / 2)


def test_zeros_and_tiny_and_huge_weights():
    leaves = {
        "zero/kernel": np.zeros((3, 4), np.float32),
        "tiny/kernel": np.full((3, 4), 1e-30, np.float32),
        "huge/kernel": np.full((3, 4), 3e37, np.float32),
        "dead/kernel": np.eye(4, dtype=np.float32)[:, :3] * np.float32([1, 0, 2]),
        "scalar": np.float32(2.5),
        "none/bias": np.zeros(4, np.float32),
    }
    for setting in SETTINGS:
        found = quantize.quantize(leaves, setting._replace(prune=0.0))
        for name, value in leaves.items():
            np.testing.assert_allclose(found[name].values, value, rtol=0.03)
        back = loader.read(packed.pack(b"graph", list(found.values())))[1]
        assert all(np.array_equal(a.values, b.values) for a, b in zip(found.values(), back, strict=True))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting(5), "--bits is 5; it must be one of 8, 4, 3, 2"),
        (Setting(clip="l2"), "--clip is 'l2'; it must be one of 'kl'"),
        (Setting(prune=1.0), "--prune is 1.0"),
        (Setting(prune=float("nan")), "--prune is nan"),
        (Setting(rate=9.0), "--rate is 9.0; it must be 0, or a number of bits for each weight from 0.5 to 6"),
        (Setting(rate=float("nan")), "--rate is nan"),
    ],
)
def test_settings_are_checked(setting, words):
    with pytest.raises(ConfigError) as error:
        quantize.quantize({"kernel": np.ones((2, 2))}, setting)
    assert words in str(error.value)


def test_weights_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ConfigError, match="the model's a/bias is NaN or infinite"):
        quantize.quantize({"a/bias": np.array([1.0, np.nan])}, Setting())


# ---- The packed file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_packed_file_comes_back_to_the_bit(model, setting):
    weights = quantize.quantize(model.predictor.leaves, setting)
    data = formats.export(model, setting, "packed")
    graph, back = loader.read(data)
    assert graph == model.translation.graph and [w.name for w in back] == list(weights)
    for one in back:
        before = translate.laid_out(weights[one.name], model.translation.layouts.get(one.name))
        assert np.array_equal(one.codes, before.codes) and np.array_equal(one.values, before.values)
        assert one.axis == before.axis and one.bits == before.bits
    coded = sum(rates.entropy(w.codes) * w.codes.size for w in back) / 8
    assert coded < len(data) < coded + len(graph) + 600


def test_every_byte_that_is_altered_and_every_cut_is_noticed(model):
    data = formats.export(model, Setting(3), "packed")
    for place in {*range(12), *range(12, len(data), 97), len(data) - 1}:
        wrong = bytearray(data)
        wrong[place] ^= 1
        with pytest.raises(loader.CorruptModelError):
            loader.read(bytes(wrong))
    for length in (0, 3, 8, 9, 100, len(data) - 1):
        with pytest.raises(loader.CorruptModelError):
            loader.read(data[:length])


@pytest.mark.filterwarnings("error")
def test_a_forger_who_fits_the_checksum_does_no_harm(model):
    """1,000 altered files whose checksum fits: an error or some model, never a crash, a hang or memory."""
    data, random = formats.export(model, Setting(3), "packed"), np.random.default_rng(0)
    bodies = []
    for _ in range(1000):
        body = bytearray(data[9:])
        kind = random.integers(3)
        if kind == 0:
            del body[random.integers(len(body)) :]
        elif kind == 1:
            body[random.integers(len(body))] = random.integers(256)
        else:
            body[: random.integers(1, 9)] = random.bytes(8)
        bodies.append(bytes(body))
    head = loader.deflated(loader.varint(0) + loader.varint(1) + b"\1w" + b"\2\0\1" + loader.varint(2**34))
    bodies += [
        b"\xff" * 100_000,
        loader.varint(len(head)) + head,
        loader.varint(len(zeros := loader.deflated(bytes(300_000_000)))) + zeros,
    ]
    refused = 0
    for body in bodies:
        try:
            loader.read(data[:5] + zlib.crc32(body).to_bytes(4, "little") + body)
        except loader.CorruptModelError:
            refused += 1
    assert refused > 300


def test_the_loader_runs_alone_and_says_what_is_wrong(model, tmp_path):
    """A copy of the one file, in a process that cannot see this package."""
    shutil.copy(ROOT / "cepam_jax/export/loader.py", tmp_path / "loader.py")
    data = formats.export(model, Setting(rate=2.4), "packed")
    (tmp_path / "model.packed").write_bytes(data)
    (tmp_path / "bad.packed").write_bytes(data[:-1])

    def call(*arguments):
        command = [sys.executable, "-I", "loader.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert call("model.packed", "model.onnx").returncode == 0
    assert (tmp_path / "model.onnx").read_bytes() == loader.to_onnx(*loader.read(data))
    assert "cepam_jax" not in "".join(
        line
        for line in (tmp_path / "loader.py").read_text().splitlines()
        if line.startswith(("import", "from"))
    )
    bad = call("bad.packed", "bad.onnx")
    assert bad.returncode == 1 and "cut short or altered" in bad.stderr and "Traceback" not in bad.stderr
    assert "usage" in call("model.packed").stderr


# ---- What the files compute -------------------------------------------------------------------------------


def outputs_of(model, weights, inputs):
    leaves = {name: weight.values for name, weight in weights.items()}
    return np.asarray(jax.jit(model.predictor.function)(leaves, inputs))


def test_the_predictor_judges_as_the_task_does(run):
    """Also after the convolutions were exchanged; and for text."""
    trained = predictor.predictor(run[1].config, run[1].data, run[1].model)
    found = exported.metrics(run[1], trained, exported.trained(trained))
    last = training.train(run[1].config, run[0], progress=False)[-1]
    assert found["accuracy"] == pytest.approx(last["accuracy"], abs=1e-6)
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    config, data = text()
    characters, task = of_network(config, data)
    part = {name: array[:20] for name, array in data.test.items()}
    model = jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(task.initialize, jax.random.key(0))), characters.leaves.values()
    )
    sums = {name: np.asarray(v).sum() for name, v in jax.jit(task.evaluate)(model, part, {}).items()}
    judged = characters.head.judge(exported.trained(characters)(characters.head.inputs_of(part)), part)
    for name, value in sums.items():
        assert judged[name] == pytest.approx(value, rel=1e-5)


@needs_flatbuffers
def test_the_jax_file_runs_in_a_process_with_jax_alone(run, model, tmp_path):
    inputs = model.predictor.head.inputs_of(run[1].data.test)[:30]
    np.save(tmp_path / "inputs.npy", inputs)
    code = (
        "import sys, numpy as np\nfrom jax import export\n"
        "for bits in (8, 3, 2):\n"
        "    call = export.deserialize(bytearray(open(f'{bits}.jax', 'rb').read())).call\n"
        "    np.save(f'{bits}.npy', call(np.load('inputs.npy')))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('cepam_jax', 'flax')]\n"
    )
    for bits in (8, 3, 2):
        (tmp_path / f"{bits}.jax").write_bytes(formats.export(model, Setting(bits), "jax"))
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    for bits in (8, 3, 2):
        wanted = outputs_of(model, quantize.quantize(model.predictor.leaves, Setting(bits)), inputs)
        np.testing.assert_allclose(np.load(tmp_path / f"{bits}.npy"), wanted, atol=1e-4)


def test_the_onnx_files_run_in_a_process_without_the_package(run, model, tmp_path):
    need_runtime()
    inputs = model.predictor.head.inputs_of(run[1].data.test)[:30]
    np.save(tmp_path / "inputs.npy", inputs)
    code = (
        "import sys, glob, numpy as np, onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.add_session_config_entry('session.disable_quant_qdq', '1')\n"
        "for name in glob.glob('*.onnx'):\n"
        "    session = onnxruntime.InferenceSession(name, options)\n"
        "    np.save(name + '.npy', session.run(None, {'input': np.load('inputs.npy')})[0])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('cepam_jax', 'jax')]\n"
    )
    for number, setting in enumerate(SETTINGS):
        (tmp_path / f"{number}.onnx").write_bytes(formats.export(model, setting, "onnx"))
        unpacked = loader.to_onnx(*loader.read(formats.export(model, setting, "packed")))
        (tmp_path / f"{number}u.onnx").write_bytes(unpacked)
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    for number, setting in enumerate(SETTINGS):
        wanted = outputs_of(model, quantize.quantize(model.predictor.leaves, setting), inputs)
        for name in (f"{number}.onnx.npy", f"{number}u.onnx.npy"):
            np.testing.assert_allclose(np.load(tmp_path / name), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["cnn2", "cnn3"])
def test_convolutions_in_onnx(name, run):
    need_runtime()
    config = run[1].config.copy_and_resolve_references()
    config.model = name
    images = np.random.default_rng(6).integers(0, 256, (8, 16, 16, 1)).astype(np.uint8)
    facts, arrays, constants = run[1].data.specification
    arrays = tuple((n, d, (16, 16, 1) if n == "image" else s) for n, d, s in arrays)
    data = run[1].data._replace(
        train={
            **run[1].data.train,
            "image": np.zeros((len(run[1].data.train["label"]), 16, 16, 1), np.uint8),
        },
        test={"image": images, "label": np.zeros(8, np.int32)},
    )
    assert data.specification == (facts, arrays, constants)
    found, task = of_network(config, data)
    one = formats.exporter(found)
    inputs = found.head.inputs_of(data.test)
    outputs = exported.trained(found)(inputs)
    np.testing.assert_allclose(exported.session(formats.float32(one))(inputs), outputs, atol=2e-4)
    # The same as the network that was trained, whose convolutions are products of tiles.
    structure = jax.tree.structure(jax.eval_shape(task.initialize, jax.random.key(0)))
    model = jax.tree.unflatten(structure, found.leaves.values())
    judged = jax.jit(task.evaluate)(model, data.test, data.constants)
    assert found.head.judge(outputs, data.test)["loss"] == pytest.approx(
        float(judged["loss"].sum()), rel=1e-4
    )
    packed_file = exported.opened(formats.export(one, Setting(4), "packed"), "packed")
    wanted = outputs_of(one, quantize.quantize(found.leaves, Setting(4)), inputs)
    np.testing.assert_allclose(packed_file(inputs), wanted, atol=2e-4)


def test_the_transformer_in_onnx():
    need_runtime()
    config, data = text()
    found, _ = of_network(config, data)
    one = formats.exporter(found)
    inputs = found.head.inputs_of(data.test)[:40]
    for batch in (inputs, inputs[:1]):
        wanted = exported.trained(found)(batch)
        np.testing.assert_allclose(exported.session(formats.float32(one))(batch), wanted, atol=2e-4)
    weights = quantize.quantize(found.leaves, Setting(rate=2.4))
    packed_file = exported.opened(formats.export(one, Setting(rate=2.4), "packed"), "packed")
    np.testing.assert_allclose(packed_file(inputs), outputs_of(one, weights, inputs), atol=2e-4)


FUNCTIONS = {
    "mean and variance": lambda w, x: (
        (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    ),
    "gelu, silu and softplus": lambda w, x: nn.gelu(x, approximate=False) + nn.silu(x) + jnp.abs(x) ** 1.5,
    "concatenation and slices": lambda w, x: jnp.concatenate([jax.lax.slice_in_dim(x, 1, 5, axis=1), -x], 1),
    "padding": lambda w, x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=3.0) @ jnp.ones((8, 2)),
    "another axis": lambda w, x: jnp.einsum("bi,oi->bo", x, w.T) + w.sum(0),
    "a comparison": lambda w, x: jnp.where((x > 0.1) & ~(x >= 1.0), x, x.min(1, keepdims=True)),
    "a sum over no axes": lambda w, x: jnp.sum(x, ()) + w[0],
    "a roll": lambda w, x: jnp.roll(x, 1, 1) @ w,
    "a power": lambda w, x: x**3 - 1 / (2 + x * x),
    "a constant that is repeated": lambda w, x: x + jnp.broadcast_to(w[0, :1], (1, 5)),
    "a weight in two ways": lambda w, x: (x @ w) @ w.T + w[:, 0],
    # Only the function inside uses it twice: it was stored as the first use wants it.
    "a weight in two ways inside": lambda w, x: jax.checkpoint(lambda v: x @ v.T + v[0])(w),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_primitives_in_onnx(name):
    need_runtime()
    random = np.random.default_rng(7)
    leaves = {"w": random.normal(size=(5, 5)).astype(np.float32)}
    x = random.normal(size=(4, 5)).astype(np.float32)
    found = translate.translate(lambda given, inputs: FUNCTIONS[name](given["w"], inputs), leaves, x[0])
    weights = [translate.laid_out(loader.Weight("w", leaves["w"]), found.layouts.get("w"))]
    outputs = exported.session(loader.to_onnx(found.graph, weights))(x)
    np.testing.assert_allclose(outputs, FUNCTIONS[name](leaves["w"], x), atol=1e-4)


def test_onnx_files_pass_its_own_checker(model):
    need_runtime()
    import onnx  # noqa: PLC0415  an extra

    for data in (formats.float32(model), formats.export(model, Setting(4), "onnx")):
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


# ---- What is refused --------------------------------------------------------------------------------------


def test_what_has_no_translation_is_named():
    leaves = {"w": np.ones((5, 5), np.float32)}
    for function, words in (
        (lambda w, x: jnp.sort(x @ w["w"], 1), "'sort'"),
        (lambda w, x: (x @ w["w"]).astype(jnp.bfloat16), "bfloat16"),
        (lambda w, x: (x * 300).astype(jnp.uint8), "makes integers of floats"),
        (lambda w, x: x - x.mean(0), "computes with the batch's size"),
        (lambda w, x: jnp.take(w["w"], jnp.int32(x.sum(1) > 0), axis=0, mode="clip"), "with mode='clip'"),
        (
            lambda w, x: jax.lax.conv_general_dilated(
                x[..., None], w["w"][:3, :1, None], (1,), [(-1, 0)], dimension_numbers=("NWC", "WIO", "NWC")
            ),
            "pads by less than nothing",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            translate.translate(function, leaves, np.zeros(5, np.float32))
    with pytest.raises(ConfigError, match="called 'input'"):
        translate.translate(lambda w, x: x, {"input": np.ones(2, np.float32)}, np.zeros(5, np.float32))


def test_a_task_without_outputs_is_refused(run):
    config = run[1].config.copy_and_resolve_references()
    config.task = next(name for name in TASKS if name not in predictor.PREDICTORS)
    with pytest.raises(
        ConfigError, match="config.task of the run is .* it must be one of 'image_classification'"
    ):
        predictor.predictor(config, run[1].data, run[1].model)


def test_unused_operations_are_left_out():
    graph = Graph([])
    kept = operations._elementwise(
        graph, "Exp", [graph.add("Neg", [np.float32(1)], ())], np.dtype(np.float32)
    )
    graph.add("Log", [np.float32(2)], ())
    nodes, constants = graph.written(kept, "output")
    assert len(nodes) == 3 and len(constants) == 1


def command(root, *arguments):
    words = [sys.executable, "-m", "experiments.export", *arguments]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@needs_flatbuffers
def test_the_command_makes_a_file_and_refuses_in_one_line(run, tmp_path, root):
    file = tmp_path / "model.jax"
    done = command(root, f"--run={run[0]}", "--format=jax", "--bits=8", f"--out={file}")
    assert done.returncode == 0, done.stderr
    assert f"{file.stat().st_size:,} bytes" in done.stdout and "as trained" in done.stdout
    copy = Path(shutil.copytree(run[0], tmp_path / "cut"))
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"rounds": 4', '"rounds": 9'))
    done = command(root, f"--run={copy}", "--format=jax")
    assert done.returncode == 1 and "saved after round 4 of 9; it must be a finished run" in done.stderr
    if util.find_spec("onnxruntime") is None:
        done = command(root, f"--run={run[0]}")
        assert done.returncode == 1 and 'pip install "cepam_jax[export]"' in done.stderr
