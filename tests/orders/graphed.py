"""What must hold for `run_graph`."""

from functools import partial

from outcome import Error, Value

import trio_fanout as fanout
from trio_fanout import FailFast, Settle

from .account import Account, Made, options, same


class Graphed(Account, calls=("run_graph",)):
    """`run_graph`, and the order of its steps."""

    kind = "step"
    keeps_results = True

    async def call(self):
        steps = {
            self.name(index): fanout.Step(
                partial(self.call_step, index), tuple(map(self.name, item.needs)), settled=item.settled
            )
            for index, item in enumerate(self.items)
        }
        return await fanout.run_graph(steps, **options(self.plan, self.limiter))

    def name(self, index):
        return f"s{index}"

    def count(self):
        return len(self.items)

    # Starts

    def call_step(self, index, *args):
        item = self.items[index]
        for need, arg in zip(item.needs, args, strict=True):
            self.check(self.is_arg(need, arg, settled=item.settled), f"step {index} gets {arg!r} of {need}")
        return self.call_item(index)

    def is_arg(self, need, arg, *, settled):
        """Whether a step has to get this for what it needs."""
        if need in self.values:
            return arg == (Value(need) if settled else need)
        if not settled or not isinstance(arg, Error):
            return False
        if need in self.failures:
            return same(self.failures[need], arg.error)
        return need in self.skipped() and isinstance(arg.error, fanout.DependencyFailed)

    def check_turn(self, index):
        ready = self.ready()
        self.check(index == min(ready, default=None), f"step {index} starts, but {ready} are ready")

    def waiting(self):
        return len(self.ready())

    def ready(self):
        """The steps that could start, as all that they need has ended."""
        ended = self.values.keys() | self.failures.keys() | self.skipped().keys()
        return [
            index
            for index, item in enumerate(self.items)
            if index not in self.started and (ended if item.settled else self.values.keys()) >= set(item.needs)
        ]

    def skipped(self, *, cut_short=False):
        """The steps that are skipped, and which of their needs failed first.

        While the run goes on, that is when all of their needs have ended.
        """
        failed = set(self.failures)
        for _ in self.items:
            ended = self.values.keys() | failed
            failed |= {
                index
                for index, item in enumerate(self.items)
                if index not in self.started and not item.settled and failed.intersection(item.needs)
                if cut_short or ended >= set(item.needs)
            }
        return {
            index: next(need for need in self.items[index].needs if need in failed)
            for index in sorted(failed - self.failures.keys())
        }

    # What comes of it

    def all_failures(self):
        if isinstance(self.plan.policy, FailFast):
            return self.failures
        return self.failures | dict.fromkeys(self.skipped(cut_short=True), Made(fanout.DependencyFailed))

    def check_group(self, raised, failures):
        super().check_group(raised, failures)
        self.check_skipped(raised.failures)

    def check_skipped(self, failures):
        for index, need in self.skipped(cut_short=True).items():
            failure = failures.get(self.name(index))
            right = isinstance(failure, fanout.DependencyFailed) and failure.dependency == self.name(need)
            self.check(right, f"{failure!r} of {index}, which needs {need}")

    def check_result(self, value):
        names = [self.name(index) for index in range(len(self.items))]
        self.check(list(value) == names, f"returned {value}")
        ended = len(self.values) + len(self.all_failures())
        self.check(ended == len(names) or self.control.now >= self.cancelled_at, f"only {ended} have ended")
        if isinstance(self.plan.policy, Settle):
            self.check_skipped({name: outcome.error for name, outcome in value.items() if isinstance(outcome, Error)})
            for index, outcome in enumerate(value.values()):
                self.check_outcome(index, outcome)
        else:
            self.check(list(value.values()) == list(range(len(names))), f"returned {value}")
