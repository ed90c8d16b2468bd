"""`FanOutError`: an exception group that knows whose its members are, whatever is done to it."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
import traceback
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import FrozenError, double

ERRORS = {
    1: ValueError("one"),
    2: KeyError("two"),
    4: ExceptionGroup("four", [ValueError("four a"), KeyError("four b"), ExceptionGroup("deep", [OSError("four c")])]),
    5: ValueError("five"),
}


async def error_of(errors: dict[int, Exception], total: int) -> fanout.FanOutError:
    async def fn(x: int) -> int:
        if x in errors:
            raise errors[x]
        return x * 10

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(total), policy=fanout.Collect())
    return excinfo.value


def make(errors: dict[int, Exception] = ERRORS, total: int = 7) -> fanout.FanOutError:
    """The error of a run in which just these items failed."""
    return trio.run(error_of, errors, total)


def check(error: object, indices: tuple[int, ...], total: int = 7) -> fanout.FanOutError:
    """Check that all that the error says is true, and agrees with itself."""
    assert type(error) is fanout.FanOutError
    assert error.indices == indices
    assert list(error.failures) == list(indices)
    assert len(error.exceptions) == len(indices)
    assert all(a is b for a, b in zip(error.failures.values(), error.exceptions, strict=True))
    assert error.results == {0: 0, 3: 30, 6: 60}
    assert error.total == total
    return error


def test_error_has_indices_failures_results_and_total() -> None:
    error = check(make(), (1, 2, 4, 5))
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error, Exception)
    assert error.exceptions == tuple(ERRORS.values())
    assert isinstance(error.indices, tuple)


def test_message_counts_and_names_the_failed() -> None:
    error = make({0: ValueError(), 3: ValueError()}, 5)
    assert error.message == "2 of 5 items failed: 0, 3"
    assert str(error).startswith("2 of 5 items failed: 0, 3")


def test_message_stays_short_when_thousands_fail() -> None:
    error = make({x: ValueError() for x in range(5000)}, 5000)
    assert error.message.startswith("5000 of 5000 items failed: 0, 1, 2")
    assert len(error.message) < 120
    assert len(error.indices) == 5000


def test_traceback_prints_each_failure() -> None:
    text = "".join(traceback.format_exception(make()))
    assert all(message in text for message in ("one", "two", "four a", "four b", "four c", "five"))


# split and subgroup


@pytest.mark.parametrize("kind", [ValueError, (ValueError, OSError), lambda exc: isinstance(exc, ValueError)])
def test_split_gives_each_half_its_own_indices(kind: Any) -> None:
    match, rest = make().split(kind)
    check(match, (1, 4, 5))
    check(rest, (2, 4))
    assert match is not None
    assert rest is not None
    assert match.exceptions[0] is ERRORS[1]
    assert match.exceptions[2] is ERRORS[5]
    assert rest.exceptions[0] is ERRORS[2]


def test_split_keeps_a_partial_nested_group_with_its_index() -> None:
    match, rest = make().split(OSError)
    part = check(match, (4,)).failures[4]
    assert isinstance(part, ExceptionGroup)
    assert part.message == "four"
    assert repr(part.exceptions) == repr((ExceptionGroup("deep", [OSError("four c")]),))
    left = check(rest, (1, 2, 4, 5)).failures[4]
    assert isinstance(left, ExceptionGroup)
    assert [type(exc) for exc in left.exceptions] == [ValueError, KeyError]


def test_split_of_a_split_keeps_its_data() -> None:
    match, _ = make().split(ValueError)
    assert match is not None
    _, rest = match.split(lambda exc: exc.args == ("one",))
    check(rest, (4, 5))
    match, rest = make().split(KeyError)
    assert rest is not None
    inner, outer = rest.split(OSError)
    check(inner, (4,))
    check(outer, (1, 4, 5))


def test_split_of_all_or_nothing() -> None:
    error = make()
    match, rest = error.split(Exception)
    assert match is error
    assert rest is None
    match, rest = error.split(ZeroDivisionError)
    assert match is None
    check(rest, (1, 2, 4, 5))


def test_subgroup_keeps_the_data() -> None:
    check(make().subgroup(KeyError), (2, 4))
    assert make().subgroup(ZeroDivisionError) is None


def test_split_of_equal_exceptions_goes_by_identity() -> None:
    """A member never gets its neighbour's index, however alike the two are."""

    class Same(Exception):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Same)

        __hash__ = None  # type: ignore[assignment]

    wanted = Same("wanted")
    error = make({1: Same("x"), 2: wanted, 4: Same("y"), 5: Same("z")})
    match, rest = error.split(lambda exc: exc is wanted)
    assert check(match, (2,)).exceptions[0] is wanted
    check(rest, (1, 4, 5))


def test_the_same_exception_object_keeps_both_its_indices() -> None:
    twice = ValueError("twice")
    error = make({1: twice, 2: KeyError(), 4: twice, 5: KeyError()})
    check(error, (1, 2, 4, 5))
    match, rest = error.split(ValueError)
    assert check(match, (1, 4)).exceptions == (twice, twice)
    check(rest, (2, 5))


def test_groups_that_share_their_leaves_keep_their_own_indices() -> None:
    leaf = ValueError("leaf")
    groups = [ExceptionGroup(f"group {x}", [leaf, KeyError(x)]) for x in range(4)]
    error = make(dict(zip([1, 2, 4, 5], groups, strict=True)))
    match, rest = error.split(ValueError)
    check(match, (1, 2, 4, 5))
    check(rest, (1, 2, 4, 5))
    assert rest is not None
    assert [part.exceptions[0].args for part in rest.exceptions] == [(0,), (1,), (2,), (3,)]  # type: ignore[attr-defined]


def test_a_shared_leaf_does_not_move_a_group_to_its_neighbours_index() -> None:
    """Both groups hold one leaf; only the second keeps a member after the split by another leaf."""
    leaf, other = ValueError("leaf"), OSError("other")
    error = make({1: ExceptionGroup("a", [leaf, KeyError()]), 2: leaf, 4: ExceptionGroup("b", [leaf, other]), 5: other})
    check(error.subgroup(ValueError), (1, 2, 4))
    check(error.subgroup(OSError), (4, 5))
    check(error.subgroup(KeyError), (1,))


def test_an_error_within_a_group_is_split_with_its_data() -> None:
    outer = ExceptionGroup("outer", [OSError(), make(), ExceptionGroup("inner", [make()])])
    match, rest = outer.split(ValueError)
    assert match is not None
    assert rest is not None
    check(match.exceptions[0], (1, 4, 5))
    check(match.exceptions[1].exceptions[0], (1, 4, 5))  # type: ignore[attr-defined]
    check(rest.exceptions[1], (2, 4))


def test_an_error_as_a_failure_of_another_run_is_split_with_its_data() -> None:
    inner = make()
    error = make({1: inner, 2: ValueError(), 4: KeyError(), 5: make()})
    match, rest = error.split(ValueError)
    check(check(match, (1, 2, 5)).failures[1], (1, 4, 5))
    check(check(rest, (1, 4, 5)).failures[5], (2, 4))


# except*


def test_except_star_catches_the_part_it_names() -> None:
    seen = []
    try:
        raise make()
    except* ValueError as group:
        seen.append(check(group, (1, 4, 5)))
    except* (KeyError, OSError) as group:
        seen.append(check(group, (2, 4)))
    assert len(seen) == 2


def test_except_star_lets_the_rest_through_with_its_data() -> None:
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            raise make()
        except* ValueError:
            pass
    check(excinfo.value, (2, 4))


def test_except_star_that_raises_again_keeps_the_data() -> None:
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            raise make()
        except* ValueError:
            raise
    check(excinfo.value, (1, 2, 4, 5))


async def test_except_star_around_a_call() -> None:
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            await error_of_call()
        except* KeyError as group:
            caught = group
    check(caught, (2, 4))
    check(excinfo.value, (1, 4, 5))


async def error_of_call() -> None:
    raise await error_of(ERRORS, 7)


# derive


def test_derive_with_members_keeps_their_indices() -> None:
    error = make()
    check(error.derive([ERRORS[1], ERRORS[4]]), (1, 4))


def test_derive_puts_members_in_ascending_order() -> None:
    derived = check(make().derive([ERRORS[5], ERRORS[1]]), (1, 5))
    assert derived.exceptions == (ERRORS[1], ERRORS[5])


@pytest.mark.parametrize("others", [[ValueError("one")], [OSError(), KeyError()]])
def test_derive_with_what_are_no_members_is_a_plain_group(others: list[Exception]) -> None:
    error = make()
    for excs in (others, [ERRORS[1], *others], [*others, ERRORS[4]]):
        plain = error.derive(excs)
        assert type(plain) is ExceptionGroup
        assert plain.exceptions == tuple(excs)
        assert plain.message == error.message


def test_derive_with_a_base_exception_is_a_plain_group_of_those() -> None:
    plain = make().derive([ERRORS[1], KeyboardInterrupt()])
    assert type(plain) is BaseExceptionGroup


def test_derive_with_a_member_too_often_is_a_plain_group() -> None:
    assert type(make().derive([ERRORS[1], ERRORS[1]])) is ExceptionGroup


def test_derive_with_a_group_that_only_shares_some_leaves_is_a_plain_group() -> None:
    """It is no part of a member: it holds something that the member does not."""
    four = ERRORS[4]
    assert isinstance(four, ExceptionGroup)
    stranger = ExceptionGroup("stranger", [four.exceptions[0], OSError("unknown")])
    assert type(make().derive([stranger])) is ExceptionGroup


# pickle, copy


def same(a: fanout.FanOutError, b: fanout.FanOutError) -> None:
    assert type(a) is type(b)
    assert a.message == b.message
    assert a.indices == b.indices
    assert a.results == b.results
    assert a.total == b.total
    assert repr(a.failures) == repr(b.failures)
    assert repr(a.exceptions) == repr(b.exceptions)
    assert all(x is y for x, y in zip(b.failures.values(), b.exceptions, strict=True))


COPIES = [*(lambda error, n=n: pickle.loads(pickle.dumps(error, n)) for n in range(2, 6)), copy.copy, copy.deepcopy]


@pytest.mark.parametrize("duplicate", COPIES)
def test_error_can_be_pickled_and_copied(duplicate: Any) -> None:
    error = make()
    error.add_note("a note")
    again = duplicate(error)
    same(error, again)
    assert again is not error
    assert again.__notes__ == ["a note"]
    match, rest = again.split(ValueError)  # the copy works like the original
    check(match, (1, 4, 5))
    check(rest, (2, 4))
    half = error.subgroup(ValueError)
    assert isinstance(half, fanout.FanOutError)
    same(half, duplicate(half))


def test_copy_shares_its_members_and_deepcopy_does_not() -> None:
    error = make()
    assert copy.copy(error).exceptions[0] is error.exceptions[0]
    assert copy.deepcopy(error).exceptions[0] is not error.exceptions[0]


def test_the_same_exception_object_survives_pickling() -> None:
    twice = ValueError("twice")
    again = pickle.loads(pickle.dumps(make({1: twice, 2: twice, 4: KeyError(), 5: KeyError()})))
    assert again.exceptions[0] is again.exceptions[1]
    check(again.subgroup(ValueError), (1, 2))


def test_split_keeps_cause_context_notes_and_traceback() -> None:
    error = make()
    error.__cause__ = cause = OSError("cause")
    error.add_note("a note")
    match, _ = error.split(ValueError)
    assert match is not None
    assert match.__cause__ is cause
    assert match.__notes__ == ["a note"]
    assert match.__traceback__ is error.__traceback__


def in_child(error: fanout.FanOutError) -> fanout.FanOutError:
    """Raise, in another process, the half that the parent expects."""
    half = error.subgroup(ValueError)
    assert isinstance(half, fanout.FanOutError)
    raise half


def settle_in_child() -> Any:
    async def main() -> Any:
        return await fanout.map(trio.sleep, [9, 0], limit=1, policy=fanout.Settle(move_on_after=0.05))

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_errors_cross_a_process_boundary() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(in_child, make())
        outcomes = pool.submit(settle_in_child).result()
        with pytest.raises(fanout.FanOutError) as excinfo:
            future.result()
    check(excinfo.value, (1, 4, 5))
    assert [(one.error.index, one.error.started) for one in outcomes] == [(0, True), (1, False)]


# What a run makes


def test_members_are_the_very_exceptions_that_items_raised() -> None:
    frozen = FrozenError(3)
    error = make({2: frozen}, 3)
    assert error.exceptions[0] is frozen


def test_members_have_the_traceback_of_their_item() -> None:
    error = make({1: ValueError()}, 2)
    names = [frame.name for frame in traceback.extract_tb(error.exceptions[0].__traceback__)]
    assert names[0] == "fn"


async def test_results_and_failures_are_not_the_callers_to_share() -> None:
    """Two errors of the same run do not exist; those of two runs share nothing."""
    first, second = await error_of(ERRORS, 7), await error_of(ERRORS, 7)
    assert first.results is not second.results
    assert first.failures is not second.failures


async def test_error_has_no_context_of_the_machinery() -> None:
    error = await error_of({0: ValueError()}, 1)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert await fanout.map(double, [1]) == [2]
