"""Convolution and pooling that stay fast when every client has weights of its own.

Under vmap over clients a convolution with per-client kernels becomes a grouped convolution, slow on every
device, and the gradient of max pooling a select-and-scatter, slow on CPUs. Here a convolution is one
matrix product with the patches of its input, in the layout [channels, batch, height, width], and its
gradients are two more: vmapped, they are batched matrix products. Pooling gives its gradient to the first
largest value of a window, found by comparison, as `flax.linen.max_pool` does.

The results equal flax's up to the order of summation; parameters have flax's names, shapes and initial
values.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def _patches(x, k: int):
    """[c, b, h + k - 1, w + k - 1] -> [c * k * k, b * h * w]: all windows, one column each."""
    channels, batch, height, width = x.shape
    h, w = height - k + 1, width - k + 1
    windows = [x[:, :, i : i + h, j : j + w] for i in range(k) for j in range(k)]
    return jnp.stack(windows, 1).reshape(channels * k * k, batch * h * w)


def _product(kernel, x):
    """kernel [k, k, c, o] over x [c, b, height, width], without padding -> [o, b, h, w]."""
    k, _, channels, features = kernel.shape
    matrix = kernel.transpose(3, 2, 0, 1).reshape(features, channels * k * k)
    shape = (features, x.shape[1], x.shape[2] - k + 1, x.shape[3] - k + 1)
    return (matrix @ _patches(x, k)).reshape(shape)


@jax.custom_vjp
def convolve(kernel, x):
    """Cross-correlation without padding, as neural networks mean it.

    Args:
      kernel: f32[k, k, channels, features].
      x: f32[channels, batch, height, width].

    Returns:
      f32[features, batch, height - k + 1, width - k + 1].
    """
    return _product(kernel, x)


def _forward(kernel, x):
    return _product(kernel, x), (kernel, x)


def _backward(saved, change):
    kernel, x = saved
    k, _, channels, features = kernel.shape
    columns = change.reshape(features, -1)
    of_kernel = (columns @ _patches(x, k).T).reshape(features, channels, k, k).transpose(2, 3, 1, 0)
    # The input's gradient: the padded output gradient under the flipped kernel with its ends exchanged.
    padded = jnp.pad(change, ((0, 0), (0, 0), (k - 1, k - 1), (k - 1, k - 1)))
    of_input = _product(kernel[::-1, ::-1].swapaxes(2, 3), padded)
    return of_kernel, of_input


convolve.defvjp(_forward, _backward)


def _windows(x):
    """The four values of every 2x2 window, each [c, b, h, w]; an odd last row or column is left out."""
    h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return [x[:, :, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


@jax.custom_vjp
def max_pool(x):
    """2x2 max pooling with stride 2 of f32[channels, batch, height, width]."""
    a, b, c, d = _windows(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _pool_forward(x):
    found = max_pool(x)
    return found, (x, found)


def _pool_backward(saved, change):
    x, found = saved
    parts, free = [], jnp.ones(found.shape, bool)
    for window in _windows(x):
        here = free & (window == found)
        free &= ~here
        parts.append(jnp.where(here, change, 0.0))
    channels, batch, h, w = found.shape
    rows = [jnp.stack(pair, -1).reshape(channels, batch, h, 2 * w) for pair in (parts[:2], parts[2:])]
    whole = jnp.stack(rows, 3).reshape(channels, batch, 2 * h, 2 * w)
    odd = (x.shape[2] - 2 * h, x.shape[3] - 2 * w)
    return (jnp.pad(whole, ((0, 0), (0, 0), (0, odd[0]), (0, odd[1]))),)


max_pool.defvjp(_pool_forward, _pool_backward)


class Conv(nn.Module):
    """Drop-in for `flax.linen.Conv` on [channels, batch, height, width].

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      padding: "VALID", or "SAME" for odd kernels.
    """

    features: int
    kernel: int
    padding: str

    @nn.compact
    def __call__(self, x):
        k = self.kernel
        shape = (k, k, x.shape[0], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if self.padding == "SAME":
            edge = (k // 2, (k - 1) // 2)
            x = jnp.pad(x, ((0, 0), (0, 0), edge[::-1], edge[::-1]))
        return convolve(kernel, x) + bias[:, None, None, None]
