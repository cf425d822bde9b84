"""How far rounds kept to what clients need, as they ran: a part of each line of metrics.jsonl."""

import numpy as np

from cepam_jax import privacy
from cepam_jax.run import guarantees, needs
from cepam_jax.run.allowed import targets_of


def line_of(config, counts, ledger, report) -> dict:
    """How far the rounds of a block keep to the needs, for a line of metrics.jsonl; empty without needs.

    Args:
      config: as it is carried out.
      counts: int[clients], examples of each client.
      ledger: what all rounds so far applied.
      report: RoundReport of the block on the host, leading axis rounds.
    """
    if not needs.given(config):
        return {}
    wanted = needs.of_config(config)
    limits = np.array([need.bits for need in wanted])
    sent = report.participants
    ran = np.flatnonzero(report.ran)
    allowed = limits[np.asarray(sent.client)[ran]]
    asked = np.isfinite(allowed)
    real = np.maximum(np.asarray(sent.bits)[ran], 8.0 * np.asarray(sent.bytes)[ran])
    federation = guarantees.federation_of(config, counts, ledger=ledger)
    peaks = None if sent.peak is None else np.asarray(sent.peak)[ran][asked]
    over = np.zeros(len(wanted), bool)
    for name, guarantees_of in privacy.ADVERSARIES.items():
        targets = targets_of(wanted, name)
        if np.isfinite(targets).any():
            values = np.array(
                [privacy.guaranteed(one, config.privacy.delta) for one in guarantees_of(federation)]
            )
            over |= values > targets
    return {
        "needs": {
            "within_bits": float(np.mean(real[asked] <= allowed[asked])) if asked.any() else None,
            # Beyond config.needs.peak, `within_bits` is no longer promised.
            "largest_peak": float(peaks.max()) if peaks is not None and peaks.size else None,
            "clients_over_epsilon": int(over.sum()),
        }
    }
