"""What it adds to a call to make it in a thread, in a process, or on a Dask cluster.

By the clock on the wall: what another process does is not in the CPU time of this one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from typing import TYPE_CHECKING

import trio
from measure import Row, interleave

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contenders import Work

LIMIT = 4


def same(item: int) -> int:
    return item


def by_hand(call: Callable[..., object], items: range) -> Work:
    """A task for each item, and a limiter."""

    async def work() -> list[object]:
        limiter = trio.CapacityLimiter(LIMIT)
        results: list[object] = [None] * len(items)

        async def one(item: int) -> None:
            results[item] = await call(same, item, limiter=limiter)

        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(one, item)
        return results

    return work


def measure(quick: bool) -> Iterator[Row]:
    count, rounds = (100, 3) if quick else (3_000, 5)
    items = range(count)
    works = {
        "in_thread": functools.partial(fanout.map, fanout.in_thread(same), items, limit=LIMIT),
        "trio.to_thread + limiter": by_hand(trio.to_thread.run_sync, items),
    }
    with contextlib.ExitStack() as cleanup:
        if importlib.util.find_spec("trio_parallel"):
            import trio_parallel

            works["in_process"] = functools.partial(fanout.map, fanout.in_process(same), items, limit=LIMIT)
            works["trio_parallel + limiter"] = by_hand(trio_parallel.run_sync, items)
        if importlib.util.find_spec("distributed"):
            client = cleanup.enter_context(dask_client())
            on_dask = fanout.in_executor(client.get_executor(pure=False), same)
            works["in_executor, Dask"] = functools.partial(fanout.map, on_dask, items, limit=LIMIT)
            works["in_executor, Dask, limit=100"] = functools.partial(fanout.map, on_dask, items, limit=100)
            works["Dask's own map"] = functools.partial(trio.to_thread.run_sync, dask_map, client, items)
        title = f"{count:,} calls that do nothing elsewhere, limit={LIMIT}"
        times = interleave({name: measured(work, items) for name, work in works.items()}, rounds)
        for name in works:
            yield Row(title, name, "µs a call, by the clock on the wall", times.wall_micros(name))


def measured(work: Work, items: range) -> Callable[[], tuple[float, float]]:
    async def main() -> tuple[float, float]:
        await work()  # starts the threads or processes, which is not what is measured
        began = trio.current_time()
        assert list(await work()) == list(items)
        return (trio.current_time() - began) / len(items)

    def measure() -> tuple[float, float]:
        wall = trio.run(main)
        return wall, wall

    return measure


def dask_map(client: object, items: range) -> list[int]:
    return client.gather(client.map(same, items, pure=False))


@contextlib.contextmanager
def dask_client() -> Iterator[object]:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
