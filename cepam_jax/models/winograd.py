"""3x3 convolution and 2x2 max pooling with 16 products in place of 36 (Winograd's minimal filtering).

In one dimension two outputs of a kernel of three need 4 products and not 6 (Winograd: Arithmetic Complexity
of Computations, SIAM, 1980; for networks Lavin, Gray: Fast Algorithms for Convolutional Neural Networks,
arXiv 1509.09308, section 4.1, F(2x2, 3x3)). In two dimensions an input tile d of 4 x 4, a kernel g of 3 x 3
and the tile's outputs y of 2 x 2 satisfy

    y = A' [(G g G') * (B' d B)] A,

where * goes element by element. Summed over channels, each of the 16 elements is a matrix product

    M[p, q] = V[p, q] @ U[p, q],    [tiles, channels] @ [channels, features],

with V of the inputs and U of the kernel. The four outputs of a tile are one window of the pooling, so they
exist inside one loop alone. The gradients are 32 more products, and vmap over clients makes all of them
batched matrix products. The 16 arrays stay apart: as one array each would be copied once more.

The signs of the last rows are chosen against the usual ones: all sums of A are then sums and differences,
and no array is negated. Results equal those of a direct convolution up to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.models.apart import apart

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]], np.float32)  # B'
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, 1]], np.float32)  # A'
_LEAST = 16  # channels below which the products are too narrow to be worth the sums


def suits(shape) -> bool:
    """Whether a kernel [k, k, channels, features] gains by it."""
    return shape[0] == 3 and min(shape[2:]) >= _LEAST


def _sum(row, terms):
    """sum_i row[i] terms[i], without products by 0, 1 and -1."""
    total = None
    for factor, term in zip(row.tolist(), terms, strict=True):
        if factor == 0:
            continue
        if total is None:
            total = factor * term if factor != 1 else term
        elif abs(factor) == 1:
            total = total + term if factor == 1 else total - term
        else:
            total = total + factor * term
    return total


def _transformed(matrix, blocks):
    """matrix @ blocks @ matrix', where blocks[i][j] are arrays of one shape."""
    rows = [[_sum(row, column) for column in zip(*blocks, strict=True)] for row in matrix]
    return [[_sum(row, blocks_of_row) for row in matrix] for blocks_of_row in rows]


def _of_kernel(kernel):
    """U: 4 x 4 arrays [channels, features] of [3, 3, channels, features]."""
    return _transformed(_KERNEL, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _of_kernel_transposed(change):
    """The transpose of `_of_kernel`."""
    return jnp.stack([jnp.stack(row) for row in _transformed(_KERNEL.T, change)])


def _of_input(x):
    """V: 4 x 4 arrays [tiles, channels] of [batch, 2h + 2, 2w + 2, channels]."""
    batch, rows, columns, channels = x.shape
    h, w = rows // 2 - 1, columns // 2 - 1
    x = x.reshape(batch, h + 1, 2, w + 1, 2, channels)
    places = [(i // 2, i % 2) for i in range(4)]
    tiles = [[x[:, a : a + h, i, b : b + w, j].reshape(-1, channels) for b, j in places] for a, i in places]
    return _transformed(_INPUT, tiles)


def _interleaved(parts, axis: int):
    """The transpose of cutting an axis of 2n + 2 into places i, i + 2, ... for i = 0..3, n of each.

    Behind concatenations, which XLA does not merge with the sums around them: in one loop the borders would
    make it go through the elements one by one.
    """
    edge = jnp.zeros_like(jax.lax.slice_in_dim(parts[0], 0, 1, axis=axis))
    early = [jnp.concatenate([part, edge], axis) for part in parts[:2]]
    late = [jnp.concatenate([edge, part], axis) for part in parts[2:]]
    both = jnp.stack([a + b for a, b in zip(early, late, strict=True)], axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


def _of_input_transposed(change, shape):
    """The transpose of `_of_input`: f32[shape]."""
    batch, rows, columns, channels = shape
    tiles = (batch, rows // 2 - 1, columns // 2 - 1, channels)
    change = [[part.reshape(tiles) for part in row] for row in change]
    back = _INPUT.T
    widened = [_interleaved([_sum(of_place, row) for of_place in back], 2) for row in change]
    return _interleaved([_sum(of_place, widened) for of_place in back], 1)


def _largest(products):
    """(largest of each window, whether it is below, whether it is on the right), each [tiles, features].

    Of 4 x 4 arrays [tiles, features].
    """
    (a, b), (c, d) = _transformed(_OUTPUT, products)
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    # Strictly: of equal values the first one is the largest, as in flax.linen.max_pool.
    below = bottom > top
    right = jnp.where(below, d > c, b > a)
    # As numbers of the width of what they multiply: loops over arrays of several widths are slow.
    return jnp.maximum(top, bottom), below.astype(a.dtype), right.astype(a.dtype)


def _forward(kernel, x):
    v, u = _of_input(x), _of_kernel(kernel)
    products = [[v[p][q] @ u[p][q] for q in range(4)] for p in range(4)]
    found, below, right = apart(_largest, products)
    found = found.reshape(x.shape[0], x.shape[1] // 2 - 1, x.shape[2] // 2 - 1, -1)
    return found, (v, u, below, right, x)


@jax.custom_vjp
def _pooled(kernel, x):
    return _forward(kernel, x)[0]


def _backward(saved, change):
    v, u, below, right, x = saved
    change = change.reshape(below.shape)
    low = change * below
    high = change - low
    corners = [[row - row * right, row * right] for row in (high, low)]
    products = _transformed(_OUTPUT.T, corners)
    of_kernel = [[v[p][q].T @ products[p][q] for q in range(4)] for p in range(4)]
    of_input = [[products[p][q] @ u[p][q].T for q in range(4)] for p in range(4)]
    return _of_kernel_transposed(of_kernel), _of_input_transposed(of_input, x.shape)


_pooled.defvjp(_forward, _backward)


def convolve_and_pool(kernel, x):
    """2x2 max pooling with stride 2 of a convolution without padding.

    Args:
      kernel: f32[3, 3, channels, features].
      x: f32[batch, height, width, channels], at least 4 x 4.

    Returns:
      f32[batch, (height - 2) // 2, (width - 2) // 2, features]; an odd last row or column is left out.
    """
    height, width = (n // 2 * 2 for n in x.shape[1:3])
    return _pooled(kernel, x[:, :height, :width])
