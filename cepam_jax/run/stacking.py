"""Several runs of one program as one tree of arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.run import build


def stacked(trees, slots):
    """Trees of the runs as one with a leading axis, filled up with the first to a number of slots."""

    def stack(*leaves):
        leaves = [*leaves, *[leaves[0]] * (slots - len(leaves))]
        return jnp.stack(leaves) if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key) else np.stack(leaves)

    return jax.tree.map(stack, *trees)


def client_arrays(records):
    """The runs' arrays; rows of examples padded to a common length, which changes nothing."""
    each = [build.client_arrays(r.config, r.split, r.origin.words if r.origin else ()) for r in records]
    longest = max(arrays.rows.shape[1] for arrays in each)
    return [a._replace(rows=np.pad(a.rows, ((0, 0), (0, longest - a.rows.shape[1])))) for a in each]
