"""Draw the pictures of the documentation, from real runs in virtual time.

``python docs/pictures.py --draw`` writes docs/pictures/*.svg; ``--check`` compares them with what the runs look like
now, and fails where they differ. `nox -s pictures` does that.
"""

from __future__ import annotations

import functools
import itertools
import sys
from html import escape
from pathlib import Path

import outcome
import trio
from trio.testing import MockClock

import trio_fanout as fanout

HERE = Path(__file__).parent / "pictures"

WIDTH = 440  # of all pictures, to be read on a phone too
LEFT, RIGHT = 64, 12  # what the labels of rows take, and the margin
ROW, BAR = 20, 13  # heights
STYLE = """\
svg { color: #24292f; font: 13px system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { color: #d8dee4 } }
"""
# Mid-tones, to be seen on white and on black; what else there is has the colour of the text. The colours are apart for
# the colour-blind, too, and a failure is marked with a cross.
SUCCEEDED, FAILED, READING = "#3987d6", "#d9622b", "#8f6fd1"


class Picture:
    """What is drawn so far, and how far down."""

    def __init__(self, title):
        self.title = title
        self.parts = []
        self.y = 0

    def add(self, tag, content="", **attributes):
        text = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.parts.append(f"<{tag}{text}>{escape(content)}</{tag}>" if content else f"<{tag}{text}/>")

    def text(self, x, y, content, **attributes):
        self.add("text", content, x=number(x), y=number(y), fill="currentColor", **attributes)

    def heading(self, content):
        self.y += 22
        self.text(0, self.y - 6, content, font_family="ui-monospace, monospace", font_size=12, font_weight="bold")

    def legend(self, **colors):
        self.y += 24
        x = 0
        for name, style in colors.items():
            self.add("rect", x=number(x), y=self.y - 17, width=12, height=12, rx=2, **style)
            self.text(x + 18, self.y - 7, name.replace("_", " "), font_size=12)
            x += 32 + 6.5 * len(name)

    def svg(self):
        """The file: a picture, and for those who do not see it, a title."""
        height = number(self.y + 4)
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        lines = [head, f"<title>{escape(self.title)}</title>", f"<style>\n{STYLE}</style>", *self.parts, "</svg>"]
        return "".join(f"{line}\n" for line in lines)


def number(value):
    return f"{value:.1f}".removesuffix(".0")


class Timeline:
    """A row for each item, below what was drawn before, and seconds to the right."""

    def __init__(self, picture, names, seconds):
        self.picture = picture
        self.top = picture.y
        self.rows = {name: self.top + ROW * n for n, name in enumerate(names)}
        self.bottom = self.top + ROW * len(self.rows)
        self.scale = (WIDTH - LEFT - RIGHT) / seconds
        for name, y in self.rows.items():
            picture.text(LEFT - 8, y + 14, name, text_anchor="end", font_size=12)
        picture.add("path", d=f"M{LEFT} {self.top}V{self.bottom}", stroke="currentColor", opacity=0.4)
        picture.y = self.bottom

    def x(self, time):
        return LEFT + time * self.scale

    def bar(self, name, start, end, *, failed=False, **style):
        y = self.rows[name] + (ROW - BAR) / 2
        x, width = self.x(start), (end - start) * self.scale
        self.picture.add(
            "rect", x=number(x + 1), y=number(y), width=number(max(width - 2, 1)), height=BAR, rx=2, **style
        )
        if failed:
            d = f"M{number(x + width - 11)} {number(y + 3)}l7 7m0 -7l-7 7"
            self.picture.add("path", d=d, stroke="#fff", stroke_width=2)

    def line(self, name, start, end):
        """A time of waiting."""
        y = self.rows[name] + ROW / 2
        self.picture.add(
            "path",
            d=f"M{number(self.x(start))} {number(y)}H{number(self.x(end))}",
            stroke="currentColor",
            stroke_dasharray="2 3",
            opacity=0.7,
        )

    def link(self, name, other, time):
        """A thin line down from one row to another."""
        self.picture.add(
            "path",
            d=f"M{number(self.x(time))} {number(self.rows[name] + ROW / 2)}V{number(self.rows[other] + ROW / 2)}",
            stroke="currentColor",
            opacity=0.5,
        )

    def note(self, name, content):
        self.picture.text(LEFT + 6, self.rows[name] + 14, content, font_size=12, opacity=0.6)

    def end(self, time, content):
        """Where the call is over, and how."""
        x = self.x(time)
        picture = self.picture
        picture.add("path", d=f"M{number(x)} {self.top}V{self.bottom + 6}", stroke="currentColor", stroke_width=1.5)
        anchor = "start" if x < WIDTH / 2 else "end"
        picture.text(x, self.bottom + 19, f"{number(time)} s: {content}", text_anchor=anchor, font_size=12)
        picture.y = self.bottom + 30


def how(call):
    """The style of the bar of a call that has ended."""
    if call.error is None:
        return {"fill": SUCCEEDED}
    if isinstance(call.error, trio.Cancelled):
        return CANCELLED
    return {"fill": FAILED, "failed": True}


CANCELLED = {"fill": "currentColor", "fill_opacity": 0.12, "stroke": "currentColor", "stroke_dasharray": "3 2"}
ENDS = {"succeeded": {"fill": SUCCEEDED}, "failed": {"fill": FAILED}, "cancelled": CANCELLED}


def in_virtual_time(fn, *args):
    return trio.run(fn, *args, clock=MockClock(autojump_threshold=0))


# The policies: six items, of which one fails, three at once


SECONDS = [4, 3, 2, 3.5, 2.2, 3]


async def fetch(index):
    await trio.sleep(SECONDS[index])
    if index == 2:
        raise ConnectionError
    return index


async def run_policy(policy):
    """The calls, how the run ended, and when."""
    calls = []
    fn = fanout.Meter(on_end=calls.append).wrap(fetch)
    start = trio.current_time()
    try:
        value = await fanout.map(fn, range(len(SECONDS)), limit=3, policy=policy)
    except Exception as exc:  # noqa: BLE001  # that is what is to be seen
        ending = f"raises {type(exc).__name__}"
    else:
        ending = f"returns {describe(value)}"
    return calls, ending, start, trio.current_time() - start


def describe(value):
    if not isinstance(value, list):
        return f"the result of item {value}"
    errors = [type(answer.error).__name__ for answer in value if isinstance(answer, outcome.Error)]
    return f"{len(value) - len(errors)} values, {', '.join(errors)}"


def draw_policy(picture, code, policy):
    calls, ending, start, seconds = in_virtual_time(run_policy, policy)
    picture.heading(code)
    timeline = Timeline(picture, [f"item {index}" for index in range(len(SECONDS))], 7.4)
    ended = {f"item {call.args[0]}": call for call in calls}
    for name in timeline.rows:
        if name in ended:
            call = ended[name]
            timeline.bar(name, call.started - start, call.ended - start, **how(call))
        else:
            timeline.note(name, "not started")
    timeline.end(seconds, ending)


POLICIES = {
    "FailFast()": fanout.FailFast(),
    "Collect()": fanout.Collect(),
    "Settle(move_on_after=6)": fanout.Settle(move_on_after=6),
    "FirstSuccess()": fanout.FirstSuccess(),
}


def policy_picture(code):
    picture = Picture(f"Six items, three at once, under {code}; item 2 fails after 2 s")
    draw_policy(picture, f"map(fetch, items, limit=3, policy={code})", POLICIES[code])
    picture.legend(**ENDS)
    return picture


def policies():
    shown = ["FailFast()", "Collect()", "FirstSuccess()"]
    picture = Picture(f"Six items, three at once, of which item 2 fails after 2 s, under {', '.join(shown)}")
    for code in shown:
        draw_policy(picture, f"map(fetch, items, limit=3, policy={code})", POLICIES[code])
        picture.y += 8
    picture.legend(**ENDS)
    return picture


# A stream, whose reader takes longer than the workers


async def run_stream():
    calls, read = [], []

    async def work(index):
        await trio.sleep(1 + index % 3 / 5)

    fn = fanout.Meter(on_end=calls.append).wrap(work)
    start = trio.current_time()
    async with fanout.stream(fn, range(7), limit=2, buffer=1) as results:
        async for index, _, _ in results:
            got = trio.current_time()
            await trio.sleep(1.5)
            read.append((index, got - start, trio.current_time() - start))
    return sorted((call.args[0], call.started - start, call.ended - start) for call in calls), read


def stream():
    worked, read = in_virtual_time(run_stream)
    picture = Picture("A stream with two workers and a slow reader: the workers wait for the reader")
    picture.heading("stream(fetch, items, limit=2, buffer=1)")
    timeline = Timeline(picture, [f"item {index}" for index, *_ in worked], read[-1][2] + 0.2)
    ready = {}
    for index, started, ended in worked:
        timeline.bar(f"item {index}", started, ended, fill=SUCCEEDED)
        ready[index] = ended
    for index, got, done in read:
        timeline.line(f"item {index}", ready[index], got)
        timeline.bar(f"item {index}", got, done, fill=READING)
    waiting = {"fill": "none", "stroke": "currentColor", "stroke_dasharray": "2 3"}
    picture.legend(
        fetch_is_at_work={"fill": SUCCEEDED},
        the_result_waits=waiting,
        the_reader_has_it={"fill": READING},
    )
    return picture


# A group: a crawler, whose jobs start jobs


SITE = {"/": ["/a", "/b", "/c"], "/a": ["/a/1", "/a/2"], "/b": [], "/c": ["/c/1"], "/a/1": [], "/a/2": [], "/c/1": []}


async def run_group():
    calls, found = [], {}
    start = trio.current_time()

    async def crawl(url):
        await trio.sleep(1 + len(url) / 10 + len(SITE[url]) / 5)
        for link in SITE[url]:
            found[link] = (url, trio.current_time() - start)
            group.start_soon(fn, link)

    fn = fanout.Meter(on_end=calls.append).wrap(crawl)
    async with fanout.open_group(limit=2) as group:
        group.start_soon(fn, "/")
    return {call.args[0]: (call.started - start, call.ended - start) for call in calls}, found


def group():
    times, found = in_virtual_time(run_group)
    picture = Picture("A group with two jobs at once, in which jobs start jobs")
    picture.heading("open_group(limit=2)")
    last = max(ended for _, ended in times.values())
    timeline = Timeline(picture, ["/", *found], last + 0.2)
    for url in timeline.rows:
        started, ended = times[url]
        if url in found:
            parent, when = found[url]
            timeline.link(parent, url, when)
            timeline.line(url, when, started)
        timeline.bar(url, started, ended, fill=SUCCEEDED)
    timeline.end(last, "every job is done, and the block ends")
    waiting = {"fill": "none", "stroke": "currentColor", "stroke_dasharray": "2 3"}
    picture.legend(a_job_waits_for_a_token=waiting, runs={"fill": SUCCEEDED})
    return picture


# A graph


STEPS = {
    "flights": (2, ()),
    "hotels": (3, ()),
    "weather": (1, ()),
    "route": (1.5, ("flights", "hotels")),
    "pack": (1, ("weather",)),
    "plan": (1, ("route", "pack")),
}


async def run_graph():
    calls = {}
    start = trio.current_time()

    def step(name, seconds):
        async def work(*results):
            await trio.sleep(seconds)

        meter = fanout.Meter(on_end=lambda call: calls.setdefault(name, (call.started - start, call.ended - start)))
        return meter.wrap(work)

    await fanout.run_graph(
        {name: fanout.Step(step(name, seconds), needs=needs) for name, (seconds, needs) in STEPS.items()}
    )
    return calls


def graph():
    times = in_virtual_time(run_graph)
    picture = Picture("A graph: each step starts the moment that the steps it needs are done")
    picture.heading("run_graph(steps)")
    last = max(ended for _, ended in times.values())
    timeline = Timeline(picture, STEPS, last + 0.2)
    for name, (_, needs) in STEPS.items():
        started, ended = times[name]
        for need in needs:
            timeline.line(need, times[need][1], started)
            timeline.link(need, name, started)
        timeline.bar(name, started, ended, fill=SUCCEEDED)
    timeline.end(last, "returns a dict of the results")
    return picture


# A cap, at a server that takes eight calls at once and refuses the others


PLACES = 8
ITEMS = 90
SHOWN = 28  # seconds


class Refused(Exception):
    """What the server says, at once."""


async def run_cap(overloaded):
    """Calls at work, refusals and the cap, each as they change over time."""
    at_work, refusals, caps = [], [], []
    start = trio.current_time()
    busy = 0
    # Evenly spread numbers, so that no two things happen at one time: their order would be chance.
    jitter = (n * 0.618034 % 1 for n in itertools.count())

    def note(step):
        at_work.append((trio.current_time() - start, step))

    async def call_server(item):
        nonlocal busy
        note(+1)
        try:
            if busy == PLACES:
                await trio.sleep(0.1)
                refusals.append(trio.current_time() - start)
                raise Refused
            busy += 1
            await trio.sleep(1 + 0.3 * next(jitter))
            busy -= 1
        finally:
            note(-1)

    limiter = trio.CapacityLimiter(24)
    get = fanout.cap(call_server, limiter, overloaded=overloaded)

    async def with_retries(item):
        await trio.sleep(0.1 * item / ITEMS)
        for attempt in itertools.count():
            try:
                await get(item)
                break
            except Refused:
                await trio.sleep(min(0.1 * 2**attempt + next(jitter), 5))
            finally:
                caps.append((trio.current_time() - start, limiter.total_tokens))

    await fanout.map(with_retries, range(ITEMS), limit=ITEMS)
    return at_work, refusals, caps, trio.current_time() - start


def draw_cap(picture, code, overloaded):
    at_work, refusals, caps, seconds = in_virtual_time(run_cap, overloaded)
    picture.heading(code)
    high, unit = 26, 3.6
    top, bottom = picture.y, picture.y + high * unit
    scale = (WIDTH - LEFT - RIGHT) / SHOWN

    def place(time, value):
        return f"{number(LEFT + time * scale)} {number(bottom - value * unit)}"

    def stairs(changes):
        """A path that goes to the right, then up or down; changes at one time are one."""
        return "".join("H{}V{}".format(*place(*change).split()) for change in dict(changes).items())

    levels = list(itertools.accumulate((step for _, step in at_work), initial=0))[1:]
    curve = stairs(zip([time for time, _ in at_work], levels, strict=True))
    picture.add("path", d=f"M{place(0, 0)}{curve}V{number(bottom)}Z", fill=SUCCEEDED, fill_opacity=0.7)
    ticks = "".join(f"M{number(LEFT + time * scale)} {number(bottom + 2)}v7" for time in refusals)
    picture.add("path", d=ticks, stroke=FAILED)
    if overloaded:
        d = f"M{place(0, 10)}{stairs(caps)}H{number(LEFT + seconds * scale)}"
        picture.add("path", d=d, fill="none", stroke=READING, stroke_width=2)
    picture.add(
        "path", d=f"M{place(0, PLACES)}H{WIDTH - RIGHT}", stroke="currentColor", stroke_dasharray="4 3", opacity=0.7
    )
    for value in (0, PLACES, 24):
        picture.text(LEFT - 8, bottom - value * unit + 4, str(value), text_anchor="end", font_size=12)
    d = f"M{LEFT} {number(top)}V{number(bottom)}H{WIDTH - RIGHT}"
    picture.add("path", d=d, fill="none", stroke="currentColor", opacity=0.4)
    picture.text(
        LEFT, bottom + 24, f"{number(seconds)} s: {ITEMS} items done, {len(refusals)} calls refused", font_size=12
    )
    picture.y = bottom + 34


def cap():
    picture = Picture("Calls at a server that takes eight at once, under a cap of 24, without and with overloaded")
    draw_cap(picture, "cap(get, 24)", None)
    draw_cap(picture, "cap(get, 24, overloaded=is_busy)", lambda exc: isinstance(exc, Refused))
    picture.legend(calls_at_work={"fill": SUCCEEDED}, refused={"fill": FAILED}, the_cap={"fill": READING})
    return picture


PICTURES = {
    "policies": policies,
    "failfast": functools.partial(policy_picture, "FailFast()"),
    "collect": functools.partial(policy_picture, "Collect()"),
    "settle": functools.partial(policy_picture, "Settle(move_on_after=6)"),
    "firstsuccess": functools.partial(policy_picture, "FirstSuccess()"),
    "stream": stream,
    "group": group,
    "graph": graph,
    "cap": cap,
}


def main(*, check):
    stale = []
    for name, draw in PICTURES.items():
        path, svg = HERE / f"{name}.svg", draw().svg()
        if not check:
            path.write_text(svg)
        elif not path.exists() or path.read_text() != svg:
            stale.append(path.name)
    if stale:
        sys.exit(f"not what the runs look like: {', '.join(stale)}; draw them with `nox -s pictures -- --draw`")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--check"], ["--draw"]):
        sys.exit(__doc__)
    main(check=sys.argv[1] == "--check")
