"""The gammas that were found for what clients need, and how they are told."""

from typing import NamedTuple

import numpy as np

from cepam_jax.run.needs import Need


class Allowed(NamedTuple):
    """What was found.

    Attributes:
      gamma: f64[clients].
      needs: of each client.
      limits: what decided each gamma: "epsilon", "bits" or "nothing".
      epsilon: {adversary: f64[clients]}, of the planned run.
      bits: f64[clients], which at most 1 % of messages exceed; NaN where nothing is known.
      peak: of the updates for which that holds; 0: of all.
    """

    gamma: np.ndarray
    needs: list[Need]
    limits: list[str]
    epsilon: dict[str, np.ndarray]
    bits: np.ndarray
    peak: float = 0.0

    def text(self) -> str:
        """A line for each kind of client, and what the limits to messages suppose."""
        kinds: dict[tuple, list[int]] = {}
        for k, need in enumerate(self.needs):
            kinds.setdefault((need, float(self.gamma[k]), self.limits[k]), []).append(k)
        lines = []
        for (need, gamma, limit), clients in kinds.items():
            who = need.profile + " " if need.profile else ""
            found = [
                f"epsilon {self.epsilon[name][clients].max():.6g} against {name}" for name, _ in need.epsilon
            ]
            if not np.isnan(self.bits[clients[0]]):
                found.append(f"at most {self.bits[clients[0]]:.6g} bits in 99 % of messages")
            lines.append(
                f"{who}clients {_ranges(clients)} need {need.words()}: gamma = {gamma:.6g}, set by {limit}; "
                f"planned: {', '.join(found) or 'nothing asked'}"
            )
        if self.peak and not np.isnan(self.bits).all():
            lines.append(
                "messages are that short if in no tensor of an update the root mean square is more than "
                f"{self.peak:g} times the mean absolute value (config.needs.peak)"
            )
        return "\n".join(lines) + "\n"


def _ranges(clients: list[int]) -> str:
    """Numbers as ranges: 0 to 3, 7."""
    found, start = [], clients[0]
    for number, after in zip(clients, [*clients[1:], None], strict=True):
        if after != number + 1:
            found.append(f"{start}" if start == number else f"{start} to {number}")
            start = after
    return ", ".join(found)
