"""Write the measured figures into README.md and the pages, and draw the plots: ``python docs/figures.py``.

All of them come from benchmarks/results.json, and a test fails while a page or a plot shows anything else. A table is
found by its head and written as a whole. A sentence is found by the words around its figures, which stand below.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import plots
from plots import short

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks" / "results.json"
NUMBER = r"(?:\d[\d.,]*)?\d"

COST = "50,000 items that do nothing"
SMALL = "a call with 3 items"
ELSEWHERE = "3,000 calls that do nothing elsewhere"


class Results:
    """What was measured, by measure (or how it begins), name, unit and size."""

    def __init__(self, path=RESULTS):
        self.about = json.loads(path.read_text())
        self.rows = self.about["rows"]

    def points(self, measure, unit, which="median"):
        """For each name its figures, with their sizes."""
        points = {}
        for row in self.rows:
            if row["measure"].startswith(measure) and row["unit"] == unit:
                points.setdefault(row["name"], []).append((row["at"], row[which]))
        return points

    def get(self, measure, name, unit, at=None, which="median"):
        """The figure, or None if it was not measured."""
        return dict(self.points(measure, unit, which).get(name, ())).get(at)

    def version(self, name):
        return ".".join(self.about["versions"][name].split(".")[:2])


def cost_table(results):
    aiometer, anyio = results.version("aiometer"), results.version("anyio")
    rows = {
        "`do`": "do",
        "`map`": "map",
        "`map`, on a shared limiter": "map, shared limiter",
        "`stream`": "stream",
        "`open_group`, a job per item": "open_group, a job per item",
        "`run_graph`, a step per item": "run_graph, a step per item",
        "a Trio nursery and limiter, a task per item": "nursery + limiter",
        f"aiometer {aiometer}, `run_all`": "aiometer.run_all",
        f"an anyio {anyio} task group and limiter, a task per item": "anyio task group + limiter",
    }
    costs = {label: results.get(COST, name, "µs above a plain loop") for label, name in rows.items()}
    costs["one `trio.lowlevel.checkpoint()`, for comparison"] = results.get(COST, "one checkpoint", "µs per item")
    base = results.get(COST, "map", "µs above a plain loop")
    head = "| | µs per item | times `map` |\n|---|--:|--:|\n"
    return head, [(label, cost, cost and cost / base) for label, cost in costs.items()]


def extras_table(results):
    def extra(name):
        return results.get("what is asked for", name, "µs above map")

    def quickest(name):
        return results.get(ELSEWHERE, name, "µs per call, wall time", which="lowest")

    rows = [
        ("the caller has set a context variable, as any tracing does", extra("a context variable set")),
        ("items come from an async generator", results.get("sources", "an async generator", "µs above a sequence")),
        ("`Meter.wrap`", extra("Meter")),
        ("`cap`", extra("cap")),
        ("`cap`, with `key`", extra("cap, key")),
        ("`cap`, with `overloaded`", extra("cap, overloaded")),
        ("`item_timeout`", extra("item_timeout")),
        ("`throttle`", extra("throttle")),
        ("`in_thread`, in wall time", quickest("in_thread")),
        ("`in_process`, in wall time", quickest("in_process")),
        ("`in_executor` on a Dask cluster, in wall time", quickest("in_executor, Dask, limit=100")),
    ]
    return "| | extra µs per item |\n|---|--:|\n", rows


def values(results):
    """The figures in sentences, by the names that stand in `SENTENCES`."""

    def elsewhere(name, which, unit=1):
        return short(results.get(ELSEWHERE, name, "µs per call, wall time", which=which) / unit)

    small = {name: short(value) for name, [(_, value)] in results.points(SMALL, "µs per call").items()}
    asleep = {name: short(value) for name, [(_, value)] in results.points("a failure with", "ms").items()}
    above = {name: short(value) for name, [(_, value)] in results.points(COST, "µs above a plain loop").items()}
    by_items = dict(results.points("by number of items", "µs per item")["map"])
    memory = "more resident memory"
    return {
        "CPython": results.version("CPython"),
        "Trio": results.version("trio"),
        "map": above["map"],
        "by hand": above["nursery + limiter"],
        "aiometer": above["aiometer.run_all"],
        "checkpoint": short(results.get(COST, "one checkpoint", "µs per item")),
        "map of 10": short(by_items[10]),
        "map of a million": short(by_items[1_000_000]),
        "bytes by map": short(results.get(memory, "map, its results", "bytes per item", 1_000_000)),
        "kB by hand": short(results.get(memory, "nursery + limiter", "bytes per item", 100_000) / 1000),
        "small: fan_out": small["fan_out"],
        "small: nursery": small["bare nursery"],
        "small: by hand": small["nursery + limiter"],
        "small: anyio": small["anyio task group + limiter"],
        "small: aiometer": small["aiometer.run_all"],
        "small: more": short(float(small["fan_out"]) - float(small["nursery + limiter"])),
        "failure: map": asleep["map"],
        "failure: nursery": asleep["bare nursery"],
        "in_thread": elsewhere("in_thread", "lowest"),
        "in_process": elsewhere("in_process", "lowest"),
        "in_process, median": elsewhere("in_process", "median"),
        "dask ms": elsewhere("in_executor, Dask, limit=100", "lowest", 1000),
    }


TABLES = {"README.md": [cost_table], "docs/performance.md": [cost_table, extras_table]}
SENTENCES = {
    "README.md": [
        "| overhead per item | {by hand} µs | {map} µs |",
        "on CPython {CPython} and Trio {Trio},",
    ],
    "docs/performance.md": [
        "`map` adds about {map} µs per item; a task per item, in a nursery with a limiter, costs about {by hand} µs.",
        "on CPython {CPython} and Trio {Trio},",
        "`await trio.lowlevel.checkpoint()` takes {checkpoint} µs.",
        "scale: map {map}, a nursery with a limiter {by hand}, aiometer {aiometer}.]",
        "map falls from {map of 10} µs at 10 items to {map of a million} at a million;",
        "| `map`, its list of results included | {bytes by map} bytes",
        "| a nursery by hand, a task per item | {kB by hand} kB per item |",
        "flat for do and stream, {bytes by map} bytes",
        "A call with three items that do one checkpoint takes {small: fan_out} µs.",
        "A nursery without any limit takes {small: nursery} µs for the same,",
        "one with a limiter {small: by hand}, anyio {small: anyio}, aiometer {small: aiometer}.",
        "costs {small: more} µs more than the same by hand.",
        "a failure after {failure: map} ms; a nursery that does nothing else takes {failure: nursery}.",
    ],
    "docs/beyond.md": [
        "| `in_thread(fn)` | {in_thread} µs |",
        "| `in_process(fn)` | {in_process} to {in_process, median} µs |",
        "| `in_executor(executor, fn)` | {in_process} to {in_process, median} µs for a process pool |",
        "see [Clusters](clusters.md) | {dask ms} ms |",
    ],
    "docs/clusters.md": ["A call costs about {dask ms} ms"],
}


def written(page, text, results):
    """The text of a page, with the figures of the results."""
    for table in TABLES.get(page, []):
        head, rows = table(results)
        before, found, after = text.partition(head)
        assert found, f"{page} has no table that begins with\n{head}"
        lines = [
            f"| {label} | {' | '.join(map(short, figures))} |\n" for label, *figures in rows if None not in figures
        ]
        text = before + head + "".join(lines) + re.sub(r"\A(\|.*\n)*", "", after)
    known = values(results)
    for sentence in SENTENCES.get(page, []):
        words = re.split(r"\{(.*?)\}", sentence)  # with the names at odd places
        pattern = NUMBER.join(map(re.escape, words[::2]))
        new = "".join(known[word] if place % 2 else word for place, word in enumerate(words))
        text, count = re.subn(pattern, lambda _, new=new: new, text)
        assert count == 1, f"{page} has {count} sentences like {sentence!r}"
    return text


def main():
    """Write the pages and draw the plots."""
    results = Results()
    for table in (cost_table, extras_table):
        for label, *figures in table(results)[1]:
            if None in figures:
                print(f"not measured, and not in the table: {label}")
    for page in SENTENCES:
        path = PROJECT / page
        path.write_text(written(page, path.read_text(), results))
    for name, plot in plots.plots(results).items():
        plot.save(PROJECT / "docs" / "plots" / f"{name}.svg")


if __name__ == "__main__":
    main()
