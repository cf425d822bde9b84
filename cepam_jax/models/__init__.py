"""Models in flax, by name: those of the papers for images here, those of characters in `sequences`.

There is a registry for each kind of input; a task says which kind it takes, and config.model is a name of
any. Adding a model of images is one function here:

  @register
  def my_model(num_classes):
      return nn.Sequential([...])

It returns a flax module called as `module(images f32[batch, height, width, channels], train)`
with logits f32[batch, num_classes] as result; dropout draws from the rng named "dropout".
"""

from cepam_jax.extras import need

need("cepam_jax.models", "train", "flax")

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.models.convolution import Conv
from cepam_jax.models.sequences import SEQUENCES
from cepam_jax.registry import Registry

# Name -> function num_classes -> flax module; `register` adds one by the function's name.
MODELS: Registry = Registry("model of images")
register = MODELS.function
# The registries of all kinds of models. A name may stand for one model of each kind.
KINDS: tuple[Registry, ...] = (MODELS, SEQUENCES)
NAMES: Mapping[str, Any] = ChainMap(*KINDS)

settings.declare("", {"model": settings.choice("mlp", "The network that is trained.", NAMES)})


def parts_of(name: str) -> tuple[Any, ...]:
    """What each kind has under a name, None where it has nothing: registered anew, it is another one."""
    return tuple(kind.get(name) for kind in KINDS)


class Network(nn.Module):
    """Convolutions with ReLU and 2x2 max pooling, then dense layers with ReLU.

    Attributes:
      num_classes: width of the last layer.
      channels: of each convolution.
      dense: widths of the hidden dense layers.
      kernel, padding: of the convolutions.
      dropout: rate after each pooling.
    """

    num_classes: int
    channels: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    kernel: int = 3
    padding: str = "SAME"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in self.channels:
            if self.padding == "VALID" and min(x.shape[1:3]) <= self.kernel:
                raise ConfigError(
                    f"config.model needs larger images: {x.shape[1]}x{x.shape[2]} pixels are left for a "
                    f"{self.kernel}x{self.kernel} convolution and a pooling; use linear or mlp"
                )
            # ReLU after pooling: the same result, a quarter of the work.
            x = nn.relu(Conv(width, self.kernel, self.padding, pool=True)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


@register
def linear(num_classes):
    """Multinomial logistic regression."""
    return Network(num_classes)


@register
def mlp(num_classes):
    """784-32-16-10: 25,818 parameters on MNIST (2501.12046)."""
    return Network(num_classes, dense=(32, 16))


@register
def cnn2(num_classes):
    """Two 5x5x6 convolutions with pooling, 50 hidden units: 6,422 parameters on MNIST (2501.12046)."""
    return Network(num_classes, channels=(6, 6), dense=(50,), kernel=5, padding="VALID")


@register
def cnn3(num_classes):
    """Three 3x3 convolutions (32, 64, 128) with pooling and dropout .2, then 128, 64, 32 (2501.12046)."""
    return Network(num_classes, channels=(32, 64, 128), dense=(128, 64, 32), dropout=0.2)


def build(name: str, num_classes: int) -> nn.Module:
    """The module called `name`; ConfigError lists the names."""
    return MODELS.get_or_raise(name)(num_classes)


def initialize(module: nn.Module, key: jax.Array, image_shape: tuple[int, ...]):
    """Initial parameters (a pytree of f32) for images of shape [height, width, channels]."""
    return module.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]
