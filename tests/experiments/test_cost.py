"""What a quantizer adds to the compiled round, counted: no later change may make it dear again unseen."""

import functools

import pytest

from experiments.benchmarks import cost
from experiments.benchmarks.workloads import MECHANISMS

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


@functools.cache
def beyond_fedavg(name, counts=True):
    return cost.beyond(cost.of_round(MECHANISMS[name], counts), cost.of_round(MECHANISMS["fedavg"]))


def test_operations_of_a_round_with_lrsuq():
    """Words were drawn anew for each of three code lengths once: 1,266 operations a coordinate.

    The logarithm that is left finds the size of a coordinate; those of code lengths are made of operations.
    """
    found = beyond_fedavg("cepam Z1")
    assert found.flops < 720 and found.transcendentals < 1.1 and found.narrow == 0


def test_without_lengths_nothing_but_the_quantizer_is_left():
    found = beyond_fedavg("cepam Z1", counts=False)
    assert found.flops < 200 and found.transcendentals < 0.01 and found.narrow == 0
    assert found.flops > 80  # Threefry alone


@pytest.mark.parametrize("operation", ["exponential", "log", "exponential-minus-one"])
def test_loops_that_choose_by_place_are_found(operation):
    loop = (
        "%fused_computation.1 (p: f32[5000]) -> f32[5000] {{\n"
        "  %a = f32[5000]{{0}} concatenate(%p, %p), dimensions={{0}}\n"
        "  ROOT %b = f32[{size}]{{0}} {operation}(%a)\n}}\n"
    )
    assert cost.narrow_loops(loop.format(size=5000, operation=operation)) == 1
    assert cost.narrow_loops(loop.format(size=50, operation=operation)) == 0
    assert cost.narrow_loops(loop.format(size=5000, operation="negate")) == 0
