"""A dictionary of parts of one kind, by name: what a configuration's choices are made of."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from cepam_jax.errors import ConfigError, require, require_choice


class Registry(dict):
    """Name -> part. A part that is registered at any time before a run is seen by it.

    Args:
      kind: what the parts are, for messages, such as "model".
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str, part: Any, replace: bool = False) -> Any:
        """Adds a part; returns it.

        A part may be registered again under its name, as by a cell of a notebook that is run twice or a
        module that is loaded anew: it is known by its module and its qualified name, or is equal.

        Args:
          name: under which configurations choose it.
          part: what is registered.
          replace: whether another part of that name gives way to this one.

        Raises:
          ConfigError: another part has that name, and it is not said that it is to be replaced.
        """
        require(isinstance(name, str) and bool(name), f"name of a {self.kind}", name, "a word")
        if name in self and not replace and not _same(self[name], part, frozenset()):
            raise ConfigError(
                f"the {self.kind} {name!r} is registered already: it is {_origin(self[name])}, and the new "
                f"one is {_origin(part)}. Choose another name, or say register({name!r}, ..., replace=True)."
            )
        self[name] = part
        return part

    def function(self, function: Callable) -> Callable:
        """As a decorator: registers a function (def) under its own name."""
        named = inspect.isfunction(function) and function.__name__ != "<lambda>"
        allowed = f"a function (def), whose name becomes the {self.kind}'s"
        require(named, f"a {self.kind}", function, allowed)
        return self.register(function.__name__, function)

    def get_or_raise(self, name: str) -> Any:
        """The part of this name; ConfigError lists the names that there are."""
        require_choice(self.kind, name, self)
        return self[name]


def _same(a: Any, b: Any, seen: frozenset) -> bool:
    """Whether one part is the other, or the other defined anew by the same lines or under the same name."""
    if a is b or (id(a), id(b)) in seen:
        return True
    seen = seen | {(id(a), id(b))}
    if type(a) is not type(b):
        found = False
    elif inspect.isfunction(a) or inspect.isclass(a):
        named = (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)
        found = named and (a.__name__ != "<lambda>" or _same_lambda(a, b, seen))
    elif isinstance(a, functools.partial):
        found = _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), seen)
    elif isinstance(a, tuple):
        found = len(a) == len(b) and all(_same(one, other, seen) for one, other in zip(a, b, strict=True))
    elif isinstance(a, dict):
        found = a.keys() == b.keys() and all(_same(a[key], b[key], seen) for key in a)
    else:
        try:
            found = bool(a == b)
        except (TypeError, ValueError):  # arrays, which have no single answer
            found = False
    return found


def _same_lambda(a: Any, b: Any, seen: frozenset) -> bool:
    """Whether two functions without a name do the same: their code, and what it finds around it."""

    def held(function):
        code, cells = function.__code__, function.__closure__ or ()
        return (code.co_code, code.co_consts, code.co_names, function.__defaults__, *map(_content, cells))

    return _same(held(a), held(b), seen)


def _content(cell: Any) -> Any:
    """What a function finds in a variable around it; None where nothing was put there yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _origin(part: Any) -> str:
    """Where a part comes from, in words."""
    for value in (part, *(part if isinstance(part, tuple) else ())):
        if inspect.isfunction(value) or inspect.isclass(value):
            return f"{value.__module__}.{value.__qualname__}"
    return repr(part)
