"""What must hold for `open_group`."""

from outcome import Error, Value

import trio_fanout as fanout

from .account import SETTING, Account, BlockError, options, pause, same


class Grouped(Account, calls=("open_group",)):
    """`open_group`, its jobs and their handles."""

    kind = "job"

    def __init__(self, *args):
        super().__init__(*args)
        self.items = []  # jobs, as they are submitted
        self.handles = []
        self.waited_for = []  # jobs

    async def call(self):
        plan = self.plan
        async with fanout.open_group(**options(plan, self.limiter)) as self.handle:
            for number, job in enumerate(plan.items):
                self.submit(job)
                if plan.pace:
                    await pause(plan.pace[number % len(plan.pace)])
            await self.leave()

    async def leave(self):
        match self.plan.leaving:
            case "raise":
                self.close("an error of the block")
                self.hard.append(BlockError())
                raise self.hard[-1]
            case "stop":
                self.stop()
            case "cancel":
                self.cancelled_at = self.control.now
                self.handle.cancel_scope.cancel()
            case "wait":
                for handle in list(self.handles):
                    await self.wait_for(handle)

    def submit(self, job):
        index = len(self.items)
        self.items.append(job)
        self.settings[index] = SETTING.get()
        handle = self.handle.start_soon(self.call_item, index)
        self.check(handle.index == index, f"{handle} is of job {index}")
        self.check(not self.over or is_cancelled(handle), f"{handle} after {self.over}")
        self.handles.append(handle)
        return handle

    async def wait_for(self, handle):
        self.waited_for.append(handle.index)
        try:
            await handle.wait()
        finally:
            self.waited_for.remove(handle.index)
        right = handle.index in [*self.finished, *self.lost] or self.ends_early()
        self.check(right, f"{handle} is not done")

    def stop(self):
        if self.handle is not None:
            self.handle.stop()
            self.close("stop()")
            self.check(all(map(is_cancelled, self.handles[len(self.started) :])), f"{self.handles} after stop()")

    def waiting(self):
        return len(self.items) - len(self.started)

    def idle(self):
        super().idle()
        for index in self.waited_for:
            right = index in self.running or (index not in self.started and not self.over)
            self.check(right, f"job {index} has ended, and a task still waits for it")
        if self.handle is not None:
            shown = self.handle.statistics()
            self.check(shown.running == len(self.running), f"{shown}, but {self.running} run")
            right = shown.queued == 0 if self.over else self.ends_early() or shown.queued == self.waiting()
            self.check(right, f"{shown}, but {self.waiting()} are queued")

    def check_end(self, value, raised):
        super().check_end(value, raised)
        for index, handle in enumerate(self.handles):
            outcome = handle.outcome
            if index in self.values:
                right = outcome == Value(index)
            elif index in self.failures:
                right = isinstance(outcome, Error) and same(self.failures[index], outcome.error)
            else:
                right = is_cancelled(handle)
            self.check(right, f"{handle}")

    def check_result(self, value):
        self.check(self.ends_early() or len(self.finished) == len(self.items), "it ends before its end")


def is_cancelled(handle):
    """Whether the job is done, and has no outcome. Only the `repr` tells it from one that is not done."""
    return handle.outcome is None and "cancelled" in repr(handle)
