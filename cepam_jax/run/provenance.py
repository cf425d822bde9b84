"""Which parts made the rounds of a ledger, as far as a guarantee depends on them."""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation import AGGREGATORS, Aggregator
from cepam_jax.mechanisms import About, Knobs

if TYPE_CHECKING:
    from cepam_jax.run.guarantees import Facts
    from cepam_jax.run.ledger import Ledger

Numbers = float | tuple[float, ...] | None


class Parts(NamedTuple):
    """What the parts of some rounds stated; plain values that JSON keeps as they are.

    Attributes:
      clients: of the federation.
      participants: of a round.
      mechanism: its name.
      noise: against outsiders and against the server, as `noises_of` says.
      clipped: the norm that the mechanism bounds.
      aggregator: its name, with its settings where it has any.
      aggregation: "weighted sum", "post-processing", or what it is in words.
      weights: of a weighted sum, one for each client, or one number for all.
      unit: "client" or "example"; None where local training states nothing.
      norm: in which local training bounds updates; None: it does not.
      bound: how far, one for each client, or one number for all.
      remembers: whether clients send later what their messages lost.
      masked: whether clients send different coordinates.
      hidden: whether nothing public but the model depends on who was drawn.
      adaptive: whether the knobs follow from what was released; "watched": from what was not.
      budget: of such a rule, the most that (clip / own noise)^2 may sum up to over the run, one for each
        client, or one number for all; None: it states none.
      most: of such a rule, the part of its budget that a round has at most; None: it states none.
      count_noise: of a rule that reads how many updates were within their clips, deviation of the noise on
        that count; None for others.
      central: law of the noise that the server adds to the sum; None: it adds none.
      summed: of a secure sum, the least number of messages (0: all), colluders, and noise of one in steps;
        None: the server sees each message.
      poisson: whether each client is drawn by itself, and `participants` is the expected number.
    """

    clients: int
    participants: int
    mechanism: str
    noise: tuple[tuple[str, float] | None, ...]
    clipped: str | None
    aggregator: str
    aggregation: str
    weights: Numbers
    unit: str | None
    norm: str | None
    bound: Numbers
    remembers: bool
    masked: bool
    hidden: bool
    adaptive: bool | str
    budget: Numbers = None
    most: float | None = None
    count_noise: float | None = None
    central: str | None = None
    summed: tuple[float, ...] | None = None
    poisson: bool = False


_WORDS = {
    "clients": "number of clients",
    "participants": "participants of a round",
    "noise": "noise at sigma 1",
    "clipped": "norm that the mechanism clips",
    "unit": "unit of privacy",
    "norm": "norm that local training bounds",
    "bound": "bound of local training",
    "remembers": "error feedback",
    "masked": "different coordinates by client",
    "hidden": "draws hidden but for the model",
    "adaptive": "knobs by what was released",
    "budget": "budget of the rule for knobs",
    "most": "largest part of the budget for a round",
    "count_noise": "noise on the count of updates within their clips",
    "central": "noise that the server adds",
    "summed": "least messages, colluders and steps of the secure sum",
    "poisson": "participants drawn independently",
}


def parts_of(facts: "Facts") -> Parts:
    """The parts that a federation's facts were stated by."""
    about, influence, counts = facts.about, facts.influence, np.asarray(facts.counts)
    rule, bounded = facts.aggregator, influence is not None and influence.bound is not None
    return Parts(
        clients=len(counts),
        participants=int(facts.per_round),
        mechanism=about.name,
        noise=noises_of(about),
        clipped=about.sensitivity,
        aggregator=_name_of(rule),
        aggregation=_kind_of(rule),
        weights=_numbers(rule.public_weights(counts)) if rule.public_weights else None,
        unit=influence.unit if influence else None,
        norm=influence.norm if influence else None,
        bound=_numbers(influence.bound(counts)) if bounded else None,
        remembers=bool(facts.remembers),
        masked=bool(facts.masked),
        hidden=bool(facts.hidden),
        adaptive="watched" if facts.control.watch else bool(facts.control.adaptive),
        budget=_budget_of(facts),
        most=_rounded(facts.control.most / facts.control.budget) if facts.control.most else None,
        count_noise=_rounded(float(facts.control.count_noise)) if facts.control.count_noise else None,
        central=facts.central,
        summed=about.summed and tuple(about.summed),
        poisson=facts.poisson,
    )


def _budget_of(facts: "Facts") -> Numbers:
    """The most that (clip / own noise)^2 may sum up to, for a rule with a budget; None for others."""
    rule, start, noise = facts.control, facts.start, facts.hiding
    if not rule.adaptive or rule.budget is None or start is None or noise is None:
        return None
    bound = np.asarray(facts.clip if start.clip is None else start.clip, np.float64)
    return _numbers(rule.budget * np.square(bound / np.asarray(noise.deviation(start), np.float64)))


def noises_of(about: About) -> tuple[tuple[str, float] | None, ...]:
    """(law, deviation at some knobs) of the noise against outsiders and the server; None: there is none."""
    knobs = Knobs(sigma=1.0, clip=1.0, step=0.5, bits=4.0, levels=16.0, fraction=0.5)
    both = (about.outsiders, about.server)
    return tuple(noise and (noise.law, _rounded(float(noise.deviation(knobs)))) for noise in both)


def parts_from(found: dict[str, Any]) -> Parts:
    """The parts of a line of JSON."""
    return Parts(**{name: _tuples(value) for name, value in found.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check(ledger: "Ledger", parts: Parts) -> None:
    """Checks that the rounds of a ledger were made by these parts, where they say by which.

    Raises:
      ConfigError: names what differs.
    """
    seen: Parts | None = None
    for entry in ledger.entries:
        if entry.made_by is None or entry.made_by is seen or entry.made_by == parts:
            continue
        seen = entry.made_by
        pairs = zip(Parts._fields, seen, parts, strict=True)
        wrong = [f"{_WORDS.get(n, n)} was {_shown(a)} and is {_shown(b)}" for n, a, b in pairs if a != b]
        raise ConfigError(f"the ledger was made by other parts than these: {'; '.join(wrong)}")


def check_draws(ledger: "Ledger", parts: Parts) -> None:
    """Checks that knobs and draws of a ledger are those of so many clients, where it says by which parts.

    Raises:
      ConfigError: they are not.
    """
    whole = range(parts.clients)
    for number, entry in enumerate(ledger.entries):
        given = [value for value in (*entry.knobs, entry.weights) if value is not None]
        sizes = {np.size(value) for value in given} - {1, parts.clients}
        if sizes:
            raise ConfigError(
                f"the ledger was made by other parts than these: knobs of {max(sizes)} clients, not of "
                f"{parts.clients}"
            )
        if entry.made_by is None:
            continue
        drawn = parts.participants < parts.clients
        right = all(
            len(draw) == len(set(draw)) == (len(draw) if parts.poisson else parts.participants)
            and all(client in whole for client in draw)
            for draw in entry.drawn
        )
        if not right or len(entry.drawn) != (entry.rounds if drawn else 0):
            raise ConfigError(
                f"the ledger was altered: entry {number + 1} does not say who was drawn as "
                f"{parts.participants} of {parts.clients} clients are, in each of {entry.rounds} rounds"
            )


def _shown(value: Any) -> str:
    """A value in words; of many numbers the first few."""
    if isinstance(value, tuple) and len(value) > 4:
        return f"{value[:3]!r}... ({len(value)} numbers)"
    return repr(value)


def _numbers(values) -> Numbers:
    """One number for all clients where they are equal."""
    array = np.asarray(values, np.float64)
    each = tuple(map(_rounded, array.tolist()))
    return each[0] if len(set(each)) == 1 else each


def _rounded(value: float) -> float:
    """A number as all machines calculate it."""
    return float(f"{value:.6g}")


def _name_of(rule: Aggregator) -> str:
    """The name under which a rule is registered, else that of its function."""
    registered = [name for name, known in AGGREGATORS.items() if known == rule]
    return registered[0] if registered else _described(rule.weigh or rule.weights or rule.combine)


def _described(function: Any) -> str:
    """The name of a function, and the values that it was given before, the same in every process."""
    if isinstance(function, functools.partial):
        shown = [_described(v) if callable(v) else repr(v) for v in function.args]
        values = [*shown, *(f"{n}={v!r}" for n, v in sorted(function.keywords.items()))]
        return f"{_described(function.func)}({', '.join(values)})"
    return getattr(function, "__qualname__", repr(function))


def _kind_of(rule: Aggregator) -> str:
    if rule.refused:
        return "nothing guaranteed"
    if rule.public_weights:
        return "weighted sum"
    if rule.weights and rule.initialize is None:
        return "weighted sum by knobs"
    if rule.weights:
        return "weighted sum within bounds" if rule.least_ratios else "post-processing"
    return "post-processing" if rule.post_processing else "not stated"
