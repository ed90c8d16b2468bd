"""The same work done in many ways: by this package, by hand, and by its peers.

A contender is an async function of what is called and the items. Where its arguments take time to make, which is not
to be measured, its attribute `prepare` makes them of these two. Its attribute `library` names an event loop that is not
Trio's.
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
    Contender: TypeAlias = Callable[..., Awaitable[Any]]

LIMIT = 16
VARIABLE = contextvars.ContextVar("VARIABLE")


def work_of(contender: Contender, fn: Fn, items: Sequence[int]) -> Work:
    """What is measured."""
    prepare = getattr(contender, "prepare", lambda *args: args)
    return functools.partial(contender, *prepare(fn, items))


def with_options(contender: Contender, **options: Any) -> Contender:
    return functools.wraps(contender)(functools.partial(contender, **options))


def _import(name: str) -> Any:
    """A peer, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


aiometer = _import("aiometer")
anyio = _import("anyio")


# By hand


async def plain_loop(fn: Fn, items: Sequence[int]) -> list[int]:
    return [await fn(item) for item in items]


async def checkpoints(_: Fn, items: Sequence[int]) -> None:
    """The unit: a checkpoint for each item, and nothing else."""
    for _ in items:
        await trio.lowlevel.checkpoint()


async def barest_workers(fn: Fn, items: Sequence[int], limit: int = LIMIT) -> list[int]:
    """What a worker loop costs at the least: no policy, no order on failure, no isolation, nothing."""
    results = [0] * len(items)
    pending = iter(enumerate(items))

    async def worker() -> None:
        for index, item in pending:
            results[index] = await fn(item)

    async with trio.open_nursery() as nursery:
        for _ in range(min(limit, len(items))):
            nursery.start_soon(worker)
    return results


async def bare_nursery(fn: Fn, items: Sequence[int]) -> list[int]:
    """A task for each item, without a limit."""
    results = [0] * len(items)

    async def one(index: int, item: int) -> None:
        results[index] = await fn(item)

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(one, index, item)
    return results


async def limited_tasks(fn: Fn, items: Sequence[int], group: Any, limiter: Any, start: Any = None) -> list[int]:
    """A task for each item in a nursery or task group, and a limiter or semaphore that lets some of them run."""
    results = [0] * len(items)

    async def one(index: int, item: int) -> None:
        async with limiter:
            results[index] = await fn(item)

    async with group as tasks:
        start = start or tasks.start_soon
        for index, item in enumerate(items):
            start(one, index, item)
    return results


async def nursery_and_limiter(fn: Fn, items: Sequence[int], limit: int = LIMIT) -> list[int]:
    """What most people write."""
    return await limited_tasks(fn, items, trio.open_nursery(), trio.CapacityLimiter(limit))


# Peers


async def anyio_group_and_limiter(fn: Fn, items: Sequence[int]) -> list[int]:
    return await limited_tasks(fn, items, anyio.create_task_group(), anyio.CapacityLimiter(LIMIT))


async def asyncio_group_and_semaphore(fn: Fn, items: Sequence[int]) -> list[int]:
    group = asyncio.TaskGroup()
    start = lambda one, *args: group.create_task(one(*args))  # noqa: E731
    return await limited_tasks(fn, items, group, asyncio.Semaphore(LIMIT), start)


asyncio_group_and_semaphore.library = "asyncio"


async def aiometer_run_all(calls: Sequence[Work]) -> list[int]:
    return await aiometer.run_all(calls, max_at_once=LIMIT)


aiometer_run_all.prepare = lambda fn, items: ([functools.partial(fn, item) for item in items],)


# This package


async def map_(fn: Fn, items: Sequence[int], limit: int = LIMIT, **options: Any) -> list[int]:
    return await fanout.map(fn, items, limit=limit, **options)


async def map_on_shared_limiter(fn: Fn, items: Sequence[int]) -> list[int]:
    return await fanout.map(fn, items, limit=trio.CapacityLimiter(LIMIT))


async def map_of_many_runs(fn: Fn, items: Sequence[int], runs: int) -> None:
    """The items dealt out to that many simultaneous runs, which share one limiter."""
    limiter = trio.CapacityLimiter(LIMIT)
    async with trio.open_nursery() as nursery:
        for run in range(runs):
            nursery.start_soon(functools.partial(fanout.map, fn, items[run::runs], limit=limiter))


async def map_from_iterator(fn: Fn, items: Sequence[int]) -> list[int]:
    return await fanout.map(fn, iter(items), limit=LIMIT)


async def map_from_async_generator(fn: Fn, items: Sequence[int]) -> list[int]:
    async def source():
        for item in items:
            yield item

    return await fanout.map(fn, source(), limit=LIMIT)


async def map_in_context(fn: Fn, items: Sequence[int]) -> list[int]:
    """The caller has set a context variable, as any tracing does."""
    token = VARIABLE.set(object())
    try:
        return await fanout.map(fn, items, limit=LIMIT)
    finally:
        VARIABLE.reset(token)


async def map_settled(fn: Fn, items: Sequence[int]) -> list[int]:
    return [outcome.unwrap() for outcome in await fanout.map(fn, items, limit=LIMIT, policy=fanout.Settle())]


async def map_of_wrapped(fn: Fn, items: Sequence[int], wrap: Callable[[Fn], Fn]) -> list[int]:
    return await fanout.map(wrap(fn), items, limit=LIMIT)


async def do(fn: Fn, items: Sequence[int]) -> None:
    await fanout.do(fn, items, limit=LIMIT)


async def fan_out(fns: Sequence[Fn]) -> Sequence[int]:
    return await fanout.fan_out(fns, 0)


fan_out.prepare = lambda fn, items: ([fn] * len(items),)


async def stream(fn: Fn, items: Sequence[int], *, ordered: bool = True) -> list[int]:
    async with fanout.stream(fn, items, limit=LIMIT, ordered=ordered) as results:
        return [value async for _, _, value in results]


async def open_group(fn: Fn, items: Sequence[int]) -> None:
    async with fanout.open_group(limit=LIMIT) as group:
        for item in items:
            group.start_soon(fn, item)


async def run_graph(steps: dict[int, fanout.Step]) -> None:
    await fanout.run_graph(steps, limit=LIMIT)


def _steps(fn: Fn, items: Sequence[int]) -> tuple[dict[int, fanout.Step]]:
    async def step() -> int:
        return await fn(0)

    return ({item: fanout.Step(step) for item in items},)


run_graph.prepare = _steps


OURS: dict[str, Contender] = {
    "map": map_,
    "map, shared limiter": map_on_shared_limiter,
    "do": do,
    "stream": stream,
    "stream, ordered=False": with_options(stream, ordered=False),
    "open_group, a job per item": open_group,
    "run_graph, a step per item": run_graph,
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
    "item_timeout": with_options(map_, item_timeout=60),
    "cap": with_options(map_of_wrapped, wrap=lambda fn: fanout.cap(fn, LIMIT)),
    "cap, key": with_options(map_of_wrapped, wrap=lambda fn: fanout.cap(fn, LIMIT, key=lambda item: item % 4)),
    "cap, overloaded": with_options(map_of_wrapped, wrap=lambda fn: fanout.cap(fn, LIMIT, overloaded=lambda _: False)),
    "throttle": with_options(map_of_wrapped, wrap=lambda fn: fanout.throttle(fn, 1e9)),  # a rate never reached
    "Meter": with_options(map_of_wrapped, wrap=lambda fn: fanout.Meter().wrap(fn)),
}

BY_HAND: dict[str, Contender] = {"nursery + limiter": nursery_and_limiter}

PEERS: dict[str, Contender] = {
    "asyncio task group + semaphore": asyncio_group_and_semaphore,
    **({"anyio task group + limiter": anyio_group_and_limiter} if anyio else {}),
    **({"aiometer.run_all": aiometer_run_all} if aiometer else {}),
}

MISSING = [name for name, module in {"anyio": anyio, "aiometer": aiometer}.items() if module is None]
