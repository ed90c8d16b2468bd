"""Measuring side by side: interleaved rounds in one process, ratios taken round by round.

A figure is CPU time, which other programs on the machine disturb least. Wall time is taken as well, so that a program
that sleeps instead of working does not look fast; and what a round leaves to the garbage collector is
collected within that round.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import contenders
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from contenders import Contender, Fn, Work


@dataclass(frozen=True)
class Row:
    """A figure: what was measured, of whom, at which size, and what came out in each round."""

    measure: str
    name: str
    unit: str
    values: Sequence[float] = field(repr=False)
    at: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, object]:
        return {
            "measure": self.measure,
            "name": self.name,
            "at": self.at,
            "unit": self.unit,
            "median": _rounded(self.median),
            "lowest": _rounded(min(self.values)),
            "highest": _rounded(max(self.values)),
        }

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(min(self.values))} to {_short(max(self.values))})"


class Times:
    """Seconds by contender and round. Ratios are taken within a round, which drifts less than either side."""

    def __init__(self, rounds: Mapping[str, Sequence[float]], walls: Mapping[str, Sequence[float]]) -> None:
        self.rounds = rounds
        self.walls = walls

    def micros(self, name: str) -> list[float]:
        return [1e6 * seconds for seconds in self.rounds[name]]

    def wall_micros(self, name: str) -> list[float]:
        return [1e6 * seconds for seconds in self.walls[name]]

    def ratios(self, name: str, against: str) -> list[float]:
        return [a / b for a, b in zip(self.rounds[name], self.rounds[against], strict=True)]

    def above(self, name: str, base: str) -> list[float]:
        return [a - b for a, b in zip(self.rounds[name], self.rounds[base], strict=True)]


def interleave(whom: Mapping[str, Callable[[], tuple[float, float]]], rounds: int) -> Times:
    """Measure each contender once in every round: seconds of CPU time, and of wall time."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in whom}
    for _ in range(rounds):
        for name, measure in whom.items():
            gc.collect()
            gc.freeze()  # what was there before is not what is measured
            seen[name].append(measure())
            gc.unfreeze()
    return Times(
        {name: [cpu for cpu, _ in times] for name, times in seen.items()},
        {name: [wall for _, wall in times] for name, times in seen.items()},
    )


def compare(whom: Mapping[str, Contender], fn: Fn, items: Sequence[int], rounds: int, *, repeat: int = 1) -> Times:
    """Seconds that each contender takes for an item."""

    def measured(contender: Contender) -> Callable[[], tuple[float, float]]:
        run = runner(contender)
        check(contender, fn, items[:100])
        work = contenders.work_of(contender, for_runner(fn, run), items)

        def measure() -> tuple[float, float]:
            cpu, wall = run(_timed, work, repeat)
            return cpu / (repeat * len(items)), wall / (repeat * len(items))

        return measure

    return interleave({name: measured(contender) for name, contender in whom.items()}, rounds)


def run_asyncio(fn: Callable[..., object], *args: object) -> object:
    return asyncio.run(fn(*args))


def runner(contender: Contender) -> Callable[..., object]:
    """What runs a contender's work: Trio, unless it says `asyncio`."""
    return run_asyncio if getattr(contender, "library", "trio") == "asyncio" else trio.run


def for_runner(fn: Fn, run: Callable[..., object]) -> Fn:
    """The same work under another event loop."""
    return getattr(fn, "for_asyncio", fn) if run is run_asyncio else fn


def check(contender: Contender, fn: Fn, items: Sequence[int]) -> None:
    """Who leaves an item out, or loses a result, is no contender."""
    run = runner(contender)
    fn = for_runner(fn, run)
    calls = itertools.count()

    async def counted(item: int) -> int:
        next(calls)
        return await fn(item)

    results = run(contenders.work_of(contender, counted, items))
    assert next(calls) == len(items) or contender is contenders.checkpoints, contender
    if isinstance(results, list) and contender is not contenders.fan_out:  # its functions get the same value
        assert sorted(results) == list(items), contender


async def _timed(work: Work, repeat: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        await work()
    gc.collect()
    return time.process_time() - cpu, time.perf_counter() - wall


def print_rows(rows: Iterable[Row]) -> None:
    """A table for each measure: a line for each contender and size, a column for each unit."""
    for measure, of_measure in itertools.groupby(rows, lambda row: row.measure):
        cells = {(row.name, row.at, row.unit): str(row) for row in of_measure}
        units = list(dict.fromkeys(unit for _, _, unit in cells))
        lines = list(dict.fromkeys((name, at) for name, at, _ in cells))
        labels = [name if at is None else f"{name}, {at:,.0f}" for name, at in lines]
        table = [["", *units]]
        for label, (name, at) in zip(labels, lines, strict=True):
            table.append([label, *(cells.get((name, at, unit), "") for unit in units)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        print(f"\n{measure}\n")
        for number, (first, *others) in enumerate(table):
            padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            print("| " + " | ".join([first.ljust(widths[0]), *padded]) + " |")
            if not number:
                print(
                    "|"
                    + "|".join("-" * (width + 1) + ("-" if not place else ":") for place, width in enumerate(widths))
                    + "|"
                )


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
