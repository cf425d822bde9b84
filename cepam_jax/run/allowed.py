"""The largest gamma that all needs of all clients allow, before anything is trained.

Bits: `message_limits`, the same for every client with the same number of bits. Epsilon: by the functions that
the final report is computed with (`guarantees.federation_of`), over all planned rounds.

Against those who face a client's own noise (decoded_updates, colluding_clients, server), a client's epsilon
follows from its own gamma, so each is found alone. Against the released model the noises of all participants
count, and any of them may be lowered for the others: here those who ask for an epsilon against it share one
bound on gamma, the largest that meets all needs, below which nobody goes whose own noise suffices. So no
gamma that meets all needs could be raised for the client with the least of these without another's being
lowered. Own noise alone always suffices, whatever the others', so the search ends with gammas that were
accounted for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax import files, mechanisms, privacy
from cepam_jax.errors import ConfigError
from cepam_jax.federated import aggregation
from cepam_jax.mechanisms import RANGE
from cepam_jax.run import build, devices, guarantees, message_limits, needs
from cepam_jax.run.gammas import Allowed
from cepam_jax.run.needs import Need

RELEASED = "released_model"
_LEAST = 1e-7  # gamma below which nothing is searched
_STEPS = 22  # of a bisection: gamma to one part in 100,000
_SLACK = 1 - 1e-6  # of an epsilon: compiled rounds may apply knobs that differ in their last bit


def planned(config, counts, compiled, watched: bool = False) -> tuple:
    """(A copy of a configuration with the gammas that follow, Allowed); without needs None for the latter.

    Args:
      config: valid configuration.
      counts: int[clients], examples of each client.
      compiled: its Program.
      watched: as for `guarantees.federation_of`.

    Raises:
      ConfigError: a need cannot be met, which client's and by how much; or a target epsilon cannot.
    """
    if config.privacy.target_epsilon and config.privacy.calibrate:
        return guarantees.calibrated(config, counts, watched), None
    if not needs.given(config):
        return config, None
    state = jax.eval_shape(compiled.initialize, jax.random.key(0), mechanisms.knobs_of(config))
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves((state.params, state.statistics)))
    found = largest(config, counts, shapes, watched)
    return _with(config, found.gamma), found


def write(found: Allowed | None, workdir: Path) -> None:
    """Leaves what was found in needs.txt of a work directory."""
    if found is not None and devices.is_main():
        files.write(workdir / "needs.txt", found.text())


def largest(config, counts, shapes, watched: bool = False) -> Allowed:
    """The gammas; before anything is trained.

    Args:
      config: valid configuration with needs.
      counts: int[clients], examples of each client.
      shapes: of the update's tensors.
      watched: as for `guarantees.federation_of`.

    Raises:
      ConfigError: a need cannot be met: which client's, and by how much.
    """
    wanted = needs.of_config(config)
    about = build.about_of(config)
    if "sigma" not in about.knobs:
        raise ConfigError(f"config.needs asks for gammas, and the mechanism {about.name} has none")
    if build.control_of(config).adaptive:
        raise ConfigError(
            f"config.control = {config.control!r} sets knobs by what was released: no gamma that is chosen "
            "before training is held during it, as config.needs asks"
        )
    peaks = _most_of(config)
    most = np.full(config.num_clients, float(RANGE) / peaks)
    by_bits, messages = _within_bits(config, shapes, wanted, peaks)
    caps = np.minimum(most, by_bits)
    silent = np.array([not need.epsilon and np.isinf(need.bits) for need in wanted])
    caps[silent] = float(config.mechanism.gamma)
    run = _Planned(config, counts, watched)
    own = _own_noise(run, wanted, caps)
    gamma = _shared(run, wanted, own)
    return _checked(run, wanted, gamma, by_bits, messages, peaks)


class _Planned(NamedTuple):
    """What an epsilon over the planned rounds depends on beside gamma; `watched` as above."""

    config: Any
    counts: np.ndarray
    watched: bool


def _with(config, gamma):
    changed = config.copy_and_resolve_references()
    changed.mechanism.per_client.gamma = tuple(map(float, gamma))
    return changed


def _most_of(config) -> float:
    """How many times its gamma at the start a client's gamma is at most, over the planned rounds."""
    start = mechanisms.knobs_of(config)
    factors = [
        np.max(
            (np.asarray(entry.knobs.clip) / np.asarray(start.clip))
            / (np.asarray(entry.knobs.sigma) / start.sigma)
        )
        for entry in guarantees.plan(config, config.rounds).entries
    ]
    return float(max(factors))


def _within_bits(config, shapes, wanted: list[Need], peaks: float):
    """f64[clients] of gammas that messages allow, infinity where nobody asks; Messages, or None."""
    gammas = np.full(len(wanted), np.inf)
    if all(np.isinf(need.bits) for need in wanted):
        return gammas, None
    segments = tuple(int(np.prod(shape)) for shape in shapes)
    messages = message_limits.messages_of(
        mechanisms.build(config.mechanism, tuple(shapes)),
        aggregation.of_config(config),
        segments,
        config.wire,
        config.needs.peak,
    )
    by_bits: dict[float, float] = {}
    for k, need in enumerate(wanted):
        if np.isinf(need.bits):
            continue
        if need.bits not in by_bits:
            try:
                by_bits[need.bits] = message_limits.gamma_within(messages, need.bits, config.mechanism.target)
            except ConfigError as error:
                raise ConfigError(
                    f"{_who(k, need)} needs messages of at most {need.bits:g} bits: {error}"
                ) from error
        gammas[k] = by_bits[need.bits] / peaks
    return gammas, messages


def _who(k: int, need: Need) -> str:
    return f"client {k}" + (f" ({need.profile})" if need.profile else "")


def _epsilons(run: _Planned, gamma, adversary: str) -> tuple[np.ndarray, list[str]]:
    """Epsilon of each client over the planned rounds, f64[clients], and why it is infinite, or ""."""
    federation = guarantees.federation_of(_with(run.config, gamma), run.counts, watched=run.watched)
    found = privacy.ADVERSARIES[adversary](federation)
    values = np.array([privacy.guaranteed(one, run.config.privacy.delta) for one in found])
    return values, [one.reason for one in found]


def targets_of(wanted: list[Need], adversary: str) -> np.ndarray:
    """f64[clients], what each needs against an adversary; infinity: nothing."""
    return np.array([dict(need.epsilon).get(adversary, np.inf) for need in wanted])


def _own_noise(run: _Planned, wanted: list[Need], caps: np.ndarray) -> dict[str, np.ndarray]:
    """Gammas f64[clients] by their own noise, under "all" adversaries and under all but the released model.

    Own noise against the released model is that against decoded updates: whoever sees these sees the model.
    """
    found = caps.copy()
    for adversary in privacy.ADVERSARIES:
        if adversary != RELEASED:
            found = _alone(run, targets_of(wanted, adversary), adversary, found, wanted)
    both = found
    targets = targets_of(wanted, RELEASED)
    if np.isfinite(targets).any():
        _refuse_unprotected(run, targets, RELEASED, wanted)
        both = _alone(run, targets, "decoded_updates", found, wanted)
    return {"others": found, "all": both}


def _refuse_unprotected(run: _Planned, targets, adversary: str, wanted: list[Need]) -> None:
    values, reasons = _epsilons(run, np.full(len(wanted), _LEAST), adversary)
    for k in np.flatnonzero(np.isfinite(targets) & (values > targets)):
        why = (
            f"there is no guarantee: {reasons[k]}" if np.isinf(values[k]) else f"the least is {values[k]:.6g}"
        )
        more = (
            "" if np.isinf(values[k]) else f", {values[k] - targets[k]:.4g} too much, with gamma = {_LEAST:g}"
        )
        raise ConfigError(
            f"{_who(k, wanted[k])} needs epsilon {targets[k]:g} against {adversary} over {run.config.rounds} "
            f"rounds at delta = {run.config.privacy.delta:g}: {why}{more}"
        )


def _alone(run: _Planned, targets, adversary: str, caps: np.ndarray, wanted: list[Need]) -> np.ndarray:
    """The largest gammas f64[clients], up to caps, whose own epsilon each keeps to its target."""
    asks = np.isfinite(targets)
    if not asks.any():
        return caps
    _refuse_unprotected(run, targets, adversary, wanted)

    def kept(gamma):
        return ~asks | (_epsilons(run, gamma, adversary)[0] <= targets * _SLACK)

    return _bisected(kept, np.minimum(caps, _LEAST), caps)


def _bisected(kept: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The largest f64[n] between low, which is kept, and high, each found alone, on a logarithmic axis."""
    fits = kept(high)
    low = np.where(fits, high, low)
    for _ in range(_STEPS if not fits.all() else 0):
        middle = np.sqrt(low * high)
        fits = kept(middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low


def _shared(run: _Planned, wanted: list[Need], own: dict[str, np.ndarray]) -> np.ndarray:
    """Gammas f64[clients] where the noises of all count against the released model."""
    targets = targets_of(wanted, RELEASED)
    asks = np.isfinite(targets)
    if not asks.any():
        return own["others"]

    def gammas(bound):
        return np.where(asks, np.minimum(own["others"], np.maximum(own["all"], bound)), own["others"])

    def kept(bound):
        values, _ = _epsilons(run, gammas(bound[0]), RELEASED)
        return np.array([np.all(values[asks] <= targets[asks] * _SLACK)])

    low, high = own["all"][asks].min(), own["others"][asks].max()
    return gammas(_bisected(kept, np.array([low]), np.array([high]))[0])


def _checked(run: _Planned, wanted, gamma, by_bits, messages, peaks) -> Allowed:
    """What was found, after it was held against all needs once more.

    Raises:
      ConfigError: it does not meet them: no run begins that breaks a promise.
    """
    names = [name for name in privacy.ADVERSARIES if np.isfinite(targets_of(wanted, name)).any()]
    epsilon = {name: _epsilons(run, gamma, name)[0] for name in names}
    for name in names:
        over = np.flatnonzero(epsilon[name] > targets_of(wanted, name))
        if over.size:
            k = int(over[0])
            raise ConfigError(
                f"{_who(k, wanted[k])} would have epsilon {epsilon[name][k]:.6g} against {name}, and needs "
                f"{targets_of(wanted, name)[k]:g}: no gamma was found that meets all needs"
            )
    bits = np.full(len(wanted), np.nan)
    unit = np.sqrt(2) if run.config.mechanism.target == "laplace" else 1.0
    if messages is not None:
        known = {
            one: messages.longest(one * peaks / unit) for one in set(gamma[np.isfinite(by_bits)].tolist())
        }
        bits = np.array([known.get(float(one), np.nan) for one in gamma])
        bits[np.isinf(by_bits)] = np.nan
    limits = []
    for k, need in enumerate(wanted):
        close = need.bits < np.inf and gamma[k] >= by_bits[k] * (1 - 1e-9)
        asked = need.epsilon and gamma[k] < float(RANGE) / peaks
        limits.append("bits" if close else "epsilon" if asked else "nothing")
    peak = 0.0 if messages is None or messages.sent is None else float(run.config.needs.peak)
    return Allowed(gamma, wanted, limits, epsilon, bits, peak)
