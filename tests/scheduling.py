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

# Files that are slow as a whole: trainings, samples, integrals, other processes. `-m "not slow"` leaves them
# out, with the tests that are marked so one by one.
SLOW = (
    "test_aggregate_gaussian",
    "test_arithmetic",
    "test_audit",
    "test_benchmarks",
    "test_budgets",
    "test_byzantine",
    "test_byzantine_runs",
    "test_cell_law",
    "test_cell_scales",
    "test_central",
    "test_central_walk",
    "test_chains",
    "test_check_of_pairs",
    "test_clipping_runs",
    "test_code_length",
    "test_compare",
    "test_compilations",
    "test_convolution",
    "test_cost",
    "test_deployed_equality",
    "test_deployed_refusals",
    "test_devices",
    "test_examples",
    "test_extend",
    "test_failures",
    "test_federation_costs",
    "test_figures",
    "test_graphs",
    "test_language",
    "test_late",
    "test_length_limits",
    "test_lies",
    "test_links_runs",
    "test_needs",
    "test_notebook",
    "test_older_releases",
    "test_origins",
    "test_precision",
    "test_precision_ledger",
    "test_precision_weights",
    "test_products",
    "test_refine",
    "test_rotated",
    "test_rotated_cells",
    "test_rotated_messages",
    "test_rounded_layers",
    "test_rounds",
    "test_scale_mixtures",
    "test_scheduling",
    "test_secure_sum",
    "test_secure_sum_runs",
    "test_sum_audit",
    "test_summed_rounds",
    "test_sweeps",
    "test_train",
    "test_trainable",
    "test_walk",
    "test_winograd",
)
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


def pytest_itemcollected(item):
    """Before `-m` looks at the marks."""
    if item.path.stem in SLOW:
        item.add_marker(pytest.mark.slow)


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
