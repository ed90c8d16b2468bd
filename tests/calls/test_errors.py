"""`FanOutError`: an exception group that knows which items its members belong to, and keeps that true."""

import concurrent.futures
import copy
import functools
import gc
import json
import multiprocessing
import pickle
import sys
import sysconfig
import threading
import traceback
import tracemalloc
import weakref
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import DO_POLICIES, FrozenError, ItemError, double, fail_when_cancelled, leaves, notes_of, printed

ERRORS = {
    1: ValueError("one"),
    2: KeyError("two"),
    4: ExceptionGroup("four", [ValueError("four a"), KeyError("four b"), ExceptionGroup("deep", [OSError("four c")])]),
    5: ValueError("five"),
}


COPIES = [
    *(lambda error, n=n: pickle.loads(pickle.dumps(error, n)) for n in range(2, 6)),
    copy.copy,
    copy.deepcopy,
]


async def error_of(errors, total):
    async def fn(x):
        if x in errors:
            raise errors[x]
        return x * 10

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(total), policy=fanout.Collect())
    return excinfo.value


def make(errors=ERRORS, total=7):
    """The error of a run in which just these items failed."""
    return trio.run(error_of, errors, total)


def check(error, indices, total=7):
    """Check that all that the error says is true, and agrees with itself."""
    assert type(error) is fanout.FanOutError
    assert error.indices == indices
    assert list(error.failures) == list(indices)
    assert len(error.exceptions) == len(indices)
    assert all(a is b for a, b in zip(error.failures.values(), error.exceptions, strict=True))
    assert error.items == {index: index for index in indices}
    assert error.results == {0: 0, 3: 30, 6: 60}
    assert error.total == total
    return error


def test_error_has_indices_failures_results_and_total():
    error = check(make(), (1, 2, 4, 5))
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error, Exception)
    assert error.exceptions == tuple(ERRORS.values())
    assert isinstance(error.indices, tuple)


# The message


def test_message_counts_and_names_the_failed_and_has_the_first():
    error = make({0: ValueError("bad row"), 3: ValueError("other")}, 5)
    assert error.message == "2 of 5 items failed: 0, 3; first: ValueError: bad row"
    assert str(error) == f"{error.message} (2 sub-exceptions)"


def test_message_of_a_failure_without_a_text_has_its_type():
    assert make({1: ValueError()}, 2).message == "1 of 2 items failed: 1; first: ValueError"


def test_message_stays_short_when_thousands_fail():
    error = make({x: ValueError(x) for x in range(5000)}, 5000)
    assert error.message == "5000 of 5000 items failed: 0, 1, 2 and 4997 more; first: ValueError: 0"
    assert len(error.indices) == 5000


@pytest.mark.parametrize(
    ("failed", "told"), [(9, "0, 1, 2, 3, 4, 5, 6, 7, 8"), (10, "0, 1, 2 and 7 more"), (11, "0, 1, 2 and 8 more")]
)
def test_message_names_all_where_they_are_few(failed, told):
    assert make({x: ValueError() for x in range(failed)}, 20).message == (
        f"{failed} of 20 items failed: {told}; first: ValueError"
    )


def test_message_counts_failures_by_type_the_most_frequent_first():
    errors = dict.fromkeys([7, 19, 23, *range(30, 37)], ValueError("bad row"))
    errors[23] = KeyError("id")
    assert make(errors, 40).message == (
        "10 of 40 items failed (9 ValueError, 1 KeyError): 7, 19, 23 and 7 more; first: ValueError: bad row"
    )
    errors[7] = KeyError("id")
    assert make(errors, 40).message == (
        "10 of 40 items failed (8 ValueError, 2 KeyError): 7, 19, 23 and 7 more; first: KeyError: 'id'"
    )


def test_message_counts_types_that_are_as_frequent_by_first_index():
    errors = {0: KeyError(), 1: ValueError(), 2: OSError(), 3: OSError(), 4: ValueError()}
    assert "(2 ValueError, 2 OSError, 1 KeyError)" in make(errors, 5).message


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([1] * 5, "(1 E0, 1 E1, 1 E2, 1 E3, 1 E4)"),
        ([1] * 6, "(1 E0, 1 E1, 1 E2, 1 E3, 1 E4, 1 of other types)"),
        ([1, 1, 1, 2, 9, 2, 4, 9], "(9 E4, 9 E7, 4 E6, 2 E3, 2 E5, 3 of other types)"),
    ],
)
def test_message_counts_five_types_and_the_failures_of_all_others(sizes, told):
    types = [type(f"E{number}", (Exception,), {}) for number in range(len(sizes))]
    errors = [cls() for cls, size in zip(types, sizes, strict=True) for _ in range(size)]
    assert told in make(dict(enumerate(errors)), 50).message


def test_message_goes_by_exact_type():
    assert "(1 LookupError, 1 KeyError)" in make({0: LookupError(), 1: KeyError()}, 2).message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("  two\n\n\tlines  ", "two lines"),
        (" " * 9000 + "late", "late"),
        ("early" + "\n" * 9000, "early"),
        ("early" + "\n" * 9000 + "late", "early…"),
        ("early" + "\n" * 794 + "x", "early x"),  # up to here it is looked at
        ("early" + "\n" * 795 + "x", "early…"),
        ("word " * 16, "word " * 15 + "word"),
        ("\n", ""),
    ],
)
def test_text_of_the_first_is_one_line_cut_at_80_characters(text, shown):
    told = f"ValueError: {shown}" if shown else "ValueError"
    assert make({0: ValueError(text)}, 1).message == f"1 of 1 items failed: 0; first: {told}"


def test_huge_texts_are_cut_before_they_are_split():
    """What is made of 20 MB is never as long: the peak of memory tells."""
    errors = {x: ValueError("one two " * 2_500_000) for x in range(3)}
    tracemalloc.start()
    try:
        message = make(errors, 3).message
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.endswith("…")
    assert peak < 30_000_000  # one copy, without the space at its end


class Odd(Exception):
    """One of the ways in which the class of an exception can be of no help."""


class Unprintable(Odd):
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


class NoText(Odd):
    def __str__(self):
        return 3  # noqa: PLE0307


class Text(str):  # noqa: SLOT000
    """A str that is of no use."""

    def strip(self, *args):
        return None

    __getitem__ = __len__ = __str__ = split = strip


class OddText(Odd):
    def __str__(self):
        return Text("text")


class Incomparable(Odd):
    def __eq__(self, other):
        raise RuntimeError

    __hash__ = __eq__


class EqualToAll(Odd):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0

    def __bool__(self):
        return False


class TakesNoNote(Odd):
    def add_note(self, note):
        raise RuntimeError


class LosesNotes(Odd):
    def add_note(self, note):
        pass


class HasOddNotes(Odd):
    __notes__ = 3


class HidesNotes(Odd):
    @property
    def __notes__(self):
        raise RuntimeError


class Slotted(Odd):
    __slots__ = ()


class Meta(type):
    """Its classes cannot be compared, nor hashed."""

    def __eq__(cls, other):
        raise RuntimeError

    __hash__ = None


class OfMeta(Odd, metaclass=Meta):
    pass


ODD = [FrozenError, *Odd.__subclasses__()]


async def raise_odd(x, cls):
    await trio.lowlevel.checkpoint()
    if x != 1:
        raise ValueError("plain") if x == 3 else cls(x)


@pytest.mark.parametrize("cls", ODD, ids=lambda cls: cls.__name__)
async def test_odd_exceptions_break_nothing(cls):
    for _ in range(2):
        error = await failures_of(functools.partial(raise_odd, cls=cls), range(4))
        assert error.indices == (0, 2, 3)
        assert error.message.startswith(f"3 of 4 items failed (2 {cls.__name__}, 1 ValueError): 0, 2, 3; first: ")
        assert notes_of(error.failures[3]) == ["item 3"]
        assert [kind.indices for kind in error.kinds()] == [(0, 2), (3,)]
        match, rest = error.split(ValueError)
        assert match is not None
        assert rest is not None
        assert (match.indices, rest.indices) == ((3,), (0, 2))
        assert rest.items == {0: 0, 2: 2}
        assert list(rest.exceptions) == [error.exceptions[0], error.exceptions[1]] or cls is Incomparable


@pytest.mark.parametrize("cls", ODD, ids=lambda cls: cls.__name__)
async def test_odd_exceptions_are_told_of_under_fail_fast(cls):
    for _ in range(2):
        with pytest.raises((ValueError, cls)):
            await fanout.map(functools.partial(raise_odd, cls=cls), range(4))


def test_message_says_where_a_text_cannot_be_had():
    for cls in (Unprintable, NoText):
        assert make({0: cls()}, 1).message.endswith(f"; first: {cls.__name__}: <exception str() failed>")
    assert make({0: OddText()}, 1).message.endswith("; first: OddText: text")


def test_only_the_first_is_asked_for_its_text():
    asked = []

    class Asked(Exception):
        def __str__(self):
            asked.append(self)
            return "text"

    error = make({x: Asked() for x in range(100)}, 100)
    assert set(map(id, asked)) == {id(error.exceptions[0])}
    assert len(asked) == 1


# Notes


async def failures_of(fn, items):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, items, policy=fanout.Collect())
    return excinfo.value


def test_each_member_has_a_note_that_names_its_item():
    error = make({1: ValueError(), 4: ExceptionGroup("", [OSError()]), 6: KeyError()}, 7)
    assert [notes_of(exc) for exc in error.exceptions] == [["item 1"], ["item 4"], ["item 6"]]
    assert "item 4" in printed(error)
    match, _ = error.split(OSError)
    assert match is not None
    assert notes_of(match.exceptions[0]) == ["item 4"]


async def test_members_have_a_note_in_every_call():
    async def fail(*_):
        raise ValueError

    for policy in (fanout.Collect(), fanout.FirstSuccess()):
        with pytest.raises(fanout.FanOutError) as excinfo:
            await fanout.fan_out([fail, fail], 1, policy=policy)
        assert [notes_of(exc) for exc in excinfo.value.exceptions] == [["item 0"], ["item 1"]]
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.open_group(policy=fanout.Collect()) as group:
            group.start_soon(double, 1)
            group.start_soon(fail)
    assert notes_of(excinfo.value.failures[1]) == ["job 1"]
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph(
            {"plan": fanout.Step(fail), "book": fanout.Step(fail, needs=["plan"])}, policy=fanout.Collect()
        )
    assert notes_of(excinfo.value.failures["plan"]) == ["step 'plan'"]
    assert notes_of(excinfo.value.failures["book"]) == ["step 'book'"]


async def test_a_settled_failure_has_no_note():
    async def fail(x):
        raise ValueError

    (one,) = await fanout.map(fail, [0], policy=fanout.Settle())
    assert notes_of(one.error) == []


async def test_failures_that_are_chained_to_what_a_source_raises_have_their_notes():
    def source():
        yield 0
        yield 1
        raise OSError("the source")

    async def fail(x):
        raise ValueError

    with pytest.raises(OSError, match="the source") as excinfo:
        await fanout.map(fail, source(), limit=1, policy=fanout.Collect())
    error = excinfo.value.__context__
    assert isinstance(error, fanout.FanOutError)
    assert [notes_of(exc) for exc in error.exceptions] == [["item 0"], ["item 1"]]
    assert error.items == {0: 0, 1: 1}


async def test_an_object_that_two_items_raise_has_both_notes():
    shared = ValueError()
    await failures_of(raise_it, [shared, ValueError(), shared])
    assert notes_of(shared) == ["item 0", "item 2"]


@pytest.mark.parametrize(("times", "more"), [(10, []), (11, ["and 1 more"]), (1000, ["and 990 more"])])
async def test_an_object_that_many_items_raise_has_ten_notes_and_a_count(times, more):
    shared = ValueError()
    await failures_of(raise_it, [shared] * times)
    assert notes_of(shared) == [*(f"item {x}" for x in range(10)), *more]


@pytest.mark.slow
@DO_POLICIES
async def test_notes_do_not_pile_up_on_an_object_that_is_raised_again_and_again(policy):
    """It has those of the first runs, besides the notes of others."""
    shared = ValueError()
    shared.add_note("by hand")
    for index in range(200):

        async def fn(x, index=index):
            if x == index:
                raise shared

        with pytest.raises((fanout.FanOutError, ValueError)):
            await fanout.map(fn, range(200), policy=policy)
    assert notes_of(shared) == ["by hand", *(f"item {index}" for index in range(11))]


@DO_POLICIES
async def test_what_comes_through_nested_runs_has_a_note_of_each(policy):
    async def nested(depth):
        if depth is None:
            return
        if not depth:
            raise ValueError
        await fanout.map(nested, [*[None] * depth, depth - 1])

    with pytest.raises((fanout.FanOutError, ValueError)) as excinfo:
        await fanout.map(nested, [3], policy=policy)
    (exc,) = leaves(excinfo.value)
    assert notes_of(exc) == ["item 1", "item 2", "item 3", "item 0"]


async def test_notes_about_other_failures_leave_room_for_the_item_of_an_outer_run():
    """Each of the nested runs has more of these than it tells of."""

    async def fail(depth, index):
        if index != depth:
            await fail_when_cancelled(KeyError())
        await wait_all_tasks_blocked()
        await run(depth - 1)

    async def run(depth):
        if depth < 0:
            raise ValueError
        await fanout.map(functools.partial(fail, depth), range(20))

    with pytest.raises(ValueError) as excinfo:  # noqa: PT011
        await run(3)
    named = [note for note in notes_of(excinfo.value) if "also failed" not in note]
    assert named == ["item 0", "and 9 more", "item 1", "item 2", "item 3"]


@pytest.mark.slow
async def test_an_object_that_a_thousand_runs_raise_at_once_has_each_note_once():
    shared = ValueError("shared")

    async def inner(x):
        with pytest.raises(ValueError, match="shared"):
            await fanout.map(wait_and_raise, [0])

    async def wait_and_raise(x):
        await wait_all_tasks_blocked()
        raise shared

    await fanout.do(inner, range(1000), limit=1000)
    assert notes_of(shared) == ["item 0"]


def test_notes_are_plain_text_once_pickled_or_copied():
    error = make({1: ValueError()}, 2)
    for exc in (pickle.loads(pickle.dumps(error)).exceptions[0], copy.deepcopy(error).exceptions[0]):
        assert [(note, type(note)) for note in notes_of(exc)] == [("item 1", str)]


class Nameless:
    """The name of a step that cannot be shown."""

    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


def test_texts_take_names_that_cannot_be_shown():
    error = fanout.FanOutError({Nameless(): ValueError(), "x" * 100: ValueError()}, {}, 2)
    assert error.message == f"2 of 2 items failed: <Nameless repr() failed>, '{'x' * 78}…; first: ValueError"
    error = fanout.FanOutError({"y" * 78: ValueError()}, {}, 1)
    assert error.message == f"1 of 1 items failed: '{'y' * 78}'; first: ValueError"  # just short enough
    assert str(fanout.DependencyFailed(Nameless(), "a")) == (
        "step <Nameless repr() failed> was not run, because 'a' failed"
    )
    assert str(fanout.Unfinished(Nameless(), started=False)) == "item <Nameless repr() failed> was not started in time"


async def test_unfinished_steps_are_called_steps(autojump_clock):
    steps = {"plan": fanout.Step(trio.sleep_forever), 2: fanout.Step(double, ["plan"])}
    outcomes = await fanout.run_graph(steps, policy=fanout.Settle(move_on_after=1))
    told = ["step 'plan' was started but not finished in time", "step 2 was not started in time"]
    errors = [one.error for one in outcomes.values()]
    assert list(map(str, errors)) == told
    for duplicate in COPIES:
        assert list(map(str, duplicate(errors))) == told
    (one,) = await fanout.map(trio.sleep, [9], policy=fanout.Settle(move_on_after=1))
    assert str(one.error) == "item 0 was started but not finished in time"
    assert str(fanout.DependencyFailed("plan", "book")) == "step 'plan' was not run, because 'book' failed"


def test_an_error_without_failures_cannot_be_made():
    with pytest.raises(ValueError, match="non-empty"):
        fanout.FanOutError({}, {}, 3)


# items


async def raise_it(exc):
    raise exc


async def test_items_are_those_that_failed_also_from_a_generator():
    async def fn(word):
        if word in "bd":
            raise ValueError
        return word

    error = await failures_of(fn, (word for word in "abcd"))
    assert error.items == {1: "b", 3: "d"}
    assert list(error.items) == list(error.indices)
    assert [str(exc) for exc in (await failures_of(fn, error.items.values())).items.values()] == ["b", "d"]


async def test_do_and_fan_out_and_stream_give_back_items_too(autojump_clock):
    error = ValueError()
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.do(raise_it, [error], policy=fanout.Collect())
    assert excinfo.value.items == {0: error}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.fan_out([raise_it], error, policy=fanout.FirstSuccess())
    assert excinfo.value.items == {0: raise_it}
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.stream(raise_it, [error], policy=fanout.Collect()) as results:
            async for _ in results:
                raise AssertionError
    assert excinfo.value.items == {0: error}


async def test_items_are_empty_for_groups_and_graphs():
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.open_group(policy=fanout.Collect()) as group:
            group.start_soon(raise_it, ValueError())
    assert excinfo.value.items == {}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph({"plan": fanout.Step(double)}, policy=fanout.Collect())
    assert excinfo.value.items == {}


async def test_only_failed_items_are_kept_and_only_by_the_error():
    class Item:
        def __init__(self, number):
            self.number = number

    seen = []

    async def fn(item):
        seen.append(weakref.ref(item))
        await trio.lowlevel.checkpoint()
        if item.number % 2:
            raise ValueError

    error = await failures_of(fn, map(Item, range(10)))
    assert [item.number for item in error.items.values()] == [1, 3, 5, 7, 9]
    assert [item() for item in seen[1::2]] == list(error.items.values())
    assert sum(item() is not None for item in seen[::2]) <= 1  # an `enumerate` in the traceback keeps its last pair
    del error
    gc.collect()  # pytest's `excinfo` and a traceback know each other
    assert [item() for item in seen] == [None] * 10


async def test_an_item_that_cannot_be_pickled_gives_the_error_that_it_gives():
    async def fn(item):
        raise ValueError

    error = await failures_of(fn, [threading.Lock()])
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(error)


# kinds


def test_kinds_are_a_partition_by_type_the_largest_first():
    error = make()
    kinds = error.kinds()
    assert isinstance(kinds, tuple)
    check(kinds[0], (1, 5))
    check(kinds[1], (2,))
    check(kinds[2], (4,))
    assert len(kinds) == 3
    assert kinds[0].items == {1: 1, 5: 5}
    assert kinds[0].message == "2 of 7 items failed: 1, 5; first: ValueError: one"
    assert kinds[0].exceptions == (ERRORS[1], ERRORS[5])
    assert kinds[2].exceptions[0] is ERRORS[4]


def test_kinds_of_a_kind_are_itself_again():
    (one, *_) = make().kinds()
    (same_one,) = one.kinds()
    same(one, same_one)
    assert same_one.items == one.items


async def fails_here(x):
    if x % 3 == 0:
        raise ValueError(x)
    if x % 3 == 1:
        raise ValueError(x)
    deeper(x)


def deeper(x):
    raise ValueError(x) if x < 12 else LookupError(x)


async def test_kinds_tell_places_apart():
    kinds = (await failures_of(fails_here, range(15))).kinds()
    assert [kind.indices for kind in kinds] == [(0, 3, 6, 9, 12), (1, 4, 7, 10, 13), (2, 5, 8, 11), (14,)]


async def test_kinds_go_by_exact_type():
    async def fn(x):
        raise (KeyError, LookupError, KeyError)[x]

    assert [kind.indices for kind in (await failures_of(fn, range(3))).kinds()] == [(0, 2), (1,)]


async def test_kinds_go_by_the_innermost_frame_that_belongs_to_no_library():
    """However the library comes to fail, and wherever in the program the call that leads there came from."""

    def parse(text):
        json.loads(text)

    async def fn(text):
        if text == "{":
            parse(text)
        else:
            parse(text)

    error = await failures_of(fn, ["{", "[", "nonsense"])
    assert len({traceback.extract_tb(exc.__traceback__)[-1].lineno for exc in error.exceptions}) > 1
    assert [kind.indices for kind in error.kinds()] == [(0, 1, 2)]


def code_in(filename, text, name, **names):
    """A function whose file is said to be another."""
    exec(compile(text, str(filename), "exec"), names)
    return names[name]


LIBRARY = """
def fail(x):
    if x:
        raise ValueError
    raise ValueError

async def fail_async(x):
    fail(x)
"""


BESIDE = Path(fanout.__file__).parent.parent / "trio_fanout_of_mine.py"


@pytest.mark.parametrize(
    ("filename", "kinds"),
    [
        (Path(sysconfig.get_path("purelib"), "lib.py"), 1),
        (Path("/", "elsewhere", "site-packages", "deep", "lib.py"), 1),
        (Path("/", "usr", "lib", "python3", "dist-packages", "lib.py"), 1),
        (Path(sysconfig.get_path("stdlib"), "lib.py"), 1),
        (Path(fanout.__file__).parent / "lib.py", 1),
        ("<frozen lib>", 1),
        (
            BESIDE,
            1 if "site-packages" in BESIDE.parts else 2,
        ),  # where the package is installed, so is what is beside it
        (Path("my-site-packages", "lib.py"), 2),
        ("<string>", 2),
    ],
)
async def test_what_counts_as_a_library(filename, kinds):
    fail = code_in(filename, LIBRARY, "fail")

    async def fn(x):
        fail(x)

    assert len((await failures_of(fn, range(2))).kinds()) == kinds


async def test_where_all_is_in_libraries_the_innermost_frame_counts():
    fail = code_in(Path(sysconfig.get_path("purelib"), "lib.py"), LIBRARY, "fail_async")
    assert [kind.indices for kind in (await failures_of(fail, [0, 1, 1])).kinds()] == [(1, 2), (0,)]


def test_kinds_go_by_type_where_there_is_no_traceback():
    error = fanout.FanOutError(dict(enumerate([KeyError(), ValueError(), KeyError(1)])), {}, 3)
    assert [kind.indices for kind in error.kinds()] == [(0, 2), (1,)]


def unpickled_from(error):
    """A copy without tracebacks; tblib, which trio-parallel brings, teaches pickle to keep them once it is imported."""
    copy = pickle.loads(pickle.dumps(error))
    waiting = [copy]
    while waiting:
        exc = waiting.pop().with_traceback(None)
        waiting += getattr(exc, "exceptions", ())
    return copy


async def test_kinds_of_an_unpickled_error():
    error = unpickled_from(await failures_of(fails_here, range(15)))
    assert [len(kind.indices) for kind in error.kinds()] == [14, 1]


async def test_a_group_is_one_failure_of_its_own_type_and_place():
    async def fn(x):
        if x == 3:
            raise ExceptionGroup("here", [ValueError()])
        raise ExceptionGroup("there", [OSError() if x else KeyError()])

    assert [kind.indices for kind in (await failures_of(fn, range(4))).kinds()] == [(0, 1, 2), (3,)]


async def test_a_failed_dependency_goes_by_type():
    async def fail():
        raise ValueError

    steps = {"a": fanout.Step(fail), "b": fanout.Step(fail, ["a"]), "c": fanout.Step(fail, ["b"])}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph(steps, policy=fanout.Collect())
    for raised in (False, True):
        if raised:  # and so has a traceback
            with pytest.raises(fanout.DependencyFailed):
                raise excinfo.value.failures["c"]
        assert [kind.indices for kind in excinfo.value.kinds()] == [("b", "c"), ("a",)]


async def test_remote_failures_of_one_type_are_one_kind():
    """What a process pool raises has its traceback as text."""
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        error = await failures_of(fanout.in_executor(pool, fail_in_two_places), range(5))
    assert [kind.indices for kind in error.kinds()] == [(0, 1, 2, 3), (4,)]


def fail_in_two_places(x):
    if x == 4:
        raise KeyError(x)
    if x % 2:
        raise ValueError(x)
    raise ValueError(x)


def test_kinds_keep_what_a_split_keeps():
    error = make()
    for suppress in (False, True):
        error.__context__ = context = KeyError("context")
        error.__suppress_context__ = suppress
        kind = error.kinds()[0]
        assert kind.__traceback__ is error.__traceback__
        assert kind.__traceback__ is not None
        assert (kind.__context__, kind.__cause__, kind.__suppress_context__) == (context, None, suppress)
    error.__cause__ = cause = OSError("cause")
    error.add_note("a note")
    kind = error.kinds()[0]
    assert kind.__cause__ is cause
    assert notes_of(kind) == ["a note"]
    kind.add_note("its own")
    assert notes_of(error) == ["a note"]


async def test_a_rare_kind_among_ten_thousand_is_found():
    async def fn(x):
        if x == 7777:
            raise KeyError(x)
        raise ValueError(x)

    common, rare = (await failures_of(fn, range(10_000))).kinds()
    assert len(common.indices) == 9999
    assert rare.message == "1 of 10000 items failed: 7777; first: KeyError: 7777"


def test_traceback_prints_each_failure():
    text = printed(make())
    assert all(message in text for message in ("one", "two", "four a", "four b", "four c", "five"))


# One object that many items raise


def entries_of(exc):
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(exc.__traceback__)]


async def lose_it(how, shared):
    """Raise one object in many items: as it is, while all of them hold it, in a group, or as a cause."""
    try:
        raise_deep(shared)
    except ConnectionError as exc:
        if how == "in a group":
            raise ExceptionGroup("of a nursery", [exc]) from None
        if how == "as a cause":
            raise ItemError from exc
        if how == "as a context":
            raise ItemError  # noqa: B904
        raise
    finally:
        if how == "held":
            await wait_all_tasks_blocked()


def raise_deep(exc):
    raise exc


HOWS = pytest.mark.parametrize("how", ["plain", "held", "in a group", "as a cause", "as a context"])


def check_is_short(shared):
    """Once in each place: as if one item had raised it."""
    assert entries_of(shared) == ["lose_it", "raise_deep"]


@HOWS
@pytest.mark.parametrize("policy", [fanout.Collect(), fanout.FirstSuccess(), fanout.FailFast()], ids=str)
async def test_an_object_that_many_items_raise_has_the_traceback_of_one(how, policy):
    shared = ConnectionError("lost")
    all_there = trio.Event()

    async def fn(x):
        if x == 99:
            all_there.set()
        await all_there.wait()
        await lose_it(how, shared)

    with pytest.raises((fanout.FanOutError, ConnectionError, ExceptionGroup, ItemError)):
        await fanout.map(fn, range(100), limit=100, policy=policy)
    assert [name for name in entries_of(shared) if name in {"lose_it", "raise_deep"}] == ["lose_it", "raise_deep"]


@HOWS
async def test_an_object_that_many_items_raise_is_short_in_outcomes(how):
    shared = ConnectionError("lost")
    await fanout.map(functools.partial(lose_it, shared=shared), [how] * 100, policy=fanout.Settle())
    check_is_short(shared)


@HOWS
async def test_an_object_that_many_jobs_raise_is_short(how):
    shared = ConnectionError("lost")
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.open_group(policy=fanout.Collect()) as group:
            for _ in range(100):
                group.start_soon(lose_it, how, shared)
    assert len(excinfo.value.kinds()) == 1
    check_is_short(shared)


@HOWS
async def test_an_object_that_many_items_of_a_stream_raise_is_short(how):
    shared = ConnectionError("lost")
    with pytest.raises(fanout.FanOutError):
        async with fanout.stream(
            functools.partial(lose_it, shared=shared), [how] * 100, policy=fanout.Collect()
        ) as results:
            async for _ in results:
                raise AssertionError
    check_is_short(shared)


@HOWS
async def test_an_object_that_many_steps_raise_is_short(how):
    shared = ConnectionError("lost")
    step = fanout.Step(functools.partial(lose_it, how, shared))
    with pytest.raises(fanout.FanOutError):
        await fanout.run_graph(dict.fromkeys(range(100), step), policy=fanout.Collect())
    check_is_short(shared)


async def test_an_object_whose_failures_are_handed_over_does_not_grow_without_end():
    """No list of failures shows that it is one object; but no single raise could have made so long a traceback."""
    shared = ConnectionError("lost")
    seen = []
    async with fanout.stream(
        functools.partial(lose_it, shared=shared), ["plain"] * 2000, policy=fanout.Settle()
    ) as results:
        async for _, _, one in results:
            seen.append(len(entries_of(one.error)))
    async with fanout.open_group(policy=fanout.Settle()) as group:
        for _ in range(2000):
            group.start_soon(lose_it, "plain", shared)
    seen.append(len(entries_of(shared)))
    assert max(seen) <= sys.getrecursionlimit()


async def test_the_traceback_of_an_object_that_one_item_raised_is_left_as_it_is():
    """Even if a step that was skipped has it as its cause."""

    async def recurse(depth=20):
        if not depth:
            raise ValueError
        await recurse(depth - 1)

    steps = {"a": fanout.Step(recurse), "b": fanout.Step(recurse, ["a"]), "c": fanout.Step(recurse, ["a"])}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph(steps, policy=fanout.Collect())
    assert entries_of(excinfo.value.failures["a"]) == ["recurse"] * 21
    async with fanout.open_group(policy=fanout.Settle()) as group:
        job = group.start_soon(recurse)
    assert entries_of(job.outcome.error) == ["recurse"] * 21


def test_kinds_look_once_at_an_object_that_many_items_raised():
    looks = 0

    class Looked(ValueError):
        @property
        def __traceback__(self):
            nonlocal looks
            looks += 1

    shared = Looked()
    (kind,) = fanout.FanOutError(dict.fromkeys(range(1000), shared), {}, 1000).kinds()
    assert len(kind.indices) == 1000
    assert looks == 1


# split and subgroup


@pytest.mark.parametrize("kind", [ValueError, (ValueError, OSError), lambda exc: isinstance(exc, ValueError)])
def test_split_gives_each_half_its_own_indices(kind):
    match, rest = make().split(kind)
    check(match, (1, 4, 5))
    check(rest, (2, 4))
    assert match is not None
    assert rest is not None
    assert match.exceptions[0] is ERRORS[1]
    assert match.exceptions[2] is ERRORS[5]
    assert rest.exceptions[0] is ERRORS[2]


def test_split_keeps_a_partial_nested_group_with_its_index():
    match, rest = make().split(OSError)
    part = check(match, (4,)).failures[4]
    assert isinstance(part, ExceptionGroup)
    assert part.message == "four"
    assert repr(part.exceptions) == repr((ExceptionGroup("deep", [OSError("four c")]),))
    left = check(rest, (1, 2, 4, 5)).failures[4]
    assert isinstance(left, ExceptionGroup)
    assert [type(exc) for exc in left.exceptions] == [ValueError, KeyError]


def test_split_of_a_split_keeps_its_data():
    match, _ = make().split(ValueError)
    assert match is not None
    _, rest = match.split(lambda exc: exc.args == ("one",))
    check(rest, (4, 5))
    match, rest = make().split(KeyError)
    assert rest is not None
    inner, outer = rest.split(OSError)
    check(inner, (4,))
    check(outer, (1, 4, 5))


def test_split_of_all_or_nothing():
    error = make()
    match, rest = error.split(Exception)
    assert match is error
    assert rest is None
    match, rest = error.split(ZeroDivisionError)
    assert match is None
    check(rest, (1, 2, 4, 5))


def test_subgroup_keeps_the_data():
    check(make().subgroup(KeyError), (2, 4))
    assert make().subgroup(ZeroDivisionError) is None


def test_split_of_equal_exceptions_goes_by_identity():
    """A member never gets its neighbour's index, however alike the two are."""

    class Same(Exception):
        def __eq__(self, other):
            return isinstance(other, Same)

        __hash__ = None

    wanted = Same("wanted")
    error = make({1: Same("x"), 2: wanted, 4: Same("y"), 5: Same("z")})
    match, rest = error.split(lambda exc: exc is wanted)
    assert check(match, (2,)).exceptions[0] is wanted
    check(rest, (1, 4, 5))


def test_the_same_exception_object_keeps_both_its_indices():
    twice = ValueError("twice")
    error = make({1: twice, 2: KeyError(), 4: twice, 5: KeyError()})
    check(error, (1, 2, 4, 5))
    match, rest = error.split(ValueError)
    assert check(match, (1, 4)).exceptions == (twice, twice)
    check(rest, (2, 5))


def test_groups_that_share_their_leaves_keep_their_own_indices():
    leaf = ValueError("leaf")
    groups = [ExceptionGroup(f"group {x}", [leaf, KeyError(x)]) for x in range(4)]
    error = make(dict(zip([1, 2, 4, 5], groups, strict=True)))
    match, rest = error.split(ValueError)
    check(match, (1, 2, 4, 5))
    check(rest, (1, 2, 4, 5))
    assert rest is not None
    assert [part.exceptions[0].args for part in rest.exceptions] == [(0,), (1,), (2,), (3,)]


def test_a_shared_leaf_does_not_move_a_group_to_its_neighbours_index():
    """Both groups hold one leaf; only the second keeps a member after the split by another leaf."""
    leaf, other = ValueError("leaf"), OSError("other")
    error = make({1: ExceptionGroup("a", [leaf, KeyError()]), 2: leaf, 4: ExceptionGroup("b", [leaf, other]), 5: other})
    check(error.subgroup(ValueError), (1, 2, 4))
    check(error.subgroup(OSError), (4, 5))
    check(error.subgroup(KeyError), (1,))


@pytest.mark.parametrize("unpickled", [False, True])
async def test_groups_that_look_alike_keep_their_own_indices(unpickled):
    """Also where a match takes a group whole, and parts of others hold the same exceptions."""
    leaf, other = ValueError("leaf"), KeyError("other")
    groups = [ExceptionGroup("a", [leaf]), ExceptionGroup("b", [leaf, other])]
    error = await failures_of(raise_it, groups)
    if unpickled:
        error = unpickled_from(error)
        groups = list(error.exceptions)
        other = groups[1].exceptions[1]
    match, rest = error.split(lambda exc: exc is groups[0] or exc is other)
    assert match is not None
    assert rest is not None
    assert match.indices == (0, 1)
    assert rest.indices == ((0,) if unpickled else (1,))  # without tracebacks nothing tells the two apart


class Wrapping(ExceptionGroup[Exception]):
    """A group whose parts are made in a way of their own."""

    def derive(self, excs):
        return Wrapping("wrapping", [OSError("what happened"), ExceptionGroup("in", excs)])


async def test_a_part_that_its_group_made_otherwise_keeps_its_index():
    error = await failures_of(raise_it, [KeyError(), Wrapping("whole", [ValueError(), KeyError()])])
    match, rest = error.split(ValueError)
    assert match is not None
    assert rest is not None
    assert (match.indices, rest.indices) == ((1,), (0, 1))


class HidesItsMembers(ExceptionGroup[Exception]):
    @property
    def exceptions(self):
        raise LookupError


@pytest.mark.parametrize("call", ["map", "stream", "group"])
async def test_a_group_whose_members_cannot_be_asked_for_is_a_failure_as_any_other(call):
    async def fail(exc):
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        raise exc

    failure = HidesItsMembers("group", [ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        if call == "map":
            await fanout.map(fail, [failure])
        elif call == "stream":
            async with fanout.stream(fail, [failure]) as results:
                async for _ in results:
                    pytest.fail("a result arrived")
        else:
            async with fanout.open_group() as group:
                group.start_soon(fail, failure)
    assert caught.value is failure or caught.value.exceptions == (failure,)


SHARED = (ValueError(), KeyError())
GROUPS = {
    "own leaves": lambda x: [ValueError(x), KeyError(x)],
    "shared leaves": lambda _: SHARED,
    "half of them": lambda x: [ValueError(x), KeyError(x)] if x % 2 else [OSError(x), TypeError(x)],
}


class LookedAt(ExceptionGroup):
    """A group that counts how often the package asks where it, or a part of it, came from."""

    looks = 0

    @property
    def __traceback__(self):
        LookedAt.looks += 1
        return super().__traceback__

    def derive(self, excs):
        return LookedAt(self.message, excs)


@pytest.mark.parametrize("members", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("unpickled", [False, True])
async def test_split_is_linear_where_members_are_groups(members, unpickled):
    error = await failures_of(raise_it, [LookedAt("group", members(x)) for x in range(1000)])
    if unpickled:
        error = pickle.loads(pickle.dumps(error))
    LookedAt.looks = 0
    for kind in (ValueError, KeyError):
        match, rest = error.split(kind)
        assert match is not None
        assert rest is not None
        assert list(match.indices) == [x for x in range(1000) if kind in map(type, error.failures[x].exceptions)]
        assert rest.indices == error.indices
    assert LookedAt.looks <= 15_000


def test_an_error_within_a_group_is_split_with_its_data():
    outer = ExceptionGroup("outer", [OSError(), make(), ExceptionGroup("inner", [make()])])
    match, rest = outer.split(ValueError)
    assert match is not None
    assert rest is not None
    check(match.exceptions[0], (1, 4, 5))
    check(match.exceptions[1].exceptions[0], (1, 4, 5))
    check(rest.exceptions[1], (2, 4))


def test_an_error_as_a_failure_of_another_run_is_split_with_its_data():
    inner = make()
    error = make({1: inner, 2: ValueError(), 4: KeyError(), 5: make()})
    match, rest = error.split(ValueError)
    check(check(match, (1, 2, 5)).failures[1], (1, 4, 5))
    check(check(rest, (1, 4, 5)).failures[5], (2, 4))


# except*


def test_except_star_catches_the_part_it_names():
    seen = []
    try:
        raise make()
    except* ValueError as group:
        seen.append(check(group, (1, 4, 5)))
    except* (KeyError, OSError) as group:
        seen.append(check(group, (2, 4)))
    assert len(seen) == 2


def test_except_star_lets_the_rest_through_with_its_data():
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            raise make()
        except* ValueError:
            pass
    check(excinfo.value, (2, 4))


def test_except_star_that_raises_again_keeps_the_data():
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            raise make()
        except* ValueError:
            raise
    check(excinfo.value, (1, 2, 4, 5))


async def test_except_star_around_a_call():
    with pytest.raises(fanout.FanOutError) as excinfo:
        try:
            await error_of_call()
        except* KeyError as group:
            caught = group
    check(caught, (2, 4))
    check(excinfo.value, (1, 4, 5))


async def error_of_call():
    raise await error_of(ERRORS, 7)


# derive


def test_derive_with_members_keeps_their_indices():
    error = make()
    check(error.derive([ERRORS[1], ERRORS[4]]), (1, 4))


def test_derive_puts_members_in_ascending_order():
    derived = check(make().derive([ERRORS[5], ERRORS[1]]), (1, 5))
    assert derived.exceptions == (ERRORS[1], ERRORS[5])


@pytest.mark.parametrize("others", [[ValueError("one")], [OSError(), KeyError()]])
def test_derive_with_what_are_no_members_is_a_plain_group(others):
    error = make()
    for excs in (others, [ERRORS[1], *others], [*others, ERRORS[4]]):
        plain = error.derive(excs)
        assert type(plain) is ExceptionGroup
        assert plain.exceptions == tuple(excs)
        assert plain.message == error.message


def test_derive_with_a_base_exception_is_a_plain_group_of_those():
    plain = make().derive([ERRORS[1], KeyboardInterrupt()])
    assert type(plain) is BaseExceptionGroup


async def test_derive_finds_parts_in_any_order_and_each_place_once():
    groups = [ExceptionGroup("group", [ValueError(x), KeyError(x)]) for x in range(3)]
    error = await failures_of(raise_it, groups)
    match, rest = error.split(ValueError)
    assert match is not None
    assert rest is not None
    assert error.derive(match.exceptions[::-1]).exceptions == match.exceptions
    assert error.derive([match.exceptions[2], groups[0]]).indices == (0, 2)
    for excs in ([match.exceptions[2], groups[2]], [groups[2], rest.exceptions[2]], [*match.exceptions] * 2):
        assert type(error.derive(excs)) is ExceptionGroup


def test_derive_with_a_member_too_often_is_a_plain_group():
    assert type(make().derive([ERRORS[1], ERRORS[1]])) is ExceptionGroup


def test_derive_with_a_group_that_only_shares_some_leaves_is_a_plain_group():
    """It is no part of a member: it holds something that the member does not."""
    four = ERRORS[4]
    assert isinstance(four, ExceptionGroup)
    stranger = ExceptionGroup("stranger", [four.exceptions[0], OSError("unknown")])
    assert type(make().derive([stranger])) is ExceptionGroup


# pickle, copy


def same(a, b):
    assert type(a) is type(b)
    assert a.message == b.message
    assert a.indices == b.indices
    assert a.items == b.items
    assert a.results == b.results
    assert a.total == b.total
    assert repr(a.failures) == repr(b.failures)
    assert repr(a.exceptions) == repr(b.exceptions)
    assert all(x is y for x, y in zip(b.failures.values(), b.exceptions, strict=True))


@pytest.mark.parametrize("duplicate", COPIES)
def test_error_can_be_pickled_and_copied(duplicate):
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


def test_copy_shares_its_members_and_deepcopy_does_not():
    error = make()
    assert copy.copy(error).exceptions[0] is error.exceptions[0]
    assert copy.deepcopy(error).exceptions[0] is not error.exceptions[0]


def test_the_same_exception_object_survives_pickling():
    twice = ValueError("twice")
    again = pickle.loads(pickle.dumps(make({1: twice, 2: twice, 4: KeyError(), 5: KeyError()})))
    assert again.exceptions[0] is again.exceptions[1]
    check(again.subgroup(ValueError), (1, 2))


def test_split_keeps_cause_context_notes_and_traceback():
    error = make()
    error.__cause__ = cause = OSError("cause")
    error.add_note("a note")
    match, _ = error.split(ValueError)
    assert match is not None
    assert match.__cause__ is cause
    assert match.__notes__ == ["a note"]
    assert match.__traceback__ is error.__traceback__


def in_child(error):
    """Raise, in another process, the half that the parent expects."""
    half = error.subgroup(ValueError)
    assert isinstance(half, fanout.FanOutError)
    raise half


def settle_in_child():
    async def main():
        return await fanout.map(trio.sleep, [9, 0], limit=1, policy=fanout.Settle(move_on_after=0.05))

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_errors_cross_a_process_boundary():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(in_child, make())
        outcomes = pool.submit(settle_in_child).result()
        with pytest.raises(fanout.FanOutError) as excinfo:
            future.result()
    check(excinfo.value, (1, 4, 5))
    assert [(one.error.index, one.error.started) for one in outcomes] == [(0, True), (1, False)]


# What a run makes


def test_members_are_the_very_exceptions_that_items_raised():
    frozen = FrozenError(3)
    error = make({2: frozen}, 3)
    assert error.exceptions[0] is frozen


def test_members_have_the_traceback_of_their_item():
    error = make({1: ValueError()}, 2)
    names = [frame.name for frame in traceback.extract_tb(error.exceptions[0].__traceback__)]
    assert names[0] == "fn"


async def test_results_and_failures_are_not_the_callers_to_share():
    """Two errors of the same run do not exist; those of two runs share nothing."""
    first, second = await error_of(ERRORS, 7), await error_of(ERRORS, 7)
    assert first.results is not second.results
    assert first.failures is not second.failures


async def test_error_has_no_context_of_the_machinery():
    error = await error_of({0: ValueError()}, 1)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert await fanout.map(double, [1]) == [2]
