"""Models in flax, by name, and which inputs each of them takes; those of characters are in `sequences`.

There is a registry for models of one outputs' width, and one for models of characters; a task says which
inputs it has, and config.model is a name of any. Adding one for images is one function here:

  @register
  def my_model(num_classes):
      return nn.Sequential([...])

It returns a flax module called as `module(images f32[batch, height, width, channels], train)`
with logits f32[batch, num_classes] as result; dropout draws from the rng named "dropout". A model for other
inputs says so, and a task that is not made for them refuses it by name:

  @register_for("table")
  def my_model(num_classes):
      return nn.Sequential([...])
"""

from collections.abc import Callable

from cepam_jax.extras import need

need("cepam_jax.models", "train", "flax")

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.errors import ConfigError, require
from cepam_jax.models.convolution import Conv
from cepam_jax.models.dropout import Dropout
from cepam_jax.models.sequences import SEQUENCES
from cepam_jax.registry import Registry

# Name -> function num_classes -> flax module; `register` adds one by the function's name.
MODELS: Registry = Registry("model of images")
register = MODELS.function
# The registries of all kinds of models. A name may stand for one model of each kind.
KINDS: tuple[Registry, ...] = (MODELS, SEQUENCES)
NAMES: Mapping[str, Any] = ChainMap(*KINDS)

settings.declare("", {"model": settings.choice("mlp", "The network that is trained.", NAMES)})

# Name -> kinds of inputs that the model takes; one that is not here takes images.
INPUTS: dict[str, tuple[str, ...]] = {}


def parts_of(name: str) -> tuple[Any, ...]:
    """What each kind has under a name, None where it has nothing: registered anew, it is another one."""
    return tuple(kind.get(name) for kind in KINDS)


class Network(nn.Module):
    """Convolutions with 2x2 max pooling, then dense layers, all with one activation.

    Attributes:
      num_classes: width of the last layer.
      channels: of each convolution.
      dense: widths of the hidden dense layers.
      kernel, padding: of the convolutions.
      dropout: rate after each pooling.
      activation: one that does not fall, such as ReLU.
    """

    num_classes: int
    channels: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    kernel: int = 3
    padding: str = "SAME"
    dropout: float = 0.0
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in self.channels:
            if self.padding == "VALID" and min(x.shape[1:3]) <= self.kernel:
                raise ConfigError(
                    f"config.model needs larger images: {x.shape[1]}x{x.shape[2]} pixels are left for a "
                    f"{self.kernel}x{self.kernel} convolution and a pooling; use linear or mlp"
                )
            if min(x.shape[1:3]) < 2:
                raise ConfigError(
                    f"config.model needs larger images: {x.shape[1]}x{x.shape[2]} pixels are left for a "
                    "pooling; use linear or mlp"
                )
            # Behind the pooling, which it does not change: the same result, a quarter of the work.
            x = Conv(width, self.kernel, self.padding, pool=True)(x)
            x = Dropout(self.dropout, not train, self.activation)(x)
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


def register_for(*inputs: str) -> Callable:
    """As a decorator: registers a function num_classes -> flax module of a model for these kinds of inputs.

    Args:
      *inputs: such as "image" or "table"; each task says in its docstring which kind it has.
    """

    def add(function):
        MODELS.function(function)
        INPUTS[function.__name__] = inputs
        return function

    return add


@register_for("image", "table")
def linear(num_classes):
    """Multinomial logistic regression."""
    return Network(num_classes)


@register_for("image", "table")
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


@register
def cnn_tanh(num_classes):
    """Two 5x5 convolutions (8, 16) with pooling, 32 hidden units, tanh: 11,978 parameters on MNIST.

    Bounded activations lose less to clipped and noised gradients (Papernot, Thakurta, Song, Chien,
    Erlingsson: Tempered Sigmoid Activations for Deep Learning with Differential Privacy, arXiv 2007.14191).
    """
    return Network(num_classes, channels=(8, 16), dense=(32,), kernel=5, padding="VALID", activation=nn.tanh)


def names_for(inputs: str) -> list[str]:
    """The names of the models that take inputs of a kind, sorted."""
    return sorted(name for name in MODELS if inputs in INPUTS.get(name, ("image",)))


def build(name: str, num_classes: int, inputs: str = "image") -> nn.Module:
    """The module called `name`.

    Args:
      name: of a registered model.
      num_classes: number of its outputs.
      inputs: kind of the inputs that the task has.

    Raises:
      ConfigError: there is no such model, or it takes other inputs; lists those that fit.
    """
    fitting = names_for(inputs)
    allowed = f"a model for {inputs}s: {', '.join(map(repr, fitting))}"
    require(name in fitting, "config.model", name, allowed)
    return MODELS[name](num_classes)


def initialize(module: nn.Module, key: jax.Array, image_shape: tuple[int, ...]):
    """Initial parameters (a pytree of f32) for images of shape [height, width, channels]."""
    return module.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]


from cepam_jax.models import graphs  # noqa: F401  more models of this registry
