"""What must hold for `stream`."""

import trio
from outcome import Error, Value

import trio_fanout as fanout
from trio_fanout import FailFast, Settle

from .account import BlockError, options, pause, same
from .mapped import Sourced


class Streamed(Sourced, calls=("stream",)):
    """`stream`, and its reader."""

    def __init__(self, *args):
        super().__init__(*args)
        self.received = []
        self.reading = False
        self.read_all = False  # until the end, or what is raised instead
        self.settles = isinstance(self.plan.policy, Settle)

    # The source

    def take(self):
        index = super().take()
        window = self.window(self.most_tokens(self.asked_at))
        self.check(self.outstanding() <= window, f"{self.outstanding()} are outstanding, not {window}")
        return index

    def window(self, limit):
        """How many may be outstanding."""
        limit = limit or 1
        return limit + (limit if self.plan.buffer is None else self.plan.buffer)

    def outstanding(self):
        """How many were taken and not handed over."""
        return self.taken - len(self.received) - (0 if self.settles else len(self.failures))

    def room(self):
        return self.window(min(self.least, self.total)) - self.outstanding()

    # The block

    async def call(self):
        plan = self.plan
        async with fanout.stream(
            self.call_item, self.source(), **options(plan, self.limiter), ordered=plan.ordered, buffer=plan.buffer
        ) as self.handle:
            while len(self.received) < plan.reads:
                if plan.pace:
                    await pause(plan.pace[len(self.received) % len(plan.pace)])
                if not await self.receive():
                    return
            await self.leave()

    async def receive(self):
        """Receive a result. False if there is none any more."""
        self.reading = True
        try:
            completed = await self.handle.receive()
        except trio.EndOfChannel:
            self.read_all = True
            return False
        except Exception:
            self.read_all = True
            raise
        finally:
            self.reading = False
        self.check_received(*completed)
        self.received.append(completed.index)
        return True

    async def leave(self):
        match self.plan.leaving:
            case "break":
                self.close("the end of the block")
            case "raise":
                self.close("an error of the block")
                self.hard.append(BlockError())
                raise self.hard[-1]
            case "aclose":
                self.close("aclose()")
                await self.handle.aclose()
            case "stop":
                self.stop()
                while await self.receive():
                    pass

    def stop(self):
        if self.handle is not None:
            self.handle.stop()
            self.close("stop()")

    # What is handed over

    def check_received(self, index, item, value):
        right = Error if index in self.failures else Value
        if self.settles and right is Error:
            self.check(same(self.failures[index], value.error), f"received {value} of {index}")
        else:
            self.check(item == index and value == (Value(index) if self.settles else index), f"received {value}")
        ready, before = self.deliverable(), self.received
        if self.is_in_place():
            self.check(ready[len(before) : len(before) + 1] == [index], f"received {index} after {before}, of {ready}")
        else:
            self.check(index in ready and index > max(before, default=-1), f"received {index} after {before}")

    def is_in_place(self):
        """Whether what is deliverable will not have others in front of it."""
        return not self.plan.ordered or isinstance(self.plan.policy, FailFast)

    def deliverable(self):
        """What is handed over, as far as it is known by now, and if the reader does not leave."""
        if not self.plan.ordered:
            return [index for index in self.finished if self.settles or index in self.values]
        if isinstance(self.plan.policy, FailFast):
            return [index for index in range(len(self.values)) if self.values.keys() >= set(range(index + 1))]
        return sorted(self.finished if self.settles else self.values)

    def idle(self):
        super().idle()
        if self.reading and not self.quits:
            ready = [index for index in self.deliverable() if not self.plan.ordered or self.is_due(index)]
            self.check(len(ready) <= len(self.received), f"the reader sleeps with {self.received}, ready are {ready}")
        if self.handle is not None:
            shown = self.handle.statistics()
            self.check(shown.running == len(self.running), f"{shown}, but {self.running} run")
            right = self.ends_early() or shown.outstanding == self.outstanding()
            self.check(right, f"{shown}, but {self.outstanding()} are outstanding")

    def is_due(self, index):
        """Whether all before it have ended."""
        return set(self.finished) >= set(range(index))

    def check_end(self, value, raised):
        ended = self.read_all and not self.quits and not self.hard and not isinstance(raised, trio.Cancelled)
        right = not ended or self.received == self.deliverable()
        self.check(right, f"received {self.received}, not {self.deliverable()}")
        super().check_end(value, raised)

    def check_result(self, value):
        self.check(self.ends_early() or self.is_complete(), "it ends before its end")
