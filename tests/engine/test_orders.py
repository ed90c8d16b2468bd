"""Every order of Trio's ready tasks: the explorer, and its campaign of random plans over all calls."""

import tomllib
from contextvars import ContextVar
from pathlib import Path

import pytest
import trio

import trio_fanout as fanout
from every_order import Diverged, Explored, Wrong, every_order, run_once
from orders import RUNS, Chance, Item, Plan, campaign, explore, random_plan, replay
from trio_fanout import Collect, FirstSuccess, Settle


def three_sleepers(woke_up):
    """A program of three tasks that wake up at the same time, and tell the order."""

    def program():
        async def main(control):
            order = []

            async def sleep(name):
                await trio.sleep(1)
                order.append(name)

            async with trio.open_nursery() as nursery:
                for name in "abc":
                    nursery.start_soon(sleep, name)
            woke_up.append("".join(order))

        return main

    return program


def counter_that_loses():
    """A program that is wrong if its tasks take turns, and if it is not cancelled in between."""

    async def main(control):
        count = 0

        async def increase():
            nonlocal count
            seen = count
            await trio.lowlevel.checkpoint()
            count = seen + 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(increase)
            nursery.start_soon(increase)
            await control.turn(control.choose(10))
            nursery.cancel_scope.cancel()
        assert count != 1, "an update is lost"

    return main


def test_every_order_is_tried():
    woke_up = []
    explored = every_order(three_sleepers(woke_up), most=1000)
    assert explored == Explored(len(woke_up), complete=True)
    assert set(woke_up) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_if_there_are_too_many_orders_some_are_drawn_by_lot():
    woke_up, again = [], []
    assert every_order(three_sleepers(woke_up), most=30) == Explored(30, complete=False)
    assert len(set(woke_up)) > 3
    every_order(three_sleepers(again), most=30)
    assert woke_up == again


def test_a_schedule_repeats_a_run():
    woke_up = []
    run_once(three_sleepers(woke_up), [0, 0, 0, 2, 1])
    run_once(three_sleepers(woke_up), [0, 0, 0, 2, 1])
    run_once(three_sleepers(woke_up))
    assert woke_up[0] == woke_up[1] != woke_up[2]


def test_what_is_wrong_in_one_order_is_found_and_can_be_repeated():
    with pytest.raises(Wrong, match="an update is lost") as caught:
        every_order(counter_that_loses)
    with pytest.raises(Wrong, match="an update is lost") as again:
        run_once(counter_that_loses, caught.value.schedule)
    assert again.value.schedule == caught.value.schedule


def test_a_schedule_that_does_not_fit_is_an_error():
    with pytest.raises(Wrong, match="choice 0 is 7") as caught:
        run_once(three_sleepers([]), [7])
    assert isinstance(caught.value.__cause__, Diverged)


def test_a_program_that_sleeps_for_good_is_wrong():
    async def sleep(control):
        await trio.sleep_forever()

    with pytest.raises(Wrong, match="all tasks sleep for good"):
        run_once(lambda: sleep)


def test_a_program_that_never_sleeps_is_wrong():
    async def spin(control):
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(Wrong, match="never sleeps"):
        run_once(lambda: spin)


def test_whoever_waits_for_a_turn_is_woken_before_all_sleep_for_good():
    woke_up = []

    async def main(control):
        event = trio.Event()

        async def wake():
            await control.turn(1000)
            woke_up.append(trio.current_time())
            event.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake)
            await trio.sleep(5)
            await event.wait()

    run_once(lambda: main)
    assert woke_up == [5]


def test_what_is_forgotten_is_found_as_all_tasks_sleep():
    async def main(control):
        def look():
            assert control.now < 2, "too late"

        control.when_idle.append(look)
        await trio.sleep(2)
        await trio.sleep(2)

    with pytest.raises(Wrong, match="too late"):
        run_once(lambda: main)


WAITING = (Item((0,)), Item((0,)))


@pytest.mark.parametrize(
    "plan",
    [
        Plan("map", WAITING),
        Plan("map", (Item(fails=True), *WAITING), limit=1, policy=Collect(max_failures=1)),
        Plan("do", WAITING, limit=1, source="async iterator"),
        Plan("fan_out", WAITING, policy=FirstSuccess()),
        Plan("stream", WAITING, limit=1, buffer=0),
        Plan("open_group", (Item(jobs=(Item(),), waits_for_jobs=True),)),
        Plan("run_graph", (Item(needs=(1,), settled=True), Item(fails=True)), policy=Settle()),
    ],
    ids=lambda plan: plan.call,
)
def test_each_call_does_what_it_must_in_every_order(plan):
    assert explore(plan, runs=5000).complete


@pytest.mark.parametrize(
    "plan",
    [
        # Tokens came and went while a worker waited for one: it kept its own, and the pause was not seen.
        Plan("open_group", (Item((1,)), Item((1,)), Item()), limit=1, changes=((0.5, 0), (1, 1), (0, 0), (9, 1))),
        Plan("stream", (Item((1,)), Item((1,)), Item()), limit=1, changes=((0.5, 0), (1, 1), (0, 0), (9, 1))),
        # The reader of the source was woken by the end of an item, and did not look at the limiter.
        Plan(
            "map",
            (Item((1,), leaves="scope"), Item((2,)), Item((1,))),
            shared=True,
            source="async iterator",
            changes=((0.5, 0), (3, 2)),
        ),
        # Two workers took what was in the queue, and nobody woke the reader of the source.
        Plan("do", (Item((0,)), *[Item((1,))] * 5), limit=3, source="async iterator"),
        # A job that got its token as the block raised was not turned away.
        Plan(
            "open_group",
            (Item((1,)), Item((1,)), Item()),
            limit=1,
            pace=(0, 0, 2),
            leaving="raise",
            changes=((0.5, 0), (1.5, 1)),
        ),
    ],
    ids=["pause of a group", "pause of a stream", "lower limit", "reader asleep", "error of a block"],
)
def test_what_the_campaign_has_found(plan):
    explore(plan, runs=100)


def test_plans_can_be_pasted():
    for number in range(100):
        plan = random_plan(Chance(number))
        assert eval(repr(plan), vars(__import__("orders"))) == plan


def test_a_plan_under_one_schedule_is_the_same_each_time():
    for number in range(20):
        plan = random_plan(Chance(number))
        control = replay(plan)
        assert replay(plan, control.taken).taken == control.taken


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_plans_come_out_right_in_many_orders(seed):
    left = iter(range(200))
    plans, runs = campaign(seed, lambda: next(left, None) is not None)
    assert plans == 200
    assert runs > 200 * RUNS // 2


# What it has found


def test_idle_workers_put_their_tokens_back_for_an_item_whose_worker_puts_its_own_back():
    """After fourteen thousand plans: or three idle workers hold three tokens, and a job waits for one forever."""
    variable = ContextVar("variable", default=0)  # a job with another value starts in another step

    async def add():
        variable.set(3)
        group.start_soon(trio.lowlevel.checkpoint)

    async def main(control):
        nonlocal group
        async with fanout.open_group(limit=4) as group:
            group.start_soon(trio.sleep, 2)
            for _ in range(3):
                group.start_soon(trio.lowlevel.checkpoint)
            await trio.sleep(1)
            variable.set(1)
            adding = group.start_soon(add)
            variable.set(2)
            group.start_soon(trio.lowlevel.checkpoint)
            await control.turn(control.turns + control.choose(4))
            group.limiter.total_tokens = 3
            await adding.wait()

    group = None
    every_order(lambda: main, most=200)


CHANGES = Path(__file__).parents[1] / "tools" / "order_mutants.toml"


@pytest.mark.skipif(not CHANGES.exists(), reason="the tools are not published")
def test_the_changes_that_the_campaign_should_find_are_of_the_engine_as_it_is():
    for change in tomllib.loads(CHANGES.read_text())["mutant"]:
        text = (Path(fanout.__file__).parent / change["file"]).read_text()
        assert text.count(change["old"]) == 1, change
