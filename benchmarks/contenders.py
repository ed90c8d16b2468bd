"""The same work done in many ways: by this package, by hand, and by its peers.

Each function here takes what is to be called and the items, prepares what is not to be measured, and gives back an
async function without arguments that does the work.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Fn: TypeAlias = Callable[[int], Awaitable[int]]
    Work: TypeAlias = Callable[[], Awaitable[Any]]
    Contender: TypeAlias = Callable[[Fn, Sequence[int]], Work]

LIMIT = 16


def _import(name: str) -> Any:
    """A peer, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


aiometer = _import("aiometer")
anyio = _import("anyio")


# By hand


def plain_loop(fn: Fn, items: Sequence[int]) -> Work:
    async def work() -> list[int]:
        return [await fn(item) for item in items]

    return work


def checkpoints(_: Fn, items: Sequence[int]) -> Work:
    """The unit: a checkpoint for each item, and nothing else."""

    async def work() -> None:
        for _ in items:
            await trio.lowlevel.checkpoint()

    return work


def barest_workers(fn: Fn, items: Sequence[int]) -> Work:
    """What a worker loop costs at the least: no policy, no order on failure, no isolation, nothing."""

    async def work() -> list[int]:
        results = [0] * len(items)
        pending = iter(enumerate(items))

        async def worker() -> None:
            for index, item in pending:
                results[index] = await fn(item)

        async with trio.open_nursery() as nursery:
            for _ in range(min(LIMIT, len(items))):
                nursery.start_soon(worker)
        return results

    return work


def bare_nursery(fn: Fn, items: Sequence[int]) -> Work:
    """A task for each item, all at once."""

    async def work() -> list[int]:
        results = [0] * len(items)

        async def one(index: int, item: int) -> None:
            results[index] = await fn(item)

        async with trio.open_nursery() as nursery:
            for index, item in enumerate(items):
                nursery.start_soon(one, index, item)
        return results

    return work


def nursery_and_limiter(fn: Fn, items: Sequence[int]) -> Work:
    """What most people write."""

    async def work() -> list[int]:
        results = [0] * len(items)
        limiter = trio.CapacityLimiter(LIMIT)

        async def one(index: int, item: int) -> None:
            async with limiter:
                results[index] = await fn(item)

        async with trio.open_nursery() as nursery:
            for index, item in enumerate(items):
                nursery.start_soon(one, index, item)
        return results

    return work


# Peers


def anyio_group_and_limiter(fn: Fn, items: Sequence[int]) -> Work:
    async def work() -> list[int]:
        results = [0] * len(items)
        limiter = anyio.CapacityLimiter(LIMIT)

        async def one(index: int, item: int) -> None:
            async with limiter:
                results[index] = await fn(item)

        async with anyio.create_task_group() as group:
            for index, item in enumerate(items):
                group.start_soon(one, index, item)
        return results

    return work


def aiometer_run_all(fn: Fn, items: Sequence[int]) -> Work:
    calls = [functools.partial(fn, item) for item in items]
    return functools.partial(aiometer.run_all, calls, max_at_once=LIMIT)


# This package


def map_(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fn, items, limit=LIMIT)


def map_on_shared_limiter(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fn, items, limit=trio.CapacityLimiter(LIMIT))


def do(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.do(fn, items, limit=LIMIT)


def fan_out(fn: Fn, items: Sequence[int]) -> Work:
    fns = [fn] * len(items)
    return lambda: fanout.fan_out(fns, 0)


def stream(fn: Fn, items: Sequence[int], *, ordered: bool = True) -> Work:
    async def work() -> list[int]:
        async with fanout.stream(fn, items, limit=LIMIT, ordered=ordered) as results:
            return [value async for _, _, value in results]

    return work


def open_group(fn: Fn, items: Sequence[int]) -> Work:
    async def work() -> None:
        async with fanout.open_group(limit=LIMIT) as group:
            for item in items:
                group.start_soon(fn, item)

    return work


def run_graph(fn: Fn, items: Sequence[int]) -> Work:
    async def step() -> int:
        return await fn(0)

    steps = {item: fanout.Step(step) for item in items}
    return lambda: fanout.run_graph(steps, limit=LIMIT)


OURS: dict[str, Contender] = {
    "map": map_,
    "map, shared limiter": map_on_shared_limiter,
    "do": do,
    "stream": stream,
    "stream, ordered=False": functools.partial(stream, ordered=False),
    "open_group, a job an item": open_group,
    "run_graph, a step an item": run_graph,
}

BY_HAND: dict[str, Contender] = {"nursery + limiter": nursery_and_limiter}

PEERS: dict[str, Contender] = {
    **({"anyio task group + limiter": anyio_group_and_limiter} if anyio else {}),
    **({"aiometer.run_all": aiometer_run_all} if aiometer else {}),
}

MISSING = [name for name, module in {"anyio": anyio, "aiometer": aiometer}.items() if module is None]
