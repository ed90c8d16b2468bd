"""What `cap` and `throttle` return, and which functions they take. Checked by mypy and pyright; never run."""

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


def size(url: str, *, retries: int = 0) -> float:
    return len(url) * retries / 2


def host_length(page: str) -> int:
    return len(host_of(page))


class Client:
    async def ask(self, prompt: str, model: str = "small") -> int:
        return len(prompt + model)

    def tokens(self, prompt: str, model: str = "small") -> int:
        return len(prompt) if model == "small" else 2 * len(prompt)

    async def tokens_by_server(self, prompt: str) -> int:
        return len(prompt)


async def cost_and_weight_keep_arguments_and_results(client: Client) -> None:
    ask = fanout.throttle(client.ask, 90_000, per=60, burst=1_000, cost=client.tokens)
    assert_type(await ask("a", model="large"), int)
    assert_type(await fanout.map(ask, ["a"]), list[int])
    assert_type(await fanout.cap(client.ask, 100, weight=client.tokens)("a", model="large"), int)
    assert_type(await fanout.cap(fetch, 100, key=host_of, weight=size)("a", retries=3), bytes)
    await ask("a", size="large")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ask(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def cost_and_weight_may_name_other_parameters_than_the_function() -> None:
    """A ParamSpec would refuse all of these: `len` has another name for its argument, and the next names fewer."""
    assert_type(await fanout.throttle(fetch, 3, cost=len)("a"), bytes)
    assert_type(await fanout.cap(fetch, 3, weight=len)("a", retries=3), bytes)
    assert_type(await fanout.throttle(fetch, 3, cost=host_length)("a", retries=3), bytes)


def costs_and_weights(client: Client) -> None:
    fanout.throttle(fetch, 3, cost=host_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.throttle(client.ask, 3, cost=client.tokens_by_server)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.throttle(fetch, 3, cost=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.throttle(fetch, 3, 60, 1, None, len)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fanout.cap(fetch, 3, weight=host_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.cap(client.ask, 3, weight=client.tokens_by_server)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.cap(fetch, 3, weight="size")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.cap(fetch, 3, cost=len)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fanout.throttle(fetch, 3, weight=len)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


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
    fanout.cap(fn, 3, overloaded=ConnectionError)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.cap(fn, 3, overloaded=async_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def keys() -> None:
    fanout.cap(fetch, 3, key="host")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fanout.throttle(fetch, 3, key="host")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def blocking_functions_are_refused() -> None:
    fanout.cap(host_of, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
