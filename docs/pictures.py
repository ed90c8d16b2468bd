"""Draw the pictures of the documentation, from real runs in virtual time.

``python docs/pictures.py --draw`` writes docs/pictures/*.svg. ``--check`` fails if a run now differs from its picture.
Nox does the one in its session `pictures`, the other in `docs`.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import inspect
import io
import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import drawing
import outcome
import trio
from drawing import BLUE, ORANGE, VIOLET
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy
from trio.testing import MockClock

import trio_fanout as fanout

HERE = Path(__file__).parent

# Runs are recorded as panels, dicts of plain values. In a timeline, `bars` are (row, start, end, what happened then),
# `waits` are (row, start, end), and `links` are (row, other row, time).


async def policy(code):
    """Six items, three at once, of which item 2 fails."""
    calls = []

    @fanout.Meter(on_end=calls.append).wrap
    async def fetch(index):
        await trio.sleep([4, 3, 2, 3.5, 2.2, 3][index])
        if index == 2:
            raise ConnectionError
        return index

    try:
        value = await fanout.map(fetch, range(6), limit=3, policy=eval(f"fanout.{code}"))
    except Exception as exc:  # noqa: BLE001  # whatever the policy makes of it
        ending = f"raises {type(exc).__name__}"
    else:
        ending = f"returns {in_words(value)}"
    bars = sorted((f"item {call.args[0]}", call.started, call.ended, what_happened(call)) for call in calls)
    space = " " if len(code) < 11 else "\n"
    head = f"map(fetch, items, limit=3,{space}policy={code})"
    return {"code": head, "rows": [f"item {n}" for n in range(6)], "bars": bars, "end": (trio.current_time(), ending)}


def what_happened(call):
    if call.error is None:
        return "succeeded"
    return "cancelled" if isinstance(call.error, trio.Cancelled) else "failed"


def in_words(value):
    if not isinstance(value, list):
        return f"the result of item {value}"
    errors = [type(answer.error).__name__ for answer in value if isinstance(answer, outcome.Error)]
    return f"{len(value) - len(errors)} values, {', '.join(errors)}"


async def stream():
    """Two workers, and a reader that is slower."""
    bars, waits = {}, []

    async def fetch(index):
        start = trio.current_time()
        await trio.sleep(1 + index % 3 / 5)
        bars[index] = (f"item {index}", start, trio.current_time(), "running")

    reads = []
    async with fanout.stream(fetch, range(7), limit=2, buffer=1) as results:
        async for index, _, _ in results:
            row, _, ready, _ = bars[index]
            start = trio.current_time()
            waits.append((row, ready, start))
            await trio.sleep(1.5)
            reads.append((row, start, trio.current_time(), "being read"))
    rows = [f"item {index}" for index in sorted(bars)]
    code = "stream(fetch, items, limit=2, buffer=1)"
    return {"code": code, "rows": rows, "bars": [*bars.values(), *reads], "waits": waits}


async def group():
    """The crawler of the page: which job has started which, and when each ran."""
    rows, bars, links = [], [], []
    parent = contextvars.ContextVar("parent", default=None)
    start_soon = fanout.Group.start_soon

    def recorded(self, fn, url):
        rows.append(url)
        if parent.get() is not None:
            links.append((parent.get(), url, trio.current_time()))
        return start_soon(self, job, fn, url)

    async def job(fn, url):
        parent.set(url)
        start = trio.current_time()
        await fn(url)
        bars.append((url, start, trio.current_time(), "running"))

    with patch.object(fanout.Group, "start_soon", recorded):
        await run_page("groups.md", "group")
    end = (trio.current_time(), "every job is done, and the block ends")
    return {"code": "open_group(limit=10)", "rows": rows, "bars": sorted(bars), "links": sorted(links), "end": end}


async def graph():
    """The steps of the page: each starts as soon as those that it needs are done."""
    steps, calls = {}, {}
    begin = 0.0
    run_graph = fanout.run_graph

    async def recorded(plan, **options):
        nonlocal begin
        begin = trio.current_time()
        steps.clear()  # of an example before
        for name, step in plan.items():
            meter = fanout.Meter(on_end=partial(calls.__setitem__, name))
            steps[name] = fanout.Step(meter.wrap(step.fn), needs=step.needs)
        return await run_graph(steps, **options)

    with patch.object(fanout, "run_graph", recorded):
        await run_page("groups.md", "graph")
    times = {name: (calls[name].started - begin, calls[name].ended - begin) for name in steps}
    bars = [(name, *times[name], "running") for name in steps]
    links = [(need, name, times[name][0]) for name, step in steps.items() for need in step.needs]
    waits = [(need, times[need][1], start) for need, _, start in links]
    end = (trio.current_time() - begin, "returns a dict of the results")
    return {"code": "run_graph(plan)", "rows": [*steps], "bars": bars, "waits": waits, "links": links, "end": end}


async def run_page(page, picture):
    """Run the blocks of a page that come before its picture."""
    text = (HERE / page).read_text().partition(f"pictures/{picture}.svg")[0]
    source = "".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()):
        running = eval(code, {})
        if inspect.iscoroutine(running):
            await running


PLACES = 4
MOST = 12  # calls at once, whatever the server accepts
ITEMS = 45


class Refused(Exception):
    """What the server says immediately."""


async def cap(overloaded):
    """A server that takes four calls at once, as on the page: calls in progress, refusals and the cap, by time."""
    running, refused, caps = {0.0: 0}, set(), {0.0: 10}
    now = busy = 0
    # Evenly spread numbers, so that no two things happen at the same time, when their order would be chance.
    jitter = (n * 0.618034 % 1 for n in itertools.count())

    async def call_server(item):
        nonlocal now, busy
        now += 1
        try:
            if busy == PLACES:
                await trio.sleep(0.1)
                refused.add(trio.current_time())
                raise Refused
            busy += 1
            await trio.sleep(1 + 0.3 * next(jitter))
            busy -= 1
        finally:
            now -= 1

    limiter = trio.CapacityLimiter(MOST)
    get = fanout.cap(call_server, limiter, overloaded=overloaded)

    async def with_retries(item):
        await trio.sleep(0.1 * item / ITEMS)
        for attempt in itertools.count():
            try:
                await get(item)
                break
            except Refused:
                await trio.sleep(min(0.1 * 2**attempt + next(jitter), 5))

    async def watch():
        while True:
            await trio.sleep(0.1)
            running[trio.current_time()] = now
            caps[trio.current_time()] = limiter.total_tokens

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await fanout.do(with_retries, range(ITEMS), limit=ITEMS)
        nursery.cancel_scope.cancel()
    end = (trio.current_time(), f"{ITEMS} items done, {len(refused)} calls refused")
    code = f"cap(get, {MOST}{', overloaded=is_busy' if overloaded else ''})"
    curves = {"running": [*running.items()], "caps": [*caps.items()] if overloaded else []}
    return {"code": code, **curves, "refused": sorted(refused), "end": end}


def is_busy(exc):
    return isinstance(exc, Refused)


# How it is drawn

LOOKS = {
    "succeeded": {"facecolor": BLUE},
    "failed": {"facecolor": ORANGE},
    "cancelled": {"facecolor": (0, 0, 0, 0.12), "edgecolor": "black", "linestyle": "--"},
    "running": {"facecolor": BLUE},
    "being read": {"facecolor": VIOLET},
}


def draw_timeline(axes, rows, bars, waits=(), links=()):
    place = {row: number for number, row in enumerate(rows)}
    thin = max(end for _, _, end, _ in bars) / 100
    for row, start, end, what in bars:
        axes.barh(place[row], max(end - start, thin), 0.65, start, linewidth=0.8, label=what, **LOOKS[what])
        if what == "failed":
            inside = offset_copy(axes.transData, axes.figure, x=-7, units="points")
            axes.plot(end, place[row], "x", color="white", markeredgewidth=2, transform=inside)
    for row, start, end in waits:
        axes.hlines(place[row], start, end, color="black", linestyle=":", label="waiting")
    for row, other, time in links:
        axes.vlines(time, place[row], place[other], color="black", linewidth=0.8)
    started = {row for row, *_ in bars}
    for row in (row for row in rows if row not in started):
        axes.annotate("not started", (0, place[row]), (5, 0), textcoords="offset points", va="center", alpha=0.7)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def draw_cap(axes, running, caps, refused):
    axes.fill_between(*zip(*running, strict=True), facecolor=BLUE, alpha=0.8, label="calls in progress")
    for time in sorted({round(time, 1) for time in refused}):
        axes.vlines(time, -3, -0.7, color=ORANGE, label="refused")
    if caps:
        axes.plot(*zip(*caps, strict=True), color=VIOLET, label="the cap")
    axes.axhline(PLACES, color="black", linestyle="--", linewidth=0.8)
    axes.set_yticks([0, PLACES, MOST])
    axes.set_xlim(0, 28)


def draw(panels):
    """A figure of all panels, one below the other, and a legend."""
    heights = [len(shown.get("rows", "......")) for shown in panels]
    figure = Figure(figsize=(drawing.WIDTH, 0.27 * sum(heights) + 0.85 * len(heights) + 0.3), layout="constrained")
    axes_of = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    labelled = {}
    for axes, shown in zip(axes_of, panels, strict=True):
        what = {name: value for name, value in shown.items() if name not in {"code", "end"}}
        (draw_timeline if "rows" in shown else draw_cap)(axes, **what)
        axes.set_title(shown["code"], family="monospace", size=11, weight="bold")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0, labelbottom=False)
        if "end" in shown:
            time, text = shown["end"]
            axes.set_xlabel(f"{time:.3g} s: {text}", loc="left")
            axes.axvline(time, color="black")
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(labelled.values(), labelled, loc="outside lower left", ncols=3)
    return figure


# By the name of the file: the title, and what records the panels.
PICTURES = {
    "policies": (
        "Six items, three at once, of which item 2 fails after 2 s, under FailFast, Collect and FirstSuccess",
        [partial(policy, code) for code in ("FailFast()", "Collect()", "FirstSuccess()")],
    ),
    "failfast": ("Under FailFast, item 2 fails and the others are cancelled", [partial(policy, "FailFast()")]),
    "collect": ("Under Collect, the others go on after a failure", [partial(policy, "Collect()")]),
    "settle": ("Under Settle, a run ends after move_on_after", [partial(policy, "Settle(move_on_after=6)")]),
    "firstsuccess": ("Under FirstSuccess, the first result cancels the rest", [partial(policy, "FirstSuccess()")]),
    "stream": ("A stream with two workers and a slow reader: the workers wait for the reader", [stream]),
    "group": ("A group in which jobs start jobs", [group]),
    "graph": ("A graph: each step starts as soon as the steps that it needs are done", [graph]),
    "cap": (
        "Calls to a server that takes four at once, under a cap of 12, without and with overloaded",
        [partial(cap, None), partial(cap, is_busy)],
    ),
}


def main(*, check):
    stale = []
    for name, (title, recorders) in PICTURES.items():
        path = HERE / "pictures" / f"{name}.svg"
        runs = [trio.run(record, clock=MockClock(autojump_threshold=0)) for record in recorders]
        panels = json.loads(json.dumps(runs), parse_float=lambda text: round(float(text), 3))
        if not check:
            drawing.save(draw(panels), path, title, panels)
        elif not drawing.shows(path, panels):
            stale.append(path.name)
    if stale:
        sys.exit(f"the runs have changed: {', '.join(stale)}; draw them again with `nox -s pictures`")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--check"], ["--draw"]):
        sys.exit(__doc__)
    main(check=sys.argv[1] == "--check")
