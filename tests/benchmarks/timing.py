"""Timing on a machine with other load."""

import time
from collections.abc import Callable


def least_cpu_s(run: Callable[[], object], times: int) -> float:
    """CPU seconds of all threads, the minimum of `times` runs."""
    seconds: list[float] = []
    for _ in range(times):
        started_s = time.process_time()
        run()
        seconds.append(time.process_time() - started_s)
    return min(seconds)
