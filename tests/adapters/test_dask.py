"""`in_executor` on a Dask cluster: a scheduler, and workers that are processes of their own, on loopback."""

import os
import signal
import sys
import threading
import time

import pytest
import trio

import trio_fanout as fanout
from helpers import PATIENCE, nothing_left
from trio_fanout import in_executor, in_thread

distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
dask = pytest.importorskip("dask")

pytestmark = [pytest.mark.dask, pytest.mark.slow]


def square(x):
    return x * x


def fail_by_key(item):
    return {item: "found"}[min(item, 2)]


def returns_coroutine(item):
    return coroutine_function(item)


async def coroutine_function(item):
    raise AssertionError(item)


def kill_the_worker_once(mark, item):
    """Return the item, but for the first time that 100 comes up: then die, with all that this worker was doing."""
    if item == 100 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def hold(folder, item):
    """Say that this is running, and go on until told to stop."""
    (folder / str(item)).touch()
    wait_for((folder / "stop").exists)
    return item


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # seconds; other processes have no better way to say so


@pytest.fixture(scope="module")
def client():
    with (
        # By default the scheduler looks for a worker that has died for 30 seconds.
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # as None it would still take a port, and always the same
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def executor(client):
    """Dask as an executor, which forgets all it did by the end of the test."""
    client.wait_for_workers(2, timeout=PATIENCE)  # one may have been killed just before
    yield client.get_executor(pure=False)
    wait_for(lambda: is_idle(client))


def known(client):
    """How many tasks the scheduler knows of: those still on their way there do not count."""

    def count(dask_scheduler):
        return len(dask_scheduler.tasks)

    return client.run_on_scheduler(count)


def is_idle(client, *, still_at=0):
    """Whether the scheduler knows of no task any more, and no worker of more than `still_at`."""

    def count(dask_worker):
        return len(dask_worker.state.tasks)

    return known(client) == 0 and max(client.run(count).values()) <= still_at


async def test_thousands_of_items_in_order(executor):
    assert await fanout.map(in_executor(executor, square), range(2_000), limit=100) == [x * x for x in range(2_000)]


async def test_workers_are_other_processes_and_work_at_the_same_time(executor, tmp_path):
    def meet(item):
        (tmp_path / str(item)).touch()
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        return os.getpid()

    pids = await fanout.map(in_executor(executor, meet), range(2))
    assert len({os.getpid(), *pids}) == 3


async def test_failure_on_a_worker_arrives_with_its_type_and_index(executor):
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(in_executor(executor, fail_by_key), range(5), policy=fanout.Collect())
    assert caught.value.indices == (3, 4)
    assert {type(failure) for failure in caught.value.exceptions} == {KeyError}
    assert caught.value.results == {0: "found", 1: "found", 2: "found"}


async def test_what_cannot_be_pickled_is_one_items_failure(executor):
    outcomes = await fanout.map(in_executor(executor, square), [1, threading.Lock(), 3], policy=fanout.Settle())
    assert isinstance(outcomes[1].error, Exception)
    assert [outcomes[0].unwrap(), outcomes[2].unwrap()] == [1, 9]


def raise_over_a_lock(item):
    try:
        raise OSError(threading.Lock())
    except OSError:
        raise (ValueError("the real one") if item else RefusesToBePickled("the real one"))  # noqa: B904


class RefusesToBePickled(Exception):
    def __reduce__(self):
        raise RuntimeError


async def test_failure_arrives_though_it_or_what_it_came_out_of_cannot_be_pickled(executor):
    fn = in_executor(executor, raise_over_a_lock)
    refused, real = [one.error for one in await fanout.map(fn, range(2), policy=fanout.Settle())]
    assert (type(real), str(real)) == (ValueError, "the real one")
    assert "RefusesToBePickled: the real one" in str(refused)


async def test_function_that_returns_a_coroutine_is_a_type_error(executor):
    """And the call ends, where Dask would never get hold of a coroutine."""
    with pytest.raises(
        TypeError, match=r"^fn of in_executor must be a function that is not async, but returns_coroutine returned"
    ):
        await in_executor(executor, returns_coroutine)(0)


async def test_exit_is_one_items_failure_and_the_worker_lives(client, executor):
    workers = client.run(os.getpid)
    outcomes = await fanout.map(in_executor(executor, sys.exit), range(3), policy=fanout.Settle())
    assert [str(one.error) for one in outcomes] == [
        f"exit raised SystemExit({code}), which under in_executor ends just this call" for code in range(3)
    ]
    assert client.run(os.getpid) == workers


async def test_tasks_are_named_after_the_function(client, tmp_path, executor):
    """Dask's dashboard groups them by that name."""

    def resize(item):
        return hold(tmp_path, item)

    def names(dask_scheduler):
        return [str(key) for key in dask_scheduler.tasks]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_executor(executor, resize), 0)
        await in_thread(wait_for)((tmp_path / "0").exists)
        (name,) = await in_thread(client.run_on_scheduler)(names)
        (tmp_path / "stop").touch()
    assert name.startswith("resize-")


async def test_arguments_that_dask_has_a_meaning_for_arrive(executor):
    assert await in_executor(executor, dict)(key=1, workers=2, pure=3) == {"key": 1, "workers": 2, "pure": 3}


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not killed by signals there")
async def test_killed_worker_loses_nothing(executor, tmp_path):
    mark = tmp_path / "killed"

    def work(item):
        return kill_the_worker_once(mark, item)

    assert await fanout.map(in_executor(executor, work), range(300), limit=50) == list(range(300))
    assert mark.exists()


@pytest.mark.parametrize("abandon_on_cancel", [False, True])
async def test_cancellation_reaches_the_scheduler(client, executor, tmp_path, abandon_on_cancel):
    """Its futures are released, and once the workers have done what they were at, the cluster is idle again."""

    def work(item):
        return hold(tmp_path, item)

    with nothing_left():
        async with trio.open_nursery() as nursery:
            fn = in_executor(executor, work, abandon_on_cancel=abandon_on_cancel)
            nursery.start_soon(fanout.map, fn, range(100))
            await in_thread(wait_for)(lambda: known(client) == fanout.DEFAULT_LIMIT)
            await in_thread(wait_for)(lambda: len(list(tmp_path.iterdir())) == 2)  # both workers are at it
            nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    await in_thread(wait_for)(lambda: is_idle(client, still_at=1))
    (tmp_path / "stop").touch()
    await in_thread(wait_for)(lambda: is_idle(client))
    assert len(list(tmp_path.iterdir())) == 3  # two that ran, and "stop": no other was started


async def test_fail_fast_cancels_the_rest(client, executor, tmp_path):
    def work(item):
        if item:
            return hold(tmp_path, item)
        wait_for((tmp_path / "fail").exists)
        return fail_by_key(9)

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _run():
            with pytest.raises(KeyError) as caught:
                await fanout.map(in_executor(executor, work), range(30))
            assert caught.value.__notes__ == ["item 0"]

        await in_thread(wait_for)(lambda: known(client) == 30)
        (tmp_path / "fail").touch()
    (tmp_path / "stop").touch()  # the rest of the check is that the cluster comes to be idle, which it must


async def test_trio_thread_is_not_used_for_submitting_or_cancelling(client, tmp_path):
    """They may block there: test_executors.py has what that would do."""
    trio_thread = threading.current_thread()
    seen = []

    class Watched(distributed.cfexecutor.ClientExecutor):
        def submit(self, *args, **kwargs):
            seen.append(threading.current_thread())
            future = super().submit(*args, **kwargs)
            future.add_done_callback(lambda _: seen.append(threading.current_thread()))
            return future

    def work(item):
        return hold(tmp_path, item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.map, in_executor(Watched(client, pure=False), work), range(10))
        await in_thread(wait_for)(lambda: known(client) == 10)
        nursery.cancel_scope.cancel()
    assert len(seen) == 20
    assert trio_thread not in seen
    (tmp_path / "stop").touch()
    await in_thread(wait_for)(lambda: is_idle(client))
