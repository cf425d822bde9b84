"""What a name may be registered for twice, and what is refused."""

import importlib
import sys
from functools import partial

import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import Aggregator
from cepam_jax.mechanisms import Mechanism
from cepam_jax.mechanisms.registry import CONFIGURABLE, REGISTRY
from cepam_jax.registry import Registry


def cell(source, **names):
    """What a cell of a notebook leaves: all cells share one module, whose name is __main__."""
    found = {"__name__": "__main__", "Aggregator": Aggregator, "partial": partial, **names}
    exec(compile(source, "<cell>", "exec"), found)
    return found["part"]


DEFINED = "def part(config):\n    return 1\n"
RULE = "def f(state, updates, facts):\n    return updates[0], state\npart = Aggregator(combine=f)\n"
ALIKE = {
    "a function of the same name": (DEFINED, DEFINED.replace("1", "2")),
    "a class of the same name": ("class part:\n    a = 1\n", "class part:\n    a = 2\n"),
    "a rule of named functions": (RULE, RULE.replace("[0]", "[1]")),
    "the same lambda": ("part = lambda x: x + 1", "\n\npart = lambda x: x + 1"),
    "the same lambda around a value": (
        "def make(n):\n    return lambda x: x + n\npart = make(3)",
        "def make(n):\n    return lambda x: x + n\npart = make(3)",
    ),
    "a lambda that finds itself": ("def m():\n    f = lambda: f\n    return f\npart = m()",) * 2,
    "a partial": (DEFINED + "part = partial(part, 3)", DEFINED + "part = partial(part, 3)"),
    "equal values": ("part = (1, 'a', {'b': 2})", "part = (1, 'a', {'b': 2})"),
}
UNLIKE = {
    "another function": (DEFINED, "def other(config):\n    return 1\npart = other"),
    "another lambda": ("part = lambda x: x + 1", "part = lambda x: x + 2"),
    "another value in a lambda": (
        "def make(n):\n    return lambda x: x + n\npart = make(3)",
        "def make(n):\n    return lambda x: x + n\npart = make(4)",
    ),
    "another default": ("part = lambda x=1: x", "part = lambda x=2: x"),
    "another rule": (RULE, RULE.replace("combine=f)", "combine=f, post_processing=True)")),
    "another argument": (DEFINED + "part = partial(part, 3)", DEFINED + "part = partial(part, 4)"),
    "another kind": (DEFINED, "part = 3"),
    "arrays": ("part = array", "part = array + 0"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_cell_may_be_run_again(name):
    registry, parts = Registry("rule"), [cell(source) for source in ALIKE[name]]
    registry.register("mine", parts[0])
    assert registry.register("mine", parts[0]) is parts[0]
    registry.register("mine", parts[1])
    assert registry["mine"] is parts[1]


@pytest.mark.parametrize("name", UNLIKE)
def test_another_part_does_not_take_a_name_silently(name):
    registry = Registry("rule")
    parts = [cell(source, array=np.zeros(3)) for source in UNLIKE[name]]
    registry.register("mine", parts[0])
    with pytest.raises(ConfigError, match="the rule 'mine' is registered already: it is .*replace=True"):
        registry.register("mine", parts[1])
    assert registry["mine"] is parts[0]
    registry.register("mine", parts[1], replace=True)
    assert registry["mine"] is parts[1]


def test_the_message_says_where_both_come_from():
    registry = Registry("model")
    registry.register("mean", cell(RULE))
    with pytest.raises(ConfigError, match=r"it is __main__\.f, and the new one is cepam_jax\S*\.Mechanism\."):
        registry.register("mean", Mechanism)


def test_a_module_may_be_loaded_anew(tmp_path, monkeypatch):
    (tmp_path / "own_part.py").write_text(
        "from cepam_jax.mechanisms import register, identity, chain\n"
        "def own():\n    return identity()._replace(about=identity().about._replace(name='own'))\n"
        "register('own_part', own)\n"
        "register('own_lambda', own, {'own_a': lambda: chain(identity())})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(CONFIGURABLE), dict(REGISTRY)
    try:
        module = importlib.import_module("own_part")
        importlib.reload(module)
        assert mechanisms.REGISTRY["own_part"] is module.own
        # What a configuration builds is the factory, not the last of the instances.
        built = CONFIGURABLE["own_lambda"].build(None, {}, None)
        assert built.about.name == "own" and mechanisms.make("own_a").about.name == "identity"
        with pytest.raises(ConfigError, match="the mechanism 'own_part' is registered already"):
            mechanisms.register("own_part", mechanisms.identity)
        mechanisms.register("own_part", mechanisms.identity, replace=True)
        assert mechanisms.make("own_part").about.name == mechanisms.identity().about.name
    finally:
        sys.modules.pop("own_part", None)
        for registry, parts in zip((CONFIGURABLE, REGISTRY), before, strict=True):
            registry.clear()
            registry.update(parts)
