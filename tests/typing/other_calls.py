"""What `stream`, `open_group`, `run_graph` and the adapters give. Checked by mypy and pyright; never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from outcome import Outcome

import trio_fanout as fanout
from trio_fanout import Step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    import trio


async def length(word: str) -> int:
    return len(word)


async def repeat(word: str, times: int) -> str:
    return word * times


def blocking(word: str, times: int = 1) -> int:
    return len(word) * times


async def stream_hands_over_what_its_policy_says(words: list[str]) -> None:
    async with fanout.stream(length, words) as results:
        assert_type(results, fanout.ResultChannel[str, int])
        async for index, item, value in results:
            assert_type(index, int)
            assert_type(item, str)
            assert_type(value, int)
    async with fanout.stream(length, words, policy=fanout.Collect(), ordered=False, buffer=3) as results:
        assert_type(await results.receive(), fanout.Completed[str, int])
    async with fanout.stream(length, words, policy=fanout.Settle()) as outcomes:
        async for _, _, outcome in outcomes:
            assert_type(outcome, Outcome[int])


async def a_stream_is_a_channel_and_a_source(words: list[str]) -> None:
    async def store(result: fanout.Completed[str, int]) -> bool:
        return result.value > len(result.item)

    async with fanout.stream(length, words) as results:
        channel: trio.abc.ReceiveChannel[fanout.Completed[str, int]] = results
        async with fanout.stream(store, channel) as stored:
            assert_type((await stored.receive()).value, bool)


async def stream_takes_no_first_success(words: list[str]) -> None:
    fanout.stream(length, words, policy=fanout.FirstSuccess())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def jobs_take_the_arguments_of_their_functions() -> None:
    async with fanout.open_group(limit=3) as group:
        assert_type(group, fanout.Group)
        handle = group.start_soon(repeat, "word", 3)
        assert_type(handle, fanout.Handle[str])
        assert_type(handle.value, str)
        assert_type(handle.outcome, Outcome[str] | None)
        group.start_soon(repeat, "word")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        group.start_soon(repeat, 3, "word")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        group.start_soon(blocking, "word")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def run_graph_gives_what_its_policy_says(steps: dict[str, Step[int]]) -> None:
    assert_type(await fanout.run_graph(steps), dict[str, int])
    assert_type(await fanout.run_graph(steps, policy=fanout.Collect()), dict[str, int])
    assert_type(await fanout.run_graph(steps, policy=fanout.Settle()), dict[str, Outcome[int]])


async def steps_are_inferred() -> None:
    assert_type(Step(length), Step[int])
    assert_type(await fanout.run_graph({1: Step(length), 2: Step(length, needs=(1,))}), dict[int, int])


async def adapters_keep_arguments_and_results(executor: Executor, words: list[str]) -> None:
    threaded = fanout.in_thread(blocking)
    assert_type(await threaded("word", times=2), int)
    assert_type(await fanout.map(threaded, words), list[int])
    assert_type(await fanout.map(fanout.in_process(blocking), words), list[int])
    assert_type(await fanout.map(fanout.in_executor(executor, blocking), words), list[int])
    throttled = fanout.throttle(repeat, 10, per=60, burst=2)
    assert_type(await throttled("word", 3), str)
    await throttled("word")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await threaded(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def adapters_are_callables(fn: Callable[[str], Awaitable[int]]) -> None:
    fn = fanout.in_thread(blocking)
    fanout.throttle(fn, "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
