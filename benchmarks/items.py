"""What an item costs, and a call, and how soon a failure is told."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import contenders
import trio
from contenders import BY_HAND, LIMIT, OURS, PEERS
from measure import Row, compare, interleave

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from contenders import Contender, Work

ASLEEP = 1_000


async def at_once(item: int) -> int:
    return item


async def checkpoint(item: int) -> int:
    await trio.lowlevel.checkpoint()
    return item


async def asyncio_checkpoint(item: int) -> int:
    await asyncio.sleep(0)
    return item


checkpoint.for_asyncio = asyncio_checkpoint


def measure(quick: bool) -> Iterator[Row]:
    count, rounds = (1_000, 3) if quick else (50_000, 7)
    yield from that_do_nothing(count, rounds)
    yield from that_wait(count, rounds)
    yield from small_calls(count // 25, rounds)
    yield from latency_of_a_failure(rounds)


def that_do_nothing(count: int, rounds: int) -> Iterator[Row]:
    """What an item costs, and how much more than in a plain loop: here, and by hand."""
    title = f"{count:,} items that do nothing, limit={LIMIT}"
    base: dict[str, Contender] = {"plain loop": contenders.plain_loop, "one checkpoint": contenders.checkpoints}
    times = compare({**base, **OURS, **BY_HAND, **PEERS}, at_once, range(count), rounds)
    by_hand = times.above("nursery + limiter", "plain loop")
    for name in times.rounds:
        yield Row(title, name, "µs per item", times.micros(name))
        yield Row(title, name, "µs per item, wall time", times.wall_micros(name))
        if name not in base:
            above = times.above(name, "plain loop")
            yield Row(title, name, "µs above a plain loop", [1e6 * seconds for seconds in above])
            ratios = [hand / max(ours, 1e-9) for hand, ours in zip(by_hand, above, strict=True)]
            yield Row(title, name, "times less than by hand", ratios)
            units = zip(above, times.rounds["one checkpoint"], strict=True)
            yield Row(title, name, "checkpoints", [seconds / unit for seconds, unit in units])


def that_wait(count: int, rounds: int) -> Iterator[Row]:
    """What an item costs that does one checkpoint, against the barest worker loop."""
    title = f"{count:,} items that do one checkpoint, limit={LIMIT}"
    barest = {"barest worker loop": contenders.barest_workers}
    times = compare({**barest, **OURS, **BY_HAND, **PEERS}, checkpoint, range(count), rounds)
    for name in times.rounds:
        yield Row(title, name, "µs per item", times.micros(name))
        yield Row(title, name, "times the barest worker loop", times.ratios(name, "barest worker loop"))


def small_calls(repeat: int, rounds: int) -> Iterator[Row]:
    """What a call costs with three items that do one checkpoint."""
    title = "a call with 3 items that do one checkpoint"
    names = {"bare nursery": contenders.bare_nursery, "map": contenders.map_, "fan_out": contenders.fan_out}
    times = compare({**names, **BY_HAND, **PEERS}, checkpoint, range(3), rounds, repeat=repeat)
    for name in times.rounds:
        yield Row(title, name, "µs per call", [3 * micros for micros in times.micros(name)])
        yield Row(title, name, "times by hand", times.ratios(name, "nursery + limiter"))


def latency_of_a_failure(rounds: int) -> Iterator[Row]:
    """How long after the first failure a run with many items asleep has ended."""

    async def late(item: int) -> int:
        if item == ASLEEP - 1:
            await trio.sleep(0.02)
            raise ValueError(time.process_time(), time.perf_counter())
        await trio.sleep_forever()
        raise AssertionError  # never reached

    def measured(work: Work) -> Callable[[], tuple[float, float]]:
        def measure() -> tuple[float, float]:
            failed_at: list[float] = []
            try:
                trio.run(work)
            except* ValueError as group:
                failed_at += group.exceptions[0].args
            return time.process_time() - failed_at[0], time.perf_counter() - failed_at[1]

        return measure

    works = {
        "bare nursery": contenders.work_of(contenders.bare_nursery, late, range(ASLEEP)),
        "map": lambda: fanout.map(late, range(ASLEEP), limit=ASLEEP),
        "stream": lambda: _read(fanout.stream(late, range(ASLEEP), limit=ASLEEP)),
    }
    times = interleave({name: measured(work) for name, work in works.items()}, rounds)
    title = f"a failure with {ASLEEP:,} items asleep, until the call has raised it"
    for name in works:
        yield Row(title, name, "ms", [micros / 1000 for micros in times.micros(name)])
        yield Row(title, name, "times a bare nursery", times.ratios(name, "bare nursery"))


async def _read(opened: AbstractAsyncContextManager[fanout.ResultChannel[int, int]]) -> None:
    async with opened as results:
        async for _ in results:
            pass
