"""Carrying plans out, under many orders."""

import argparse
import sys
import time
from contextlib import contextmanager
from functools import partial

import trio

from every_order import Wrong, every_order, run_once
from trio_fanout._core import slices

from . import graphed, grouped, mapped, streamed  # noqa: F401  # each knows its calls
from .account import Account, Quit, pause
from .chance import Chance, random_plan
from .plans import ANY

TURNS = 30  # of Trio's loop, from which one is chosen for what happens at any time
RUNS = 20  # of each plan


@contextmanager
def slices_by(control, looks):
    """Have it chosen, at the first `looks` looks at the time of slices, whether one is over.

    This is the only place that knows how the engine tells the time.
    """
    left, passed = looks, 0.0

    def look(self):
        nonlocal left, passed
        if left > 0:
            left -= 1
            passed += slices.SLICE * control.choose(2)
        return time_of(self) + passed

    time_of = slices.VirtualTime.__call__
    slices.VirtualTime.__call__ = look
    try:
        yield
    finally:
        slices.VirtualTime.__call__ = time_of


def program_of(plan):
    """The program that carries out a plan, for `every_order`."""

    async def main(control):
        tasks = trio.lowlevel.current_statistics().tasks_living
        limiter = trio.CapacityLimiter(plan.limit) if plan.shared else None
        account = Account.of(control, plan, limiter)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                for act in acts(account, scope):
                    nursery.start_soon(act)
                try:
                    await account.carry_out()
                except (Exception, Quit):  # noqa: BLE001  # the account has looked at it
                    pass
            nursery.cancel_scope.cancel()
        left = trio.lowlevel.current_statistics().tasks_living - tasks
        account.check(left == 0, f"{left} tasks are left")

    return lambda: main


def acts(account, scope):
    """What other tasks do meanwhile."""
    plan, control = account.plan, account.control

    async def at(when):
        if when == ANY:
            await control.turn(control.turns + control.choose(TURNS))
        else:
            await trio.sleep(when)

    async def cancel():
        await at(plan.cancelled)
        account.cancelled_at = min(account.cancelled_at, control.now)
        scope.cancel()

    async def stop():
        await at(plan.stopped)
        account.stop()

    async def change():
        for when, tokens in plan.changes:
            await at(when)
            account.change(tokens)

    async def borrow(when, seconds):
        await at(when)
        await trio.lowlevel.checkpoint_if_cancelled()
        limiter = account.seen_limiter
        if limiter is None:  # the block has not begun
            return
        task = trio.lowlevel.current_task()
        account.outsiders.add(task)
        try:
            async with limiter:
                await pause(seconds)
        finally:
            account.outsiders.remove(task)

    if plan.cancelled is not None:
        yield cancel
    if plan.stopped is not None:
        yield stop
    if plan.changes:
        yield change
    for when, seconds in plan.borrows:
        yield partial(borrow, when, seconds)


def explore(plan, *, runs=RUNS, seed=0):
    """Carry a plan out under many orders."""
    return every_order(program_of(plan), most=runs, seed=seed, around=partial(slices_by, looks=plan.looks))


def replay(plan, schedule=()):
    """Carry a plan out under one order."""
    return run_once(program_of(plan), schedule, around=partial(slices_by, looks=plan.looks))


def campaign(seed, goes_on):
    """Explore random plans, while `goes_on()`. Returns how many plans and how many runs that were."""
    plans = runs = 0
    while goes_on():
        plan = random_plan(Chance(f"{seed} {plans}"))
        try:
            runs += explore(plan, seed=seed).runs
        except Wrong as wrong:
            wrong.add_note(f"plan {plans} of seed {seed}; to do it again:\nreplay({plan}, {wrong.schedule})")
            raise
        plans += 1
    return plans, runs


def main():
    parser = argparse.ArgumentParser(description="Explore random plans under many orders.")
    parser.add_argument("--minutes", type=float, default=1, help="of CPU time (default: 1)")
    parser.add_argument("--seed", default=str(time.time_ns()), help="by default another one each time")
    args = parser.parse_args()
    end = time.process_time() + 60 * args.minutes
    plans, runs = campaign(args.seed, lambda: time.process_time() < end)
    sys.stdout.write(f"{plans} plans, {runs} runs: nothing was wrong (seed {args.seed})\n")
