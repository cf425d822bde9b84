"""What a line of metrics.jsonl says of messages: how long each one was, and how long rounds took on links.

`messages` has what `experiments.links` needs to compute times on any links afterwards: bits up and down of
every participant of every round (real ones with config.wire), and who took part. Numbers that are all equal
are one number.
"""

from typing import Any

import numpy as np

from cepam_jax.federated.links import awaited


def line_of(config, report) -> dict[str, Any]:
    """The part of a line that is about messages.

    Args:
      config: valid configuration.
      report: RoundReport of a block on the host, leading axis rounds; those that did not run are left out.
    """
    ran = np.flatnonzero(report.ran)
    each = {name: np.asarray(v)[ran] for name, v in report.participants._asdict().items() if v is not None}
    bits = {"up": each["bits"], "down": each["down_bits"]}
    if config.wire:
        bits = {"up": 8.0 * each["bytes"], "down": 8.0 * each["down_bytes"]}
    if each.get("present") is not None:
        return _of_links(config, each)  # as many of another length as came; nobody computes times of them
    if report.counted is not None and not np.asarray(report.counted)[ran].all():
        return _of_links(config, each)  # nor where lengths were not counted
    found: dict[str, Any] = {"messages": {name: shortened(np.ceil(v)) for name, v in bits.items()}}
    if config.clients_per_round not in (0, config.num_clients):
        found["messages"]["clients"] = each["client"].tolist()
    return found | _of_links(config, each)


def shortened(numbers: np.ndarray) -> Any:
    """Whole numbers [rounds, participants] as lists; rows, or all, that are equal as one number."""
    whole = np.asarray(numbers, np.float64).astype(np.int64)
    if (whole == whole.flat[0]).all():
        return int(whole.flat[0])
    return [int(row[0]) if (row == row[0]).all() else row.tolist() for row in whole]


def lengthened(found: Any, rounds: int, participants: int) -> np.ndarray:
    """f64[rounds, participants] of what `shortened` left.

    Raises:
      ValueError: it is not of so many rounds and participants.
    """
    rows = found if isinstance(found, list) else [found] * rounds
    whole = np.array([np.broadcast_to(np.asarray(row, np.float64), (participants,)) for row in rows])
    if whole.shape != (rounds, participants):
        raise ValueError(f"{whole.shape} in place of {(rounds, participants)}")
    return whole


def _of_links(config, each: dict[str, np.ndarray]) -> dict[str, Any]:
    """Seconds of a block's rounds, and who was late; empty without links."""
    if "seconds" not in each:
        return {}
    seconds = each["seconds"].astype(np.float64)
    if "late" not in each:
        return {"link_seconds": float(seconds.max(1).sum())}
    late, participants = each["late"] > 0, seconds.shape[1]
    share = config.links.quorum if config.links.ends == "quorum" else 1.0
    enough = (~late).sum(1) >= awaited(share, participants)
    last = np.where(late, 0.0, seconds).max(1)
    return {
        "link_seconds": float(np.where(enough, last, config.links.deadline).sum()),
        "late_per_round": float(late.sum() / len(late)),
        "rounds_without_arrivals": int(late.all(1).sum()),
    }
