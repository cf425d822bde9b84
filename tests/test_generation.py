"""A text that a network writes: the same for the same seed, and drawn from what the network says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.data import text
from cepam_jax.errors import ConfigError, DatasetError
from cepam_jax.models import sequences
from cepam_jax.tasks.generation import _drawer, generate
from cepam_jax.tasks.networks import network

pytestmark = pytest.mark.compiled_fast

CONTEXT = 6


@functools.lru_cache
def made():
    """A network whose logits are far apart, and its Model."""
    net = network(
        sequences.build("transformer_tiny", len(text.ALPHABET), CONTEXT), np.zeros(CONTEXT, np.int32)
    )
    model = net.initialize(jax.random.key(0))
    noise = jax.random.key(1)
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(noise, a.shape), model.params)
    return net, model._replace(params=params)


def written(prompt="So ", length=12, temperature=1.0, seed=0):
    return generate(*made(), CONTEXT, prompt, length, temperature, seed)


def test_it_is_the_same_for_the_same_seed():
    first = written()
    assert first.startswith("So ") and len(first) == 15 and first == written()
    assert first != written(seed=1)
    assert written(length=5) == first[:8]
    assert len(written(prompt="")) == 12


@pytest.mark.parametrize("prompt", ["So ", "So long a prompt"])
def test_the_most_likely_character_is_that_of_the_network(prompt):
    """Against the network called anew for every character, with the last characters alone."""
    net, model = made()
    apply = jax.jit(lambda seen: net.apply(model, seen, None)[0][0, -1])
    so_far = prompt
    for _ in range(5):
        seen = text.encode(so_far)[-CONTEXT:].astype(np.int32)
        so_far += text.ALPHABET[int(apply(seen[None]).argmax())]
    assert written(prompt, 5, 0.0) == so_far
    assert written(prompt, 5, 1e-4) == so_far != written(prompt, 5, 100.0)


def test_characters_are_drawn_by_the_networks_chances():
    """Of 4,000 first ones; chi-square of the 12 likeliest and the rest, 12 degrees: a false alarm in 7e5."""
    net, model = made()
    logits = net.apply(model, jnp.asarray(text.encode("So ").astype(np.int32))[None], None)[0][0, -1]
    chances = np.asarray(jax.nn.softmax(logits / 3.0), np.float64)
    window = jnp.asarray(np.pad(text.encode("So "), (0, CONTEXT - 3)).astype(np.int32))
    draw = jax.jit(jax.vmap(_drawer(net, 3.0), in_axes=(None, None, None, 0)))
    drawn = np.asarray(draw(model, window, jnp.int32(3), jax.random.split(jax.random.key(2), (4000, 1))))[
        :, 0
    ]
    assert _chi_square(drawn, chances) < 50.8
    wrong = np.asarray(jax.nn.softmax(logits / 2.4), np.float64)  # the twin: another temperature
    assert _chi_square(drawn, wrong) > 50.8


def _chi_square(drawn, chances):
    likely = np.argsort(chances)[::-1][:12]
    counts = np.array([(drawn == place).sum() for place in likely])
    expected = len(drawn) * chances[likely]
    counts, expected = (np.append(a, len(drawn) - a.sum()) for a in (counts, expected))
    return float(((counts - expected) ** 2 / expected).sum())


def test_impossible_wishes_are_refused():
    for changes, message in (
        ({"length": 0}, "length is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            written(**changes)
    with pytest.raises(DatasetError, match="the text has the character '#'"):
        written("#")
