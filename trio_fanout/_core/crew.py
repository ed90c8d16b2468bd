"""Who works on a run, and who may start."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from .._protection import protected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

    from .limits import Tokens
    from .nursery import SingleExceptionNursery
    from .sources import Source

    Work = Callable[[], Awaitable[None]]

MAX_COMING: Final = 64
"""How many workers may be coming at a time: at the start of a run, when jobs are queued, and after a wait for tokens.

A worker that takes an item allows as many as there are unfinished items. So they double, and thousands are running
within a few turns of Trio's loop. If all of them were started in one go, other tasks would have to wait, and functions
that never wait would leave nothing for most of them to do.
"""


class End(Enum):
    """Why no more items are taken."""

    EXHAUSTED = auto()  # the source has ended, and all its items were taken
    STOPPED = auto()  # the owner wants no more items to be started
    CANCELLED = auto()  # the run was cancelled, or an exception ends it


EXHAUSTED, STOPPED, CANCELLED = End  # under a name of its own, a member is found ten times as fast on Python 3.11


@protected()
@attrs.define(eq=False, init=False)
class Crew:
    """The workers of a run.

    Three numbers are counted, and idle workers wait in a parking lot:

    - `workers`: tasks that were started and have not ended. Up in `start_one`, down in `count_out`.
    - `taken`: items that workers have taken. Set by the loop, where it takes an item.
    - `finished`: items that were taken and have ended in some way. Up in the loop, where an item ends, and in
      `Ending.turned_away`.

    From these follow:

    - *unfinished* items, ``taken - finished``: they run, or wait to start;
    - *awake* workers, ``workers - len(idle)``;
    - *coming* workers, *awake* less *unfinished*: those that are awake and have no item. Each will soon look for an
      item, or exit.

    Starting a worker for each item that is ready, less those that are coming, never starts too few. It starts too many
    where a worker that has just finished takes an item that another one is coming for. That one finds nothing, and
    idles or exits. One too many is cheap, one too few would hang.
    """

    _source: Source[Any]
    _tokens: Tokens
    _nursery: SingleExceptionNursery
    _name: str  # of the worker tasks
    limit_changes: bool  # whether the limiter may change during the run: it is shared, or shown to the user
    ended: End | None  # why no more items are taken; the first cause counts
    # How many workers may be awake: the limit as last seen, at least 1, or the number of items, if the limit does not
    # change and they are fewer. And 0 once the run has `ended`: so the loop compares one number per item.
    max_awake: float
    workers: int
    taken: int
    finished: int
    idle: trio.lowlevel.ParkingLot | None  # workers that found no item; None if the source never has them wait

    def __init__(
        self,
        source: Source[Any],
        tokens: Tokens,
        nursery: SingleExceptionNursery,
        name: str,
        *,
        limiter_shown: bool,
    ) -> None:
        self._source = source
        self._tokens = tokens
        self._nursery = nursery
        self._name = name
        self.limit_changes = tokens.shared or limiter_shown
        self.ended = None
        self.max_awake = tokens.worker_limit
        if source.length and not source.may_grow and not self.limit_changes:
            self.max_awake = min(self.max_awake, source.length)  # more would find nothing: don't look for them
        self.workers = self.taken = self.finished = 0
        self.idle = trio.lowlevel.ParkingLot() if source.may_grow else None

    def unfinished(self) -> int:
        """How many items were taken and have not ended."""
        return self.taken - self.finished

    def awake(self) -> int:
        """How many workers are not idle."""
        return self.workers if self.idle is None else self.workers - len(self.idle)

    def wake_or_start(self, worker: Callable[[], Work], at_most: int = 1) -> None:
        """Wake or start workers, until one is coming for each item that is ready.

        No more than `at_most` are coming then, and no more are awake than the limit allows.
        """
        unfinished = self.taken - self.finished
        coming = self.workers - unfinished if self.idle is None else self.workers - len(self.idle) - unfinished
        if coming >= at_most:
            return
        if self.limit_changes and self._tokens.limiter.total_tokens != self._tokens.total:  # `look_at_limit()`
            self.follow_limit()
        room = self.max_awake - unfinished
        if coming >= room:
            return
        count = int(min(self._source.ready(self.taken), at_most, room)) - coming
        if count <= 0:
            return
        if self.idle:
            count -= len(self.idle.unpark(count=count))
        for _ in range(count):
            self.start_one(worker())

    def start_one(self, work: Work) -> None:
        """Start a worker, even if no item is ready: then it finds out whether the source has ended."""
        self._nursery.start_soon(work, name=self._name)
        self.workers += 1

    def count_out(self, task: Task) -> None:
        """Put back the token of a worker that ends, and count it out."""
        self._tokens.put_back(task)
        self.workers -= 1

    def look_at_limit(self) -> None:
        """Follow the limit if it has changed."""
        if self._tokens.limiter.total_tokens != self._tokens.total:
            self.follow_limit()

    def follow_limit(self) -> None:
        """Set how many workers may be awake by the tokens that the limiter has now."""
        self._tokens.look()
        if self.ended is None:
            self.max_awake = self._tokens.worker_limit
            self._source.wake_feeder()  # there may be room for what it reads, and no worker has to come by

    def dismiss(self, cause: End) -> None:
        """Have no more items taken. Workers exit when they next look."""
        if self.ended is None:
            self.ended = cause
            self.max_awake = 0
            if self.idle:
                self.idle.unpark_all()
