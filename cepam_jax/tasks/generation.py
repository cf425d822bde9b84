"""A text, character after character, as a network of `language` expects it to go on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.data import text
from cepam_jax.errors import require
from cepam_jax.tasks.base import Model
from cepam_jax.tasks.networks import Network


def generate(
    net: Network,
    model: Model,
    context: int,
    prompt: str,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """A text that goes on from a prompt; the same for the same arguments.

    Args:
      net: whose outputs are logits f32[batch, time, len(ALPHABET)], as from `language.network_of`.
      model: its whole Model.
      context: characters that it sees at most.
      prompt: the beginning; of it the last `context` characters are seen. Empty: a new line.
      length: characters that are added.
      temperature: by which logits are divided before a character is drawn; 0: always the most likely one.
      seed: of the draws.

    Returns:
      The prompt and what was added.

    Raises:
      ConfigError: a length or temperature that is not allowed.
      DatasetError: the prompt has a character that the alphabet does not.
    """
    require(length >= 1, "length", length, "a whole number of at least 1")
    finite = 0 <= temperature < np.inf
    require(finite, "temperature", temperature, "a number of at least 0; 0: the most likely character")
    seen = text.encode(prompt or "\n")[-context:].astype(np.int32)
    window = np.pad(seen, (0, context - len(seen)))
    draw = jax.jit(_drawer(net, temperature))
    # A key for each place: a longer text goes on from a shorter one.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(length))
    added = jax.device_get(draw(model, jnp.asarray(window), jnp.int32(len(seen)), keys))
    return prompt + text.decode(added)


def windows(
    net: Network, context: int, vocabulary: int, model: Model, key: jax.Array, count: int
) -> jax.Array:
    """int32[count, context]: windows that the model fills with what it holds likely.

    The first character of each is any of the vocabulary, and each of the others is drawn by the model's law
    of it, given those before. 32 windows are filled at a time.
    """

    def one(model, key):
        first, draws = jax.random.split(key)
        start = jax.random.randint(first, (), 0, vocabulary, jnp.int32)

        def place(at, found):
            logits = net.apply(model, found[None], None)[0][0, at]
            drawn = jax.random.categorical(jax.random.fold_in(draws, at), logits).astype(jnp.int32)
            return found.at[at + 1].set(drawn)

        return jax.lax.fori_loop(0, context - 1, place, jnp.zeros(context, jnp.int32).at[0].set(start))

    keys = jax.random.split(key, count)
    return jax.jit(lambda model, keys: jax.lax.map(lambda k: one(model, k), keys, batch_size=32))(model, keys)


def _drawer(net: Network, temperature: float) -> Callable:
    """(Model, window int32[context], how many of it count, keys [length]) -> int32[length]."""

    def one(model, window, count, key):
        logits = net.apply(model, window[None], None)[0][0, count - 1]
        if temperature == 0:
            drawn = jnp.argmax(logits).astype(jnp.int32)
        else:
            drawn = jax.random.categorical(key, logits / jnp.float32(temperature)).astype(jnp.int32)
        full = count == window.shape[0]
        # A full window moves on by a character; what lies behind the last one is seen by nobody.
        window = jnp.where(full, jnp.roll(window, -1), window)
        count = jnp.minimum(count + 1, window.shape[0])
        return window.at[count - 1].set(drawn), count, drawn

    def many(model, window, count, keys):
        def step(carry, key):
            window, count = carry
            window, count, drawn = one(model, window, count, key)
            return (window, count), drawn

        return jax.lax.scan(step, (window, count), keys)[1]

    return many
