"""The same work on many machines, by way of Dask: `labkit grade ... --scheduler tcp://HOST:8786`.

Each worker process keeps a `Marker` with its sandboxes. A submission is a task of its own, which Dask gives to another
worker when one dies. Workers need this project in the same place: they read the labs from it.
"""

from __future__ import annotations

import functools
from typing import Any

from labkit.grading.grade import Marker, Settings


class Cluster:
    """Sends submissions to a Dask scheduler; the same calls as `grade.Threads`."""

    def __init__(self, settings: Settings, address: str):
        self.settings, self.address = settings, address

    def __enter__(self) -> Cluster:
        try:
            from dask.distributed import Client
        except ImportError:
            raise RuntimeError("grading on a cluster needs Dask: pip install 'labkit[cluster]'") from None
        self.client = Client(self.address, timeout="30s", set_as_default=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def __call__(self, name: str, content: bytes | str) -> Any:
        return self.client.submit(work, self.settings, name, content, pure=False, retries=3)

    def wait(self, futures: list) -> Any:
        from dask.distributed import wait

        with self.client.as_current():
            return wait(futures, return_when="FIRST_COMPLETED")


def work(settings: Settings, name: str, content: bytes | str) -> dict[str, Any]:
    """Run by a worker."""
    return marker(settings)(name, content)


@functools.cache
def marker(settings: Settings) -> Marker:
    return Marker(settings)
