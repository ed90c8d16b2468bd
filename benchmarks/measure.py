"""Measuring side by side: interleaved rounds in one process, medians of CPU time, ratios taken round by round."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from contenders import Contender, Fn, Work


class Times:
    """Seconds by contender and round. Ratios are taken within a round, which drifts less than either side."""

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        self.rounds = rounds

    def median(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratios(self, name: str, against: str) -> list[float]:
        return [a / b for a, b in zip(self.rounds[name], self.rounds[against], strict=True)]

    def above(self, name: str, base: str, unit: str) -> list[float]:
        """What `name` takes above `base`, in units of what `unit` takes."""
        rows = zip(self.rounds[name], self.rounds[base], self.rounds[unit], strict=True)
        return [(a - b) / c for a, b, c in rows]


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Measure each contender once in every round."""
    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            gc.collect()
            seen[name].append(measure())
    return Times(seen)


def compare(
    contenders: Mapping[str, Contender], fn: Fn, items: Sequence[int], rounds: int, *, repeat: int = 1
) -> Times:
    """Seconds of CPU time that each contender takes for an item."""

    def measured(contender: Contender) -> Callable[[], float]:
        work = contender(fn, items)
        return lambda: trio.run(_cpu_time, work, repeat) / (repeat * len(items))

    return interleave({name: measured(contender) for name, contender in contenders.items()}, rounds)


async def _cpu_time(work: Work, repeat: int) -> float:
    started = time.process_time()
    for _ in range(repeat):
        await work()
    return time.process_time() - started


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the lowest and the highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    rows = list(rows)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, ["-" * width for width in widths], *rows]:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join([first.strip().ljust(widths[0]), *others]) + " |")
