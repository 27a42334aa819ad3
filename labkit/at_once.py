"""at_once(function, items): several small trainings at a time, on a CPU whose cores would wait for each other.

Of a small network's training step a third is spent in operations that are too short to be shared out: of two cores one
waits. Two trainings at once, a core each, wait for nobody (`benchmarks/at_once.py` tells what that is worth). A network
that fills the cores by itself gains nothing, and neither does a GPU: there it is one after the other. Labs 03, 04, 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from labkit.device import pick_device


def at_once(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """[function(item) for item in items], in the order of `items`; on a CPU as many at a time as it has threads.

    The threads of torch are shared out: two items on two threads have one each. So a result is, to the last bit, what
    `function` makes with that many threads; with others sums are rounded otherwise. `function` must not change what
    another call reads, and must draw its random numbers from generators of its own, as all of labkit does. The first
    error is raised; what has not begun then never does, what is running ends by itself.
    """
    waiting, threads = list(items), torch.get_num_threads()
    workers = min(len(waiting), threads)
    if workers < 2 or pick_device().type != "cpu":
        return [function(item) for item in waiting]
    pool = ThreadPoolExecutor(workers, "at_once", lambda: torch.set_num_threads(threads // workers))
    try:
        return list(pool.map(function, waiting))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)  # what torch tells threads that are still to come
