"""Run a small Trio program under every order of its ready tasks, and repeat any one of these runs.

    def program():  # called for each run, so that each begins afresh
        async def main(control): ...  # raises, or calls `control.wrong`, if something is wrong
        return main

    every_order(program, most=1000)  # returns Explored(runs, complete), or raises `Wrong`, which has the schedule
    run_once(program, [0, 2, 1])  # the same run again

Trio chooses an order in one place: it shuffles the batch of tasks that are ready. Here a `Control` stands in its place,
and the program asks it for all other choices: `control.choose(n)`. A *schedule* is the list of choices. Beyond its end,
a choice is 0, which is the oldest task, or drawn by lot. Nothing else differs between two runs: the clock is virtual,
and time passes only when all tasks sleep.

A program that sleeps for good, or never sleeps and never ends, is wrong.
"""

import gc
import heapq
import itertools
import math
import random
import sys
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import trio

TRIO = sys.modules["trio._core._run"]
PATIENCE = 3600.0  # seconds of virtual time until a program is ended
TURNS = 5000  # turns of Trio's loop until a program is ended


class Wrong(Exception):
    """A program was wrong under this schedule. The cause is the `__cause__`."""

    def __init__(self, schedule, cause):
        super().__init__(f"schedule {schedule}: {type(cause).__name__}: {cause}")
        self.schedule = schedule


class Diverged(Exception):
    """A schedule does not fit: the program is not the same each time."""


class Explored(NamedTuple):
    runs: int
    complete: bool  # whether these were all orders there are


class Control(trio.abc.Clock):
    """Makes all choices of one run. It is the clock of the run as well."""

    def __init__(self, given=(), lot=None):
        self._given = given
        self._lot = lot
        self.taken = []  # the choices so far
        self.of = []  # how many there were to choose from, for each
        self.turns = 0  # of Trio's loop
        self.now = 0.0
        self.error = None  # the first thing that was wrong
        self.when_idle = []  # functions to be called when all tasks sleep, before time passes
        self._scope = None
        self._waiting = []  # a heap: what to set at which turn
        self._count = itertools.count()

    def choose(self, of):
        """A number below `of`."""
        if of <= 1:
            return 0
        place = len(self.taken)
        if place < len(self._given):
            choice = self._given[place]
        else:
            choice = self._lot.randrange(of) if self._lot is not None else 0
        if choice >= of:
            self.wrong(Diverged(f"choice {place} is {choice} of {of}"))
            choice = 0
        self.taken.append(choice)
        self.of.append(of)
        return choice

    def wrong(self, error):
        """End the run, which raises this error: for code whose exceptions would get lost."""
        if self.error is None:
            self.error = error if isinstance(error, BaseException) else AssertionError(error)
        if self._scope is not None:
            self._scope.cancel()

    async def turn(self, number):
        """Wait for this turn of Trio's loop, or until all tasks sleep for good."""
        event = trio.Event()
        if number > self.turns:
            heapq.heappush(self._waiting, (number, next(self._count), event))
            await event.wait()

    async def main(self, program):
        """Run the program, for a limited time."""
        self._scope = scope = trio.CancelScope(deadline=PATIENCE)
        with scope:
            try:
                await program()(self)
            finally:
                self._scope = None
        if self.error is not None or scope.cancelled_caught:
            raise self.error or TimeoutError("all tasks sleep for good")

    # As `random.Random`, for Trio

    def shuffle(self, batch):
        """Order the tasks that are ready. Trio has sorted them by age, and takes the last one first."""
        self.turns += 1
        if self.turns > TURNS:
            self.wrong(TimeoutError("it never sleeps and never ends"))
        while self._waiting and self._waiting[0][0] <= self.turns:
            self._wake_first()
        batch[:] = [batch.pop(self.choose(len(batch))) for _ in range(len(batch))][::-1]

    def _wake_first(self):
        heapq.heappop(self._waiting)[2].set()

    # As a clock, for Trio

    def start_clock(self):
        pass

    def current_time(self):
        return self.now

    def deadline_to_sleep_time(self, deadline):
        """Trio asks this when no task is ready."""
        if self._scope is None:  # it waits for its own socket, as it begins and ends
            return PATIENCE
        if self.error is None:
            try:
                for look in self.when_idle:
                    look()
            except Exception as exc:  # noqa: BLE001
                self.wrong(exc)
                return 0.0
        if deadline >= PATIENCE and self._waiting:
            self._wake_first()
        elif deadline == math.inf:
            self.error = self.error or TimeoutError("all tasks sleep for good, shielded")
            raise self.error  # no other way out: Trio takes it for an error of its own
        else:
            self.now = max(self.now, deadline)
        return 0.0


@contextmanager
def _in_place_of_chance(control):
    """Have Trio ask `control` for the order of tasks. Garbage waits, as what it leads to would come at any time."""
    before = TRIO._r, TRIO._ALLOW_DETERMINISTIC_SCHEDULING
    collects = gc.isenabled()
    gc.disable()
    TRIO._r, TRIO._ALLOW_DETERMINISTIC_SCHEDULING = control, True
    try:
        yield
    finally:
        TRIO._r, TRIO._ALLOW_DETERMINISTIC_SCHEDULING = before
        if collects:
            gc.enable()


def run_once(program, schedule=(), *, lot=None, around=nullcontext):
    """Run the program under a schedule, and return its `Control`. `around(control)` is entered around the run."""
    control = Control(schedule, lot)
    try:
        with _in_place_of_chance(control), around(control):
            trio.run(control.main, program, clock=control)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: ASYNC104, BLE001  # Trio has ended
        raise Wrong(control.taken, control.error or exc) from (control.error or exc)
    return control


def every_order(program, *, most=1000, seed=0, around=nullcontext):
    """Run the program under all orders, or if there are more than `most`, under that many of them, drawn by lot."""
    control = run_once(program, around=around)
    if math.prod(control.of) > most:
        for number in range(1, most):
            run_once(program, lot=random.Random(f"{seed} {number}"), around=around)
        return Explored(most, complete=False)
    runs = 1
    while (schedule := _next_in_depth(control)) and runs < most:
        control = run_once(program, schedule, around=around)
        runs += 1
        if control.taken[: len(schedule)] != schedule:
            raise Wrong(schedule, Diverged(f"it ended after {len(control.taken)} choices"))
    return Explored(runs, complete=not schedule)


def _next_in_depth(control):
    """The schedule after this one, which differs from it as late as can be; empty if this was the last one."""
    last = len(control.taken) - 1
    while last >= 0 and control.taken[last] + 1 == control.of[last]:
        last -= 1
    return [*control.taken[:last], control.taken[last] + 1] if last >= 0 else []
