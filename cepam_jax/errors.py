"""The errors a user may meet, and one shape for their messages.

Every message names the thing that is wrong, its value and what would be right.
"""

from numbers import Integral, Real
from typing import Any


class ConfigError(ValueError):
    """A configuration field or argument has a value that is not allowed."""


class DataNotPreparedError(RuntimeError):
    """A data set is not on this machine and cannot be read."""


class DatasetError(ValueError):
    """A data set's arrays do not fit together; it would be trained on wrong pairs, or not at all."""


class NonFiniteUpdateError(FloatingPointError):
    """A client's update, its decoded update or the new model was NaN or infinite; it was not applied."""


class WireError(ValueError):
    """Bytes are not a message that the given mechanism, key and knobs can read."""


class MissingExtraError(ImportError):
    """A part of the package needs libraries that were not installed with it."""


class CheckpointMismatchError(RuntimeError):
    """The work directory belongs to a run with another configuration, or to a longer one."""


class CheckpointDamagedError(RuntimeError):
    """What the work directory holds was altered or cut short, and nothing intact is left to go on from."""


class WorkdirInUseError(RuntimeError):
    """Another process trains in this work directory."""


# What a user can mend without reading the code: binaries print these as one line.
EXPECTED = (
    CheckpointDamagedError,
    CheckpointMismatchError,
    ConfigError,
    DataNotPreparedError,
    DatasetError,
    MissingExtraError,
    NonFiniteUpdateError,
    WireError,
    WorkdirInUseError,
)


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises ConfigError "`field` is `value`; it must be `allowed`" unless condition."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; it must be {allowed}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or of NumPy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or of NumPy, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_choice(field: str, value: Any, choices) -> None:
    """Raises ConfigError unless `value` is one of `choices`, which the message lists."""
    names = sorted(choices)
    require(value in names, field, value, "one of " + ", ".join(map(repr, names)))
