"""`cap` with `overloaded`: how the cap follows what a server takes, and how long it is left alone."""

import contextlib
import functools
import math
from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import Steps, nothing_left
from trio_fanout import cap


class BusyError(Exception):
    """A refusal, with what `overloaded` is to say of it."""

    def __init__(self, answer=True):
        super().__init__(answer)
        self.answer = answer


def overloaded(exc):
    return exc.answer if isinstance(exc, BusyError) else False


class Server:
    """An async function that takes a second, or as long as it is told, and then fails as it is told."""

    def __init__(self):
        self.starts = []

    async def __call__(self, item=None, seconds=1, error=None):
        self.starts.append((item, trio.current_time()))
        await trio.sleep(seconds)
        if error is not None:
            raise error
        return item

    def waves(self, since=0):
        """How many calls began at each time."""
        return dict(Counter(time for _, time in self.starts if time >= since))


async def refused(fn, seconds=1, answer=True):
    """A call that fails after so many seconds."""
    error = BusyError(answer)
    with pytest.raises(BusyError) as caught:
        await fn("refused", seconds, error)
    assert caught.value is error
    assert caught.value.__context__ is None


async def several(fn, count, seconds=1):
    """So many calls at once."""
    await fanout.do(functools.partial(fn, seconds=seconds), range(count), limit=max(count, 1))


def make(limit, server, **options):
    return cap(server, limit, overloaded=overloaded, **options)


LIMITS = pytest.mark.parametrize("limiter", [False, True], ids=["own", "limiter"])


def limit_of(number, limiter):
    return trio.CapacityLimiter(number) if limiter else number


# Rule 1: growth


@LIMITS
@pytest.mark.parametrize(
    ("limit", "waves"),
    [
        (math.inf, {0: 10, 1: 20, 2: 40, 3: 80, 4: 50}),
        (1000, {0: 10, 1: 20, 2: 40, 3: 80, 4: 50}),
        (80, {0: 10, 1: 20, 2: 40, 3: 80, 4: 50}),
        (50, {0: 10, 1: 20, 2: 40, 3: 50, 4: 50, 5: 30}),
        (11, {0: 10, **dict.fromkeys(range(1, 18), 11), 18: 3}),
        (10, dict.fromkeys(range(20), 10)),
        (7, {**dict.fromkeys(range(28), 7), 28: 4}),
        (1, dict.fromkeys(range(200), 1)),
    ],
)
async def test_cap_starts_at_ten_and_doubles_up_to_the_limit(autojump_clock, limiter, limit, waves):
    server = Server()
    await several(make(limit_of(limit, limiter), server), 200)
    assert server.waves() == waves


@LIMITS
async def test_cap_grows_by_one_after_the_first_signal(autojump_clock, limiter):
    server = Server()
    fn = make(limit_of(100, limiter), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 70)
    # Ten, of which one is refused: seven. The other nine, of before the cut, make it no larger.
    assert server.waves() == {0: 10, 1: 7, 2: 8, 3: 9, 4: 10, 5: 11, 6: 12, 7: 4}


async def test_growth_takes_as_many_successes_as_the_cap(autojump_clock):
    """It is the success that makes it grow, not the wave."""
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        for item in range(10):
            nursery.start_soon(fn, item, 1 + item / 16)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 40, 10)
    waves = [(time, count) for time, count in server.waves().items() if time < 2]
    assert waves == [(0, 10), *((1 + item / 16, 1) for item in range(9)), (1 + 9 / 16, 11)]


@LIMITS
async def test_no_growth_if_no_call_had_to_wait(autojump_clock, limiter):
    server = Server()
    fn = make(limit_of(100, limiter), server)
    for _ in range(10):
        await several(fn, 10)
    await several(fn, 11)
    assert server.waves(since=10) == {10: 10, 11: 1}


@LIMITS
async def test_wait_that_ended_with_the_growth_counts_for_no_other(autojump_clock, limiter):
    server = Server()
    fn = make(limit_of(100, limiter), server)
    await several(fn, 20)  # ten of which wait, until the cap grows to 20
    assert server.waves() == {0: 10, 1: 10}
    for _ in range(5):
        await several(fn, 20)
    assert server.waves(since=2) == {2: 20, 3: 20, 4: 20, 5: 20, 6: 20}
    await several(fn, 21)
    assert server.waves(since=7) == {7: 20, 8: 1}


@LIMITS
async def test_wait_that_goes_on_after_a_change_counts(autojump_clock, limiter):
    server = Server()
    fn = make(limit_of(100, limiter), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 9 + 7)  # seven of which wait before the cut, and after it
        await trio.sleep(2.5)
        nursery.start_soon(several, fn, 9)
    assert server.waves() == {0: 10, 1: 7, 2.5: 8, 3.5: 1}


@LIMITS
async def test_count_goes_on_while_no_call_waits(autojump_clock, limiter):
    """Ten have succeeded by the time that one has to wait: the next success is enough."""
    server = Server()
    fn = make(limit_of(100, limiter), server)
    await several(fn, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn, "short", 0.5)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 30, 5)
    assert server.waves(since=1) == {1: 10, 1.5: 11, 6: 9, 6.5: 1}


async def test_signal_puts_the_count_back_where_the_cap_stays(autojump_clock):
    server = Server()
    fn = make(3, server)
    for _ in range(5):
        await refused(fn, 0.2)  # down to 1, where it stays
    await several(fn, 1)
    begin = trio.current_time()
    await refused(fn)
    assert server.waves(since=begin) == {begin: 1}
    begin = trio.current_time()
    await several(fn, 4)
    # One success, and there was one before the last refusal: that does not count.
    assert [time - begin for time in server.waves(begin)] == pytest.approx([0, 1, 2])
    assert list(server.waves(begin).values()) == [1, 2, 1]


async def test_failures_that_are_no_signal_change_nothing(autojump_clock):
    server = Server()
    fn = make(100, server)

    async def fail(answer):
        with pytest.raises(BusyError):
            await fn("fails", 1, BusyError(answer))

    async with trio.open_nursery() as nursery:
        for answer in [False, None] * 3:
            nursery.start_soon(fail, answer)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 44)
    # Four successes at 1, and at 2 the others of ten.
    assert server.waves() == {0: 10, 1: 10, 2: 20, 3: 10}


# Rule 2: cuts


@pytest.mark.parametrize(
    ("in_use", "cap_after"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 4), (7, 4), (8, 5), (9, 6), (10, 7)]
)
@LIMITS
async def test_cut_is_to_seven_tenths_of_the_tokens_in_use(autojump_clock, limiter, in_use, cap_after):
    """The one of the call that failed among them; at least one."""
    server = Server()
    fn = make(limit_of(100, limiter), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        nursery.start_soon(several, fn, in_use - 1)
    begin = trio.current_time()
    await several(fn, 20)
    assert server.waves()[begin] == cap_after


async def test_one_burst_of_refusals_is_one_cut(autojump_clock):
    limiter = trio.CapacityLimiter(100)
    server = Server()
    fn = make(limiter, server)
    await fn()
    limiter.total_tokens = 50
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(refused, fn, 1 + number / 64)
    assert limiter.total_tokens == 35


async def test_refusals_of_one_moment_are_one_cut(autojump_clock):
    """Whatever the order in which Trio runs their tasks, and with others waiting for their tokens."""
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(refused, fn)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 20, 10)
    assert server.waves()[0] == 10
    assert server.waves()[1] in range(7, 10)  # some got their token from the first of those that ended


async def test_successes_and_refusals_from_before_a_cut_do_not_count(autojump_clock):
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        for seconds in (1, 1.25, 1.5):
            nursery.start_soon(refused, fn, seconds)
        nursery.start_soon(several, fn, 6, 2)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 20, 10)
    # Seven, when there are so few left of the first ten; the six that succeed at 2 make it no eight.
    assert server.waves() == {0: 10, 1.5: 1, 2: 6, 11.5: 1, 12: 7, 21.5: 1, 22: 4}


async def test_cut_is_never_up(autojump_clock):
    """More tokens may be in use than there are, after another cut."""
    limiter = trio.CapacityLimiter(100)
    server = Server()
    fn = make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        nursery.start_soon(several, fn, 9, 10)
        await trio.sleep(0.75)
        assert limiter.total_tokens == 7
        limiter.total_tokens = 2
        await trio.sleep(0.25)
        limiter.total_tokens = 11
        nursery.start_soon(refused, fn, 0.5)
        await trio.sleep(0.25)
        limiter.total_tokens = 2
        await trio.sleep(0.5)
        assert limiter.borrowed_tokens == 9
        assert limiter.total_tokens == 1  # 7 * 2 // 10


# Rule 3: the gate


@LIMITS
async def test_nothing_starts_before_the_time_that_the_server_named(autojump_clock, limiter):
    """And then no more than the cap: there is no herd. Those that waited are still in their order."""
    server = Server()
    limit = limit_of(100, limiter)
    fn = make(limit, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5, 30)
        nursery.start_soon(several, fn, 9)
        await wait_all_tasks_blocked()
        for item in range(20):  # these wait for a token as the gate is closed
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
        await trio.sleep(10)
        for item in range(20, 40):  # these come to the closed gate
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
        await trio.sleep(10)
        if limiter:
            assert limit.borrowed_tokens == 0
    assert server.waves() == {0: 10, 30.5: 7, 31.5: 8, 32.5: 9, 33.5: 10, 34.5: 6}
    items = server.starts[10:]
    assert sorted(items) == sorted(items, key=lambda start: start[::-1])


@LIMITS
async def test_gate_is_looked_at_again_by_those_with_a_token_just_got(autojump_clock, limiter):
    """Nine succeed and one is refused at the same moment: the tokens of those that end first are handed on."""
    server = Server()
    fn = make(limit_of(100, limiter), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 1, 5)
        nursery.start_soon(several, fn, 9)
        await wait_all_tasks_blocked()
        for item in range(30):
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
    assert server.waves() == {0: 10, 6: 7, 7: 8, 8: 9, 9: 6}
    items = server.starts[10:]
    assert sorted(items) == sorted(items, key=lambda start: start[::-1])


@pytest.mark.parametrize("when", ["at once", "later", "as it opens"])
@pytest.mark.parametrize("cancelled", [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
async def test_gate_that_closes_as_tokens_are_given_keeps_the_order(autojump_clock, cancelled, when):
    """Three have got a token and not yet run. Some of them are cancelled: in that moment, or while they wait again."""
    if when == "as it opens":
        cancelled = [item for item in cancelled if item != 0]  # that one may have a token by then
    for _ in range(20):  # as Trio runs tasks in any order
        limiter = trio.CapacityLimiter(1)
        server = Server()
        scopes = [trio.CancelScope() for _ in range(8)]

        def cancel(scopes=scopes):
            for item in cancelled:
                scopes[item].cancel()

        def overloaded(exc, limiter=limiter, cancel=cancel):
            limiter.total_tokens = 4
            if when == "at once":
                cancel()
            return 5

        fn = cap(server, limiter, overloaded=overloaded)

        async def call(item, fn=fn, scopes=scopes):
            with scopes[item]:
                await fn(item)

        begin = trio.current_time()
        with nothing_left(limiter):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, fn)
                await wait_all_tasks_blocked()
                for item in range(8):
                    nursery.start_soon(call, item)
                    await wait_all_tasks_blocked()
                if when == "as it opens":
                    for item in cancelled:
                        scopes[item].deadline = begin + 6
                await trio.sleep(3)
                assert limiter.borrowed_tokens == 0
                if when == "later":
                    cancel()
        # From four to two, which then grow: by one, as there was a signal, and to four, which were set by hand.
        times = [6, 6, 7, 7, 7, 8, 8, 8]
        items = [item for item in range(8) if item not in cancelled]
        starts = [(item, time - begin) for item, time in server.starts[1:]]
        assert sorted(starts) == list(zip(items, times, strict=False))


@pytest.mark.parametrize("cancelled", [False, True])
async def test_gate_that_closes_before_any_that_has_a_token_could_run(autojump_clock, cancelled):
    """The first fails without a checkpoint, after it has handed on the other tokens. The line is as it was."""
    for _ in range(20):  # as Trio runs tasks in any order
        limiter = trio.CapacityLimiter(3)
        starts = []
        begin = trio.current_time()

        async def work(item, starts=starts, begin=begin):
            starts.append((item, trio.current_time() - begin))
            if item in {0, 3}:
                raise BusyError(5)
            await trio.sleep(1)

        fn = make(limiter, work)
        scopes = [trio.CancelScope() for _ in range(5)]

        async def call(item, fn=fn, scopes=scopes):
            with scopes[item], contextlib.suppress(BusyError):
                await fn(item)

        async def give_tokens_at_once(items, limiter=limiter, call=call):
            """To calls that stand in line."""
            others = range(limiter.total_tokens)
            for other in others:
                limiter.acquire_on_behalf_of_nowait(other)
            for item in items:
                nursery.start_soon(call, item)
                await wait_all_tasks_blocked()
            await trio.sleep(7)
            for other in others:
                limiter.release_on_behalf_of(other)

        with nothing_left(limiter):
            async with trio.open_nursery() as nursery:
                await give_tokens_at_once([0, 1, 2])
                await wait_all_tasks_blocked()
                await give_tokens_at_once([])  # these two wait again, in front of the line
                if cancelled:
                    scopes[2].cancel()  # it may be given a token all the same
                await trio.sleep(2)
                await give_tokens_at_once([3, 4])
        expected = [(0, 7), (1, 14), (2, 14), (3, 23), (4, 28)]
        assert starts == [start for start in expected if not cancelled or start[0] != 2]


async def test_tokens_that_come_at_once_are_handed_on_at_once(autojump_clock):
    """By whoever has the first of them: that is a few turns of Trio's loop, and not one for each."""
    limiter = trio.CapacityLimiter(10)
    server = Server()
    fn = make(limiter, server)
    for other in range(10):
        limiter.acquire_on_behalf_of_nowait(other)
    async with trio.open_nursery() as nursery:
        for item in range(20):
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
        limiter.release_on_behalf_of(0)
        await wait_all_tasks_blocked()
        for other in range(1, 10):
            limiter.release_on_behalf_of(other)
        turns = 0
        while len(server.starts) < 10:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns <= 4


async def test_tokens_that_calls_put_back_in_one_turn_are_handed_on_in_that_turn(autojump_clock):
    """So another user of the limiter, who comes later than those in the line, finds none of them."""

    class Left(trio.abc.Instrument):
        most = 0

        def after_task_step(self, task):
            self.most = max(self.most, limiter.available_tokens)

    limiter = trio.CapacityLimiter(10)
    server = Server()
    fn = make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(several, fn, 25)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(left := Left())
        await trio.sleep(1.5)
        trio.lowlevel.remove_instrument(left)
    assert server.waves() == {0: 10, 1: 10, 2: 5}
    assert left.most == 0


async def test_gate_that_closes_as_calls_arrive_is_seen_by_all_of_them(autojump_clock):
    for _ in range(40):  # as Trio runs tasks in any order
        limiter = trio.CapacityLimiter(10)
        server = Server()
        fn = make(limiter, server)
        begin = trio.current_time()

        async def arrive(item, fn=fn):
            await trio.sleep(1)
            await fn(item)

        with nothing_left(limiter):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, fn, 1, 5)
                for item in range(3):
                    nursery.start_soon(arrive, item)
        times = [time - begin for _, time in server.starts[1:]]
        assert times[0] == 6
        assert len(times) == 3


async def test_refusals_from_before_a_cut_only_move_the_gate(autojump_clock):
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5, 10)
        nursery.start_soon(refused, fn, 1, 5)  # sooner than the first says
        nursery.start_soon(refused, fn, 2, 20)
        nursery.start_soon(several, fn, 7)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 15)
    assert server.waves() == {0: 10, 22: 7, 23: 8}


async def test_growth_goes_on_under_hints_that_overlap(autojump_clock):
    """Calls of before the cut go on to name times, each longer than it takes until the next: growth is not put off."""
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(refused, fn, 0.5 + number, 2)
        nursery.start_soon(refused, fn, 20, 0.25)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 40)
    # One of the tokens is that of the last until 20, whose quarter of a second only moves the gate.
    assert server.waves(since=1) == {10.5: 6, 11.5: 6, 12.5: 7, 13.5: 8, 14.5: 9, 15.5: 4}


async def test_waiting_at_the_gate_is_no_waiting_for_a_token(autojump_clock):
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5, 5)
        nursery.start_soon(several, fn, 9)
    assert trio.current_time() == 1
    await several(fn, 7)
    await several(fn, 8)
    assert server.waves(since=1) == {5.5: 7, 6.5: 7, 7.5: 1}


async def test_last_token_that_is_there_as_the_gate_opens_is_not_waited_for(autojump_clock):
    server = Server()
    fn = make(100, server)
    await refused(fn, 1, 5)  # down to one
    await fn()
    await several(fn, 2)
    assert server.waves(since=1) == {6: 1, 7: 1, 8: 1}


async def test_single_call_that_goes_on_waiting_after_a_cut_counts(autojump_clock):
    server = Server()
    fn = make(2, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5)
        nursery.start_soon(fn)
        await wait_all_tasks_blocked()
        nursery.start_soon(fn)  # after the cut, this is the only one, and so may grow it again
    await several(fn, 2)
    assert server.waves() == {0: 2, 1: 1, 2: 2}


async def test_gate_that_moves_wakes_no_crowd(autojump_clock):
    """However long the line: one task looks at the time."""

    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(refused, fn, 1 + number / 2, 2)
        nursery.start_soon(refused, fn, 1, 2)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, fn, 1000)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps := Steps())
        await trio.sleep(6.5)
        trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()
    assert len(server.starts) == 10
    assert steps.count < 100


@pytest.mark.parametrize("seconds", [0, 0.0, -1, -math.inf, math.nan, True])
async def test_what_is_no_time_to_wait_is_a_signal_alone(autojump_clock, seconds):
    server = Server()
    fn = make(100, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5, seconds)
        nursery.start_soon(several, fn, 9)
    await several(fn, 8)
    assert server.waves(since=1) == {1: 7, 2: 1}


@pytest.mark.parametrize("seconds", [math.inf, 1e308, 10**400])
async def test_server_that_is_never_to_be_asked_again(autojump_clock, seconds):
    server = Server()
    fn = make(100, server)
    await refused(fn, 1, seconds)
    with trio.move_on_after(1e6):
        await fn()
    assert server.waves() == {0: 1}


@LIMITS
async def test_cancelled_at_the_gate_another_looks_out(autojump_clock, limiter):
    server = Server()
    fn = make(limit_of(2, limiter), server)
    await refused(fn, 1, 10)
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(4)]

        async def call(item):
            with scopes[item]:
                await fn(item)

        for item in range(4):
            nursery.start_soon(call, item)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.sleep(1)
        scopes[2].cancel()
        await trio.sleep(1)
        scopes[1].cancel()
    assert server.starts[1:] == [(3, 11)]


# Rule 4: a limiter


async def test_limiter_is_lowered_by_the_first_call(autojump_clock):
    limiter = trio.CapacityLimiter(40)
    fn = make(limiter, Server())
    assert limiter.total_tokens == 40
    await fn()
    assert limiter.total_tokens == 10
    small = trio.CapacityLimiter(3)
    await make(small, Server())()
    assert small.total_tokens == 3


async def test_all_who_use_the_limiter_follow(autojump_clock):
    """Another run on it is slowed down, too."""
    limiter = trio.CapacityLimiter(40)
    server, other = Server(), Server()
    fn = make(limiter, server)
    await refused(fn)
    assert limiter.total_tokens == 1
    begin = trio.current_time()
    await fanout.do(other, range(3), limit=limiter)
    assert trio.current_time() - begin == 3


async def test_caps_on_one_limiter_share_cap_epoch_and_gate(autojump_clock):
    limiter = trio.CapacityLimiter(40)
    server = Server()
    one, other = make(limiter, server), make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, one, 0.5, 10)
        nursery.start_soon(refused, other, 0.75, 10)  # of the same burst
        nursery.start_soon(several, one, 4)
        nursery.start_soon(several, other, 4)
        await wait_all_tasks_blocked()
        nursery.start_soon(several, other, 12)
    assert server.waves() == {0: 10, 10.75: 7, 11.75: 5}
    assert limiter.total_tokens == 8


async def test_cap_made_later_shares_them_too(autojump_clock):
    limiter = trio.CapacityLimiter(40)
    server = Server()
    await refused(make(limiter, server), 1, 10)
    await several(make(limiter, server), 3)
    assert server.waves() == {0: 1, 11: 1, 12: 2}


async def test_tokens_set_by_hand_are_the_cap_and_the_ceiling(autojump_clock):
    limiter = trio.CapacityLimiter(1000)
    server = Server()
    fn = make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(several, fn, 200)
        await trio.sleep(0.5)
        limiter.total_tokens = 30
        await trio.sleep(2.75)
        limiter.total_tokens = 50
    assert server.waves() == {0: 10, 0.5: 20, 1: 10, 1.5: 20, 2: 10, 2.5: 20, 3: 10, 3.25: 20, 3.5: 20, 4: 10} | {
        4.25: 20, 4.5: 20, 5: 10,
    }  # fmt: skip
    assert limiter.total_tokens == 50


async def test_growth_counts_from_what_was_set_by_hand(autojump_clock):
    """What succeeded before does not count, and what is set is the most, though there was more before."""
    limiter = trio.CapacityLimiter(1000)
    server = Server()
    fn = make(limiter, server)
    await refused(fn)
    limiter.total_tokens = 20
    await several(fn, 19)  # one less than the cap
    limiter.total_tokens = 3
    assert limiter.total_tokens == 3
    limiter.total_tokens = 100
    await refused(fn)  # down to one
    begin = trio.current_time()
    await several(fn, 10)
    assert server.waves(since=begin) == {begin: 1, begin + 1: 2, begin + 2: 3, begin + 3: 4}
    limiter.total_tokens = 2
    await several(fn, 20)
    assert limiter.total_tokens == 2


async def test_tokens_set_to_what_they_are_are_no_change(autojump_clock):
    """There is no telling: the limiter has the number alone."""
    limiter = trio.CapacityLimiter(1000)
    fn = make(limiter, Server())
    await several(fn, 10)
    limiter.total_tokens = 10
    await several(fn, 20)
    assert limiter.total_tokens == 20


async def test_no_tokens_stay_no_tokens(autojump_clock):
    """Through successes and signals, until the user sets some."""
    limiter = trio.CapacityLimiter(100)
    server = Server()
    fn = make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 2)
        nursery.start_soon(several, fn, 15)
        await trio.sleep(0.5)
        limiter.total_tokens = 0
        await trio.sleep(10)
        assert limiter.total_tokens == limiter.borrowed_tokens == 0
        limiter.total_tokens = 4
    assert server.waves() == {0: 10, 10.5: 4, 11.5: 2}


async def test_limiter_without_tokens_is_not_given_any(autojump_clock):
    limiter = trio.CapacityLimiter(0)
    server = Server()
    fn = make(limiter, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(several, fn, 3)
        await trio.sleep(5)
        assert limiter.total_tokens == 0
        limiter.total_tokens = 2
    assert server.waves() == {5: 2, 6: 1}


async def test_tokens_that_others_put_back_are_found(autojump_clock):
    """The line is not only served by calls of its own."""
    limiter = trio.CapacityLimiter(5)
    server = Server()
    fn = make(limiter, server)
    for other in range(5):
        limiter.acquire_on_behalf_of_nowait(other)
    async with trio.open_nursery() as nursery:
        for item in range(8):
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
        await trio.sleep(1)
        limiter.release_on_behalf_of(0)
        await trio.sleep(0.5)
        for other in (1, 2, 3):
            limiter.release_on_behalf_of(other)
    assert sorted(server.starts) == [(0, 1), (1, 1.5), (2, 1.5), (3, 1.5), (4, 2), (5, 2.5), (6, 2.5), (7, 2.5)]


def test_of_a_limiter_only_the_gate_ends_with_the_run():
    limiter = trio.CapacityLimiter(9)
    server = Server()
    fn = make(limiter, server)

    async def first():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, fn, 0.5, 1000)
            nursery.start_soon(several, fn, 8)

    trio.run(first, clock=MockClock(autojump_threshold=0))
    assert limiter.total_tokens == 6
    server.starts.clear()
    trio.run(several, fn, 60, clock=MockClock(autojump_threshold=0))
    # By one at a time, as there was a signal, and to the nine of before the first run.
    assert server.waves() == {0: 6, 1: 7, 2: 8, **dict.fromkeys(range(3, 7), 9), 7: 3}


def test_cap_of_its_own_ends_with_the_run():
    server = Server()
    fn = make(9, server)
    trio.run(refused, fn, 1, 1000, clock=MockClock(autojump_threshold=0))
    server.starts.clear()
    trio.run(several, fn, 18, clock=MockClock(autojump_threshold=0))
    assert server.waves() == {0: 9, 1: 9}


# With a key


async def test_each_key_has_cap_epoch_and_gate_of_its_own(autojump_clock):
    server = Server()
    fn = make(100, server, key=lambda item, *_: item)

    async def some(item, count):
        await fanout.do(fn, [item] * count, limit=count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, fn, 0.5, 5)  # its item and its key are "refused"
        nursery.start_soon(some, "refused", 12)
        nursery.start_soon(some, "other", 30)
    waves = [Counter(time for item, time in server.starts if item == key) for key in ("refused", "other")]
    assert waves == [{0: 10, 5.5: 3}, {0: 10, 1: 20}]


async def test_key_is_known_until_its_gate_has_passed(autojump_clock):
    """And is then as good as new: its calls may begin at ten at once."""
    server = Server()
    fn = make(100, server, key=lambda *_, **__: "key")
    await refused(fn, 1, 5)
    with trio.move_on_after(1):
        await several(fn, 3)  # it is not forgotten for these
    assert server.waves(since=1) == {}
    await trio.sleep(3)  # until 5 of 6
    await several(fn, 3)
    assert server.waves(since=1) == {6: 1, 7: 2}
    await several(fn, 12)
    assert server.waves(since=8) == {8: 10, 9: 2}


async def test_key_that_is_in_use_again_is_not_dropped_for_its_old_gate(autojump_clock):
    server = Server()
    fn = make(1, server, key=lambda item, *_: item)
    for key in range(150):  # these are dropped first, a hundred by each call
        with pytest.raises(BusyError):
            await fn(key, 0, BusyError(4))
    with pytest.raises(BusyError):
        await fn("key", 0, BusyError(5))
    await fn("key")  # from 5 to 6: so the state goes with this call, and not when its gate has passed
    await fanout.do(fn, ["key"] * 3, limit=3)
    assert [time for item, time in server.starts if item == "key"] == [0, 5, 6, 7, 8]


# Rule 5: what `overloaded` is told, and what it may say


@pytest.mark.parametrize("bad", ["3", 3j, [], object(), BusyError])
async def test_answer_of_another_kind_is_a_type_error(autojump_clock, bad):
    limiter = trio.CapacityLimiter(3)
    error = ValueError("item")
    with (
        nothing_left(limiter),
        pytest.raises(TypeError, match=r"^overloaded must return a bool, a number of seconds or None, got") as caught,
    ):
        await cap(Server(), limiter, overloaded=lambda exc: bad)("x", 1, error)
    assert caught.value.__context__ is error
    assert limiter.total_tokens == 3


async def test_answer_that_is_a_coroutine_is_a_type_error(autojump_clock):
    """And Python does not warn, later and elsewhere, that it was never awaited."""

    async def answer(exc):
        """Never run."""

    with pytest.raises(TypeError, match=r"^overloaded must be a function that is not async, but answer is"):
        cap(Server(), 3, overloaded=answer)
    with pytest.raises(TypeError, match=r"^overloaded must return a bool, .* got a coroutine"):
        fn = cap(Server(), 3, overloaded=lambda exc: answer(exc))  # noqa: PLW0108 (not seen to be async)
        await fn("x", 1, ValueError())


async def test_what_it_raises_the_call_raises(autojump_clock):
    limiter = trio.CapacityLimiter(3)
    error = ValueError("item")
    with nothing_left(limiter), pytest.raises(ZeroDivisionError) as caught:
        await cap(Server(), limiter, overloaded=lambda exc: 1 // 0)("x", 1, error)
    assert caught.value.__context__ is error


async def test_it_is_told_of_exceptions_alone(autojump_clock):
    told = []
    fn = cap(Server(), 3, overloaded=told.append)
    await fn("x")
    with trio.move_on_after(0.5):
        await fn("cancelled")
    with pytest.raises(KeyboardInterrupt):
        await fn("interrupted", 1, KeyboardInterrupt())
    with pytest.raises(BaseExceptionGroup):
        await fn("both", 1, BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError()]))
    group = ExceptionGroup("group", [ValueError()])
    with pytest.raises(ExceptionGroup):
        await fn("group", 1, group)
    assert told == [group]


async def test_it_is_told_of_what_the_call_itself_raises(autojump_clock):
    """Before there is anything to await."""
    told = []

    def fn(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="x"):
        await cap(fn, 3, overloaded=told.append)("x")
    assert len(told) == 1


async def test_it_is_not_told_that_there_was_nothing_to_await(autojump_clock):
    told = []
    for fn in (len, cap(len, 3)):
        with pytest.raises(TypeError, match="in_thread"):
            await cap(fn, 3, overloaded=told.append)("x")
    assert told == []


async def test_subclasses_of_numbers_are_numbers(autojump_clock):
    class Seconds(float):
        """As some libraries have them."""

    server = Server()
    fn = make(3, server)
    await refused(fn, 1, Seconds(5))
    await fn()
    assert server.waves() == {0: 1, 6: 1}
