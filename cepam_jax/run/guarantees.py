"""What a run promises to whom: reports, calibration and budgets, from facts and ledger."""

import math

import numpy as np

from cepam_jax import mechanisms, privacy
from cepam_jax.errors import ConfigError
from cepam_jax.privacy import arithmetic
from cepam_jax.run.facts import ALWAYS, Facts, facts_of, federation_from, federation_of, plan
from cepam_jax.run.ledger import Ledger

__all__ = [
    "ALWAYS",
    "Facts",
    "calibrated",
    "epsilons",
    "facts_of",
    "federation_from",
    "federation_of",
    "plan",
    "report_text",
    "rounds_within_budget",
]

# Mechanisms whose noise is that of `cepam_jax.privacy.arithmetic`; of others nothing is said.
_MEASURED = ("lrsuq", "split", "noise", "noise_sdq", "noise_rounding", "jopeq")


def _words(config, federation, coordinates) -> str:
    """What 32-bit arithmetic leaves out, with its size where it is known."""
    about = mechanisms.build(config.mechanism, ((1,),)).about
    text = "noise sampled in 32-bit arithmetic: see docs/randomness.md"
    if not about.outsiders or federation.norm is None or config.mechanism.name not in _MEASURED:
        return text
    law, layered = about.outsiders.law, config.mechanism.name in ("lrsuq", "split")
    block = about.block if config.mechanism.name == "lrsuq" else 1
    end = arithmetic.ADDITIVE_ENDS[law]
    if layered:
        end = arithmetic.layers_end(law, about.block)
    if config.mechanism.name == "split":  # the ends of both parts add up
        share = config.mechanism.share
        end = arithmetic.ADDITIVE_ENDS[law] * math.sqrt(share) + end * math.sqrt(1 - share)
    chance = _chance_beyond(law, block, end, federation)
    delta = config.privacy.delta
    unit = "deviations" if law == "gaussian" else "times its scale b"
    text += (
        f"; it ends at {end:.2f} {unit}, and an update that lies on one coordinate leaves that range with "
        f"probability {chance:.1e} over the run"
    )
    if chance > delta:
        text += (
            f", more than delta = {delta:g}: the epsilons against colluding_clients and decoded_updates are "
            "those of noise without end"
        )
    if not layered or not coordinates:
        return text
    padded = 1 << (coordinates - 1).bit_length() if config.mechanism.rotate else coordinates
    rounds = sum(phase.rounds for phase in federation.phases)
    blocks = -(-padded // about.block) * rounds * (config.clients_per_round or config.num_clients)
    distance = arithmetic.total_variation(law, about.block, blocks)
    return (
        f"{text}; the radii of LRSUQ's layers follow their law to {distance:.1e} in total variation over all "
        f"{blocks:,} blocks of the run, which may cost 1 + e^epsilon times as much delta"
    )


def _chance_beyond(law, block, end, federation) -> float:
    """Of the least protected client over all rounds, if it takes part in all of them."""
    total = np.zeros(len(federation.clip))
    for phase in federation.phases:
        with np.errstate(divide="ignore"):
            shift = privacy.reach(federation) * federation.clip / privacy.noise_scale(law, phase.outsiders)
        total += phase.rounds * arithmetic.beyond(law, block, end, np.minimum(shift, 1e3))
    return float(min(1.0, total.max()))


def report_text(
    config, counts, rounds: int | None = None, coordinates: int = 0, ledger: Ledger | None = None
) -> str:
    """The report of `privacy.text` for the whole run, or for its first `rounds`.

    Args:
      config, counts, rounds, ledger: as for `federation_of`.
      coordinates: of an update, for the size of what 32-bit words leave out; 0: not known.
    """
    federation = federation_of(config, counts, rounds, ledger)
    words = _words(config, federation, coordinates)
    federation = federation._replace(not_covered=(*federation.not_covered, words))
    return privacy.text(federation, config.privacy.delta)


def epsilons(config, counts, ledger: Ledger) -> dict:
    """Largest epsilon over clients after the rounds of a ledger, by adversary; infinity as None for JSON."""
    found = {}
    for row in privacy.report(federation_of(config, counts, ledger=ledger), config.privacy.delta):
        value = float(np.max(row.epsilon))
        found[row.adversary] = value if np.isfinite(value) else None
    return found


def calibrated(config, counts):
    """A copy of the configuration whose gamma meets config.privacy.target_epsilon after all its rounds.

    Raises:
      ConfigError: no gamma does, and why.
    """

    def with_gamma(gamma):
        changed = config.copy_and_resolve_references()
        changed.mechanism.gamma = float(gamma)
        return changed

    gamma = privacy.gamma_for(
        lambda gamma: federation_of(with_gamma(gamma), counts),
        config.privacy.adversary,
        config.privacy.target_epsilon,
        config.privacy.delta,
    )
    return with_gamma(gamma)


def rounds_within_budget(config, counts) -> int:
    """How many of config.rounds the budget allows, at least one; all without a target.

    Raises:
      ConfigError: not even one round keeps to the target, or nothing is guaranteed.
    """
    settings = config.privacy
    if not settings.target_epsilon:
        return config.rounds
    found = privacy.affordable_rounds(
        lambda rounds: federation_of(config, counts, rounds),
        settings.adversary,
        settings.target_epsilon,
        settings.delta,
        config.rounds,
    )
    if found == 0:
        first = {
            row.adversary: row for row in privacy.report(federation_of(config, counts, 1), settings.delta)
        }
        row = first[settings.adversary]
        spent = float(row.epsilon.max())
        cause = f"gives no guarantee ({row.reason})" if np.isinf(spent) else f"spends epsilon = {spent:.4g}"
        raise ConfigError(
            f"config.privacy.target_epsilon is {settings.target_epsilon:g}, but the first round alone "
            f"{cause} against {settings.adversary}; lower config.mechanism.gamma, raise the target, or set "
            "config.privacy.calibrate=true, which chooses gamma"
        )
    return found
