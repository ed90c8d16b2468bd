"""What `cap` and `throttle` by key give. Checked by mypy and pyright; never run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_type

import trio

import trio_fanout as fanout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def fetch(url: str, *, retries: int = 0) -> bytes:
    return url.encode() * retries


def host_of(url: str) -> str:
    return url.split("/")[2]


async def async_key(url: str) -> str:
    return url


def busy(exc: Exception) -> bool | float:
    return isinstance(exc, OSError) or 3.5


async def cap_keeps_arguments_and_results(urls: list[str]) -> None:
    get = fanout.cap(fetch, 20)
    assert_type(await get("a", retries=3), bytes)
    assert_type(await fanout.map(get, urls), list[bytes])
    assert_type(await fanout.map(fanout.cap(get, 2, key=host_of), urls), list[bytes])
    await get(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await get("a", tries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def key_may_name_fewer_arguments_than_the_function() -> None:
    """As `key=host_of` around a client's method, which has a dozen options."""
    assert_type(await fanout.cap(fetch, 2, key=host_of)("a", retries=3), bytes)
    assert_type(await fanout.throttle(fetch, 2, key=host_of)("a", retries=3), bytes)


def limits() -> None:
    fanout.cap(fetch, math.inf)
    fanout.cap(fetch, trio.CapacityLimiter(3), overloaded=busy)
    fanout.cap(fetch)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fanout.cap(fetch, "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.cap(fetch, 3, host_of)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def answers(fn: Callable[[str], Awaitable[bytes]]) -> None:
    fanout.cap(fn, 3, overloaded=lambda exc: isinstance(exc, OSError))
    fanout.cap(fn, 3, overloaded=lambda exc: 2.5 if exc.args else None)
    fanout.cap(fn, 3, overloaded=lambda exc: exc.args)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    fanout.cap(fn, 3, overloaded=async_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def keys() -> None:
    fanout.cap(fetch, 3, key="host")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.throttle(fetch, 3, key="host")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def blocking_functions_are_refused() -> None:
    fanout.cap(host_of, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
