"""A plain iterator is stepped in one context, a copy of the caller's, whichever worker asks for its next item."""

import contextvars
import decimal

import pytest
import trio

import trio_fanout as fanout

var = contextvars.ContextVar("var", default="default")


async def work(item):
    var.set("by an item")
    decimal.getcontext().prec = 50
    await trio.lowlevel.checkpoint()
    return item


async def by_map(items, limit):
    return await fanout.map(work, items, limit=limit)


async def by_do(items, limit):
    seen = []

    async def keep(item):
        seen.append(await work(item))

    await fanout.do(keep, items, limit=limit)
    return seen


async def by_stream(items, limit):
    async with fanout.stream(work, items, limit=limit) as results:
        return [value async for _, _, value in results]


async def by_a_stream_without_a_buffer(items, limit):
    async with fanout.stream(work, items, limit=limit, ordered=False, buffer=0) as results:
        return [value async for _, _, value in results]


async def by_a_first_success_that_never_comes(items, limit):
    seen = []

    async def fail(item):
        seen.append(await work(item))
        raise ValueError

    with pytest.raises(fanout.FanOutError):
        await fanout.map(fail, items, limit=limit, policy=fanout.FirstSuccess())
    return seen


CALLS = pytest.mark.parametrize(
    "call", [by_map, by_do, by_stream, by_a_stream_without_a_buffer, by_a_first_success_that_never_comes]
)
LIMITS = pytest.mark.parametrize("limit", [1, 3, 40, "shared"])


def limit_of(limit):
    return trio.CapacityLimiter(2) if limit == "shared" else limit


@CALLS
@LIMITS
async def test_a_generator_may_set_a_variable_around_its_loop(limit, call):
    seen = []

    def items():
        seen.append(var.get())
        token = var.set("by the source")
        for n in range(20):
            yield n
            seen.append(var.get())
        var.reset(token)
        seen.append(var.get())

    var.set("by the caller")
    assert sorted(await call(items(), limit_of(limit))) == list(range(20))
    assert seen == ["by the caller", *["by the source"] * 20, "by the caller"]
    assert var.get() == "by the caller"


@CALLS
@LIMITS
async def test_a_generator_computes_in_its_own_decimal_context(limit, call):
    def items():
        with decimal.localcontext() as context:
            context.prec = 5
            for _ in range(20):
                yield decimal.Decimal(1) / 3

    digits = decimal.getcontext().prec
    assert await call(items(), limit_of(limit)) == [decimal.Decimal("0.33333")] * 20
    assert decimal.getcontext().prec == digits


@CALLS
@LIMITS
async def test_a_source_that_has_ended_is_not_asked_again(limit, call, autojump_clock):
    class Items:
        left = 20
        ended = 0

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                self.ended += 1
                raise StopIteration
            self.left -= 1
            return self.left

    items = Items()
    await call(items, limit_of(limit))
    assert items.ended == 1


async def test_functions_of_fan_out_may_come_from_such_a_generator():
    def functions():
        token = var.set("by the source")
        for _ in range(3):
            yield work
        var.reset(token)

    assert await fanout.fan_out(functions(), 1) == [1, 1, 1]
