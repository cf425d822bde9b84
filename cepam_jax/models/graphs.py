"""Graph networks in plain flax: sums over neighbours, and padding that never counts.

All of a batch's graphs are one long graph of which the parts do not meet: nodes in a row, edges with numbers
in that row, and those that only fill up lead nowhere. A sum over neighbours is then a segment sum. Memory
grows with batch times nodes of the largest graph times width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cepam_jax.models import register_for


class Graphs(NamedTuple):
    """Graphs of a batch, each filled up to the same numbers of nodes and edges.

    Attributes:
      features: f32[batch, nodes, features].
      edges: int[batch, edges, 2], from and to, both directions, without loops.
      node_count, edge_count: int32[batch], how many of them are real; these come first.
    """

    features: jax.Array
    edges: jax.Array
    node_count: jax.Array
    edge_count: jax.Array

    @property
    def real(self) -> jax.Array:
        """f32[batch, nodes, 1]: 1 where a node is real, 0 where it fills up."""
        nodes = self.features.shape[1]
        return (jnp.arange(nodes) < self.node_count[:, None])[..., None].astype(jnp.float32)

    def ends(self) -> tuple[jax.Array, jax.Array]:
        """(from, to) int32[batch * edges] in the row of all nodes; an edge that fills up leads beyond it."""
        batch, nodes = self.features.shape[:2]
        first = (jnp.arange(batch, dtype=jnp.int32) * nodes)[:, None]
        real = jnp.arange(self.edges.shape[1]) < self.edge_count[:, None]
        source, target = (self.edges[..., i].astype(jnp.int32) + first for i in (0, 1))
        return source.reshape(-1), jnp.where(real, target, batch * nodes).reshape(-1)


def sum_of_neighbours(values: jax.Array, ends: tuple[jax.Array, jax.Array]) -> jax.Array:
    """f32[all nodes, width]: for each node the sum of the values f32[all nodes, width] of its neighbours."""
    source, target = ends
    return jax.ops.segment_sum(values[source], target, num_segments=values.shape[0])


class GIN(nn.Module):
    """Graph isomorphism network: h <- MLP((1 + epsilon) h + sum of neighbours), read out after every layer.

    Xu, Hu, Leskovec, Jegelka: How Powerful are Graph Neural Networks?, arXiv 1810.00826, equations 4.1 and
    4.2. In place of batch normalization, by which every graph of a batch would move the others, each node's
    hidden layer is normalized by itself (Ba, Kiros, Hinton: Layer Normalization, arXiv 1607.06450).

    Attributes:
      num_classes: number of outputs.
      width: of all hidden layers.
      layers: sums over neighbours.
    """

    num_classes: int
    width: int = 32
    layers: int = 3

    @nn.compact
    def __call__(self, graphs: Graphs):
        """Logits f32[batch, num_classes]."""
        batch, nodes, _ = graphs.features.shape
        real, ends = graphs.real.reshape(-1, 1), graphs.ends()
        h = graphs.features.reshape(batch * nodes, -1) * real
        seen = []
        for layer in range(self.layers):
            epsilon = self.param(f"epsilon_{layer}", nn.initializers.zeros, ())
            h = (1 + epsilon) * h + sum_of_neighbours(h, ends)
            h = nn.relu(nn.Dense(self.width)(h))
            h = nn.relu(nn.Dense(self.width)(h)) * real
            seen.append(h.reshape(batch, nodes, -1).sum(1))
        return nn.Dense(self.num_classes)(jnp.log1p(jnp.concatenate(seen, -1)))


class GCN(nn.Module):
    """Graph convolutional network of two layers: outputs A relu(A x W + b) V + c for each node.

    A = D^-1/2 (I + adjacency) D^-1/2 with the degrees D of I + adjacency. Kipf, Welling: Semi-Supervised
    Classification with Graph Convolutional Networks, arXiv 1609.02907, equation 9 (with biases).

    Attributes:
      num_classes: number of outputs.
      width: of the hidden layer.
      dropout: rate before each layer, in training.
    """

    num_classes: int
    width: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(self, graphs: Graphs, train: bool = False):
        """Logits f32[batch, nodes, num_classes]."""
        batch, nodes, _ = graphs.features.shape
        ends = graphs.ends()
        degree = 1 + sum_of_neighbours(jnp.ones((batch * nodes, 1)), ends)
        scale = jax.lax.rsqrt(degree)

        def spread(values):
            scaled = scale * values
            return scale * (scaled + sum_of_neighbours(scaled, ends))

        h = (graphs.features * graphs.real).reshape(batch * nodes, -1)
        for layer, width in enumerate((self.width, self.num_classes)):
            if self.dropout:
                h = nn.Dropout(self.dropout, deterministic=not train)(h)
            h = spread(nn.Dense(width, use_bias=False)(h))
            name = f"bias_{width}" if layer == 0 or width != self.width else f"bias_{width}_last"
            h = h + self.param(name, nn.initializers.zeros, (width,))
            h = h if layer else nn.relu(h)
        return h.reshape(batch, nodes, -1)


@register_for("graph")
def gin(num_classes):
    """Three layers of 32: about 6,000 parameters on MUTAG."""
    return GIN(num_classes)


@register_for("node")
def gcn(num_classes):
    """Two layers, hidden 64, dropout .5: 92,231 parameters on Cora."""
    return GCN(num_classes, dropout=0.5)


@register_for("node")
def gcn_plain(num_classes):
    """The same without dropout."""
    return GCN(num_classes)
