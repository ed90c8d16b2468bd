"""What an adapter leads to is freed once nothing else refers to the adapter, also in the middle of a Trio run."""

import concurrent.futures
import functools
import gc
import threading
import weakref

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

import trio_fanout as fanout

EXECUTOR = concurrent.futures.ThreadPoolExecutor(1)


def host_of(client, page):
    return page[0]


class Client:
    """Has an adapter of a method of its own, whose functions lead back to it."""

    def __init__(self, adapt):
        self.get = adapt(self)

    async def fetch(self, page):
        if page == "refused":
            raise ConnectionError
        await trio.lowlevel.checkpoint()
        return page

    def block(self, page):
        return page

    def host(self, page):
        return page[0]

    def session(self, page):
        return Session(self)

    def units(self, page):
        return 1

    def busy(self, exc):
        return 1000

    def ended(self, ended):
        return None


class Session:
    """A key that leads to the client."""

    def __init__(self, client):
        self.client = client


LIMITER = trio.CapacityLimiter(100)

ADAPTERS = {
    "cap": lambda self: fanout.cap(self.fetch, 5),
    "cap, key": lambda self: fanout.cap(self.fetch, 5, key=self.host),
    "cap, key that leads to it": lambda self: fanout.cap(self.fetch, 5, key=self.session),
    "cap, weight": lambda self: fanout.cap(self.fetch, 5, weight=self.units),
    "cap, key and weight": lambda self: fanout.cap(self.fetch, 5, key=self.host, weight=self.units),
    "cap, overloaded": lambda self: fanout.cap(self.fetch, 5, overloaded=self.busy),
    "cap, key and overloaded": lambda self: fanout.cap(self.fetch, 5, key=self.host, overloaded=self.busy),
    "cap, session and overloaded": lambda self: fanout.cap(self.fetch, 5, key=self.session, overloaded=self.busy),
    "cap on a limiter": lambda self: fanout.cap(self.fetch, trio.CapacityLimiter(5)),
    "cap on a limiter of its own": lambda self: fanout.cap(self.fetch, trio.CapacityLimiter(5), overloaded=self.busy),
    "cap on one for all": lambda self: fanout.cap(self.fetch, LIMITER, overloaded=lambda exc: self.busy(exc) > 1e9),
    "throttle": lambda self: fanout.throttle(self.fetch, 0.001),
    "throttle, key": lambda self: fanout.throttle(self.fetch, 0.001, key=self.host),
    "throttle, key that leads to it": lambda self: fanout.throttle(self.fetch, 0.001, key=self.session),
    "throttle, cost": lambda self: fanout.throttle(self.fetch, 0.001, burst=3, cost=self.units),
    "throttle, key and cost": lambda self: fanout.throttle(self.fetch, 0.001, key=self.session, cost=self.units),
    "adapters in adapters": lambda self: fanout.cap(fanout.throttle(self.fetch, 1, key=self.host), 5, key=self.session),
    "in_thread": lambda self: fanout.in_thread(self.block),
    "in_executor": lambda self: fanout.in_executor(EXECUTOR, self.block),
    "meter": lambda self: fanout.Meter(on_end=self.ended).wrap(self.fetch),
}


async def use(client):
    await client.get("page")
    with trio.move_on_after(0):
        await client.get("refused")


@pytest.mark.parametrize("name", [name for name in ADAPTERS if not name.startswith("in_")])
async def test_failure_that_is_kept_keeps_no_task(name):
    """Its traceback leads to the frames of the call, and a task leads to all that it runs."""
    client = Client(ADAPTERS[name])
    kept, tasks = [], weakref.WeakSet()

    async def call():
        tasks.add(trio.lowlevel.current_task())
        try:
            await client.get("refused")
        except ConnectionError as exc:
            kept.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
    await collected()
    assert len(kept) == 1
    assert len(tasks) == 0


async def collected():
    EXECUTOR.submit(int).result()  # a thread holds its last call until it is given another one
    for _ in range(3):  # Trio lets go of the frames of the last wait
        await trio.lowlevel.checkpoint()
    gc.collect()


@pytest.mark.parametrize("name", ADAPTERS)
async def test_clients_made_one_after_another_are_freed(name):
    gone = []
    for _ in range(5):
        client = Client(ADAPTERS[name])
        gone.append(weakref.ref(client))
        try:
            await use(client)
        except ConnectionError:
            pass
        del client
    await collected()
    assert [ref() for ref in gone] == [None] * 5


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name.startswith(("cap", "throttle"))])
async def test_client_with_a_call_that_was_cancelled_while_it_waited_is_freed(autojump_clock, name):
    client = Client(ADAPTERS[name])
    gone = weakref.ref(client)
    with trio.move_on_after(1):
        await fanout.do(client.get, ["a"] * 20, limit=20)
    del client
    await collected()
    assert gone() is None


async def test_adapter_made_for_each_call_is_freed_without_the_garbage_collector():
    async def fetch(page):
        return page

    gc.disable()
    try:
        for adapt in (
            functools.partial(fanout.cap, limit=3, key=len),
            functools.partial(fanout.cap, limit=3, weight=len),
            functools.partial(fanout.cap, limit=3, overloaded=bool),
            functools.partial(fanout.cap, limit=trio.CapacityLimiter(3), overloaded=bool),
            functools.partial(fanout.throttle, rate=1, key=len, cost=len),
        ):
            adapted = adapt(fetch)
            gone = weakref.ref(adapted)
            await adapted("a")
            del adapted
            await trio.lowlevel.checkpoint()
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "options", [{}, {"key": len}, {"overloaded": bool}, {"weight": len}], ids=["fixed", "key", "adaptive", "weight"]
)
def test_state_of_a_run_goes_with_the_run(options):
    """Where the adapter stays."""

    class Key:
        """What a weak reference can watch."""

    kept = []

    async def fetch(page):
        kept.append(weakref.ref(trio.lowlevel.current_trio_token()))
        kept.append(weakref.ref(trio.lowlevel.current_task()))

    for adapted in (fanout.cap(fetch, 3, **options), fanout.throttle(fetch, 1, key=lambda page: page)):
        trio.run(adapted, "a", clock=MockClock(autojump_threshold=0))
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_state_of_a_run_in_another_thread_goes_with_it():
    async def fetch(page):
        refs.append(weakref.ref(trio.lowlevel.current_trio_token()))

    refs = []
    adapted = fanout.cap(fetch, 3, overloaded=bool)
    for _ in range(3):
        thread = threading.Thread(target=trio.run, args=(adapted, "a"))
        thread.start()
        thread.join()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3
