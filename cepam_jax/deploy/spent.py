"""What a deployed run has promised so far, and what it leaves."""

from pathlib import Path

import jax
import numpy as np

from cepam_jax import privacy
from cepam_jax.deploy.server import Server
from cepam_jax.files import naming
from cepam_jax.run import guarantees


def epsilons(server: Server) -> dict[str, np.ndarray]:
    """Adversary -> f64[clients], epsilon spent; the open round counts, since its answers may be out."""
    config, book, opened = server.agreement.config, server.ledger, server.open_entry
    if opened is not None:
        book = book.joined([opened])
    federation = guarantees.federation_of(config, server.agreement.counts, ledger=book)
    return {row.adversary: row.epsilon for row in privacy.report(federation, config.privacy.delta)}


def write_model(server: Server, path: Path) -> None:
    """The model as a .npz file, an array for each parameter by its path."""
    named = jax.tree_util.tree_leaves_with_path((server.state.params, server.state.statistics))
    with naming(path):
        np.savez(path, **{jax.tree_util.keystr(place): leaf for place, leaf in named})
