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
    items, few = range(count), range(count // 10)  # on a cluster a call takes milliseconds
    measures = {
        "in_thread": measured(mapped(fanout.in_thread(same), items), items),
        "trio.to_thread + limiter": measured(by_hand(trio.to_thread.run_sync, items), items),
    }
    with contextlib.ExitStack() as cleanup:
        if importlib.util.find_spec("trio_parallel"):
            import trio_parallel

            measures["in_process"] = measured(mapped(fanout.in_process(same), items), items)
            measures["trio_parallel + limiter"] = measured(by_hand(trio_parallel.run_sync, items), items)
        if importlib.util.find_spec("distributed"):
            client = cleanup.enter_context(dask_client())
            on_dask = fanout.in_executor(client.get_executor(pure=False), same)
            measures["in_executor, Dask"] = measured(mapped(on_dask, few), few)
            measures["in_executor, Dask, limit=100"] = measured(mapped(on_dask, few, 100), few)
            own = functools.partial(trio.to_thread.run_sync, dask_map, client, few)
            measures["Dask's own map"] = measured(own, few)
        times = interleave(measures, rounds)
    title = f"{count:,} calls that do nothing elsewhere ({len(few)} on Dask), limit={LIMIT}"
    for name in measures:
        yield Row(title, name, "µs per call, wall time", times.wall_micros(name))


def mapped(fn: Callable[[int], object], items: range, limit: int = LIMIT) -> Work:
    return functools.partial(fanout.map, fn, items, limit=limit)


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
