"""Why a round was not applied, for people: local training, the mechanism's range, or the server's step."""

import jax
import numpy as np

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import poisson, rounds
from cepam_jax.federated.state import RoundReport, State
from cepam_jax.mechanisms import Mechanism
from cepam_jax.mechanisms import knobs as knob_values
from cepam_jax.mechanisms.registry import CONFIGURABLE
from cepam_jax.run.records import RunDirectory


def explanation(record: RunDirectory, state: State) -> str:
    """What was not finite in the round after `state`, what caused it, and what to change.

    Args:
      record: of the run.
      state: that ended the block, on the host; its `invalid_client` is not -1.
    """
    client, cause = rounds.failure(state.invalid_client)
    number, config = int(state.round) + 1, record.config
    rate = f"Lower config.local.learning_rate (now {config.local.learning_rate:g})"
    kept = (
        f"the checkpoint of round {record.done} is intact"
        if record.done
        else "nothing was saved before round 1"
    )
    if cause == rounds.OVERFLOW:
        return f"{_overflowed(number)}, {kept}. Begin again with another config.seeds.training."
    if cause == rounds.MECHANISM:
        settings = config.mechanism
        return (
            f"the update of client {client} in round {number} was finite, but config.mechanism.name = "
            f"{settings.name!r} cannot code it: what it decodes to is NaN or infinite, and was not averaged; "
            f"{kept}. {_within_range(config, client)}"
        )
    if cause == rounds.DOWNLINK:
        return (
            f"the model was finite in round {number}, but config.downlink.name = {config.downlink.name!r} "
            f"cannot code what it changed by: what clients decode is NaN or infinite; {kept}. Make "
            f"config.downlink.step larger (now {config.downlink.step:g}), or choose another mechanism."
        )
    if cause == rounds.MODEL:
        server = f"config.server.learning_rate (now {config.server.learning_rate:g})"
        return (
            f"the global model became NaN or infinite in round {number}, from updates that were finite; "
            f"the round was not applied, {kept}. {rate}, or {server}, or clip updates "
            f"(config.mechanism.clip, now {config.mechanism.clip!r})."
        )
    advice = f"{rate}."
    if record.lines and record.lines[-1]["loss"] is None:
        advice = (
            f"{rate} or config.server.learning_rate (now {config.server.learning_rate:g}): the global "
            f"model's outputs were infinite before."
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        advice = "The global model was NaN or infinite before: train again from the beginning. " + advice
    return (
        f"client {client} sent a NaN or infinite update in round {number}: its local training diverged; it "
        f"was not averaged, {kept}. {advice}"
    )


def of_parts(mechanism: Mechanism, report: RoundReport, before: State, after: State) -> str:
    """What was not finite in a round of a federation in Python, what caused it, and what to change.

    Args:
      mechanism: that coded the updates.
      report: of the round, on the host.
      before: State that the round began from.
      after: State that says why it was not applied.
    """
    client, cause = rounds.failure(after.invalid_client)
    number = int(before.round) + 1
    if cause == rounds.DOWNLINK:
        return (
            f"the model was finite in round {number}, but what clients decode of the downlink's message is "
            "NaN or infinite; the round was not applied. Its mechanism cannot code the model's change: make "
            "its step larger."
        )
    if cause == rounds.OVERFLOW:
        return f"{_overflowed(number)}. Begin again with another seed."
    if cause == rounds.MODEL:
        return (
            f"the global model became NaN or infinite in round {number}, from updates that were finite; the "
            "round was not applied. Lower the learning rate of the server or of the clients, or clip updates."
        )
    if cause == rounds.LOCAL:
        broken = not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(before.params))
        return (
            f"client {client} sent a NaN or infinite update in round {number}: "
            + ("the model was NaN or infinite before; " if broken else "its local training diverged; ")
            + "the round was not applied. Lower the learning rate of the local optimizer."
        )
    try:
        knob_values.check(report.knobs, [name for name in mechanism.about.knobs if name != "scale"])
    except ConfigError as error:
        return f"the control rule set a knob in round {number} that is not allowed: {error}"
    return (
        f"the update of client {client} in round {number} was finite, but the mechanism "
        f"{mechanism.about.name} cannot code it: what it decodes to is NaN or infinite; the round was not "
        f"applied. A coordinate may be at most {mechanisms.RANGE:,.0f} deviations of the noise (or cells of "
        "the lattice) from zero: clip updates, or make sigma or step larger."
    )


def _overflowed(number: int) -> str:
    return (
        f"more clients came to round {number} than it has places, a chance of {poisson.OVERFLOW:g}; it was "
        "not applied"
    )


def _within_range(config, client) -> str:
    """How to bring finite updates into the range of a mechanism."""
    settings = config.mechanism
    gamma = settings.per_client.gamma[client] if settings.per_client.gamma else settings.gamma
    changes = []
    range_by = CONFIGURABLE[settings.name].range_by(settings)
    if range_by == "step":
        changes.append(f"make config.mechanism.step larger (now {settings.step:g})")
    if range_by == "gamma":
        if config.privacy.target_epsilon and config.privacy.calibrate:
            target = f"config.privacy.target_epsilon (now {config.privacy.target_epsilon:g})"
            changes.append(f"lower {target}, from which gamma = {gamma:.3g} follows")
        else:
            changes.append(f"make config.mechanism.gamma smaller (now {gamma:g})")
    if config.schedule.knob != "none":
        end = f"config.schedule.end (now {config.schedule.end:g})"
        changes.append(f"choose another {end}, by which {config.schedule.knob} is multiplied")
    if settings.clip == "none":
        changes += ["clip updates (config.mechanism.clip, now 'none')", "lower config.local.learning_rate"]
    else:
        changes.append(f"choose another config.mechanism.clip_norm (now {settings.clip_norm:g})")
    return f"To bring updates into its range {', or '.join(changes)}."
