"""`in_process`: CPU-bound functions in worker processes."""

import contextvars
import functools
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
import threading
import types

import pytest
import trio
from trio.testing import assert_checkpoints

import trio_fanout as fanout
from helpers import no_cycles, nothing_left
from trio_fanout import in_process

trio_parallel = pytest.importorskip("trio_parallel", reason="needs the extra `process`")

posix = pytest.mark.skipif(sys.platform == "win32", reason="processes are not killed by signals there")

tint = contextvars.ContextVar("tint", default="none")


class StubbornError(Exception):
    """Can be pickled, but not put together again."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise TypeError("pickle brought me here")


def square(x):
    return x * x


def all_of_it(*args, **kwargs):
    return os.getpid(), args, kwargs


def pid(_=None):
    return os.getpid()


def fail_by_key(item):
    return {0: "zero"}[item]


def return_a_lock():
    return threading.Lock()


def raise_a_lock():
    raise ValueError(threading.Lock())


def raise_stubborn():
    raise StubbornError


def tinted():
    return tint.get()


def exit_with(code):
    os._exit(code)


def kill_itself(number):
    os.kill(os.getpid(), number)
    signal.pause()


def crash_on(bad, item):
    if item == bad:
        os._exit(7)
    return item


def say_pid_and_hang(path):
    new = path.with_suffix(".new")
    new.write_text(str(os.getpid()))
    new.rename(path)  # so that half of it is never read
    while True:
        pass


async def coroutine_function():
    raise AssertionError


def returns_coroutine():
    return coroutine_function()


def leave(code):
    sys.exit(code)


def interrupt():
    raise KeyboardInterrupt


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x

    @classmethod
    def one(cls):
        return 1

    def scale(self, x):
        return self(x)


def make_local():
    def local():
        raise AssertionError

    return local


def make_local_class():
    class Local(Scaler):
        pass

    return Local


async def until_exists(path):
    with trio.fail_after(60):
        while not path.exists():  # noqa: ASYNC110
            await trio.sleep(0.01)  # seconds; a process has no better way to say so


async def test_results_in_order():
    assert await fanout.map(in_process(square), range(20), limit=5) == [x * x for x in range(20)]


async def test_runs_in_another_process_and_passes_all_arguments():
    process, args, kwargs = await in_process(all_of_it)(1, 2, key=3)
    assert process != os.getpid()
    assert (args, kwargs) == ((1, 2), {"key": 3})


async def test_own_limit_of_trio_parallel_stays():
    """However many the call allows, no more processes than that limiter says."""
    trio_parallel.current_default_worker_limiter().total_tokens = 1
    assert len(set(await fanout.map(in_process(pid), range(8), limit=8))) == 1


async def test_context_does_not_cross():
    tint.set("outer")
    assert await in_process(tinted)() == "none"


async def test_each_call_is_a_checkpoint():
    with assert_checkpoints():
        await in_process(pid)()


@pytest.mark.parametrize(("fn", "name"), [(square, "square"), (functools.partial(int, base=2), "int"), (len, "len")])
def test_is_named_like_the_function(fn, name):
    assert in_process(fn).__name__ == name


async def test_failure_keeps_type_and_traceback_and_gets_its_index():
    with pytest.raises(KeyError) as caught:
        await fanout.map(in_process(fail_by_key), range(2))
    assert caught.value.__notes__ == ["item 1"]
    assert any(entry.name == "fail_by_key" for entry in caught.traceback)


async def test_crash_is_one_items_failure_that_says_which_and_how():
    fn = in_process(functools.partial(crash_on, 3))
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(fn, range(6), policy=fanout.Collect())
    error = caught.value
    assert error.indices == (3,)
    assert error.results == {index: index for index in (0, 1, 2, 4, 5)}
    assert isinstance(error.failures[3], trio_parallel.BrokenWorkerError)
    assert str(error.failures[3]) == "the worker process that ran crash_on died with exit code 7"
    assert str(pickle.loads(pickle.dumps(error)).failures[3]) == str(error.failures[3])


@posix
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 3, None)]
)
async def test_killed_worker_names_the_signal(number, name):
    with pytest.raises(trio_parallel.BrokenWorkerError) as caught:
        await in_process(kill_itself)(number)
    assert str(caught.value) == (
        f"the worker process that ran kill_itself was killed by {name or f'signal {int(number)}'}"
    )


async def test_function_that_returns_a_coroutine_is_a_type_error(capfd):
    with pytest.raises(TypeError, match="fn of in_process must be a function that is not async, but returns_coroutine"):
        await in_process(returns_coroutine)()
    assert "never awaited" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (functools.partial(leave, 3), r"leave raised SystemExit\(3\), which under in_process ends just this call"),
        (functools.partial(leave, "out of disk"), "'out of disk'"),
        (interrupt, r"interrupt raised KeyboardInterrupt\(\)"),
    ],
)
async def test_a_base_exception_is_one_items_failure(fn, told):
    """`sys.exit()` in a worker does not end the caller's program, nor the worker."""
    with pytest.raises(RuntimeError, match=told) as caught:
        await fanout.fan_out([lambda _: in_process(fn)()], None)
    assert caught.value.__notes__ == ["item 0"]
    outcomes = await fanout.map(lambda _: in_process(fn)(), range(2), policy=fanout.Settle())
    assert [type(one.error) for one in outcomes] == [RuntimeError] * 2


async def test_worker_that_died_with_exit_code_1_speaks_of_the_main_guard():
    """`os._exit` is the other way to that code, so it is told as a condition."""
    with pytest.raises(trio_parallel.BrokenWorkerError) as caught:
        await in_process(exit_with)(1)
    assert str(caught.value) == (
        "the worker process that ran exit_with died with exit code 1. If it died as it started: "
        'what starts the program has to stand under `if __name__ == "__main__":`'
    )


async def test_worker_that_exits_without_an_error_died_all_the_same():
    with pytest.raises(
        trio_parallel.BrokenWorkerError, match=r"^the worker process that ran exit_with died with exit code 0$"
    ):
        await in_process(exit_with)(0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["FailFast", "Settle"])
def test_program_without_a_main_guard_is_told_of_it_in_a_few_lines(tmp_path, policy):
    """And nothing of it runs on in the workers, under any policy."""
    program = tmp_path / "program.py"
    program.write_text(
        "import math, trio\n"
        "import trio_fanout as fanout\n"
        "async def main():\n"
        f"    return await fanout.map(fanout.in_process(math.factorial), range(5), policy=fanout.{policy}())\n"
        "print(trio.run(main))\n"
    )
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    told = 'what starts the program has to stand under `if __name__ == "__main__":`'
    if policy == "Settle":
        assert ran.stdout.count(told) == 5
        assert len(ran.stdout.splitlines()) == 1
    else:
        assert ran.returncode == 1
        assert ran.stdout == ""
        assert f"that ran factorial died with exit code 1. If it died as it started: {told}\n" in ran.stderr
    assert ran.stderr.count("Traceback") == (policy == "FailFast")
    assert f"\nin_process was called while a worker process imported the main module: {told}\n" in f"\n{ran.stderr}"


async def test_call_in_a_worker_that_imports_the_main_module_ends_it(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match="if __name__"):
        await fanout.map(in_process(square), [3])


async def test_after_a_crash_the_next_call_gets_another_worker():
    with pytest.raises(trio_parallel.BrokenWorkerError):
        await in_process(exit_with)(1)
    assert await in_process(square)(3) == 9


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (threading.Lock().acquire, ()),
        (square, (threading.Lock(),)),
        (return_a_lock, ()),
        (raise_a_lock, ()),
        (raise_stubborn, ()),
    ],
    ids=["function", "argument", "result", "exception", "exception that cannot be put together again"],
)
async def test_what_cannot_be_pickled_is_a_failure_of_that_call(fn, args):
    with pytest.raises(TypeError, match="pickle"):
        await in_process(fn)(*args)
    assert await in_process(square)(3) == 9


async def test_what_cannot_be_pickled_is_one_items_failure():
    outcomes = await fanout.map(in_process(square), [1, threading.Lock(), 3], policy=fanout.Settle())
    assert isinstance(outcomes[1].error, TypeError)
    assert [outcomes[0].unwrap(), outcomes[2].unwrap()] == [1, 9]


async def test_cancellation_kills_the_worker(tmp_path):
    """And waits until it is gone."""
    path = tmp_path / "pid"
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fanout.map, in_process(say_pid_and_hang), [path])
            await until_exists(path)
            assert int(path.read_text()) in [child.pid for child in multiprocessing.active_children()]
            nursery.cancel_scope.cancel()
    assert int(path.read_text()) not in [child.pid for child in multiprocessing.active_children()]
    if sys.platform != "win32":
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


async def test_item_timeout_kills_the_worker(tmp_path):
    async with trio_parallel.cache_scope():
        with pytest.raises(trio.TooSlowError):
            await fanout.map(in_process(say_pid_and_hang), [tmp_path / "pid"], item_timeout=0.001)
        statistics = trio_parallel.default_context_statistics()
        assert (statistics.running_workers, statistics.idle_workers) == (0, 0)


async def test_cancelled_before_it_starts_starts_no_process():
    async with trio_parallel.cache_scope():
        with trio.CancelScope() as scope:
            scope.cancel()
            await in_process(square)(3)
        assert scope.cancelled_caught
        assert trio_parallel.default_context_statistics().idle_workers == 0


async def test_leaves_no_cycles():
    """Of a call that succeeds; a traceback from another process has some, which are trio-parallel's and tblib's."""
    await in_process(square)(3)  # a process that starts leaves some, too
    with no_cycles():
        await in_process(square)(3)


@pytest.mark.parametrize("fn", [coroutine_function, functools.partial(coroutine_function)])
def test_async_function_is_a_type_error_at_once_that_names_it(fn):
    with pytest.raises(TypeError, match="fn of in_process must be a function that is not async, but coroutine_fun"):
        in_process(fn)


LAMBDA = lambda: None  # noqa: E731


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda: None, "<lambda>"),
        (LAMBDA, "<lambda>"),
        (make_local(), "make_local.<locals>.local"),
        (functools.partial(lambda: None), "<lambda>"),
        (functools.partial(functools.partial(make_local(), 1), 2), "make_local.<locals>.local"),
        (functools.partial(map, lambda x: x), "<lambda>"),
        (functools.partial(sorted, key=lambda x: x), "<lambda>"),
        (make_local_class(), "make_local_class.<locals>.Local"),
        (make_local_class()(2), "make_local_class.<locals>.Local"),
        (make_local_class()(2).scale, "make_local_class.<locals>.Local"),
        (make_local_class().one, "make_local_class.<locals>.Local"),
        (types.MethodType(lambda _: None, 3), "<lambda>"),
    ],
)
def test_what_a_worker_cannot_import_is_a_value_error_at_once_that_says_the_rule(fn, name):
    with pytest.raises(
        ValueError, match=r"^fn of in_process must be a function that a worker process can import by its name"
    ) as caught:
        in_process(fn)
    assert f"{name}: define it at the top level of a module" in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "args", "result"),
    [
        (Scaler(2), (3,), 6),
        (Scaler(2).scale, (3,), 6),
        (Scaler.one, (), 1),
        ("a-b".split, ("-",), ["a", "b"]),
        (functools.partial(sorted, key=operator.itemgetter(1)), (["ab", "ba"],), ["ba", "ab"]),
        (int, ("3",), 3),
        (str.upper, ("a",), "A"),
    ],
)
async def test_any_function_that_can_be_imported_is_accepted(fn, args, result):
    assert await in_process(fn)(*args) == result


def test_what_cannot_be_called_is_a_type_error_at_once():
    with pytest.raises(TypeError, match="fn of in_process must be a function that is not async, got 3"):
        in_process(3)


def test_without_the_extra_it_is_an_import_error_at_once_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trio_parallel", None)
    with pytest.raises(ImportError, match=r"^in_process needs trio-parallel: pip install trio-fanout\[pro") as caught:
        in_process(square)
    assert caught.value.name == "trio_parallel"
