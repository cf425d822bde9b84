"""A trained model as the bytes of a file, in one of three formats."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cepam_jax.export import artifact, loader, packed, translate
from cepam_jax.export.predictor import Predictor
from cepam_jax.export.quantize import Setting, quantize
from cepam_jax.export.refine import refine
from cepam_jax.extras import need


class Exporter(NamedTuple):
    """A model and its graph, from which files are made.

    Attributes:
      predictor: the model.
      translation: its graph; None where only `jax` files are wanted.
    """

    predictor: Predictor
    translation: translate.Translation | None

    @property
    def float32_bytes(self) -> int:
        """What the weights alone take in 32 bits: the size that others are compared with."""
        return 4 * sum(np.size(leaf) for leaf in self.predictor.leaves.values())


def exporter(predictor: Predictor, graph: bool = True) -> Exporter:
    """The Exporter of a model; ConfigError where its graph is wanted and has no translation to ONNX."""
    if not graph:
        return Exporter(predictor, None)
    return Exporter(predictor, translate.translate(predictor.function, predictor.leaves, predictor.example))


def float32(model: Exporter) -> bytes:
    """The model as it was trained, in ONNX."""
    leaves = model.predictor.leaves.items()
    weights = {name: loader.Weight(name, np.asarray(leaf, np.float32)) for name, leaf in leaves}
    return loader.to_onnx(*_of_graph(model, weights))


def _of_graph(model: Exporter, weights: dict[str, loader.Weight]) -> tuple[bytes, list[loader.Weight]]:
    assert model.translation is not None, "a graph is needed"
    graph, layouts = model.translation
    return graph, [translate.laid_out(weight, layouts.get(name)) for name, weight in weights.items()]


def _onnx(model: Exporter, weights: dict[str, loader.Weight]) -> bytes:
    return loader.to_onnx(*_of_graph(model, weights), integers=True)


def _packed(model: Exporter, weights: dict[str, loader.Weight]) -> bytes:
    return packed.pack(*_of_graph(model, weights))


def _jax(model: Exporter, weights: dict[str, loader.Weight]) -> bytes:
    need("a file for jax.export", "export", "flatbuffers")
    return artifact.artifact(model.predictor.function, weights, model.predictor.example)


# Name -> function (Exporter, name -> Weight) -> bytes.
FORMATS: dict[str, Callable[[Exporter, dict[str, loader.Weight]], bytes]] = {
    "jax": _jax,
    "onnx": _onnx,
    "packed": _packed,
}


def export(model: Exporter, setting: Setting, name: str) -> bytes:
    """The bytes of a file.

    Args:
      model: what is exported.
      setting: how its weights are rounded.
      name: of the format, one of `FORMATS`: "onnx" with weights as integers of eight or four bits, "jax"
        for `jax.export`, "packed" for `loader`.

    Raises:
      ConfigError: a setting that is not allowed; a weight that is NaN or infinite; a model that writes
        nothing by which it could be refined.
    """
    weights = quantize(model.predictor.leaves, setting)
    if setting.refine:
        weights = refine(model.predictor, weights, setting.refine, setting.prune)
    return FORMATS[name](model, weights)
