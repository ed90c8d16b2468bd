"""The same work done in many ways: by this package, by hand, and by its peers.

Each function here takes what is to be called and the items, prepares what is not to be measured, and gives back an
async function without arguments that does the work.
"""

from __future__ import annotations

import asyncio
import contextvars
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
VARIABLE = contextvars.ContextVar("VARIABLE")


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


def barest_workers(fn: Fn, items: Sequence[int], limit: int = LIMIT) -> Work:
    """What a worker loop costs at the least: no policy, no order on failure, no isolation, nothing."""

    async def work() -> list[int]:
        results = [0] * len(items)
        pending = iter(enumerate(items))

        async def worker() -> None:
            for index, item in pending:
                results[index] = await fn(item)

        async with trio.open_nursery() as nursery:
            for _ in range(min(limit, len(items))):
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


def nursery_and_limiter(fn: Fn, items: Sequence[int], limit: int = LIMIT) -> Work:
    """What most people write."""

    async def work() -> list[int]:
        results = [0] * len(items)
        limiter = trio.CapacityLimiter(limit)

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


def asyncio_group_and_semaphore(fn: Fn, items: Sequence[int]) -> Work:
    async def work() -> list[int]:
        results = [0] * len(items)
        semaphore = asyncio.Semaphore(LIMIT)

        async def one(index: int, item: int) -> None:
            async with semaphore:
                results[index] = await fn(item)

        async with asyncio.TaskGroup() as group:
            for index, item in enumerate(items):
                group.create_task(one(index, item))
        return results

    return work


asyncio_group_and_semaphore.library = "asyncio"


def aiometer_run_all(fn: Fn, items: Sequence[int]) -> Work:
    calls = [functools.partial(fn, item) for item in items]
    return functools.partial(aiometer.run_all, calls, max_at_once=LIMIT)


# This package


def map_(fn: Fn, items: Sequence[int], limit: int = LIMIT) -> Work:
    return lambda: fanout.map(fn, items, limit=limit)


def map_on_shared_limiter(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fn, items, limit=trio.CapacityLimiter(LIMIT))


def map_of_many_runs(fn: Fn, items: Sequence[int], runs: int) -> Work:
    """The items dealt out to so many runs at once, which share one limiter."""

    async def work() -> None:
        limiter = trio.CapacityLimiter(LIMIT)
        async with trio.open_nursery() as nursery:
            for run in range(runs):
                nursery.start_soon(functools.partial(fanout.map, fn, items[run::runs], limit=limiter))

    return work


def map_from_iterator(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fn, iter(items), limit=LIMIT)


def map_from_async_generator(fn: Fn, items: Sequence[int]) -> Work:
    async def source():
        for item in items:
            yield item

    return lambda: fanout.map(fn, source(), limit=LIMIT)


def map_in_context(fn: Fn, items: Sequence[int]) -> Work:
    """The caller has set a context variable, as any tracing does."""

    async def work() -> list[int]:
        token = VARIABLE.set(object())
        try:
            return await fanout.map(fn, items, limit=LIMIT)
        finally:
            VARIABLE.reset(token)

    return work


def map_with_timeout(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fn, items, limit=LIMIT, item_timeout=60)


def map_settled(fn: Fn, items: Sequence[int]) -> Work:
    async def work() -> list[int]:
        return [outcome.unwrap() for outcome in await fanout.map(fn, items, limit=LIMIT, policy=fanout.Settle())]

    return work


def map_of_capped(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fanout.cap(fn, LIMIT), items, limit=LIMIT)


def map_of_throttled(fn: Fn, items: Sequence[int]) -> Work:
    """At a rate that is never reached."""
    return lambda: fanout.map(fanout.throttle(fn, 1e9), items, limit=LIMIT)


def map_of_metered(fn: Fn, items: Sequence[int]) -> Work:
    return lambda: fanout.map(fanout.Meter().wrap(fn), items, limit=LIMIT)


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


def with_options(contender: Contender, **options: Any) -> Contender:
    return functools.wraps(contender)(functools.partial(contender, **options))


OURS: dict[str, Contender] = {
    "map": map_,
    "map, shared limiter": map_on_shared_limiter,
    "do": do,
    "stream": stream,
    "stream, ordered=False": with_options(stream, ordered=False),
    "open_group, a job an item": open_group,
    "run_graph, a step an item": run_graph,
}

SOURCES: dict[str, Contender] = {
    "a sequence": map_,
    "an iterator": map_from_iterator,
    "an async generator": map_from_async_generator,
}

OPTIONS: dict[str, Contender] = {
    "map": map_,
    "policy=Settle()": map_settled,
    "a context variable set": map_in_context,
    "a shared limiter": map_on_shared_limiter,
    "item_timeout": map_with_timeout,
    "cap": map_of_capped,
    "throttle": map_of_throttled,
    "Meter": map_of_metered,
}

BY_HAND: dict[str, Contender] = {"nursery + limiter": nursery_and_limiter}

PEERS: dict[str, Contender] = {
    "asyncio task group + semaphore": asyncio_group_and_semaphore,
    **({"anyio task group + limiter": anyio_group_and_limiter} if anyio else {}),
    **({"aiometer.run_all": aiometer_run_all} if aiometer else {}),
}

MISSING = [name for name, module in {"anyio": anyio, "aiometer": aiometer}.items() if module is None]
