"""The house: which package may import which, and how long a file may be."""

import ast

import pytest
from conftest import ROOT

# From the ground up: a module may import from its own layer and from those below.
LAYERS = (
    ("errors", "extras", "files", "registry", "settings"),
    ("mechanisms", "theory"),
    ("wire", "privacy"),
    ("data", "models"),
    ("tasks",),
    ("federated", "export"),
    ("run",),
    (
        "simulation",
        "deploy",
        "",
    ),  # what is used from Python, a federation between machines; the package itself
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
PACKAGE = ROOT / "cepam_jax"
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    return "" if relative.name == "__init__" and len(relative.parts) == 1 else relative.parts[0]


def imports(path):
    """Parts of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "cepam_jax" and len(pieces) > 1:
                yield pieces[1]
            assert pieces[0] not in ("configs", "experiments", "tests"), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_up(path):
    here = part_of(path)
    assert here in LAYER, f"{here} has no layer: add it to LAYERS"
    for other in imports(path):
        if other in LAYER:
            assert LAYER[other] <= LAYER[here], f"{path.name} of {here} imports {other}, which is above it"


def test_parts_of_one_layer_do_not_import_each_other_in_circles():
    edges = {}
    for path in FILES:
        edges.setdefault(part_of(path), set()).update(set(imports(path)) & LAYER.keys() - {part_of(path)})

    def reaches(start, goal, seen=()):
        return any(
            other == goal or (other not in seen and reaches(other, goal, (*seen, other)))
            for other in edges.get(start, ())
        )

    circles = [part for part in edges if part and reaches(part, part)]
    assert not circles


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
