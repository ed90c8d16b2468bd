"""What must hold for any call."""

from contextvars import ContextVar
from math import inf
from typing import ClassVar

import trio
from outcome import Value

import trio_fanout as fanout
from trio_fanout import Collect, FailFast, FirstSuccess

from .plans import Item

SOON = 0.011  # seconds, within which a run that never waits has to follow what changes

SETTING = ContextVar("setting", default=None)


class ItemError(Exception):
    """The failure of an item."""


class FatalError(ItemError):
    """A failure that ends a run under `Collect`."""


class BlockError(Exception):
    """Raised by the block of a stream or a group."""


class SourceError(Exception):
    """Raised by a source."""


class Quit(BaseException):
    """Not a failure: it ends a run under any policy."""


class Made:
    """Stands for an exception that the package makes, of one of these types."""

    def __init__(self, *types):
        self.types = types

    def __repr__(self):
        return " or ".join(cls.__name__ for cls in self.types)


def same(expected, found):
    if isinstance(expected, Made):
        return type(found) in expected.types
    if isinstance(expected, BaseExceptionGroup) and type(expected) is type(found):
        # A cancel scope that a group passes may have Trio split it, which makes another one.
        return str(expected) == str(found) and all(map(same, expected.exceptions, found.exceptions))
    return expected is found


def came_out_of_cancellation(exc):
    """Whether there is a `Cancelled` among what this exception came out of; of a group, of each member."""
    while exc is not None:
        if isinstance(exc, trio.Cancelled):
            return True
        if isinstance(exc, BaseExceptionGroup) and all(map(came_out_of_cancellation, exc.exceptions)):
            return True
        exc = exc.__context__
    return False


def is_fatal(exc):
    """Whether this ends a run under `Collect`: for a group, whether anything in it does."""
    members = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
    return isinstance(exc, FatalError) or any(map(is_fatal, members))


async def pause(wait):
    if wait:
        await trio.sleep(wait)
    else:
        await trio.lowlevel.checkpoint()


def options(plan, limiter):
    """What all calls take."""
    policy = plan.policy
    if isinstance(policy, Collect):
        policy = Collect(max_failures=policy.max_failures, fatal=FatalError)
    return {"limit": limiter if plan.shared else plan.limit, "policy": policy, "item_timeout": plan.item_timeout}


class Account:
    """One call, and what has happened in it so far. There is a subclass for each kind of call.

    Its items tell it when they start and end. It says what is wrong by `check`: an exception of an item would be taken
    for its failure.
    """

    kind = "item"
    keeps_results = False
    classes: ClassVar = {}

    def __init_subclass__(cls, calls=(), **kwargs):
        super().__init_subclass__(**kwargs)
        cls.classes.update(dict.fromkeys(calls, cls))

    @classmethod
    def of(cls, control, plan, limiter=None):
        return cls.classes[plan.call](control, plan, limiter)

    def __init__(self, control, plan, limiter):
        self.control = control
        self.plan = plan
        self.items = list(plan.items)
        self.limiter = limiter  # that it shares
        self.limits = [(-inf, plan.limit)]  # since when, how many tokens
        self.least = plan.limit  # tokens since the run had to follow: an item has ended, or one has started alone
        self.outsiders = set()  # tasks that ask for a token, or hold one
        self.settings = {}  # item -> the value of the variable that it must see
        self.started = []
        self.running = set()
        self.values = {}
        self.failures = {}
        self.secondary = set()
        self.finished = []  # in this order: what succeeded or failed
        self.lost = set()  # what was cancelled
        self.last_end = 0.0  # of an item
        self.quits = []  # exceptions that end the call, whatever else there is
        self.hard = []  # those that end it under any policy
        self.over = None  # why nothing more may start
        self.cancelled_at = inf  # or will be
        self.unclear = False  # whether it cannot be told what must come of it
        self.handle = None  # what the block got
        self.abandoned = []  # nurseries that items have left open
        self.children = 0  # tasks in them
        self.max_failures = 1 if isinstance(plan.policy, FailFast) else getattr(plan.policy, "max_failures", None)

    def check(self, right, what):
        if not right:
            self.control.wrong(f"{self.plan.call}: {what}")

    # Tokens

    @property
    def total(self):
        return self.limits[-1][1]

    @property
    def others(self):
        """How many tokens outsiders hold."""
        return len(self.outsiders & set(self.seen_limiter.statistics().borrowers)) if self.outsiders else 0

    @property
    def seen_limiter(self):
        """The limiter that others can see, or None: the one that it shares, or that the block shows."""
        return self.limiter or (self.handle and self.handle.limiter)

    def change(self, tokens):
        """Change how many tokens there are."""
        limiter = self.seen_limiter
        if limiter:
            limiter.total_tokens = tokens
            self.limits.append((self.control.now, tokens))
            self.least = min(self.least, tokens)

    def most_tokens(self, start=inf):
        """The most tokens that there have been since then, or at least since shortly before."""
        start = min(start, self.control.now - SOON)
        ends = [since for since, _ in self.limits[1:]]
        return max(tokens for (_, tokens), end in zip(self.limits, [*ends, inf], strict=True) if end >= start)

    # What items tell

    def start(self, index):
        self.check(self.over is None, f"{self.kind} {index} starts after {self.over}")
        prompt = self.control.now <= self.cancelled_at + SOON
        self.check(prompt, f"{self.kind} {index} starts long after the cancellation")
        self.check_turn(index)
        self.started.append(index)
        self.running.add(index)
        if len(self.running) == 1:
            self.least = self.total  # after a pause, the run has to follow now
        most = self.most_tokens()
        self.check(len(self.running) + self.others <= most, f"{len(self.running)} + {self.others} run, not {most}")
        if self.plan.shared:
            borrowers = self.limiter.statistics().borrowers
            self.check(trio.lowlevel.current_task() in borrowers, f"{self.kind} {index} has no token")
        setting, seen = self.settings.get(index, self.setting), SETTING.get()
        self.check(seen == setting, f"{self.kind} {index} sees {seen}, not {setting}")

    def check_turn(self, index):
        """Whether it is this item's turn."""
        self.check(index == len(self.started), f"{self.kind} {index} starts after {self.started}")

    def end(self, index):
        self.running.remove(index)
        self.least = self.total
        self.last_end = self.control.now
        if self.items[index].leaves == "nursery":
            self.hard.append(Made(RuntimeError))
            self.close("a nursery that was left open")

    def succeed(self, index):
        self.end(index)
        self.values[index] = index
        self.finished.append(index)
        if isinstance(self.plan.policy, FirstSuccess):
            self.close("a success")

    def fail(self, index, failure, *, secondary=False):
        self.end(index)
        self.failures[index] = failure
        self.finished.append(index)
        if secondary:
            self.secondary.add(index)
        if len(self.failures) == self.max_failures or (isinstance(self.plan.policy, Collect) and is_fatal(failure)):
            self.close("a failure")

    def close(self, why):
        """Nothing more may start."""
        self.over = self.over or why

    def ends_early(self):
        """Whether it need not do all there is."""
        return self.over or self.control.now >= self.cancelled_at or self.around.effectively_cancelled

    # What an item does

    def call_item(self, index, *_):
        """The function that the call gets. It is not async, as an item starts when it is called."""
        self.start(index)
        return self.run_item(index, trio.lowlevel.current_task()._cancel_status)

    async def run_item(self, index, around):
        try:
            await self.do(index, self.items[index])
        except trio.Cancelled:
            if around.effectively_cancelled:
                # A time limit around what an item has left open cannot know which came first.
                self.unclear = self.unclear or bool(self.items[index].leaves and self.plan.item_timeout)
                self.end(index)
                self.lost.add(index)
            else:
                self.fail(index, Made(trio.TooSlowError, RuntimeError))  # by its time limit, or by what it left open
            raise
        except Exception as exc:
            self.fail(index, exc, secondary=around.effectively_cancelled and came_out_of_cancellation(exc))
            raise
        except BaseException as exc:
            self.end(index)
            self.close("a BaseException")
            self.quits.append(exc)
            raise
        self.succeed(index)
        return index

    async def do(self, index, item: Item):
        self.leave_open(item.leaves)
        if item.sets:
            SETTING.set(f"{index} of {self.plan.call}")
        try:
            with trio.CancelScope(shield=item.if_cancelled == "shield"):
                await self.work_on(item)
        except trio.Cancelled:
            if item.if_cancelled == "fail":
                raise ItemError(index)  # noqa: B904
            if item.if_cancelled != "succeed":
                raise
        if item.stops:
            self.stop()
        if item.quits:
            raise Quit(index)
        if item.fails:
            raise FatalError(index) if item.fatal else ItemError(index)

    def leave_open(self, what):
        """Leave a scope or a nursery open in the task."""
        if what == "nursery":
            manager = trio.open_nursery()
            try:
                manager.__aenter__().send(None)
            except StopIteration as entered:
                self.abandoned.append(manager)  # if it was freed, Trio would complain
                entered.value.start_soon(self.end_slowly)
        elif what:
            scope = trio.CancelScope(shield=what == "shield")
            if what == "expiring":
                scope.deadline = trio.current_time() + 1
            scope.__enter__()
            if what == "cancelled":
                scope.cancel()

    async def end_slowly(self):
        """A task in a nursery that was left open."""
        self.children += 1
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            self.children -= 1
            self.last_end = self.control.now

    async def work_on(self, item: Item):
        handles = [self.submit(job) for job in item.jobs]
        for wait in item.waits:
            await pause(wait)
        if item.waits_for_jobs:
            for handle in handles:
                await self.wait_for(handle)
        if item.inner is not None:
            await Account.of(self.control, item.inner).carry_out()

    def stop(self):
        """Call `stop()`, where there is such a thing, and as soon as there is."""

    # When all tasks sleep

    def idle(self):
        """Nothing is forgotten while there is work and room, and nothing still waits when there is no work."""
        self.check_tokens(self.running)
        if self.over:
            self.check_line()
        if self.ends_early():
            return
        total = min(self.least, self.total) if self.running else self.total
        room = total - self.others - len(self.running)
        waiting = self.waiting()
        self.check(room <= 0 or waiting <= 0, f"room for {room}, and {waiting} to be started: {self.started}")

    def waiting(self):
        """How many could start, if there was room."""
        raise NotImplementedError

    # The call

    async def call(self):
        raise NotImplementedError

    async def carry_out(self):
        """Make the call, look at what comes of it, and return or raise that."""
        task = trio.lowlevel.current_task()
        self.around = task._cancel_status
        self.setting = SETTING.get()
        nurseries, turns = list(task.child_nurseries), self.control.turns
        seconds = getattr(self.plan.policy, "move_on_after", None)
        if seconds is not None:
            self.cancelled_at = self.control.now + seconds
        self.control.when_idle.append(self.idle)
        value = raised = None
        try:
            value = await self.call()
            self.check(self.control.turns > turns, "it was not a checkpoint")
        except BaseException as exc:
            raised = exc
            raise
        finally:
            self.control.when_idle.remove(self.idle)
            self.check(task._cancel_status is self.around, "a scope is left")
            self.check(task.child_nurseries == nurseries and not self.running and not self.children, "tasks are left")
            self.check(SETTING.get() == self.setting, "the caller's variable has changed")
            self.check_tokens()
            self.check_line()
            prompt = self.control.now <= max(self.cancelled_at, self.last_end) + SOON
            self.check(prompt, "the cancellation was not prompt")
            if not self.unclear:
                self.check_end(value, raised)
            raised = None
        return value

    def check_tokens(self, items=()):
        """Nobody but these items and outsiders holds a token."""
        if self.seen_limiter:
            held, others = self.seen_limiter.borrowed_tokens, self.others
            self.check(held == len(items) + others, f"{held} tokens are borrowed, {others} by others")

    def check_line(self):
        """Nobody but outsiders waits for a token."""
        if self.seen_limiter:
            waiting, others = self.seen_limiter.statistics().tasks_waiting, self.others
            self.check(waiting == len(self.outsiders) - others, f"{waiting} wait for a token")

    # What must come of it

    def check_end(self, value, raised):
        """What the call returns or raises is right."""
        if self.quits:
            self.check(raised in self.quits, f"raised {raised!r}, not {self.quits}")
        elif self.hard:
            right = any(same(exc, raised) for exc in self.hard)
            self.check(right, f"raised {raised!r}, not {self.hard}")
        elif self.raises_failures() and self.all_failures():
            self.check_error(raised)
        elif isinstance(raised, trio.Cancelled):
            self.check(self.around.effectively_cancelled, "raised Cancelled")
        elif isinstance(self.plan.policy, FirstSuccess) and not self.values:
            right = self.failures or (type(raised) is ValueError and not self.started)
            self.check(right, f"raised {raised!r}")
            if self.failures:
                self.check_error(raised)
        else:
            self.check(raised is None, f"raised {raised!r}")
            self.check_result(value)

    def raises_failures(self):
        return isinstance(self.plan.policy, FailFast | Collect)

    def all_failures(self):
        return self.failures

    def check_result(self, value):
        """What the call returns is right."""
        raise NotImplementedError

    def check_outcome(self, index, outcome):
        """An outcome is that of this item."""
        failures = self.all_failures()
        if index in self.values:
            right = outcome == Value(index)
        elif index in failures:
            right = same(failures[index], outcome.error)
        else:
            unfinished = outcome.error
            right = isinstance(unfinished, fanout.Unfinished) and unfinished.started == (index in self.started)
        self.check(right, f"{outcome} of {index}")

    def check_error(self, raised):
        """What the call raises for its failures is right."""
        failures = self.all_failures()
        if isinstance(self.plan.policy, FailFast):
            index = min(failures.keys() - self.secondary or failures)
            self.check(same(failures[index], raised), f"raised {raised!r}, not {failures[index]!r} of {index}")
            notes = getattr(raised, "__notes__", ())
            self.check(self.label(index) in notes, f"no note has {self.label(index)!r}: {notes}")
        elif isinstance(raised, fanout.FanOutError):
            self.check_group(raised, failures)
        else:
            self.check(False, f"raised {raised!r}, not a FanOutError of {failures}")

    def check_group(self, raised, failures):
        found = list(raised.failures)
        self.check(found == [self.name(index) for index in sorted(failures)], f"failures {found}, not {failures}")
        for index, failure in failures.items():
            self.check(same(failure, raised.failures.get(self.name(index))), f"{index} failed by {failure!r}")
        results = {self.name(index): value for index, value in sorted(self.values.items())}
        self.check(dict(raised.results) == (results if self.keeps_results else {}), f"results are {raised.results}")
        self.check(raised.total == self.count(), f"total is {raised.total}, not {self.count()}")

    def count(self):
        return len(self.started)

    def name(self, index):
        return index

    def label(self, index):
        return f"{self.kind} {self.name(index)!r}"
