"""Exceptions whose own methods lie or raise: no call trusts them, none is lost, and none is changed for another."""

import pytest
import trio
from outcome import Error

import trio_fanout as fanout
from helpers import aiter_of, leaves, nothing_left


def refuse(*args):
    raise RuntimeError("refused")


class NoTraceback(Exception):
    def with_traceback(self, tb):
        return None


class RaisesForTraceback(Exception):
    with_traceback = refuse


class NoText(Exception):
    __repr__ = __str__ = refuse


class NoNotes(Exception):
    add_note = refuse


class OddNotes(Exception):
    __notes__ = 3


class RaisesForNotes(Exception):
    __notes__ = property(refuse)


class NoEquality(Exception):
    __eq__ = __ne__ = refuse
    __hash__ = None


class EqualToAll(Exception):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


class NoTruth(Exception):
    __bool__ = refuse


class Empty(Exception):
    def __len__(self):
        return 0


class Frozen(Exception):
    __setattr__ = __delattr__ = refuse


class Pretender(Exception):
    """It says that it is a cancellation."""

    __class__ = trio.Cancelled


class Odd(type):
    __eq__ = __ne__ = refuse
    __hash__ = None
    __repr__ = refuse
    __instancecheck__ = refuse


class OfAnOddClass(Exception, metaclass=Odd):
    pass


class NoSplit(ExceptionGroup[Exception]):
    split = subgroup = derive = refuse


class OddSplit(ExceptionGroup[Exception]):
    def split(self, *args):
        return None

    subgroup = derive = split


def no_split():
    return NoSplit("group", [ValueError(1)])


def odd_split():
    return OddSplit("group", [ValueError(1)])


def in_circles():
    error, other = ValueError(1), ValueError(2)
    error.__context__, other.__context__ = other, error
    return error


MAKES = [
    NoTraceback, RaisesForTraceback, NoText, NoNotes, OddNotes, RaisesForNotes, NoEquality, EqualToAll, NoTruth, Empty,
    Frozen, Pretender, OfAnOddClass, no_split, odd_split, in_circles,
]  # fmt: skip
WRONG = pytest.mark.parametrize("make", MAKES, ids=[make.__name__ for make in MAKES])
SOURCES = pytest.mark.parametrize("source", [list, aiter_of])


def fails(error):
    """Item 1 fails, and so does another while it is cancelled."""

    async def fail(n):
        if n == 2:
            try:
                await trio.sleep_forever()
            finally:
                raise error
        await trio.sleep(n)
        if n == 1:
            raise error
        return n

    return fail


async def raised_by(call):
    try:
        await call()
    except BaseException as exc:  # noqa: BLE001
        return exc
    return None


@WRONG
@SOURCES
async def test_map_raises_it(source, make, autojump_clock):
    error = make()
    with nothing_left():
        assert await raised_by(lambda: fanout.map(fails(error), source(range(4)), limit=4)) is error


@WRONG
async def test_map_raises_it_in_the_place_of_a_cancellation(make, autojump_clock):
    error = make()

    async def fail(n):
        try:
            await trio.sleep_forever()
        finally:
            raise error

    with nothing_left(), trio.move_on_after(1):
        assert await raised_by(lambda: fanout.map(fail, range(2))) is error
        return
    raise AssertionError


@WRONG
@SOURCES
async def test_it_is_collected(source, make, autojump_clock):
    error = make()
    raised = await raised_by(lambda: fanout.map(fails(error), source([0, 1, 3]), policy=fanout.Collect()))
    assert type(raised) is fanout.FanOutError
    assert raised.exceptions[0] is error
    assert raised.results == {0: 0, 2: 3}
    assert len(raised.kinds()) == 1
    assert str(raised).startswith("1 of 3 items failed: 1; first: ")


@WRONG
async def test_it_is_settled(make, autojump_clock):
    error = make()
    outcomes = await fanout.map(fails(error), [0, 1, 3], policy=fanout.Settle())
    assert isinstance(outcomes[1], Error)
    assert outcomes[1].error is error
    assert [outcomes[0].unwrap(), outcomes[2].unwrap()] == [0, 3]


@WRONG
async def test_a_run_has_a_first_success_all_the_same(make, autojump_clock):
    assert await fanout.map(fails(make()), [1, 3], policy=fanout.FirstSuccess()) == 3


@WRONG
@SOURCES
async def test_a_source_raises_it(source, make, autojump_clock):
    error = make()

    def plain():
        yield 3
        raise error

    async def waiting():
        yield 3
        await trio.sleep(1)
        raise error

    items = plain if source is list else waiting
    with nothing_left():
        assert await raised_by(lambda: fanout.map(trio.sleep, items())) is error


@WRONG
async def test_a_stream_ends_with_it(make, autojump_clock):
    error = make()
    seen = []

    async def read():
        async with fanout.stream(fails(error), range(4)) as results:
            async for index, _, _ in results:
                seen.append(index)

    with nothing_left():
        assert await raised_by(read) is error
    assert seen == [0]


@WRONG
@pytest.mark.parametrize("fails_too", [False, True])
async def test_the_block_of_a_stream_raises_it(fails_too, make, autojump_clock):
    error = make()

    async def block():
        async with fanout.stream(fails(KeyError()) if fails_too else trio.sleep, range(4)):
            await trio.sleep(1.5)
            raise error

    with nothing_left():
        assert await raised_by(block) is error


@WRONG
async def test_a_group_raises_it(make, autojump_clock):
    error = make()
    handles = []

    async def block():
        async with fanout.open_group() as group:
            handles.extend([group.start_soon(fails(error), n) for n in range(4)])

    with nothing_left():
        assert await raised_by(block) is error
    assert isinstance(handles[1].outcome, Error)
    assert handles[1].outcome.error is error
    assert "not finished" not in "".join(map(repr, handles[::3]))


@WRONG
@pytest.mark.parametrize("fails_too", [False, True])
async def test_the_block_of_a_group_raises_it(fails_too, make, autojump_clock):
    error = make()

    async def block():
        async with fanout.open_group(policy=fanout.Collect()) as group:
            for n in range(3):
                group.start_soon(fails(KeyError()) if fails_too else trio.sleep, n)
            await trio.sleep(1.5)
            raise error

    with nothing_left():
        assert await raised_by(block) is error


@WRONG
async def test_a_graph_raises_it_and_steps_that_depend_on_it_are_skipped(make, autojump_clock):
    error = make()

    async def fail():
        raise error

    steps = {"a": fanout.Step(fail), "b": fanout.Step(trio.sleep, needs=("a",))}
    assert await raised_by(lambda: fanout.run_graph(steps)) is error
    raised = await raised_by(lambda: fanout.run_graph(steps, policy=fanout.Collect()))
    assert type(raised) is fanout.FanOutError
    assert raised.exceptions[0] is error
    assert type(raised.exceptions[1]) is fanout.DependencyFailed


@WRONG
async def test_a_cancellation_in_a_group_with_it_is_told_apart(make, autojump_clock):
    error = make()

    async def work(n):
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("both", [cancelled, error]) from None

    with nothing_left(), trio.move_on_after(1):
        raised = await raised_by(lambda: fanout.map(work, [0]))
        assert isinstance(raised, ExceptionGroup)
        assert leaves(raised) == leaves(error)
        return
    raise AssertionError
