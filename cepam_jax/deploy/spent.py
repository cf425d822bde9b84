"""What a deployed run has promised so far, and what it leaves."""

from pathlib import Path

import jax
import numpy as np

from cepam_jax import privacy
from cepam_jax.deploy.server import Server
from cepam_jax.files import naming
from cepam_jax.run import guarantees
from cepam_jax.run.ledger import Ledger


def epsilons(server: Server) -> dict[str, np.ndarray]:
    """Adversary -> f64[clients], epsilon spent; the open round counts, since its answers may be out."""
    config = server.agreement.config
    federation = guarantees.federation_of(config, server.agreement.counts, ledger=_whole(server))
    return {row.adversary: row.epsilon for row in privacy.report(federation, config.privacy.delta)}


def report(server: Server) -> str:
    """The accountant's report on what was spent, a line for each adversary, and what none covers."""
    config, counts, sent = server.agreement.config, server.agreement.counts, server.coordinates
    return guarantees.report_text(config, counts, coordinates=sent, ledger=_whole(server))


def _whole(server: Server) -> Ledger:
    opened = server.open_entry
    return server.ledger if opened is None else server.ledger.joined([opened])


def write_model(server: Server, path: Path) -> None:
    """The model as a .npz file, an array for each parameter by its path."""
    named = jax.tree_util.tree_leaves_with_path((server.state.params, server.state.statistics))
    with naming(path):
        np.savez(path, **{jax.tree_util.keystr(place): leaf for place, leaf in named})
