"""Streams whose source is another stream, and streams beside what programs have: channels, progress bars, databases."""

import io
import itertools
import math
import sqlite3
from contextlib import nullcontext

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import AsyncCountingSource, CountingSource, Gauge, double, no_cycles, nothing_left


class StageError(Exception):
    pass


class Stages:
    """fetch | parse | store: three functions that take some time, count who runs, and fail where they are told to."""

    def __init__(self, fails=None, error=StageError):
        self.fails = fails
        self.error = error
        self.gauges = {name: Gauge() for name in ("fetch", "parse", "store")}

    async def _stage(self, name, x, seconds):
        with self.gauges[name].running(x):
            await trio.sleep(seconds)
            if self.fails == (name, x):
                raise self.error(name)

    async def fetch(self, x):
        await self._stage("fetch", x, 1)
        return x

    async def parse(self, fetched):
        await self._stage("parse", fetched.index, 2)
        return fetched.value * 10

    async def store(self, parsed):
        await self._stage("store", parsed.index, 1)
        return parsed.value + 1

    def running(self):
        return sum(gauge.now for gauge in self.gauges.values())


def limits_of(shared):
    limiter = trio.CapacityLimiter(4)
    return [limiter] * 3 if shared else [3, 2, 1]


async def test_three_stages_pass_everything_on(make, ordered, shared, autojump_clock):
    stages = Stages()
    one, two, three = limits_of(shared)
    with nothing_left():
        async with (
            fanout.stream(stages.fetch, make(range(20)), limit=one, ordered=ordered) as fetched,
            fanout.stream(stages.parse, fetched, limit=two, ordered=ordered) as parsed,
            fanout.stream(stages.store, parsed, limit=three, ordered=ordered) as stored,
        ):
            values = [value async for _, _, value in stored]
    assert sorted(values) == [x * 10 + 1 for x in range(20)]
    if ordered:
        assert values == sorted(values)
    if shared:
        assert one.borrowed_tokens == 0
    else:
        assert [gauge.peak for gauge in stages.gauges.values()] == [3, 2, 1]
        assert trio.current_time() == pytest.approx(1 + 2 + 20, abs=2)  # parse and store take as long as each other


async def test_one_limiter_bounds_all_stages_together(autojump_clock):
    stages = Stages()
    limiter = trio.CapacityLimiter(1)
    most = 0

    async def watched(x):
        nonlocal most
        most = max(most, stages.running() + 1)
        return await stages.fetch(x)

    with nothing_left(limiter):
        async with (
            fanout.stream(watched, range(5), limit=limiter) as fetched,
            fanout.stream(stages.parse, fetched, limit=limiter) as parsed,
            fanout.stream(stages.store, parsed, limit=limiter) as stored,
        ):
            assert [index async for index, _, _ in stored] == list(range(5))
    assert most == 1
    assert trio.current_time() == 5 * (1 + 2 + 1)


@pytest.mark.parametrize("cls", [CountingSource, AsyncCountingSource])
async def test_backpressure_reaches_the_first_stage(shared, cls):
    """An item is out of a stage when the next one has taken it."""
    limits = [trio.CapacityLimiter(2)] * 3 if shared else [2, 2, 2]
    source = cls(itertools.count())
    async with (
        fanout.stream(double, source, limit=limits[0], buffer=1) as first,
        fanout.stream(lambda entry: double(entry.value), first, limit=limits[1], buffer=1) as second,
        fanout.stream(lambda entry: double(entry.value), second, limit=limits[2], buffer=1) as third,
    ):
        for handed_over in range(20):
            await wait_all_tasks_blocked()
            assert source.taken - handed_over == 9
            assert (await third.receive()).value == 8 * handed_over


@pytest.mark.parametrize("stage", ["fetch", "parse", "store"])
@pytest.mark.parametrize("index", [0, 7])
async def test_a_failure_in_any_stage_is_raised_once_and_unwrapped(index, stage, ordered, shared, autojump_clock):
    stages = Stages((stage, index))
    one, two, three = limits_of(shared)
    with nothing_left(), pytest.raises(StageError, match=stage) as excinfo:
        async with (
            fanout.stream(stages.fetch, itertools.count(), limit=one, ordered=ordered) as fetched,
            fanout.stream(stages.parse, fetched, limit=two, ordered=ordered) as parsed,
            fanout.stream(stages.store, parsed, limit=three, ordered=ordered) as stored,
        ):
            async for _ in stored:
                pass
            pytest.fail("it ended as if nothing had happened")
    if ordered:  # otherwise the item has another index in each stage
        assert excinfo.value.__notes__ == [f"item {index}"]
    assert len(excinfo.value.__notes__) == 1
    assert excinfo.value.__context__ is None
    assert excinfo.value.__cause__ is None
    assert stages.running() == 0


@pytest.mark.parametrize("stage", ["fetch", "parse", "store"])
async def test_an_interrupt_in_any_stage_tears_all_down(stage, shared, autojump_clock):
    stages = Stages((stage, 3), KeyboardInterrupt)
    one, two, three = limits_of(shared)
    with nothing_left(), pytest.raises(KeyboardInterrupt):
        async with (
            fanout.stream(stages.fetch, itertools.count(), limit=one) as fetched,
            fanout.stream(stages.parse, fetched, limit=two) as parsed,
            fanout.stream(stages.store, parsed, limit=three) as stored,
        ):
            async for _ in stored:
                pass
            pytest.fail("it ended as if nothing had happened")
    assert stages.running() == 0


@pytest.mark.parametrize("stage", [None, "fetch", "parse", "store"])
async def test_a_failure_that_was_not_read_is_raised_on_leaving(stage, shared, autojump_clock):
    stages = Stages((stage, 1) if stage else None)
    one, two, three = limits_of(shared)

    async def run():
        async with (
            fanout.stream(stages.fetch, range(100), limit=one) as fetched,
            fanout.stream(stages.parse, fetched, limit=two) as parsed,
            fanout.stream(stages.store, parsed, limit=three),
        ):
            await trio.sleep(50)

    with nothing_left():
        if stage:
            with pytest.raises(StageError, match=stage):
                await run()
        else:
            await run()


@pytest.mark.parametrize("stage", ["fetch", "parse", "store"])
async def test_collect_in_each_stage_raises_one_group(stage, autojump_clock):
    """To the next stage it is what its source raises, after all of the results."""
    stages = Stages((stage, 3))
    got = []
    collect = fanout.Collect()
    with nothing_left(), pytest.raises(fanout.FanOutError) as excinfo:
        async with (
            fanout.stream(stages.fetch, range(10), limit=2, policy=collect) as fetched,
            fanout.stream(stages.parse, fetched, limit=2, policy=collect) as parsed,
            fanout.stream(stages.store, parsed, limit=2, policy=collect) as stored,
        ):
            async for _, _, value in stored:
                got.append(value // 10)
    assert [str(error) for error in excinfo.value.exceptions] == [stage]
    assert excinfo.value.indices == (3,)
    assert got == [x for x in range(10) if x != 3][: len(got)]
    assert len(got) == 9 or stage != "store"


async def test_a_stage_that_settles_hands_on_outcomes(autojump_clock):
    """The next one looks into them, and fails in its turn."""
    stages = Stages(("fetch", 3))

    async def parse(entry):
        return entry.value.unwrap() * 10

    settle = fanout.Settle()
    with nothing_left():
        async with (
            fanout.stream(stages.fetch, range(6), limit=2, policy=settle) as fetched,
            fanout.stream(parse, fetched, limit=2, policy=settle) as parsed,
        ):
            got = [value async for _, _, value in parsed]
    assert [value.unwrap() for value in got if isinstance(value, outcome.Value)] == [0, 10, 20, 40, 50]
    assert str(got[3].error) == "fetch"


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_stop_in_the_first_stage_drains_the_others(stage, shared, autojump_clock):
    """All that the first has started comes out at the end. A later one drains what it has itself."""
    stages = Stages()
    one, two, three = limits_of(shared)
    values = []
    with nothing_left():
        async with (
            fanout.stream(stages.fetch, itertools.count(), limit=one) as fetched,
            fanout.stream(stages.parse, fetched, limit=two) as parsed,
            fanout.stream(stages.store, parsed, limit=three) as stored,
        ):
            async for index, _, value in stored:
                values.append(value)
                if index == 5:
                    [fetched, parsed, stored][stage].stop()
    name = ["fetch", "parse", "store"][stage]
    assert values == [x * 10 + 1 for x in range(len(stages.gauges[name].began))]
    assert len(values) >= 6


async def test_stop_in_the_middle_loses_no_result_of_the_first(autojump_clock):
    """The feeder of the second stage waits in the first one's `receive`, which is cancelled and loses nothing."""
    got = []
    async with fanout.stream(double, range(6), limit=1, buffer=0) as first:
        async with fanout.stream(lambda entry: double(entry.value), first, limit=1, buffer=0) as second:
            got.append((await second.receive()).item)
            await wait_all_tasks_blocked()
            second.stop()
            got += [entry.item async for entry in second]
        got += [entry async for entry in first]
    assert [entry.index for entry in got] == list(range(6))


async def test_cancellation_from_outside_ends_all_stages_at_once(shared, autojump_clock):
    stages = Stages()
    one, two, three = limits_of(shared)
    with nothing_left(), trio.move_on_after(5.5) as scope:
        async with (
            fanout.stream(stages.fetch, itertools.count(), limit=one) as fetched,
            fanout.stream(stages.parse, fetched, limit=two) as parsed,
            fanout.stream(stages.store, parsed, limit=three) as stored,
        ):
            async for _ in stored:
                pass
    assert scope.cancelled_caught
    assert trio.current_time() == 5.5
    assert stages.running() == 0


@pytest.mark.parametrize("stage", ["fetch", "store", None])
async def test_the_last_stage_may_be_do_or_map(stage, autojump_clock):
    for call in (fanout.do, fanout.map):
        stages = Stages((stage, 3) if stage else None)
        with nothing_left(), pytest.raises(StageError, match=stage) if stage else nullcontext():
            async with fanout.stream(stages.fetch, range(10), limit=3) as fetched:
                await call(stages.store, fetched, limit=2)
        assert stage or stages.gauges["store"].began == list(range(10))
        assert stages.gauges["store"].peak <= 2


async def test_a_pipeline_may_be_cut_short_by_its_reader(autojump_clock):
    async def first_of(count):
        got = []
        async with (
            fanout.stream(double, itertools.count(), limit=3) as one,
            fanout.stream(lambda entry: double(entry.value), one, limit=3) as two,
        ):
            async for _, _, value in two:
                got.append(value)
                if len(got) == count:
                    return got
        raise AssertionError

    with nothing_left():
        assert await first_of(3) == [0, 4, 8]
    with no_cycles():
        await first_of(3)


async def test_a_stream_within_each_item_of_another(autojump_clock):
    async def inner(x):
        total = 0
        async with fanout.stream(double, range(x), limit=2) as results:
            async for _, _, value in results:
                total += value
        return total

    with nothing_left():
        async with fanout.stream(inner, range(6), limit=3) as results:
            assert [value async for _, _, value in results] == [x * (x - 1) for x in range(6)]


# Beside what programs have


async def test_a_memory_channel_as_the_source(autojump_clock):
    """The producer is slowed down too: it never gets further ahead than the window and the channel's own buffer."""
    send, receive = trio.open_memory_channel[int](1)
    sent = 0

    async def produce():
        nonlocal sent
        async with send:
            for x in range(20):
                await send.send(x)
                sent += 1

    async with (
        trio.open_nursery() as nursery,
        receive,
        fanout.stream(double, receive, limit=2, buffer=1) as results,
    ):
        nursery.start_soon(produce)
        got = []
        async for index, item, value in results:
            assert (item, value) == (index, 2 * index)
            got.append(index)
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert sent <= len(got) + 3 + 1
    assert got == list(range(20))


async def test_results_sent_on_through_a_memory_channel(autojump_clock):
    send, receive = trio.open_memory_channel(0)

    async def pump(results):
        async with send:
            async for completed in results:
                await send.send(completed)

    async with trio.open_nursery() as nursery, fanout.stream(double, range(5)) as results:
        nursery.start_soon(pump, results)
        assert [completed.value async for completed in receive] == [0, 2, 4, 6, 8]


async def test_a_tqdm_bar_around_the_loop(autojump_clock):
    tqdm = pytest.importorskip("tqdm")
    screen = io.StringIO()
    urls = range(5)
    with tqdm.tqdm(total=len(urls), file=screen, mininterval=0) as bar:
        async with fanout.stream(double, urls, limit=2, ordered=False) as results:
            async for _ in results:
                bar.update()
    assert bar.n == 5
    assert "5/5" in screen.getvalue()


async def test_a_rich_progress_bar_around_the_loop(autojump_clock):
    progress = pytest.importorskip("rich.progress")
    console = pytest.importorskip("rich.console").Console(file=io.StringIO())
    urls = range(5)
    with progress.Progress(console=console, auto_refresh=False) as bars:
        task = bars.add_task("urls", total=len(urls))
        async with fanout.stream(double, urls, limit=2, ordered=False) as results:
            async for _ in results:
                bars.advance(task)
    assert bars.tasks[0].completed == 5
    assert bars.tasks[0].finished


async def test_each_result_is_written_to_a_database_while_workers_run(tmp_path):
    gauge = Gauge()
    overlaps = 0
    go_on = trio.Event()

    async def fetch(x):
        with gauge.running(x):
            if x:
                await go_on.wait()  # until the first has been written
            return f"page {x}"

    connection = sqlite3.connect(tmp_path / "pages.db", check_same_thread=False)
    connection.execute("create table pages (id integer primary key, page text)")

    def write(index, page):
        with connection:
            connection.execute("insert into pages values (?, ?)", (index, page))

    async with fanout.stream(fetch, range(10), limit=3, ordered=False) as results:
        async for index, _, page in results:
            await trio.to_thread.run_sync(write, index, page)
            overlaps += gauge.now > 0
            go_on.set()
    assert overlaps >= 1
    rows = connection.execute("select id, page from pages order by id").fetchall()
    connection.close()
    assert rows == [(x, f"page {x}") for x in range(10)]


async def test_stop_on_a_signal_loses_no_work(autojump_clock):
    """As a task that waits for Ctrl-C would: a first one winds down, what runs is finished and handed over."""
    ctrl_c = trio.Event()
    stages = Stages()

    async def wind_down(results):
        await ctrl_c.wait()
        results.stop()

    got = []
    async with trio.open_nursery() as nursery:
        async with fanout.stream(stages.fetch, itertools.count(), limit=3) as results:
            nursery.start_soon(wind_down, results)
            async for index, _, _ in results:
                got.append(index)
                if index == 4:
                    ctrl_c.set()
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert got == stages.gauges["fetch"].began == list(range(len(got)))


async def test_an_endless_limit_and_buffer_in_a_pipeline(autojump_clock):
    async with (
        fanout.stream(double, range(50), limit=math.inf, buffer=math.inf) as one,
        fanout.stream(lambda entry: double(entry.value), one, limit=math.inf, buffer=math.inf) as two,
    ):
        assert [value async for _, _, value in two] == [4 * x for x in range(50)]
