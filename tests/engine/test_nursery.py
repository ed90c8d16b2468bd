"""The nursery that raises a single exception, never a group of its own, and chains of exceptions."""

import traceback

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from helpers import FrozenError, check_no_cycles, fail_when_cancelled, foreign_cancelled, nothing_left, printed
from trio_fanout._core.exceptions import (
    chain,
    chain_of,
    first_leaf,
    holds_cancelled,
    parts_of,
    raise_unchanged,
    set_context,
)
from trio_fanout._core.nursery import SingleExceptionNursery, most_important, raise_or_return


class open_nursery:  # noqa: N801  # stands where `trio.open_nursery` would
    """The nursery as an async context manager, used as a run uses it.

    `conclude` is given what the nursery would raise, or None, and returns what is to be raised.
    """

    def __init__(self, conclude=lambda leaving: leaving):
        self.conclude = conclude
        self.nursery = SingleExceptionNursery()

    @property
    def cancel_scope(self):
        return self.nursery.cancel_scope

    async def __aenter__(self):
        await self.nursery.open()
        return self

    async def __aexit__(self, etype, exc, tb):
        try:
            return raise_or_return(self.conclude(await self.nursery.close(exc)), exc)
        finally:
            del exc, tb

    def start_soon(self, fn, *args):
        self.nursery.start_soon(self.task, fn, *args)

    async def task(self, fn, *args):
        try:
            await fn(*args)
        except BaseException as exc:
            if not self.nursery.keep(exc, "a task raised an exception"):
                raise


async def fail(exc):
    await trio.lowlevel.checkpoint()
    raise exc


async def test_an_empty_block_leaves_nothing():
    with nothing_left():
        async with open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)


@pytest.mark.parametrize("cls", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopAsyncIteration])
@pytest.mark.parametrize("others", [0, 3])
async def test_the_blocks_own_exception_propagates_unwrapped(others, cls):
    error = cls()
    with nothing_left(), pytest.raises(cls) as excinfo:
        async with open_nursery() as nursery:
            for _ in range(others):
                nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise error
    assert excinfo.value is error
    assert error.__context__ is None
    assert len(traceback.extract_tb(error.__traceback__)) == 1


@pytest.mark.parametrize("cls", [ValueError, KeyboardInterrupt, SystemExit])
async def test_a_tasks_exception_propagates_unwrapped_and_cancels_the_rest(cls):
    error = cls()
    with nothing_left(), pytest.raises(cls) as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert excinfo.value is error
    assert error.__context__ is None


async def test_a_group_of_the_block_propagates_as_it_is():
    """Also where Trio copies it, to take the tasks' cancellations out."""
    error = ExceptionGroup("own", [ValueError(), ExceptionGroup("inner", [KeyError()])])
    with pytest.RaisesGroup(ValueError, pytest.RaisesGroup(KeyError)) as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise error
    assert excinfo.value is error
    assert error.__context__ is None


async def test_a_group_of_a_task_is_not_wrapped_in_another():
    members = [ValueError(), KeyError()]
    with pytest.RaisesGroup(ValueError, KeyError, match="own") as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail, ExceptionGroup("own", members))
    assert list(excinfo.value.exceptions) == members


async def test_a_group_with_a_cancelled_in_it_gives_the_cancelled_to_trio_and_leaves_the_rest():
    error = ValueError()
    with trio.CancelScope() as scope, pytest.RaisesGroup(ValueError) as excinfo:
        async with open_nursery() as nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(fail_when_cancelled, error)
                inner.start_soon(trio.sleep_forever)
                await wait_all_tasks_blocked()
                scope.cancel()
            nursery.start_soon(trio.sleep_forever)
    assert excinfo.value.exceptions == (error,)


async def test_a_tasks_exception_is_chained_to_the_blocks_own():
    for block in (ValueError("block"), KeyboardInterrupt("block")):
        task = KeyError("task")
        with pytest.raises(type(block)) as excinfo:
            async with open_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled, task)
                await wait_all_tasks_blocked()
                raise block
        assert excinfo.value is block
        assert "KeyError: 'task'" in printed(block)


@pytest.mark.parametrize("first", ["interrupt", "error"])
async def test_a_base_exception_comes_first(first):
    interrupt, error = KeyboardInterrupt(), ValueError("chained")
    one, other = (interrupt, error) if first == "interrupt" else (error, interrupt)
    with nothing_left(), pytest.raises(KeyboardInterrupt) as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, other)
            await wait_all_tasks_blocked()
            nursery.start_soon(fail, one)
    assert excinfo.value is interrupt
    assert "ValueError: chained" in printed(interrupt)


async def test_a_tasks_interrupt_comes_before_the_blocks_error():
    interrupt, error = KeyboardInterrupt(), ValueError("chained")
    with pytest.raises(KeyboardInterrupt) as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, interrupt)
            await wait_all_tasks_blocked()
            raise error
    assert excinfo.value is interrupt
    assert "ValueError: chained" in printed(interrupt)


async def test_of_two_tasks_exceptions_one_is_raised_and_prints_the_other():
    first, second = ValueError("first"), KeyError("second")
    with pytest.raises(ValueError, match="first") as excinfo:
        async with open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, second)
            await wait_all_tasks_blocked()
            nursery.start_soon(fail, first)
    assert excinfo.value is first
    assert "KeyError: 'second'" in printed(first)


@pytest.mark.parametrize("tasks", [0, 1, 5])
@pytest.mark.parametrize("block", ["waits", "ends"])
async def test_a_cancellation_from_outside_reaches_its_scope(block, tasks):
    leaving = []

    def conclude(exc):
        leaving.append(exc)
        return exc

    with nothing_left(), trio.CancelScope() as scope:
        async with open_nursery(conclude) as nursery:
            for _ in range(tasks):
                nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            scope.cancel()
            if block == "waits":
                await trio.sleep_forever()
        if tasks:
            pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught == bool(tasks or block == "waits")
    assert [type(exc) for exc in leaving] == [trio.Cancelled if scope.cancelled_caught else type(None)]


async def test_its_own_cancellation_stays_within():
    with nothing_left():
        async with open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_an_exception_outranks_a_cancellation_from_outside(error):
    with trio.CancelScope() as scope, pytest.raises(error):
        async with open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, error())
            await wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert not scope.cancelled_caught


async def test_conclude_is_called_once_all_tasks_have_ended():
    ended = []

    async def task():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            ended.append("task")

    def conclude(exc):
        ended.append(repr(exc))
        return exc

    with pytest.raises(ValueError, match="block"):
        async with open_nursery(conclude) as nursery:
            nursery.start_soon(task)
            await wait_all_tasks_blocked()
            raise ValueError("block")
    assert ended == ["task", "ValueError('block')"]


async def test_conclude_may_raise_another_in_its_place():
    other = KeyError()
    other.__context__ = context = OSError()
    for block in (None, ValueError()):
        with pytest.raises(KeyError) as excinfo:
            async with open_nursery(lambda _: other):
                if block:
                    raise block
        assert excinfo.value is other
        assert other.__context__ is context


async def test_conclude_may_suppress():
    async with open_nursery(lambda _: None) as nursery:
        nursery.start_soon(fail, ValueError())
        await trio.sleep_forever()


@pytest.mark.parametrize("where", ["block", "task", "both", "conclude", "cancelled"])
async def test_no_reference_cycle_is_left(where):
    async def once():
        def conclude(leaving):
            return KeyError() if where == "conclude" else leaving

        with trio.CancelScope() as scope:
            try:
                async with open_nursery(conclude) as nursery:
                    for _ in range(3):
                        nursery.start_soon(trio.sleep_forever)
                    if where in ("task", "both"):
                        nursery.start_soon(fail_when_cancelled, ValueError)
                    await wait_all_tasks_blocked()
                    if where in ("block", "both"):
                        raise KeyError
                    if where == "cancelled":
                        scope.cancel()
                    nursery.cancel_scope.cancel()
            except (KeyError, ValueError):
                pass

    await check_no_cycles(once)


# Chains of exceptions


def test_raise_unchanged_keeps_the_context():
    error = FrozenError(1)
    with pytest.raises(FrozenError) as excinfo:
        try:
            raise OSError
        except OSError:
            raise_unchanged(error)
    assert excinfo.value is error
    assert error.__context__ is None


def test_chain_prints_the_earlier_one_before_all_the_rest():
    first, cause, error = OSError("first"), KeyError("cause"), ValueError("error")
    error.__cause__ = cause
    chain(error, first)
    text = printed(error)
    assert text.index("first") < text.index("cause") < text.index("error")
    assert chain_of(error) == [error, cause, first]


def test_chain_overrides_from_none():
    hidden, error, first = KeyError("hidden"), ValueError("error"), OSError("first")
    error.__context__ = hidden
    error.__suppress_context__ = True
    chain(error, first)
    assert "first" in printed(error)
    assert "hidden" not in printed(error)


def test_chain_does_nothing_where_it_is_there_already():
    first, error = OSError("first"), ValueError("error")
    chain(error, first)
    chain(error, first)
    chain(error, error)
    assert chain_of(error) == [error, first]


async def test_what_is_most_important_has_no_cancellation_behind_it():
    cancelled, first, second = await foreign_cancelled(), ValueError(), KeyError()
    assert most_important([cancelled, first, None, second]) is first
    assert chain_of(first) == [first, second]
    assert most_important([cancelled, None]) is cancelled


def test_chain_lets_no_loop_arise():
    """Tasks cancelled while `error` was handled have it as the context of their Cancelled, in groups too."""
    error, cleanup = ValueError("error"), KeyError("clean-up")
    cleanup.__context__ = cleanup.__cause__ = OSError("out of the cancellation")
    cleanup.__context__.__context__ = error
    group = ExceptionGroup("group", [cleanup, cleanup])
    chain(error, group)
    assert chain_of(error) == [error, group]
    assert cleanup.__context__.__context__ is None


def test_a_group_that_holds_others_twice_is_looked_through_once():
    group = error = ValueError()
    for _ in range(100):  # written out, it would have 2 ** 100 members
        group = ExceptionGroup("twice", [group, group])
    assert len(list(parts_of(group))) == 101
    assert not holds_cancelled(group)
    assert first_leaf(group) is error


def test_chain_cuts_all_links_that_would_close_a_loop():
    """One is behind another that is left alone: a cause that someone has set."""
    error, earlier, between = ValueError("error"), KeyError("earlier"), OSError("between")
    earlier.__context__, between.__context__ = between, error
    earlier.__cause__ = error
    chain(error, earlier)
    assert between.__context__ is None
    assert earlier.__cause__ is error


def test_chain_ends_where_exceptions_form_a_loop_already():
    one, other, error = OSError(), KeyError(), ValueError()
    one.__context__, other.__context__ = other, one
    chain(error, one)
    assert chain_of(error) == [error, one, other]
    one.__context__ = None


def test_a_chain_of_exceptions_that_lead_to_one_another_has_each_once():
    one, two, three = ValueError(1), ValueError(2), ValueError(3)
    three.__context__ = two
    two.__context__ = one
    chain(one, two, three, two, one)
    assert chain_of(one) == [one, two, three]


def test_chain_of_ends_where_exceptions_form_a_loop():
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    assert chain_of(one) == [one, other]
    one.__context__ = None


def test_set_context_works_on_frozen_exceptions():
    error, context = FrozenError(1), OSError()
    set_context(error, context)
    assert error.__context__ is context
    chain(error, KeyError())
    assert isinstance(context.__context__, KeyError)
