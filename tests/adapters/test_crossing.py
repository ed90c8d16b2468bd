"""Failures that cross from a worker process, whatever they are and wherever they come from."""

import functools
import importlib
import multiprocessing
import pickle
import sys
import threading
import traceback
import types
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import trio
from outcome import Error

import trio_fanout as fanout
from helpers import contexts_of, notes_of
from trio_fanout._blocking import Blocking, unpickled
from trio_fanout._crossing import best_trial, pickler, plain_trial, portable

trio_parallel = pytest.importorskip("trio_parallel", reason="needs the extra `process`")


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["in_process", "in_executor"])
def elsewhere(request, pool):
    """An adapter that calls functions in another process, and keeps on working."""
    return fanout.in_process if request.param == "in_process" else functools.partial(fanout.in_executor, pool)


@pytest.fixture
def no_tblib(monkeypatch):
    """No failure is pickled with its traceback, as where tblib was not imported."""
    monkeypatch.setattr("trio_fanout._crossing.sys", types.SimpleNamespace(modules={}))


async def failure_of(call, *args):
    """The failure of a call under `Settle`: the caller's program goes on, and so do the workers."""
    (one,) = await fanout.map(lambda _: call(*args), [None], policy=fanout.Settle())
    assert isinstance(one, Error)
    assert one.error.__class__ is not BrokenProcessPool
    return one.error


# SystemExit


def identity(x):
    return x


def leave(x):
    sys.exit(x)


def leave_in_a_group(x):
    raise BaseExceptionGroup("several", [SystemExit(x), ValueError("one of several")])


def leave_in_a_task(x):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_async)
            await trio.sleep_forever()

    async def leave_async():
        sys.exit(x)

    trio.run(main)


class LeavesWhenUnpickled:
    def __reduce__(self):
        return leave, (3,)


class LeavesWhenPickled:
    def __reduce__(self):
        sys.exit(3)


def make_one_that_leaves_when_pickled(x):
    return LeavesWhenPickled()


def make_one_that_leaves_when_unpickled(x):
    return LeavesWhenUnpickled()


class RefusesToBeUnpickled:
    def __reduce__(self):
        return int, ("x",)


def make_one_that_refuses_to_be_unpickled(x):
    return RefusesToBeUnpickled()


def raise_one_that_leaves_when_pickled(x):
    raise ValueError(LeavesWhenPickled())


@pytest.mark.parametrize(
    ("fn", "arg"),
    [
        (leave, 3),
        (leave_in_a_group, 3),
        (leave_in_a_task, 3),
        (identity, LeavesWhenPickled()),
        (identity, LeavesWhenUnpickled()),
        (make_one_that_leaves_when_pickled, 3),
        (make_one_that_leaves_when_unpickled, 3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_exit_in_a_worker_process_is_one_calls_failure(elsewhere, fn, arg):
    failure = await failure_of(elsewhere(fn), arg)
    assert type(failure) is RuntimeError
    assert str(failure).startswith(f"{fn.__name__} raised ")
    assert "SystemExit(3)" in str(failure)
    adapter = getattr(elsewhere, "func", elsewhere).__name__
    assert str(failure).endswith(f", which under {adapter} ends just this call")
    assert await elsewhere(identity)(9) == 9


async def test_result_that_cannot_be_unpickled_is_one_calls_failure(elsewhere):
    failure = await failure_of(elsewhere(make_one_that_refuses_to_be_unpickled), 3)
    assert type(failure) is ValueError
    assert await elsewhere(identity)(9) == 9


def test_ctrl_c_while_a_result_is_unpickled_is_no_calls_failure():
    def interrupted(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpickled(b"", Blocking(identity, "in_process"), interrupted)


async def test_exit_while_a_failure_is_pickled_leaves_its_text(elsewhere):
    failure = await failure_of(elsewhere(raise_one_that_leaves_when_pickled), 3)
    assert "ValueError: <" in str(failure)
    assert "LeavesWhenPickled object" in str(failure)
    assert await elsewhere(identity)(9) == 9


@pytest.mark.parametrize("how", ["in_process", "in_executor"])
async def test_exit_while_the_module_is_imported_is_one_calls_failure(how, tmp_path, monkeypatch):
    (tmp_path / "exits_when_imported.py").write_text(
        "import multiprocessing, sys\n"
        "if multiprocessing.parent_process() is not None:\n"
        "    sys.exit()\n"
        "def work(x):\n"
        "    raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("exits_when_imported").work
    if how == "in_process":
        async with trio_parallel.cache_scope():  # processes that know the new path
            failure = await failure_of(fanout.in_process(work), 3)
    else:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            failure = await failure_of(fanout.in_executor(pool, work), 3)
            assert await fanout.in_executor(pool, identity)(9) == 9
    assert str(failure) == f"work raised SystemExit(), which under {how} ends just this call"


# Failures that cannot be pickled, or not with what they came out of


class NeedsMore(Exception):
    """Its `args` are not what it takes."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class RefusesToBePickled(Exception):
    def __reduce__(self):
        raise RuntimeError


class BecomesADict(Exception):
    def __reduce__(self):
        return dict, ()


class BecomesAnExit(Exception):
    def __reduce__(self):
        return SystemExit, (3,)


class OwnGroup(ExceptionGroup[Exception]):
    def __reduce__(self):
        raise RuntimeError


class LiesAboutNotes(RefusesToBePickled):
    __notes__ = 3


def raise_from_a_lock():
    try:
        raise OSError(threading.Lock())
    except OSError as exc:
        raise ValueError("the real one") from exc


def raise_over_a_lock():
    try:
        raise OSError(threading.Lock())
    except OSError:
        raise ValueError("the real one")  # noqa: B904


def raise_over_a_lock_deep_down():
    try:
        raise_over_a_lock()
    except ValueError as exc:
        raise KeyError("the last") from exc


def raise_with_a_lock():
    error = ValueError("has a lock")
    error.lock = threading.Lock()
    error.add_note("a note")
    raise error


def raise_cls(cls, *args):
    raise cls(*args)


def raise_several():
    error = ExceptionGroup("several", [ValueError("fine"), OSError(threading.Lock())])
    error.add_note("a note")
    raise error


def raise_own_group():
    raise OwnGroup("several", [ValueError("fine"), RefusesToBePickled("not fine")])


def recurse():
    return recurse()


def raise_with_a_note():
    error = ValueError("noted")
    error.add_note("a note")
    raise error


def raise_a_long_chain():
    error = None
    for number in range(3000):
        error, earlier = ValueError(number), error
        error.__context__ = earlier
    raise error


def raise_a_circle():
    error, other = ValueError("one"), ValueError("other")
    error.__context__, other.__context__ = other, error
    raise error


def raise_deep_groups():
    error = ValueError("deep")
    for _ in range(1500):
        error = ExceptionGroup("group", [error])
    raise error


def raise_huge():
    raise ValueError("x" * 10_000_000)


def raise_a_local_class():
    class Local(Exception):
        pass

    raise Local("of a local class")


@pytest.mark.parametrize("fn", [raise_from_a_lock, raise_over_a_lock])
async def test_failure_arrives_though_what_it_came_out_of_cannot_be_pickled(elsewhere, fn):
    failure = await failure_of(elsewhere(fn))
    assert (type(failure), str(failure)) == (ValueError, "the real one")
    told = "".join(traceback.format_exception(failure))
    assert "OSError: <unlocked _thread.lock object" in told
    assert f"in {fn.__name__}" in told
    assert await elsewhere(identity)(9) == 9


async def test_whole_chain_arrives_from_in_process():
    failure = await failure_of(fanout.in_process(raise_over_a_lock_deep_down))
    last, real, lock = contexts_of(failure)
    assert (type(last), type(real), type(lock)) == (KeyError, ValueError, TypeError)
    assert last.__cause__ is real
    assert "OSError: <unlocked" in str(lock)
    assert all(exc.__traceback__ is not None for exc in (last, real, lock))


@pytest.mark.parametrize(
    ("fn", "name", "text"),
    [
        (raise_with_a_lock, "ValueError", "has a lock"),
        (functools.partial(raise_cls, RefusesToBePickled, "a text"), "RefusesToBePickled", "a text"),
        (functools.partial(raise_cls, LiesAboutNotes, "a text"), "LiesAboutNotes", "a text"),
        (functools.partial(raise_cls, BecomesADict, "a text"), "BecomesADict", "a text"),
        (functools.partial(raise_cls, BecomesAnExit, "a text"), "BecomesAnExit", "a text"),
    ],
)
async def test_failure_that_cannot_be_pickled_arrives_with_the_name_of_its_type_and_its_text(elsewhere, fn, name, text):
    failure = await failure_of(elsewhere(fn))
    assert str(failure) == f"{name}: {text} (this stands for an exception that cannot be pickled)"
    assert notes_of(failure) == (["a note"] if fn is raise_with_a_lock else [])
    assert await elsewhere(identity)(9) == 9


async def test_failure_that_takes_more_than_its_args_breaks_no_pool(elsewhere):
    failure = await failure_of(elsewhere(functools.partial(raise_cls, NeedsMore, 3, "a text")))
    assert "NeedsMore" in repr(failure)
    assert "3: a text" in str(failure)
    assert await elsewhere(identity)(9) == 9


async def test_members_of_a_group_that_cannot_be_pickled_are_replaced(elsewhere):
    failure = await failure_of(elsewhere(raise_several))
    assert type(failure) is ExceptionGroup
    assert failure.message == "several"
    assert notes_of(failure) == ["a note"]
    assert [type(exc) for exc in failure.exceptions] == [ValueError, TypeError]
    assert str(failure.exceptions[1]).startswith("OSError: <unlocked")


async def test_a_group_of_a_class_that_cannot_be_pickled_arrives_as_a_plain_one(elsewhere):
    failure = await failure_of(elsewhere(raise_own_group))
    assert type(failure) is ExceptionGroup
    assert failure.message == "OwnGroup: several"
    assert [type(exc) for exc in failure.exceptions] == [ValueError, TypeError]


async def test_recursion_error_arrives_as_one(elsewhere):
    failure = await failure_of(elsewhere(recurse))
    assert type(failure) is RecursionError
    assert "maximum recursion depth" in str(failure)
    assert "in recurse" in "".join(traceback.format_exception(failure))


async def test_notes_arrive(elsewhere):
    assert notes_of(await failure_of(elsewhere(raise_with_a_note))) == ["a note"]


@pytest.mark.parametrize(
    ("fn", "text"), [(raise_a_long_chain, "2999"), (raise_a_circle, "one"), (raise_huge, "x" * 10_000_000)]
)
async def test_failure_arrives_however_much_it_has(elsewhere, fn, text):
    failure = await failure_of(elsewhere(fn))
    assert (type(failure), str(failure)) == (ValueError, text)
    assert await elsewhere(identity)(9) == 9


async def test_groups_in_groups_arrive_as_far_as_they_can(elsewhere):
    assert "group (1 sub-exception)" in str(await failure_of(elsewhere(raise_deep_groups)))
    assert await elsewhere(identity)(9) == 9


async def test_failure_of_a_local_class_arrives(elsewhere):
    failure = await failure_of(elsewhere(raise_a_local_class))
    assert "Local" in repr(failure)
    assert "of a local class" in str(failure)


@pytest.mark.parametrize("text", ["", "a text"])
async def test_broken_worker_error_of_the_function_arrives_as_it_is(elsewhere, text):
    args = (text,) if text else ()
    failure = await failure_of(elsewhere(functools.partial(raise_cls, trio_parallel.BrokenWorkerError, *args)))
    assert type(failure) is trio_parallel.BrokenWorkerError
    assert failure.args == args


class BreaksWhenPickled:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        raise trio_parallel.BrokenWorkerError(*self.args)


@pytest.mark.parametrize("args", [(), ("a text",)])
async def test_broken_worker_error_of_an_argument_is_raised_as_it_is(args):
    with pytest.raises(trio_parallel.BrokenWorkerError) as caught:
        await fanout.in_process(identity)(BreaksWhenPickled(*args))
    assert caught.value.args == args


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()])
async def test_other_base_exceptions_are_one_calls_failure(elsewhere, error):
    failure = await failure_of(elsewhere(functools.partial(raise_cls, type(error))))
    assert str(failure).startswith(f"raise_cls raised {type(error).__name__}(), which under ")


# Executors of other kinds


class Pickling(ThreadPoolExecutor):
    """Pickles what it is given, and what comes of it, as Dask and loky do."""

    def submit(self, fn, /, *args):
        data = pickle.dumps((fn, args))
        return super().submit(self._run, data)

    @staticmethod
    def _run(data):
        fn, args = pickle.loads(data)
        try:
            value = fn(*args)
        except Exception as exc:  # noqa: BLE001
            raise pickle.loads(pickle.dumps(exc)) from None
        return pickle.loads(pickle.dumps(value))


async def test_executors_that_pickle_get_failures_that_can_be_pickled(no_tblib):
    with Pickling(1) as pool:
        call = functools.partial(fanout.in_executor, pool)
        assert await call(identity)(9) == 9
        failure = await failure_of(call(functools.partial(raise_cls, RefusesToBePickled, "a text")))
        assert str(failure) == "RefusesToBePickled: a text (this stands for an exception that cannot be pickled)"
        assert "SystemExit(3)" in str(await failure_of(call(leave), 3))
        assert str(await failure_of(call(raise_with_a_note))) == "noted"


# Without processes


def test_what_can_be_pickled_is_left_as_it_is():
    error = ValueError("fine")
    assert portable(error, plain_trial) is error


def test_only_a_long_traceback_is_cut():
    def fail(depth):
        if depth:
            fail(depth - 1)
        raise ValueError(threading.Lock())

    def entries(depth):
        with pytest.raises(ValueError, match="lock") as caught:
            fail(depth)
        return len(list(traceback.walk_tb(portable(caught.value, plain_trial).__traceback__)))

    assert [entries(depth) for depth in (9, 98, 99, 300)] == [11, 100, 100, 100]


def test_a_chain_that_cannot_be_pickled_keeps_its_last_links():
    error = None
    for _ in range(200):
        error, earlier = ValueError(threading.Lock()), error
        error.__context__ = earlier
    assert len(contexts_of(portable(error, plain_trial))) == 50


def test_groups_in_groups_are_text_if_they_are_too_deep():
    error = ValueError(threading.Lock())
    for _ in range(300):
        error = ExceptionGroup("group", [error])
    made = portable(error, plain_trial)
    assert type(pickle.loads(pickle.dumps(made))) in {ExceptionGroup, TypeError}  # Pythons differ in what is too deep

    def trial(error):
        if isinstance(error.error, ExceptionGroup):
            raise RecursionError
        return error

    assert type(portable(error, trial)) is TypeError


def test_from_none_stays_so():
    error = ValueError("one")
    error.lock = threading.Lock()
    error.__context__ = OSError(threading.Lock())
    error.__suppress_context__ = True
    made = portable(error, plain_trial)
    assert made is not error
    assert made.__suppress_context__
    assert isinstance(made.__context__, TypeError)


def test_trials_do_without_what_is_not_installed(no_tblib, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    pickler.cache_clear()
    try:
        assert pickler() is pickle
        error = ValueError("fine")
        assert portable(error, best_trial) is error
    finally:
        pickler.cache_clear()


def test_links_that_cannot_be_pickled_together_are_dropped():
    def trial(error):
        if error.error.__cause__ is not None:
            raise RecursionError
        return error

    failure = ValueError("failed")
    failure.__cause__ = KeyError("cause")
    assert portable(failure, trial) is failure
    assert failure.__cause__ is None
