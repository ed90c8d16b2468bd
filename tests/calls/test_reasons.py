"""What is cancelled can tell why: the reason that Trio shows with a `Cancelled`."""

import pytest
import trio
import trio.testing

import trio_fanout as fanout


class Item:
    """An async function that fails, succeeds or raises, by its argument, or waits and keeps the reason of its end."""

    def __init__(self):
        self.reason = None
        self.calls = 0

    async def __call__(self, what):
        if what == "wait":
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                self.reason = cancelled.reason
                raise
        self.calls += 1
        await trio.sleep(self.calls)
        if isinstance(what, BaseException):
            raise what


@pytest.mark.parametrize(
    ("items", "policy", "reason"),
    [
        (["wait", ValueError()], fanout.FailFast(), "item 1 failed"),
        (
            [ValueError(), "wait", ValueError()],
            fanout.Collect(max_failures=2),
            "item 2 failed, the last that max_failures allows",
        ),
        (["wait", "succeed"], fanout.FirstSuccess(), "item 1 succeeded"),
        (["wait", SystemExit()], fanout.Settle(), "a worker raised SystemExit"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
async def test_of_an_item(items, policy, reason, autojump_clock):
    item = Item()
    try:
        await fanout.map(item, items, policy=policy)
    except (ValueError, fanout.FanOutError, SystemExit):
        pass
    assert item.reason == reason


async def test_of_a_source_that_is_stopped(autojump_clock):
    reasons = []

    async def source():
        yield "succeed"
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            raise

    async with fanout.stream(Item(), source()) as results:
        await results.receive()
        results.stop()
        assert [result async for result in results] == []
    assert reasons == ["no more items are started"]


async def test_of_a_job_beside_a_block_that_raises(autojump_clock):
    item = Item()
    with pytest.raises(LookupError):
        async with fanout.open_group() as group:
            group.start_soon(item, "wait")
            await trio.testing.wait_all_tasks_blocked()
            raise LookupError
    assert item.reason == "the block raised LookupError"


async def test_of_a_stream_that_is_closed_or_left(autojump_clock):
    for close in (True, False):
        item = Item()
        async with fanout.stream(item, ["wait"]) as results:
            await trio.testing.wait_all_tasks_blocked()
            if close:
                await results.aclose()
        assert item.reason == ("the channel was closed" if close else "the block of the stream was left")
