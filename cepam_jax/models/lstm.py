"""Layers of long short-term memory (Hochreiter, Schmidhuber 1997) over characters."""

import flax.linen as nn
import jax.numpy as jnp


class LSTM(nn.Module):
    """Logits of the character after each position, from those up to there.

    Attributes:
      vocabulary: number of different characters.
      embedding: width of their embedding.
      layers, width: of the LSTM.
      dropout: rate, on the outputs of each layer.
    """

    vocabulary: int
    embedding: int
    layers: int
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, characters, train: bool = False):
        """f32[batch, time, vocabulary] of int32[batch, time]."""
        x = nn.Embed(self.vocabulary, self.embedding, name="characters")(characters)
        for number in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width), name=f"layer_{number}")(x)
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.vocabulary, name="read_out")(x).astype(jnp.float32)
