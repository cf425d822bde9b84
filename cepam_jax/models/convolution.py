"""Convolution and pooling that stay fast when every client has weights of its own.

Under vmap over clients a convolution with per-client kernels becomes a grouped convolution, slow on every
device, and the gradient of max pooling a select-and-scatter, slow on CPUs. Here a convolution is one
matrix product: a row of the output is cut into tiles of t neighbours, and all t x features values of a
tile come from one strip of the input,

    [images * rows * tiles, k * (t + k - 1) * channels]  @  [k * (t + k - 1) * channels, t * features],

where the second matrix repeats the kernel along its diagonals. t = 1 would be the usual patches: copies of
k * k inputs for each output, and a product as narrow as the features are few. A tile copies less and is
wider, and pays with products by zero; `_tile` balances the two. The gradients are two more products, and
vmap over clients makes all three batched matrix products.

Where 2x2 max pooling follows, a tile holds its even columns before its odd ones: the four values of a
window are then four slices with long contiguous runs, forwards and backwards. The gradient of a window
goes to its first largest value, found by comparison, as in `flax.linen.max_pool`.

Convolutions of 3x3 with many channels, where pooling follows, go another way: `winograd`.

The results equal flax's up to rounding; parameters have flax's shapes and initial values.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cepam_jax.models import winograd

_WIDTH = 48  # columns that keep a matrix product busy; from 48 to 128 the time hardly differs


def _tile(width: int, k: int, features: int, even: bool) -> int:
    """Outputs per tile: a divisor of `width`, at least k - 1 so that only neighbouring tiles share inputs."""
    fitting = [
        t
        for t in range(1, width + 1)
        if width % t == 0 and (t >= k - 1 or t == width) and not (even and t % 2)
    ]
    return next((t for t in fitting if t * features >= _WIDTH), fitting[-1])


def _strips(x, k: int, height: int, width: int, t: int):
    """[b, h, w, c] -> [b * height * (width / t), k * (t + k - 1) * c]: what each tile depends on."""
    batch, _, _, channels = x.shape
    run = (t + k - 1) * channels
    rows = [
        x[:, i : i + height, u : u + t + k - 1].reshape(batch, height, run)
        for u in range(0, width, t)
        for i in range(k)
    ]
    return jnp.stack(rows, 2).reshape(batch * height * (width // t), k * run)


def _banded(kernel, order):
    """[k, k, c, o] -> [k * (t + k - 1) * c, t * o]: the kernel at the places `order` of a tile."""
    k, _, channels, features = kernel.shape
    t = len(order)
    shifted = [jnp.pad(kernel, ((0, 0), (v, t - 1 - v), (0, 0), (0, 0))) for v in order]
    return jnp.stack(shifted, 3).reshape(k * (t + k - 1) * channels, t * features)


def _overlap_add(strips, k: int, shape, height: int, width: int, t: int):
    """The transpose of `_strips`: every input collects what all strips hold of it."""
    batch, h, w, channels = shape
    tiles = width // t
    strips = strips.reshape(batch, height, tiles, k, (t + k - 1) * channels)
    total = jnp.zeros((batch, h, w * channels), strips.dtype)
    for i in range(k):
        if tiles == 1:
            row = strips[:, :, 0, i]
        else:
            own = strips[:, :, :, i, : t * channels].reshape(batch, height, width * channels)
            row = jnp.pad(own, ((0, 0), (0, 0), (0, (k - 1) * channels)))
            # The last k - 1 columns of a strip lie in the next tile, or beyond the last.
            shared = strips[:, :, :, i, t * channels :]
            shared = jnp.pad(shared, ((0, 0), (0, 0), (0, 0), (0, (t - k + 1) * channels)))
            shared = shared.reshape(batch, height, width * channels)
            row += jnp.pad(shared, ((0, 0), (0, 0), (t * channels, 0)))[:, :, : row.shape[2]]
        total += jnp.pad(row, ((0, 0), (i, h - height - i), (0, w * channels - row.shape[2])))
    return total.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(kernel, x, height, width, order):
    """The convolution's first `height` x `width` outputs, [b, height, tiles, t * o], t in `order`."""
    k, _, _, features = kernel.shape
    t = len(order)
    z = _strips(x, k, height, width, t) @ _banded(kernel, order)
    return z.reshape(x.shape[0], height, width // t, t * features)


def _product_forward(kernel, x, height, width, order):
    return _product(kernel, x, height, width, order), (kernel, x)


def _product_backward(height, width, order, saved, change):
    kernel, x = saved
    k, _, channels, features = kernel.shape
    t = len(order)
    change = change.reshape(-1, t * features)
    banded = _strips(x, k, height, width, t).T @ change
    banded = banded.reshape(k, t + k - 1, channels, t, features)
    of_kernel = sum(banded[:, v : v + k, :, place] for place, v in enumerate(order))
    strips = change @ _banded(kernel, order).T
    return of_kernel, _overlap_add(strips, k, x.shape, height, width, t)


_product.defvjp(_product_forward, _product_backward)


def _windows(z):
    """The four values of every window of [b, 2h, tiles, 2 * r], each [b, h, tiles, r]."""
    batch, height, tiles, run = z.shape
    z = z.reshape(batch, height // 2, 2, tiles, 2, run // 2)
    return [z[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]


@jax.custom_vjp
def _pool(z):
    """Largest value of every window: [b, 2h, tiles, 2 * r] -> [b, h, tiles, r]."""
    return functools.reduce(jnp.maximum, _windows(z))


def _pool_forward(z):
    found = _pool(z)
    return found, (z, found)


def _pool_backward(saved, change):
    z, found = saved
    free, parts = jnp.ones(found.shape, bool), []
    for window in _windows(z):
        here = free & (window == found)
        free &= ~here
        parts.append(jnp.where(here, change, 0.0))
    rows = [jnp.stack(pair, 3) for pair in (parts[:2], parts[2:])]
    return (jnp.stack(rows, 2).reshape(z.shape),)


_pool.defvjp(_pool_forward, _pool_backward)


def _outputs(kernel, x):
    k = kernel.shape[0]
    return x.shape[1] - k + 1, x.shape[2] - k + 1


def convolve(kernel, x):
    """Cross-correlation without padding, as neural networks mean it.

    Args:
      kernel: f32[k, k, channels, features].
      x: f32[batch, height, width, channels].

    Returns:
      f32[batch, height - k + 1, width - k + 1, features].
    """
    height, width = _outputs(kernel, x)
    t = _tile(width, kernel.shape[0], kernel.shape[3], even=False)
    z = _product(kernel, x, height, width, tuple(range(t)))
    return z.reshape(x.shape[0], height, width, -1)


def convolve_and_pool(kernel, x):
    """2x2 max pooling with stride 2 of `convolve(kernel, x)`.

    Returns:
      f32[batch, (height - k + 1) // 2, (width - k + 1) // 2, features]; an odd last row or column is
      left out.
    """
    if winograd.suits(kernel.shape):
        return winograd.convolve_and_pool(kernel, x)
    height, width = (n // 2 * 2 for n in _outputs(kernel, x))
    t = _tile(width, kernel.shape[0], kernel.shape[3], even=True)
    z = _product(kernel, x, height, width, (*range(0, t, 2), *range(1, t, 2)))
    return _pool(z).reshape(x.shape[0], height // 2, width // 2, -1)


def _bordered(x, axis: int, k: int):
    """x with the zeros of "SAME" padding at both ends of an axis.

    As a concatenation: `jnp.pad` would be merged with the loop before it, and its borders would make XLA go
    through that loop element by element.
    """
    edges = [jnp.zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype) for n in ((k - 1) // 2, k // 2)]
    return jnp.concatenate([edges[0], x, edges[1]], axis)


class Conv(nn.Module):
    """`flax.linen.Conv` with a square kernel; with `pool`, 2x2 max pooling of its result.

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      padding: "VALID" or "SAME".
      pool: whether 2x2 max pooling with stride 2 follows.
    """

    features: int
    kernel: int
    padding: str
    pool: bool = False

    @nn.compact
    def __call__(self, x):
        k = self.kernel
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if self.padding == "SAME":
            x = _bordered(_bordered(x, 1, k), 2, k)
        # A bias commutes with the maximum, so it is added to a quarter of the values.
        return (convolve_and_pool if self.pool else convolve)(kernel, x) + bias
