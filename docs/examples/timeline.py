"""Two runs that share four tokens: timeline.svg, and timeline.json for https://ui.perfetto.dev, with a row for each
worker and a bar for each item. A gap in a row is the wait for a token."""

import functools
import json
from pathlib import Path

import trio
from matplotlib.figure import Figure

import trio_fanout as fanout

COLORS = {"succeeded": "tab:green", "failed": "tab:red", "cancelled": "tab:gray"}


async def fetch(item):
    await trio.sleep(0.05 + item * 7 % 10 / 50)
    if item % 9 == 5:
        raise OSError(item)


async def main():
    calls = []
    fn, policy = fanout.Meter(on_end=calls.append).wrap(fetch), fanout.Settle(move_on_after=0.7)
    run = functools.partial(fanout.map, fn, limit=trio.CapacityLimiter(4), policy=policy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, range(12))
        nursery.start_soon(run, range(12, 30))
    return sorted(calls, key=lambda call: call.started)


def how(call):
    if call.error is None:
        return "succeeded"
    return "cancelled" if isinstance(call.error, trio.Cancelled) else "failed"


def draw(calls, rows):
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        bars = [call for call in calls if how(call) == name]
        left, width = [call.started - calls[0].started for call in bars], [call.ended - call.started for call in bars]
        axes.barh([rows[call.task] for call in bars], width, left=left, color=color, label=name)
    axes.set(xlabel="seconds", yticks=range(len(rows)), yticklabels=[task.name for task in rows], ylim=(len(rows), -1))
    figure.legend(loc="outside upper right", ncols=len(COLORS))
    figure.savefig("timeline.svg")


def event(call, row):
    times = {"ts": call.started * 1e6, "dur": (call.ended - call.started) * 1e6}  # microseconds
    return {"name": f"{call.args[0]} {how(call)}", "cat": how(call), "ph": "X", "pid": 1, "tid": row, **times}


if __name__ == "__main__":
    calls = trio.run(main)
    rows = {task: row for row, task in enumerate(dict.fromkeys(call.task for call in calls))}
    draw(calls, rows)
    Path("timeline.json").write_text(json.dumps({"traceEvents": [event(call, rows[call.task]) for call in calls]}))
