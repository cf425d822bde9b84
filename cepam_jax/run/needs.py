"""What clients state that they need: `config.needs`, by client or by named profiles.

A client needs an epsilon against an adversary of the privacy report, or messages of at most so many bits in a
round (or what a link carries until a deadline), or both, or neither. `run.allowed` makes gammas of it.

  needs.profiles="hospital: epsilon 8 against decoded_updates; clinic: epsilon 100, rate 20000, deadline 0.5"
  needs.clients="3 hospital, 7 clinic"
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cepam_jax import privacy, settings
from cepam_jax.errors import ConfigError
from cepam_jax.federated import lengths

_WRITTEN = "'NAME: epsilon 8 against server, bits 20000; NAME: rate 1e5, deadline 0.2' (any part of it)"


class Need(NamedTuple):
    """What one client needs.

    Attributes:
      epsilon: (adversary, the largest epsilon of the whole run) for each adversary that it names.
      bits: the most that a message of it may have; infinity: any number.
      profile: its name, or "".
    """

    epsilon: tuple[tuple[str, float], ...] = ()
    bits: float = np.inf
    profile: str = ""

    def words(self) -> str:
        """The need as text."""
        parts = [f"epsilon {value:g} against {adversary}" for adversary, value in self.epsilon]
        parts += [f"{self.bits:g} bits"] if np.isfinite(self.bits) else []
        return ", ".join(parts) or "nothing"


_FIELDS = {
    "epsilon": (
        settings.not_negative(0.0, ""),
        "Largest epsilon of the run that each client accepts; 0: it does not ask.",
    ),
    "bits": (settings.not_negative(0.0, ""), "Most bits of a message of each client; 0: any number."),
    "rate": (settings.not_negative(0.0, ""), "Bits per second of each client's link, with `deadline`."),
    "deadline": (settings.not_negative(0.0, ""), "Seconds that each client's message may take."),
}
settings.declare(
    "needs",
    {
        **{name: settings.per_client(field, text, compiled=False) for name, (field, text) in _FIELDS.items()},
        "adversary": settings.choice(
            "released_model",
            "Against whom, where an epsilon is needed and nobody is named.",
            privacy.ADVERSARIES,
            compiled=False,
        ),
        "profiles": settings.text(
            "", "Named kinds of clients and what they need.", f"'' or {_WRITTEN}", compiled=False
        ),
        "clients": settings.text(
            "",
            "How many clients have which profile, in the order of the clients.",
            "'' or '3 NAME, 7 NAME'",
            compiled=False,
        ),
        "peak": settings.number(
            3.0,
            "Largest root mean square over mean absolute value of a tensor that bits are planned for.",
            lambda v: 1 <= v <= 16,
            "a number from 1 to 16",
            compiled=False,
        ),
    },
    "What clients need; the largest gamma that all of it allows follows. No gamma is then given by hand.",
)


def profiles_of(text: str, adversary: str) -> dict[str, Need]:
    """The profiles of `needs.profiles`.

    Args:
      text: as the field says.
      adversary: where none is named.

    Raises:
      ConfigError: says which part cannot be read.
    """
    found: dict[str, Need] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, colon, rest = part.partition(":")
        name = name.strip()
        if not colon or not name.isidentifier() or name in found:
            raise ConfigError(f"{part!r} is no profile with a name of its own; it must be like {_WRITTEN}")
        epsilon, numbers = {}, {}
        for item in filter(None, map(str.strip, rest.split(","))):
            words = item.split()
            if words[0] == "epsilon" and len(words) == 4 and words[2] == "against":
                who = words[3]
            else:
                who = adversary
                if len(words) != 2:
                    raise ConfigError(f"{item!r} of profile {name} must be one of the parts of {_WRITTEN}")
            value = _positive(words[1], item, name)
            if words[0] == "epsilon" and who in privacy.ADVERSARIES and who not in epsilon:
                epsilon[who] = value
            elif words[0] in ("bits", "rate", "deadline") and words[0] not in numbers:
                numbers[words[0]] = value
            else:
                raise ConfigError(
                    f"{item!r} of profile {name} must be epsilon (against one of "
                    f"{', '.join(privacy.ADVERSARIES)}), bits, rate or deadline, each once"
                )
        if ("rate" in numbers) != ("deadline" in numbers):
            raise ConfigError(f"profile {name} must have both a rate and a deadline, or neither")
        link = numbers["rate"] * numbers["deadline"] if "rate" in numbers else np.inf
        found[name] = Need(tuple(epsilon.items()), min(numbers.get("bits", np.inf), link), name)
    return found


def _positive(word: str, item: str, name: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise ConfigError(f"{item!r} of profile {name} must have a positive number")
    return value


def assigned(text: str, profiles: Mapping[str, Need], clients: int) -> list[Need]:
    """The profile of each client, from `needs.clients`.

    Raises:
      ConfigError: a name or number is not known, or they are not as many as the clients.
    """
    if not text.strip():
        return [Need()] * clients
    found: list[Need] = []
    for part in filter(None, map(str.strip, text.split(","))):
        words = part.split()
        count = int(words[0]) if len(words) == 2 and words[0].isdigit() else 1
        name = words[-1]
        if name not in profiles or len(words) > 2 or (len(words) == 2 and not words[0].isdigit()):
            raise ConfigError(f"{part!r} must be a number and one of: {', '.join(profiles) or 'no profile'}")
        if count > clients:
            raise ConfigError(f"{part!r} are more than the {clients} clients there are")
        found += [profiles[name]] * count
    if len(found) != clients:
        raise ConfigError(f"{len(found)} clients have profiles; they must be {clients} (config.num_clients)")
    return found


def of_fields(fields: Mapping[str, Any]) -> list[Need]:
    """What each client needs, from dotted fields; a client with a profile and arrays needs both.

    Raises:
      ConfigError: profiles or their clients cannot be read.
    """
    clients, adversary = fields["num_clients"], fields["needs.adversary"]
    profiles = profiles_of(fields["needs.profiles"], adversary)
    found = assigned(fields["needs.clients"], profiles, clients)
    each = {name: fields[f"needs.{name}"] or (0.0,) * clients for name in _FIELDS}
    for k, need in enumerate(found):
        epsilon = dict(need.epsilon)
        if each["epsilon"][k]:
            epsilon[adversary] = min(epsilon.get(adversary, np.inf), float(each["epsilon"][k]))
        limits = [each["bits"][k] or np.inf, each["rate"][k] * each["deadline"][k] or np.inf]
        found[k] = need._replace(epsilon=tuple(epsilon.items()), bits=min(need.bits, *map(float, limits)))
    return found


def given(config) -> bool:
    """Whether any client of a configuration needs anything; one of an earlier release has no such section."""
    section = config.get("needs")
    return section is not None and any(section[name] for name in (*_FIELDS, "clients"))


def of_config(config) -> list[Need]:
    """What each client of a valid configuration needs."""
    return of_fields(settings.flat(config))


def _tried(read):
    """(what it read, why it could not)."""
    try:
        return read(), ""
    except ConfigError as error:
        return None, str(error)


@settings.rule
def _rules(fields):
    clients = fields["num_clients"]
    for name in _FIELDS:
        yield (
            len(fields[f"needs.{name}"]) in (0, clients),
            f"needs.{name}",
            f"empty or one number for each of config.num_clients = {clients} clients",
        )
    pairs = list(zip(fields["needs.rate"], fields["needs.deadline"], strict=False))
    whole = len(fields["needs.rate"]) == len(fields["needs.deadline"])
    yield (
        whole and all((rate > 0) == (deadline > 0) for rate, deadline in pairs),
        "needs.rate",
        "given for the same clients as config.needs.deadline",
    )
    profiles, wrong = _tried(lambda: profiles_of(fields["needs.profiles"], fields["needs.adversary"]))
    yield not wrong, "needs.profiles", f"readable: {wrong}"
    _, wrong = _tried(lambda: assigned(fields["needs.clients"], profiles, clients))
    yield not wrong, "needs.clients", f"readable: {wrong}"
    limited = any(np.isfinite(need.bits) for need in (profiles or {}).values())
    limited = limited or any(any(fields[f"needs.{name}"]) for name in ("bits", "rate"))
    yield lengths.needed(fields, limited, "where config.needs limits the bits of messages")
    any_need = any(fields[f"needs.{name}"] for name in (*_FIELDS, "clients"))
    yield (
        not any_need or not fields["privacy.target_epsilon"],
        "privacy.target_epsilon",
        "0 where config.needs says what clients need: state it there, for each client",
    )
    yield (
        not any_need or not fields["mechanism.per_client.gamma"],
        "mechanism.per_client.gamma",
        "() where config.needs says what clients need: gammas follow",
    )
