"""What is learned: the contract of a task, and the tasks of this project. See `base` for the contract."""

from cepam_jax.extras import need

need("cepam_jax.tasks", "train", "flax", "optax")

from cepam_jax.tasks.base import TASKS, Batch, Model, Sums, Task, register
from cepam_jax.tasks.classification import classification
from cepam_jax.tasks.graphs import graph_classification, node_classification
from cepam_jax.tasks.images import image_classification
from cepam_jax.tasks.language import next_character
from cepam_jax.tasks.networks import Network, network
from cepam_jax.tasks.rounded_layers import few_bits
from cepam_jax.tasks.tables import binary_outcome
from cepam_jax.tasks.trainable import adapted, restricted

__all__ = [
    "TASKS",
    "Batch",
    "Model",
    "Network",
    "Sums",
    "Task",
    "adapted",
    "binary_outcome",
    "classification",
    "few_bits",
    "graph_classification",
    "image_classification",
    "network",
    "next_character",
    "node_classification",
    "register",
    "restricted",
]
