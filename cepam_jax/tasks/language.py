"""The next character of a text."""

import jax.numpy as jnp
import numpy as np

from cepam_jax import models, settings
from cepam_jax.data import text
from cepam_jax.errors import DatasetError
from cepam_jax.models import sequences
from cepam_jax.tasks.base import Task, register
from cepam_jax.tasks.classification import cross_entropy
from cepam_jax.tasks.networks import Network, network

__all__ = ["network_of", "next_character"]

settings.declare("local", {"dropout": settings.below_one(0.0, "Rate of dropout, of models of sequences.")})


@settings.rule
def _rules(fields):
    model = fields["model"]
    yield (
        fields["local.dropout"] == 0 or model not in models.MODELS,
        "local.dropout",
        f"0 where config.model is {model!r}: only models of sequences have that rate",
    )


FORMATS = {"loss": ".3f", "perplexity": ".2f", "accuracy": ".3f"}


def network_of(config, specification) -> Network:
    """The network that `next_character` trains; its outputs are logits f32[batch, time, vocabulary].

    Args:
      config: settings; read are model and local.dropout.
      specification: as of `next_character`.

    Raises:
      ConfigError: config.model is no model of sequences.
      DatasetError: the examples are no text.
    """
    facts, arrays, _ = specification
    facts, shapes = dict(facts), {name: (dtype, shape) for name, dtype, shape in arrays}
    dtype, shape = shapes.get("characters", ("", ()))
    fits = dtype == "uint8" and len(shape) == 1 and shapes.get("length") == ("int32", ())
    if not fits or {"context", "vocabulary"} - facts.keys() or shape[0] != facts["context"] + 1:
        raise DatasetError(
            f"config.task is 'next_character', but the data set's examples are {sorted(shapes)}; it needs "
            f"characters uint8[context + 1], length and the facts context and vocabulary, as "
            f"{text.__name__}.of_text makes them"
        )
    module = sequences.build(config.model, facts["vocabulary"], facts["context"], config.local.dropout)
    return network(module, np.zeros(facts["context"], np.int32))


@register
def next_character(config, specification) -> Task:
    """Each character of a window but the first, from those before it, by `config.model`.

    The loss is in nats per character. In metrics a window counts by its characters, in training each
    window of a batch alike. Where a text is shorter than a window, what fills it up counts nowhere.

    Args:
      config: settings; read are model and local.dropout.
      specification: of examples "characters" uint8[context + 1] and "length" int32[], how many of them count,
        with the facts "context" and "vocabulary".

    Raises:
      ConfigError: config.model is no model of sequences.
      DatasetError: the examples are no text.
    """
    net = network_of(config, specification)

    def nats(model, batch, key):
        """(f32[batch, context], logits, who counts f32[batch, context], new statistics)."""
        characters = batch["characters"].astype(jnp.int32)
        logits, statistics = net.apply(model, characters[:, :-1], key)
        places = jnp.arange(1, characters.shape[1])
        counts = (places < batch["length"][:, None]).astype(jnp.float32)
        return counts * cross_entropy(logits, characters[:, 1:]), logits, counts, statistics

    def loss(model, batch, constants, key):
        each, _, counts, statistics = nats(model, batch, key)
        return jnp.mean(each.sum(1) / jnp.maximum(counts.sum(1), 1)), statistics

    def evaluate(model, batch, constants):
        each, logits, counts, _ = nats(model, batch, None)
        right = logits.argmax(-1) == batch["characters"][:, 1:]
        return {"nats": each.sum(1), "right": (counts * right).sum(1), "characters": counts.sum(1)}

    lower = ("loss", "perplexity")
    return Task(
        net.initialize, loss, evaluate, summarize, "loss", formats=FORMATS, project=net.project, lower=lower
    )


def summarize(sums, count: float) -> dict[str, float]:
    """Nats per character, its exponential, and the part of the characters that were most likely."""
    del count  # windows are not alike: characters are counted
    characters = max(float(sums["characters"]), 1.0)
    mean = float(sums["nats"]) / characters
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return {"loss": mean, "perplexity": perplexity, "accuracy": float(sums["right"]) / characters}
