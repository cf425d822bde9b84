"""Models of characters one after the other: a decoder Transformer in four sizes, and the field's old LSTM.

Adding one is one function with `@register` before it. It is given the number of different characters, the
longest context and the rate of dropout, and returns a flax module called as
`module(characters int32[batch, time], train)` with logits f32[batch, time, vocabulary] of the next character
as result. Position t must not depend on later characters; dropout draws from the rng named "dropout".
"""

import flax.linen as nn

from cepam_jax.models.lstm import LSTM
from cepam_jax.models.transformer import Transformer
from cepam_jax.registry import Registry

# Name -> function (vocabulary, context, dropout) -> flax module; `register` adds one by the function's name.
SEQUENCES: Registry = Registry("model of sequences")
register = SEQUENCES.function


@register
def transformer_tiny(vocabulary, context, dropout):
    """2 layers of width 64 with 4 heads: 108,352 parameters for 65 characters and a context of 64."""
    return Transformer(vocabulary, context, layers=2, width=64, heads=4, dropout=dropout)


@register
def transformer_small(vocabulary, context, dropout):
    """4 layers of width 128 with 4 heads; with a context of 64 that of Karpathy: nanoGPT, on a CPU."""
    return Transformer(vocabulary, context, layers=4, width=128, heads=4, dropout=dropout)


@register
def transformer_base(vocabulary, context, dropout):
    """6 layers of width 256 with 8 heads."""
    return Transformer(vocabulary, context, layers=6, width=256, heads=8, dropout=dropout)


@register
def transformer_large(vocabulary, context, dropout):
    """6 layers of width 384 with 6 heads; with a context of 256 and dropout .2 that of Karpathy: nanoGPT."""
    return Transformer(vocabulary, context, layers=6, width=384, heads=6, dropout=dropout)


@register
def lstm(vocabulary, context, dropout):
    """An embedding of 8 and two layers of 256, as the field has it.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
    Decentralized Data, arXiv 1602.05629, on the works of Shakespeare.
    """
    del context
    return LSTM(vocabulary, embedding=8, layers=2, width=256, dropout=dropout)


def build(name: str, vocabulary: int, context: int, dropout: float = 0.0) -> nn.Module:
    """The module called `name`; ConfigError lists the names."""
    return SEQUENCES.get_or_raise(name)(vocabulary, context, dropout)
