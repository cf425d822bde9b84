"""Declared settings: what a configuration may contain, each field beside the part that reads it.

A part declares its fields once, at import:

  declare("local", {"steps": integer(15, "Local iterations of a round.", low=1)})

and `defaults()`, `validate()`, the table of fields in the documentation and `--help` follow from that. A rule
between fields stands with the part that needs it:

  rule(lambda fields: [(fields["local.steps"] < 100, "local.steps", "below 100")])

Nothing here knows any part. A fork's part declares its own at any time before a configuration is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cepam_jax.errors import ConfigError, is_whole, require
from cepam_jax.extras import need

if TYPE_CHECKING:
    import ml_collections


class Field(NamedTuple):
    """One field of a configuration.

    Attributes:
      default: its value where nothing else is said.
      help: what it does, in one sentence.
      allowed: what it may be, in words, or a function that says so when it is asked.
      test: value -> whether it is allowed.
      compiled: whether runs that differ in it need programs of their own; not where it is an array to them.
      resumable: whether a run may be continued with another value: rounds already done do not depend on it.
    """

    default: Any
    help: str
    allowed: str | Callable[[], str]
    test: Callable[[Any], bool]
    compiled: bool = True
    resumable: bool = False

    def words(self) -> str:
        """What the field may be, as of now."""
        return self.allowed() if callable(self.allowed) else self.allowed


Check = tuple[bool, str, str]
Rule = Callable[[dict[str, Any]], Iterable[Check]]

FIELDS: dict[str, Field] = {}
_SECTIONS: dict[str, str] = {}
_RULES: dict[str, Rule] = {}


def declare(section: str, fields: dict[str, Field], title: str = "") -> None:
    """Adds fields to a section of the configuration.

    Args:
      section: its dotted name; "" for the top.
      fields: name -> Field.
      title: one sentence about the section, for the documentation.

    Raises:
      ConfigError: a field of this name was declared with another default or meaning.
    """
    for name, field in fields.items():
        require(name.isidentifier(), "name of a field", name, "a word without dots")
        full = f"{section}.{name}" if section else name
        known = FIELDS.get(full)
        if known is not None and (known.default, known.help) != (field.default, field.help):
            raise ConfigError(f"config.{full} is declared twice, with different defaults or meanings")
        if any(full.startswith(f"{other}.") or other.startswith(f"{full}.") for other in FIELDS):
            raise ConfigError(f"config.{full} is declared as a field and as a section")
        FIELDS[full] = field
    if title:
        _SECTIONS[section] = title


def rule(check: Rule) -> Rule:
    """Adds a rule, or replaces one of its name: flat fields -> (whether it holds, field, what is right)..."""
    _RULES[f"{check.__module__}.{check.__qualname__}"] = check
    return check


def number(default, help: str, test: Callable, allowed: str, **options) -> Field:
    """A real number."""
    return Field(default, help, allowed, lambda v: _is_real(v) and bool(test(v)), **options)


def integer(default: int, help: str, low: int = 1, high: int = 2**31 - 1, **options) -> Field:
    """A whole number from low to high; by default one that 32 bits can count."""
    return Field(
        default,
        help,
        f"an integer of at least {low} and at most {high}",
        lambda v: is_whole(v) and low <= v <= high,
        **options,
    )


def boolean(default: bool, help: str, **options) -> Field:
    """True or False."""
    return Field(default, help, "True or False", lambda v: isinstance(v, bool), **options)


def text(default: str, help: str, allowed: str = "a text", **options) -> Field:
    """Any string."""
    return Field(default, help, allowed, lambda v: isinstance(v, str), **options)


def choice(default: str, help: str, names, *more: str, **options) -> Field:
    """One of the names in a registry (or of `more`), as it is when asked: forks add to it at any time."""

    def allowed():
        return "one of " + ", ".join(map(repr, sorted((*names, *more))))

    return Field(
        default, help, allowed, lambda v: isinstance(v, str) and (v in names or v in more), **options
    )


LEAST, MOST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
_RANGE = f"{LEAST:.2g} and {MOST:.2g}, which 32-bit floats hold"


def positive(default: float, help: str, **options) -> Field:
    """A positive number that 32 bits can hold."""
    return number(
        default, help, lambda v: LEAST <= v <= MOST, f"a positive number (between {_RANGE})", **options
    )


def not_negative(default: float, help: str, **options) -> Field:
    """Zero, or a positive number that 32 bits can hold."""
    return number(
        default,
        help,
        lambda v: v == 0 or LEAST <= v <= MOST,
        f"a number of at least 0 (0, or between {_RANGE})",
        **options,
    )


def below_one(default: float, help: str, **options) -> Field:
    """A number of at least 0 and below 1."""
    return number(default, help, lambda v: 0 <= v < 1, "a number of at least 0 and below 1", **options)


def unit(default: float, help: str, **options) -> Field:
    """A number above 0 and at most 1."""
    return number(default, help, lambda v: LEAST <= v <= 1, "a number above 0 and at most 1", **options)


def per_client(of: Field, help: str, **options) -> Field:
    """A tuple with one value of a field for each client, or ()."""
    return Field(
        (),
        help,
        f"a tuple with {of.words()} for each client, or () to use one value for all",
        lambda v: isinstance(v, (tuple, list)) and all(of.test(item) for item in v),
        **options,
    )


def _is_real(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _configurations():
    """The library of configurations. Declaring a field does not need it, so mechanisms alone do without."""
    need("a configuration", "train", "ml_collections")
    import ml_collections  # noqa: PLC0415

    return ml_collections


def defaults() -> ml_collections.ConfigDict:
    """A configuration with every declared field at its default."""
    return _nested({full: field.default for full, field in FIELDS.items()})


def _nested(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Dotted field names and values as a configuration; the inverse of `flat`."""
    config = _configurations().ConfigDict()
    for full, value in fields.items():
        *sections, name = full.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = type(config)()
            place = place[section]
        place[name] = value
    return config


def plain(config: Mapping | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a configuration (frozen or not, or a nested dictionary) with plain Python values.

    NumPy scalars become Python's, and arrays of one axis tuples: what JSON can hold, and what hashes.
    """
    ml_collections = _configurations()
    if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
        raise ConfigError(f"config is {config!r}; it must be a ConfigDict, as cepam_jax.defaults() makes it")
    copy = ml_collections.ConfigDict()
    try:
        for name, value in config.items():
            require(isinstance(name, str) and "." not in name, "name of a field", name, "a word without dots")
            nested = isinstance(value, (Mapping, ml_collections.ConfigDict))
            copy[name] = plain(value) if nested else _plain_value(value)
    except ml_collections.config_dict.RequiredValueError as error:
        raise ConfigError(f"config has a field without a value: {error}") from error
    return copy


def _plain_value(value):
    if isinstance(value, np.generic):
        value = value.item()  # of a long double: itself
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain_value, value))
    if isinstance(value, Real) and not isinstance(value, (int, float)):  # fractions and the like
        return math.inf if abs(value) >= 2**1023 else float(value)
    return value


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted field names and values."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, type(config)):
            fields |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            fields[name] = value
    return fields


def section(fields: Mapping[str, Any], name: str) -> ml_collections.ConfigDict:
    """A section of flat fields, as a configuration has it."""
    return _nested({full[len(name) + 1 :]: v for full, v in fields.items() if full.startswith(f"{name}.")})


def unread(fields: Mapping[str, Any], section: str, when: str, read: Sequence[str] = ()) -> Iterator[Check]:
    """Part of a rule: fields of a section that nobody reads, all but `read`, are at their defaults."""
    for full in (full for full in fields if full.startswith(f"{section}.") and full not in read):
        default = FIELDS[full].default
        yield fields[full] == default, full, f"{default!r} {when}"


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field by itself and against the others; ConfigError as of `check_fields`."""
    fields = check_fields(config)
    for check in list(_RULES.values()):
        for ok, name, allowed in check(fields):
            require(ok, f"config.{name}", fields[name], allowed)


def check_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks every field by itself, and returns them, flat.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    fields = flat(plain(config))
    for name in sorted(fields.keys() - FIELDS.keys()):
        section = any(field.startswith(f"{name}.") for field in FIELDS)
        require(not section, f"config.{name}", fields[name], "a section with fields")
        raise ConfigError(f"config.{name} is not a field; there are: {', '.join(sorted(FIELDS))}")
    for name, field in FIELDS.items():
        if name not in fields:
            raise ConfigError(f"config.{name} is missing; it must be {field.words()}")
        require(field.test(fields[name]), f"config.{name}", fields[name], field.words())
    return fields


def table() -> str:
    """Every field with its default, what it may be, and what it does: Markdown, section by section."""
    sections: dict[str, list[str]] = {}
    for full, field in FIELDS.items():
        section = full.rpartition(".")[0]
        line = f"| `{full}` | `{field.default!r}` | {field.help} | {field.words()} |"
        sections.setdefault(section, []).append(line.replace("|gamma|", "gamma"))
    pages = []
    for section in sorted(sections, key=bool):  # the top first, the others as they were declared
        lines = sections[section]
        heading = f"## `{section}`" if section else "## The run"
        about = _SECTIONS.get(section, "")
        head = ["| field | default | what it does | allowed |", "|---|---|---|---|"]
        pages.append("\n".join([heading, "", *([about, ""] if about else []), *head, *lines]))
    return "\n\n".join(pages) + "\n"
