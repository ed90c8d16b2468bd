"""What the loop costs, side by side with doing the same by hand and with its peers.

``python benchmarks/run.py`` measures everything, in a few minutes; with ``--quick`` it takes some seconds, and the
figures are only good for seeing that it works. `aiometer` and `anyio` take part where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import contenders
import trio
from contenders import BY_HAND, LIMIT, OURS, PEERS
from measure import compare, interleave, print_table, spread

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from contenders import Contender, Work

ASLEEP = 1_000


async def at_once(item: int) -> int:
    return item


async def checkpoint(item: int) -> int:
    await trio.lowlevel.checkpoint()
    return item


def items_that_do_nothing(count: int, rounds: int) -> None:
    """What an item costs above a plain loop, in microseconds and in checkpoints."""
    base: dict[str, Contender] = {"plain loop": contenders.plain_loop, "one checkpoint": contenders.checkpoints}
    times = compare({**base, **OURS, **BY_HAND, **PEERS}, at_once, range(count), rounds)
    print_table(
        f"{count:,} items that do nothing, limit={LIMIT}",
        ["an item", "µs", "above a plain loop, µs", "the same in checkpoints"],
        (
            [
                name,
                f"{times.median(name) * 1e6:.2f}",
                f"{(times.median(name) - times.median('plain loop')) * 1e6:.2f}",
                spread(times.above(name, "plain loop", "one checkpoint")),
            ]
            for name in times.rounds
        ),
    )


def items_that_wait(count: int, rounds: int) -> None:
    """What an item costs that does one checkpoint, against the barest worker loop."""
    times = compare(
        {"barest worker loop": contenders.barest_workers, **OURS, **BY_HAND, **PEERS}, checkpoint, range(count), rounds
    )
    print_table(
        f"{count:,} items that do one checkpoint, limit={LIMIT}",
        ["an item", "µs", "times the barest worker loop"],
        (
            [name, f"{times.median(name) * 1e6:.2f}", spread(times.ratios(name, "barest worker loop"))]
            for name in times.rounds
        ),
    )


def small_calls(repeat: int, rounds: int) -> None:
    """What a call costs with three items that do one checkpoint."""
    names = {"map": contenders.map_, "fan_out": contenders.fan_out}
    times = compare(
        {"bare nursery": contenders.bare_nursery, **names, **BY_HAND, **PEERS},
        checkpoint,
        range(3),
        rounds,
        repeat=repeat,
    )
    print_table(
        "3 items that do one checkpoint",
        ["a call", "µs", "times a bare nursery"],
        (
            [name, f"{times.median(name) * 3e6:.1f}", spread(times.ratios(name, "bare nursery"))]
            for name in times.rounds
        ),
    )


def latency_of_a_failure(rounds: int) -> None:
    """How long after the first failure a run with many items asleep has ended."""

    async def late(item: int) -> int:
        if item == ASLEEP - 1:
            await trio.sleep(0.02)
            raise ValueError(time.process_time())
        await trio.sleep_forever()
        raise AssertionError  # never reached

    def measured(work: Work) -> Callable[[], float]:
        def measure() -> float:
            failed_at: list[float] = []
            try:
                trio.run(work)
            except* ValueError as group:
                failed_at += group.exceptions[0].args
            return time.process_time() - failed_at[0]

        return measure

    works = {
        "bare nursery": contenders.bare_nursery(late, range(ASLEEP)),
        "map": lambda: fanout.map(late, range(ASLEEP), limit=ASLEEP),
        "stream": lambda: _read(fanout.stream(late, range(ASLEEP), limit=ASLEEP)),
    }
    times = interleave({name: measured(work) for name, work in works.items()}, rounds)
    print_table(
        f"a failure with {ASLEEP:,} items asleep, until the call has raised it",
        ["FailFast", "ms", "times a bare nursery"],
        ([name, f"{times.median(name) * 1e3:.1f}", spread(times.ratios(name, "bare nursery"))] for name in works),
    )


async def _read(opened: AbstractAsyncContextManager[fanout.ResultChannel[int, int]]) -> None:
    async with opened as results:
        async for _ in results:
            pass


def memory(count: int) -> None:
    """How much the peak of resident memory grows, each in a process of its own."""
    grown = {
        name: subprocess.run(
            [sys.executable, __file__, "--grow", name, str(count)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in GROWERS
    }
    print_table(f"{count:,} items from a generator", ["more resident memory", "MiB"], grown.items())


async def _do(count: int) -> None:
    await fanout.do(at_once, (item for item in range(count)), limit=LIMIT)


async def _stream(count: int) -> None:
    await _read(fanout.stream(at_once, (item for item in range(count)), limit=LIMIT))


GROWERS = {"do": _do, "stream": _stream}


def grow(name: str, count: int) -> None:
    trio.run(GROWERS[name], 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trio.run(GROWERS[name], count)
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.1f}")


def describe_machine() -> None:
    packages = ("trio", "anyio", "aiometer")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages if name not in contenders.MISSING]
    print(f"{platform.python_implementation()} {platform.python_version()}, {', '.join(versions)}")
    print(f"{_cpu()}, commit {_commit()}; medians of CPU time (lowest to highest)")
    for name in contenders.MISSING:
        print(f"{name} is not installed, and left out")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--grow", nargs=2, metavar=("NAME", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.grow:
        grow(args.grow[0], int(args.grow[1]))
        return
    describe_machine()
    count, rounds = (1_000, 3) if args.quick else (50_000, 7)
    items_that_do_nothing(count, rounds)
    items_that_wait(count, rounds)
    small_calls(count // 25, rounds)
    latency_of_a_failure(rounds)
    memory(20 * count)


if __name__ == "__main__":
    main()
