"""Runs exported files without the model that they were made of, and says how good and how fast they are."""

from collections.abc import Callable

import jax
import numpy as np
from jax import export as jax_export

from cepam_jax.data.examples import number_of
from cepam_jax.export import formats, loader
from cepam_jax.export.predictor import Predictor
from cepam_jax.export.predictor import predictor as make_predictor
from cepam_jax.export.quantize import Setting, quantize
from cepam_jax.extras import need
from cepam_jax.run.finished import Finished

_BATCH = 250  # examples at a time


def need_runtime() -> None:
    """MissingExtraError unless onnxruntime is installed."""
    need("to run an ONNX file, experiments.export", "export", "onnxruntime")


def session(model: bytes, folded: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """inputs -> outputs of an ONNX file, in onnxruntime on one core.

    Args:
      model: the file.
      folded: whether weights become float32 once, when it is loaded. Else onnxruntime does it anew for every
        call, or multiplies integers, for which it also rounds activations.

    Raises:
      MissingExtraError: onnxruntime is not installed.
    """
    need_runtime()
    import onnxruntime  # noqa: PLC0415  an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if folded:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda inputs: opened.run(None, {"input": inputs})[0]


def opened(data: bytes, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """inputs -> outputs of a file of a format of `export.formats.FORMATS`.

    Raises:
      MissingExtraError: onnxruntime is needed and not installed.
      CorruptModelError: a packed file was altered or cut short.
    """
    if name == "jax":
        call = jax_export.deserialize(bytearray(data)).call
        return lambda inputs: np.asarray(call(inputs))
    return session(data if name == "onnx" else loader.to_onnx(*loader.read(data)))


def trained(predictor: Predictor) -> Callable[[np.ndarray], np.ndarray]:
    """inputs -> outputs of the model as it was trained, by JAX."""
    compiled = jax.jit(lambda inputs: predictor.function(predictor.leaves, inputs))
    return lambda inputs: np.asarray(compiled(inputs))


def metrics(
    run: Finished, predictor: Predictor, call: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """The task's metrics on all test examples, of outputs that `call` makes of inputs."""
    test, head = run.data.test, predictor.head
    total: dict[str, float] = {}
    for start in range(0, number_of(test), _BATCH):
        part = {name: array[start : start + _BATCH] for name, array in test.items()}
        for name, value in head.judge(call(head.inputs_of(part)), part).items():
            total[name] = total.get(name, 0) + value
    return run.task.summarize(total, float(number_of(test)))


def packed_size(run: Finished, rate: float) -> tuple[int, float]:
    """(bytes of a finished run's packed file, what rounding costs in its task's headline metric).

    The metric is that of the rounded weights, by JAX: no runtime of ONNX is needed.

    Args:
      run: finished.
      rate: bits for each weight, as `--rate`.
    """
    whole = make_predictor(run.config, run.data, run.model)
    weights = quantize(whole.leaves, Setting(rate=rate))
    size = len(formats.FORMATS["packed"](formats.exporter(whole), weights))
    values = {name: w.values for name, w in weights.items()}
    rounded = metrics(run, whole, trained(whole._replace(leaves=values)))
    return size, metrics(run, whole, trained(whole))[run.task.headline] - rounded[run.task.headline]
