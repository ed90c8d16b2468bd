"""How the cost of an item grows: with the items, with the limit, with what is asked for besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import contenders
from contenders import BY_HAND, LIMIT, OPTIONS, PEERS, SOURCES, with_options
from items import at_once, checkpoint
from measure import Row, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contenders import Contender

MOST = {"nursery + limiter": 100_000, "anyio task group + limiter": 100_000, "aiometer.run_all": 10_000}
"""Items beyond which a contender would take minutes, or gigabytes."""


def measure(quick: bool) -> Iterator[Row]:
    rounds = 3
    yield from by_items([10, 1_000] if quick else [10, 100, 1_000, 10_000, 100_000, 1_000_000], rounds)
    yield from by_limit([1, 100] if quick else [1, 10, 100, 1_000, 10_000], 1_000 if quick else 20_000, rounds)
    count, rounds = (1_000, 3) if quick else (50_000, 5)
    yield from by_runs([1, 10] if quick else [1, 10, 100], count, rounds)
    for title, what in {"sources": SOURCES, "what is asked for": OPTIONS}.items():
        yield from side_by_side(f"{title}: {count:,} items that do nothing, limit={LIMIT}", what, count, rounds)


def by_items(counts: list[int], rounds: int) -> Iterator[Row]:
    """An item, its share of the call included."""
    everyone = {"plain loop": contenders.plain_loop, "map": contenders.map_, **BY_HAND, **PEERS}
    for count in counts:
        some = {name: contender for name, contender in everyone.items() if count <= MOST.get(name, count)}
        times = compare(some, at_once, range(count), rounds, repeat=max(1, 1_000 // count))
        for name in times.rounds:
            yield Row("by number of items: items that do nothing", name, "µs per item", times.micros(name), count)


def by_limit(limits: list[int], count: int, rounds: int) -> Iterator[Row]:
    whom: dict[str, Callable[..., object]] = {
        "barest worker loop": contenders.barest_workers,
        "map": contenders.map_,
        "nursery + limiter": contenders.nursery_and_limiter,
    }
    for limit in limits:
        bound: dict[str, Contender] = {name: with_options(whom[name], limit=limit) for name in whom}
        times = compare(bound, checkpoint, range(count), rounds)
        title = f"by limit: {count:,} items that do one checkpoint"
        for name in times.rounds:
            yield Row(title, name, "µs per item", times.micros(name), limit)
            yield Row(title, name, "times the barest worker loop", times.ratios(name, "barest worker loop"), limit)


def by_runs(numbers: list[int], count: int, rounds: int) -> Iterator[Row]:
    for number in numbers:
        times = compare({"map": with_options(contenders.map_of_many_runs, runs=number)}, at_once, range(count), rounds)
        title = f"runs that share a limiter of {LIMIT}: {count:,} items that do nothing"
        yield Row(title, "runs", "µs per item", times.micros("map"), number)


def side_by_side(title: str, whom: dict[str, Contender], count: int, rounds: int) -> Iterator[Row]:
    first = next(iter(whom))
    times = compare({"plain loop": contenders.plain_loop, **whom}, at_once, range(count), rounds)
    for name in times.rounds:
        yield Row(title, name, "µs per item", times.micros(name))
        if name not in {"plain loop", first}:
            yield Row(title, name, f"µs above {first}", [1e6 * seconds for seconds in times.above(name, first)])
