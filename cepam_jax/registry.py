"""A dictionary of parts of one kind, by name: what a configuration's choices are made of."""

import inspect
from collections.abc import Callable
from typing import Any

from cepam_jax.errors import require, require_choice


class Registry(dict):
    """Name -> part. A part that is registered at any time before a run is seen by it.

    Args:
      kind: what the parts are, for messages, such as "model".
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str, part: Any) -> Any:
        """Adds a part, or replaces the one of that name; returns it."""
        require(isinstance(name, str) and bool(name), f"name of a {self.kind}", name, "a word")
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
