"""What `Meter` gives. Checked by mypy and pyright; never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import trio


async def repeat(word: str, times: int = 1) -> str:
    return word * times


def length(word: str) -> Awaitable[int]:
    raise NotImplementedError(word)


def blocking(word: str) -> int:
    return len(word)


async def wrapping_keeps_arguments_and_results(meter: fanout.Meter, words: list[str]) -> None:
    metered = meter.wrap(repeat)
    assert_type(await metered("word", times=2), str)
    assert_type(await meter.wrap(length)("word"), int)
    assert_type(await fanout.map(metered, words), list[str])
    await metered(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await metered("word", count=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    meter.wrap(blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_method_may_be_decorated(meter: fanout.Meter) -> None:
    class Client:
        @meter.wrap
        async def get(self, url: str) -> bytes:
            return url.encode()

    assert_type(await Client().get("url"), bytes)


def records_have_types(meter: fanout.Meter) -> None:
    assert_type(meter.statistics(), fanout.MeterStatistics)
    assert_type(meter.statistics().peak_running, int)
    for call in meter.running():
        assert_type(call, fanout.Running)
        assert_type(call.args, tuple[Any, ...])
        assert_type(call.started, float)
        task: trio.lowlevel.Task = call.task
        del task


def on_end_is_given_what_has_ended(ends: list[fanout.Ended]) -> None:
    def tell(end: fanout.Ended) -> bool:
        assert_type(end.ended - end.started, float)
        assert_type(end.error, BaseException | None)
        return end.error is None

    async def tell_later(end: fanout.Ended) -> None: ...

    fanout.Meter(on_end=tell)
    fanout.Meter(on_end=ends.append)
    fanout.Meter(on_end=lambda end: end.task.name)
    fanout.Meter(on_end=repeat)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.Meter(tell)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fanout.Meter(on_end=tell_later)  # it returns an object, so that only running it tells
