"""What a deployed run has promised so far, and what it leaves."""

from pathlib import Path

import jax
import numpy as np

from cepam_jax import privacy
from cepam_jax.deploy.server import Server
from cepam_jax.files import naming
from cepam_jax.run import build, guarantees, precision, uncovered


def epsilons(server: Server) -> dict[str, np.ndarray]:
    """Adversary -> f64[clients], epsilon spent; the open round counts, since its answers may be out."""
    delta = server.agreement.config.privacy.delta
    return {row.adversary: row.epsilon for row in privacy.report(_federation(server), delta)}


def report(server: Server) -> str:
    """The accountant's report on what was spent, a line for each adversary, and what none covers."""
    config = server.agreement.config
    about = build.about_of(config)
    return precision.report(about, _federation(server), config.privacy.delta, server.coordinates)


def _federation(server: Server) -> privacy.Federation:
    """What the rounds applied, the open one too; draws hide nobody here, for rounds take time."""
    opened, whole = server.open_entry, server.ledger
    if opened is not None:
        whole = whole.joined([opened])
    found = guarantees.federation_of(
        server.agreement.config, server.agreement.counts, ledger=whole, watched=True
    )
    said = {*uncovered.IN_A_RUN, *uncovered.of_failures(whole.failures)}
    others = tuple(line for line in found.not_covered if line not in said)
    others += uncovered.of_failures(server.ledger.failures) + uncovered.IN_A_DEPLOYMENT
    others += uncovered.of_ahead(server.members.ahead)
    others += uncovered.OPEN_ROUND if opened is not None else ()
    return uncovered.with_owners(found._replace(not_covered=others), server.agreement.holders)


def write_model(server: Server, path: Path) -> None:
    """The model as a .npz file, an array for each parameter by its path."""
    named = jax.tree_util.tree_leaves_with_path((server.state.params, server.state.statistics))
    with naming(path):
        np.savez(path, **{jax.tree_util.keystr(place): leaf for place, leaf in named})
