"""A decoder Transformer.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin: Attention Is All You Need, arXiv
1706.03762; with norms before each part (Xiong et al.: On Layer Normalization in the Transformer Architecture,
arXiv 2002.04745) and the initial weights of GPT-2 (Radford et al. 2019).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cepam_jax.errors import require

_DEVIATION = 0.02  # of initial weights, as in GPT-2


class Block(nn.Module):
    """Causal attention and two dense layers, each on normalized inputs and added to what came in.

    Attributes:
      width: of the stream of activations.
      heads: of the attention.
      residual: deviation of the initial weights of the two layers whose outputs are added.
      dropout: rate, on what is added.
      dtype: in which it computes; parameters are float32.
    """

    width: int
    heads: int
    residual: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        def dense(width, deviation, name):
            start = nn.initializers.normal(deviation)
            return nn.Dense(width, dtype=self.dtype, kernel_init=start, name=name)

        def dropped(y):
            return nn.Dropout(self.dropout, deterministic=not train)(y) if self.dropout else y

        y = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        split = (*x.shape[:-1], self.heads, self.width // self.heads)
        parts = (dense(self.width, _DEVIATION, name)(y) for name in ("query", "key", "value"))
        y = attention(*(part.reshape(split) for part in parts)).reshape(x.shape)
        x = x + dropped(dense(self.width, self.residual, "out")(y))
        y = nn.LayerNorm(dtype=self.dtype, name="dense_norm")(x)
        y = nn.gelu(dense(4 * self.width, _DEVIATION, "widen")(y))
        return x + dropped(dense(self.width, self.residual, "narrow")(y))


class Transformer(nn.Module):
    """Logits of the character after each position, from those up to there.

    Attributes:
      vocabulary: number of different characters.
      context: positions that there are; inputs may be shorter.
      layers, width, heads: sizes; heads divide the width.
      dropout: rate, on embeddings and on what each block adds.
      dtype: in which it computes, such as jnp.bfloat16; parameters and logits are float32.
    """

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, characters, train: bool = False):
        """f32[batch, time, vocabulary] of int32[batch, time]; ConfigError where the context is shorter."""
        time = characters.shape[1]
        require(time <= self.context, "characters of a window", time, f"at most the context, {self.context}")
        start = nn.initializers.normal(_DEVIATION)
        embedding = nn.Embed(
            self.vocabulary, self.width, dtype=self.dtype, embedding_init=start, name="characters"
        )
        positions = self.param("positions", start, (self.context, self.width))
        x = embedding(characters) + positions[:time].astype(self.dtype)
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        residual = _DEVIATION / (2 * self.layers) ** 0.5  # as in GPT-2: two are added in each block
        for number in range(self.layers):
            x = Block(self.width, self.heads, residual, self.dropout, self.dtype, name=f"block_{number}")(
                x, train
            )
        x = nn.LayerNorm(dtype=self.dtype, name="last_norm")(x)
        # The embedding also reads out (Press, Wolf: Using the Output Embedding, arXiv 1608.05859).
        return embedding.attend(x).astype(jnp.float32)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Each position's mean of the values up to there, weighed by how well their keys fit its query.

    Args:
      query, key, value: [batch, time, heads, width].

    Returns:
      [batch, time, heads, width]. The weights are computed in float32.
    """
    time, width = query.shape[1], query.shape[3]
    scores = jnp.einsum("bqhw,bkhw->bhqk", query, key).astype(jnp.float32) / width**0.5
    past = jnp.tril(jnp.ones((time, time), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhw->bqhw", weights.astype(value.dtype), value)
