"""What a run must do, worked out by a simulation that shares nothing with the package.

A run is described by a `Plan`; `simulate` tells what comes of it. It knows items, tokens and a clock, and no tasks:
it goes from one event to the next. All times in a plan are such that no two events fall together (see `Plan`), so there
is one right answer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal


class TieError(Exception):
    """Two things happen at one moment, and what comes of it depends on which is first."""


@dataclass(frozen=True)
class Item:
    """One item: it works for `seconds` and then succeeds or fails, unless it is cancelled before."""

    seconds: float
    end: Literal["value", "error", "interrupt"] = "value"
    if_cancelled: Literal["stop", "error", "value", "shield"] = "stop"
    """End as cancelled; fail out of the cancellation; swallow it and succeed; not be reached by it at all."""


@dataclass(frozen=True)
class Borrower:
    """Another user of a shared limiter."""

    arrives: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A run. Every time is a whole number plus a power of two of its own, so that sums are exact and never meet."""

    items: tuple[Item, ...]
    limit: float
    policy: Literal["fail_fast", "collect", "settle", "first_success"] = "fail_fast"
    parameter: float | None = None
    """The `max_failures` of Collect, the `move_on_after` of Settle."""
    item_timeout: float | None = None
    outside: float | None = None
    """When the caller's own scope is cancelled."""
    sized: bool = True
    delays: tuple[float, ...] | None = None
    """For an async source: how long it takes before each item, and before its end."""
    source_error: bool = False
    """Whether the source raises where it should end."""
    shared: bool = False
    borrowers: tuple[Borrower, ...] = ()


@dataclass
class Result:
    """What came of a run."""

    kind: Literal["returned", "failed", "cancelled", "source", "interrupt", "empty"] = "returned"
    began: dict[int, float] = field(default_factory=dict)
    values: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    secondary: set[int] = field(default_factory=set)
    first: int | None = None
    taken: int = 0
    ended: float = 0.0
    peak: int = 0

    @property
    def raised(self):
        """The index of the failure that FailFast raises."""
        return min(set(self.failures) - self.secondary or self.failures)


class Simulation:
    def __init__(self, plan):
        self.plan = plan
        self.now = 0.0
        self.result = Result()
        self.ends = {}  # running item -> when it ends by itself, and how
        self.line = deque()  # who waits for a token
        self.others = {}  # other borrower with a token -> when it puts it back
        self.arrivals = sorted((other.arrives, number) for number, other in enumerate(plan.borrowers))
        self.next_delivery = None
        self.exhausted = False
        self.cancelled = False  # by whomever
        self.from_outside = False

    def run(self):
        plan, result = self.plan, self.result
        self.fill()
        while not self.over():
            self.step()
            self.fill()
        result.ended = self.now
        if result.kind in ("interrupt", "source"):
            return result
        if self.from_outside and not (result.failures and plan.policy in ("fail_fast", "collect")):
            result.kind = "cancelled"
        elif plan.policy == "first_success" and result.first is None:
            result.kind = "failed" if result.failures else "empty"
        elif result.failures and plan.policy in ("fail_fast", "collect"):
            result.kind = "failed"
        return result

    def over(self):
        if self.ends:
            return False
        return self.cancelled or (self.exhausted and not any(kind == "item" for kind, _ in self.line))

    # Taking and starting

    def waiting(self):
        return sum(kind == "item" for kind, _ in self.line)

    def fill(self):
        """Take what may be taken, and start what may start, now."""
        if self.cancelled:
            return
        progress = True
        while progress:
            progress = self.take()
            progress = self.hand_out() or progress

    def take(self):
        plan, result = self.plan, self.result
        if self.cancelled or self.exhausted or len(self.ends) + self.waiting() >= plan.limit:
            return False
        if plan.delays is not None:
            if self.next_delivery is None:
                self.next_delivery = self.now + plan.delays[result.taken]
            return False
        if result.taken < len(plan.items):
            self.line.append(("item", result.taken))
            result.taken += 1
            return True
        self.end_of_source()
        return False

    def end_of_source(self):
        self.exhausted = True
        if self.plan.source_error:
            if self.waiting() and len(self.ends) + len(self.others) < self.plan.limit:
                raise TieError  # a token for one that waited, and the end of everything
            self.result.kind = "source"
            self.cancel()

    def hand_out(self):
        plan, result = self.plan, self.result
        handed = False
        while self.line and len(self.ends) + len(self.others) < plan.limit and not self.cancelled:
            kind, which = self.line.popleft()
            handed = True
            if kind == "other":
                self.others[which] = self.now + plan.borrowers[which].seconds
                continue
            item = plan.items[which]
            result.began[which] = self.now
            end, how = self.now + item.seconds, str(item.end)
            if plan.item_timeout is not None and item.seconds > plan.item_timeout and item.if_cancelled != "shield":
                end = self.now + plan.item_timeout
                how = {"stop": "timeout", "error": "cleanup", "value": "caught"}[item.if_cancelled]
            self.ends[which] = end, how
            result.peak = max(result.peak, len(self.ends))
        return handed

    # Events

    def step(self):
        """Go to the next event, and let it happen."""
        plan = self.plan
        events = [(end, "end", which) for which, (end, _) in self.ends.items()]
        events += [(end, "put back", which) for which, end in self.others.items()]
        if self.arrivals:
            events.append((self.arrivals[0][0], "arrival", self.arrivals[0][1]))
        if self.next_delivery is not None and not self.cancelled:
            events.append((self.next_delivery, "delivery", None))
        if plan.outside is not None and not self.from_outside:
            events.append((plan.outside, "outside", None))
        if plan.policy == "settle" and plan.parameter is not None and not self.cancelled:
            events.append((plan.parameter, "time is up", None))
        events.sort(key=lambda event: event[:2])
        if len(events) > 1 and events[0][0] == events[1][0]:
            raise TieError
        self.now, event, which = events[0]
        match event:
            case "end":
                self.finish(which, self.ends.pop(which)[1])
            case "put back":
                del self.others[which]
            case "arrival":
                self.arrivals.pop(0)
                self.line.append(("other", which))
                if self.cancelled:
                    self.line.clear()  # it matters to nobody any more
            case "delivery":
                self.next_delivery = None
                if self.result.taken < len(plan.items):
                    self.line.append(("item", self.result.taken))
                    self.result.taken += 1
                else:
                    self.end_of_source()
            case "outside":
                self.from_outside = True
                self.cancel()
            case "time is up":
                self.cancel()

    def finish(self, index, how, *, by_cancellation=False):
        plan, result = self.plan, self.result
        if how in ("value", "caught"):
            result.values[index] = how
            if plan.policy == "first_success":
                if result.first is None:
                    result.first = index
                self.cancel()
        elif how == "interrupt":
            result.kind = "interrupt"
            self.cancel()
        elif how != "stop":
            result.failures[index] = how
            if by_cancellation:
                result.secondary.add(index)
            most = {"fail_fast": 1, "collect": plan.parameter}.get(plan.policy)
            if most is not None and len(result.failures) >= most:
                self.cancel()

    def cancel(self):
        """All items that run are told, but for those behind a shield, which come to their natural end."""
        if self.cancelled:
            return
        self.cancelled = True
        for index in list(self.ends):
            reaction = self.plan.items[index].if_cancelled
            if reaction != "shield":
                del self.ends[index]
                how = {"stop": "stop", "error": "cleanup", "value": "caught"}[reaction]
                self.finish(index, how, by_cancellation=True)


def simulate(plan):
    """What must come of the run that `plan` describes."""
    return Simulation(plan).run()


def exact(whole, place):
    """A time with a fraction of its own."""
    return whole + math.ldexp(1, -place)
