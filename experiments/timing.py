"""Times of calls beside each other."""

import time
from collections.abc import Callable

import jax
import numpy as np


def interleaved(calls: dict[object, Callable], repeats: int, clock: Callable = time.perf_counter) -> dict:
    """Median seconds of each call; all take turns, so that a slow moment of the machine hits all alike.

    Args:
      calls: functions without arguments, by name. Each runs once before, to be compiled.
      repeats: turns.
      clock: what is read before and after; `time.process_time` counts the work of this process alone, which
        is of use on a CPU that others share.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            seconds[name].append(clock() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}
