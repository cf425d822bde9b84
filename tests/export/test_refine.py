"""Rounded weights that learn from what the trained model writes."""

import jax
import numpy as np
import pytest
from scipy import stats

from cepam_jax.data import sources
from cepam_jax.errors import ConfigError
from cepam_jax.export import formats, loader, predictor, quantize, refine
from cepam_jax.export.quantize import Setting
from cepam_jax.run import build
from configs import digits, shakespeare

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def untrained(config):
    """The predictor of a model whose parameters are random and nowhere zero."""
    data = sources.load_examples(config.data.name, "", sources.options_of(config))
    task = build.task_of(config, data.specification)
    leaves, structure = jax.tree.flatten(jax.jit(task.initialize)(jax.random.key(0)))
    random = np.random.default_rng(0)
    leaves = [np.asarray(x) + 0.2 * random.normal(size=x.shape).astype(np.float32) for x in leaves]
    return predictor.predictor(config, data, jax.tree.unflatten(structure, leaves))


@pytest.fixture(scope="module")
def writer():
    """A Transformer that writes windows of 8 characters."""
    config = shakespeare.get_config("fedavg")
    config.model, config.text.context, config.text.stride = "transformer_tiny", 8, 500
    return untrained(config)


def divergence(writer, weights, inputs) -> float:
    """Nats between the trained model's laws of characters and those of the weights."""
    call = jax.jit(writer.function)
    law = jax.nn.log_softmax(call(writer.leaves, inputs))
    ours = jax.nn.log_softmax(call({name: w.values for name, w in weights.items()}, inputs))
    return float((np.exp(law) * (law - ours)).sum(-1).mean())


@pytest.mark.parametrize("setting", [Setting(rate=2.0), Setting(3, prune=0.3)], ids=str)
def test_refined_weights_answer_more_like_the_trained_model(writer, setting):
    """On windows that they did not see; with the same steps, the same bits, and zeros where it was pruned."""
    before = quantize.quantize(writer.leaves, setting)
    after = refine.refine(writer, before, 60, setting.prune)
    fresh = writer.head.samples(writer.model, jax.random.key(7), 256)
    assert divergence(writer, after, fresh) < 0.6 * divergence(writer, before, fresh)
    for name, w in after.items():
        assert np.array_equal(w.numbers, before[name].numbers) and w.axis == before[name].axis
        assert np.abs(w.codes.astype(int)).max() <= 2 ** (w.bits - 1) - 1 and w.bits == before[name].bits
        if setting.prune and w.codes.ndim > 1:
            zeros = quantize.pruned(np.asarray(writer.leaves[name]), setting.prune) == 0
            assert zeros.any() and not w.codes[zeros].any()
    again = refine.refine(writer, before, 60, setting.prune)
    assert all(np.array_equal(after[name].codes, again[name].codes) for name in after)


def test_the_file_has_the_refined_weights(writer):
    """And what answers no better than the rounded weights is not put in their place."""
    setting = Setting(rate=2.0, refine=20)
    data = formats.export(formats.exporter(writer), setting, "packed")
    found = {w.name: w.codes for w in loader.read(data)[1]}
    before = quantize.quantize(writer.leaves, setting)
    after = refine.refine(writer, before, 20)
    assert all(np.array_equal(found[name].size, w.codes.size) for name, w in after.items())
    assert sum(int(codes.astype(int).sum()) for codes in found.values()) == sum(
        int(w.codes.astype(int).sum()) for w in after.values()
    )
    changed = [name for name, w in before.items() if not np.array_equal(w.codes, after[name].codes)]
    assert changed
    exact = quantize.quantize(writer.leaves, Setting(8))
    kept = refine.refine(writer, exact, 1)
    assert all(np.array_equal(kept[name].codes, w.codes) for name, w in exact.items())


def test_windows_follow_the_models_own_law(writer):
    """Chi-squared tests of the second character, false alarms 1e-6; a law of other logits fails."""
    count = 6_000
    windows = np.asarray(writer.head.samples(writer.model, jax.random.key(1), count))
    assert windows.shape == (count, 8) and windows.dtype == np.int32
    logits = np.asarray(jax.jit(writer.function)(writer.leaves, windows))[:, 0]

    def p_value(scale):
        expected = np.asarray(jax.nn.softmax(scale * logits)).astype(np.float64).sum(0)
        seen = np.bincount(windows[:, 1], minlength=expected.size)
        return stats.chisquare(seen, expected * count / expected.sum()).pvalue

    assert p_value(1.0) > 1e-6 > p_value(0.8)
    # The last place too, given all before, and apart from the place before it.
    laws = np.asarray(jax.jit(writer.function)(writer.leaves, windows))[:, 6]
    chance = np.asarray(jax.nn.softmax(laws)).astype(np.float64)
    below = np.cumsum(chance, 1)[np.arange(count), windows[:, 7]] - chance[np.arange(count), windows[:, 7]]
    uniform = below + np.random.default_rng(0).random(count) * chance[np.arange(count), windows[:, 7]]
    assert stats.kstest(uniform, "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(uniform, windows[:, 6])[0, 1]) < 5 / np.sqrt(count)
    first = np.bincount(windows[:, 0], minlength=logits.shape[1])
    assert stats.chisquare(first).pvalue > 1e-6


def test_what_cannot_be_refined_is_refused():
    """A model that writes nothing, and a number of steps that is none."""
    config = digits.get_config("fedavg")
    config.model = "linear"
    images = formats.exporter(untrained(config), graph=False)
    with pytest.raises(ConfigError, match="--refine trains on what the model writes itself"):
        formats.export(images, Setting(refine=10), "jax")
    with pytest.raises(ConfigError, match="--refine is -1; it must be 0, or a number of steps up to 100,000"):
        quantize.quantize(images.predictor.leaves, Setting(refine=-1))
