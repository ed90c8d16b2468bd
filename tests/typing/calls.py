"""What `map`, `do` and `fan_out` give back under each policy. Checked by mypy and pyright; never run.

A line that is wrong on purpose carries an ignore for each checker. Both report an ignore that nothing needs, so that
a mistake which stops being an error is noticed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_type

import trio
from outcome import Outcome

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


async def length(word: str) -> int:
    return len(word)


async def half(number: float) -> float:
    return number / 2


def blocking(word: str) -> int:
    return len(word)


async def map_gives_what_its_policy_says(words: list[str]) -> None:
    assert_type(await fanout.map(length, words), list[int])
    assert_type(await fanout.map(length, words, policy=fanout.FailFast()), list[int])
    assert_type(await fanout.map(length, words, policy=fanout.Collect()), list[int])
    assert_type(await fanout.map(length, words, policy=fanout.Collect(max_failures=3)), list[int])
    assert_type(await fanout.map(length, words, policy=fanout.Settle()), list[Outcome[int]])
    assert_type(await fanout.map(length, words, policy=fanout.Settle(move_on_after=1)), list[Outcome[int]])
    assert_type(await fanout.map(length, words, policy=fanout.FirstSuccess()), int)


async def do_gives_nothing(words: list[str]) -> None:
    assert_type(await fanout.do(length, words), None)
    assert_type(await fanout.do(length, words, policy=fanout.Collect()), None)


async def fan_out_gives_what_its_policy_says(fns: list[Callable[[str], Awaitable[int]]]) -> None:
    assert_type(await fanout.fan_out(fns, "word"), list[int])
    assert_type(await fanout.fan_out(fns, "word", policy=fanout.FailFast()), list[int])
    assert_type(await fanout.fan_out(fns, "word", policy=fanout.Collect()), list[int])
    assert_type(await fanout.fan_out(fns, "word", policy=fanout.Settle()), list[Outcome[int]])
    assert_type(await fanout.fan_out(fns, "word", policy=fanout.FirstSuccess()), int)


async def a_list_of_functions_needs_no_annotation() -> None:
    assert_type(await fanout.fan_out([length, length], "word"), list[int])


async def any_iterable_will_do(iterator: Iterator[str], source: AsyncIterator[str]) -> None:
    assert_type(await fanout.map(length, iterator), list[int])
    assert_type(await fanout.map(length, source), list[int])
    assert_type(await fanout.map(length, {"key": 1}), list[int])
    assert_type(await fanout.map(half, [1, 2]), list[float])


async def limits(words: list[str]) -> None:
    await fanout.map(length, words, limit=3, item_timeout=0.5)
    await fanout.map(length, words, limit=math.inf, item_timeout=None)
    await fanout.map(length, words, limit=trio.CapacityLimiter(3))
    await fanout.map(length, words, limit=fanout.DEFAULT_LIMIT)
    await fanout.map(length, words, limit="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await fanout.map(length, words, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def functions_must_be_async_and_take_the_item(words: list[str]) -> None:
    await fanout.map(blocking, words)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fanout.map(half, words)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fanout.map(length("word"), words)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await fanout.do(blocking, words)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fanout.fan_out([blocking], "word")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def policies_are_instances(words: list[str]) -> None:
    await fanout.map(length, words, policy=fanout.FailFast)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await fanout.do(length, words, policy=fanout.Settle())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fanout.do(length, words, policy=fanout.FirstSuccess())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.Collect(max_failures="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.Collect(fatal=OSError)
    fanout.Collect(fatal=(OSError, ExceptionGroup))
    fanout.Collect(fatal=OSError())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.Collect(fatal=[OSError])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.Collect(fatal=KeyboardInterrupt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(fanout.Collect(fatal=OSError).fatal, tuple[type[Exception], ...])


def policies_are_frozen(policy: fanout.Collect) -> None:
    policy.max_failures = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
