"""What is learned: the contract of a task, and the tasks of this project. See `base` for the contract."""

from cepam_jax.extras import need

need("cepam_jax.tasks", "train", "flax", "optax")

from cepam_jax.tasks.base import TASKS, Batch, Model, Sums, Task, register
from cepam_jax.tasks.classification import classification
from cepam_jax.tasks.graphs import graph_classification, node_classification
from cepam_jax.tasks.images import image_classification
from cepam_jax.tasks.networks import Network, network
from cepam_jax.tasks.tables import binary_outcome

__all__ = [
    "TASKS",
    "Batch",
    "Model",
    "Network",
    "Sums",
    "Task",
    "binary_outcome",
    "classification",
    "graph_classification",
    "image_classification",
    "network",
    "node_classification",
    "register",
]
