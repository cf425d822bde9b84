"""Which process runs which tests, and in which order; `conftest` takes its hooks from here.

One process has all tests of a file, or all that one `xdist_group` names, in whatever files they are: what a
module's fixture makes, and what is compiled, is then made once. Files marked `spread` are the exception:
their tests have nothing in common. Those compiled as users have it come first, those compiled fast last (see
`conftest`), since whoever changes from one to the other compiles anew.

pytest-xdist has groups of its own (`--dist=loadgroup`), which it writes into the names of tests. pytest 9.2
does not let it, and groups were spread over all processes without a word: here a file hands them on.
"""

import json
import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

FILE = "CEPAM_JAX_TEST_SCOPES"  # variable with the path of the file; processes that run tests inherit it


def scope_of(item) -> str:
    """Tests of one scope are run by one process, one after the other."""
    group = item.get_closest_marker("xdist_group")
    if group:
        return f"group {group.args[0]}"
    return item.nodeid if item.get_closest_marker("spread") else item.nodeid.partition("::")[0]


def mode_of(item) -> tuple[bool, bool]:
    """(compiled fast, with MLIR): how a test is compiled."""
    mark = item.get_closest_marker("compiled_fast")
    return mark is not None, mark is None or mark.kwargs.get("mlir", False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Scopes one after the other, by how they are compiled; the tests of each likewise."""
    order = {(False, True): 0, (True, True): 1, (True, False): 2}
    first = {}
    for number, item in enumerate(items):
        mine = bool(item.get_closest_marker("spread")), order[mode_of(item)], number
        first[scope_of(item)] = min(mine, first.get(scope_of(item), mine))
    items.sort(key=lambda item: (first[scope_of(item)], order[mode_of(item)]))
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0":
        Path(os.environ[FILE]).write_text(json.dumps({item.nodeid: scope_of(item) for item in items}))


class Scopes(LoadScopeScheduling):
    """Hands out whole scopes, in the order in which they were collected."""

    _scopes: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._scopes is None:  # all processes have collected by now
            self._scopes = json.loads(Path(os.environ[FILE]).read_text())
        return self._scopes[nodeid]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For any way of distributing tests but to each process all."""
    config.option.loadscopereorder = False
    return None if config.getvalue("dist") == "each" else Scopes(config, log)
