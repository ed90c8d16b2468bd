"""How much the peak of resident memory grows, each in a process of its own.

The peak is `VmHWM`, which Linux keeps for each program. `ru_maxrss` will not do: a process takes it over from the one
that started it, so that it stays as it is where the other one was larger.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from contenders import LIMIT
from measure import Row

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def measure(quick: bool) -> Iterator[Row]:
    if not STATUS.exists():
        print("\nno memory is measured: there is no /proc here")
        return
    counts = [50_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    for count in counts:
        for name in GROWERS:
            if count <= MOST.get(name, count):
                command = [sys.executable, __file__, name, str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                grown = [float(line) for line in done.stdout.splitlines()]
                yield Row("more resident memory", name, "MiB", [grown[0] / 2**20], count)
                yield Row("more resident memory", name, "bytes per item", [grown[0] / count], count)


async def nothing(_: int) -> None:
    next(called)


def generated(count: int) -> Iterator[int]:
    yield from range(count)


async def with_list(count: int) -> None:
    """The yardstick: as many numbers, and a list of them."""
    kept = []
    for item in generated(count):
        kept.append(item)
        await nothing(item)


async def with_map(count: int) -> None:
    """Its list of results included."""
    await fanout.map(nothing, generated(count), limit=LIMIT)


async def with_do(count: int) -> None:
    await fanout.do(nothing, generated(count), limit=LIMIT)


async def with_stream(count: int) -> None:
    async with fanout.stream(nothing, generated(count), limit=LIMIT) as results:
        async for _ in results:
            pass


async def with_open_group(count: int) -> None:
    """All jobs are in the queue before the first begins."""
    async with fanout.open_group(limit=LIMIT) as group:
        for item in range(count):
            group.start_soon(nothing, item)


async def with_run_graph(count: int) -> None:
    async def step() -> None:
        await nothing(0)

    await fanout.run_graph({item: fanout.Step(step) for item in range(count)}, limit=LIMIT)


async def with_nursery_and_limiter(count: int) -> None:
    limiter = trio.CapacityLimiter(LIMIT)

    async def one(item: int) -> None:
        async with limiter:
            await nothing(item)

    async with trio.open_nursery() as nursery:
        for item in range(count):
            nursery.start_soon(one, item)


GROWERS: dict[str, Callable[[int], Awaitable[None]]] = {
    "a list of numbers": with_list,
    "map, its results": with_map,
    "do": with_do,
    "stream": with_stream,
    "open_group, queued jobs": with_open_group,
    "run_graph, steps": with_run_graph,
    "nursery + limiter": with_nursery_and_limiter,
}

MOST = {"nursery + limiter": 100_000, "run_graph, steps": 100_000}
"""Items beyond which it would take gigabytes."""


def peak() -> int:
    """The most resident memory since the start, or since the last reset, in bytes."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def grow(name: str, count: int) -> None:
    """Print by how many bytes the peak grows."""
    trio.run(GROWERS[name], 10)  # what is made once
    # The peak is what there is now, and no room that was freed before hides what it grows by.
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = peak()
    already = next(called)
    trio.run(GROWERS[name], count)
    assert next(called) == already + count + 1, "not all items were run"
    print(peak() - before)


called = itertools.count()

if __name__ == "__main__":
    grow(sys.argv[1], int(sys.argv[2]))
