"""What signs of overload do to an adaptive cap: its size, and when a server that goes on refusing is asked again.

Numbers alone. `Adaptive` knows the calls, and tells these what happens to them, in which *epoch*: how many signs of
overload had counted when the call started.
"""

from __future__ import annotations

import math
from typing import Final

FIRST_SIZE: Final = 10
"""The tokens that an adaptive cap starts with, if its limit is not lower."""

CUTS_OF_A_BLOCK: Final = 3
"""This many cuts in a row mean that the server goes on refusing."""

LONGEST_PAUSE: Final = 8.0
"""The most seconds between two calls to such a server, unless an eighth of the time that this has lasted is more."""


class Size:
    """How many tokens an adaptive cap has: additive increase, multiplicative decrease."""

    def __init__(self, ceiling: float) -> None:
        self.epoch = 0
        self._ceiling = ceiling
        self._doubles = True  # or grows by one
        self._accepted = False  # whether any call has succeeded
        self._set(min(FIRST_SIZE, ceiling))

    def _set(self, size: float) -> None:
        self.now = size
        self._successes = 0
        self.waited = False  # whether a call had to wait for a token since then

    def assign(self, size: float) -> None:
        """Take over what the user has assigned: this is the size, and the most that it grows to."""
        self._ceiling = size
        self._set(size)

    def succeeded(self, epoch: int) -> bool:
        """Count a call that has succeeded. Returns whether the size has grown."""
        self._accepted = True
        if epoch != self.epoch:
            return False
        self._successes += 1
        if not (self.waited and self._successes >= self.now and self.now < self._ceiling):
            return False
        self._set(min(self._ceiling, self.now + (self.now if self._doubles else 1)))
        return True

    def cut(self, in_use: int, *, to_one: bool) -> None:
        """Cut the size after a sign of overload, and begin a new epoch."""
        self.epoch += 1
        self._doubles = False
        size = 1 if to_one else max(1, 7 * min(self.now, in_use) // 10)
        self._set(min(self.now, size))  # not up from 0, which the user has assigned

    def block_ended(self) -> None:
        """Double again, as at first, if no call had succeeded before the block: all that was learned is the outage."""
        self._doubles = self._doubles or not self._accepted


class Block:
    """Whether a server goes on refusing. If so, calls start apart from each other, and ever farther apart."""

    def __init__(self) -> None:
        self.next = -math.inf  # the time before which no call starts
        self._cuts = 0  # in a row
        self._epoch = 0  # a success of a call that started in this epoch, or later, ends the row, and so the block
        self._began = -math.inf

    def __bool__(self) -> bool:
        return self._cuts >= CUTS_OF_A_BLOCK

    def cut(self, now: float, epoch: int) -> None:
        """Count a cut, which began this epoch."""
        self._cuts += 1
        if self._cuts in {1, CUTS_OF_A_BLOCK}:  # the first of the row, and the first of the block
            self._epoch, self._began = epoch, now
        self.postpone(now)

    def postpone(self, now: float) -> None:
        """In a block, let no call start for a while: 1 s, and twice as long with each further cut."""
        if self:
            pause = 2 ** (self._cuts - CUTS_OF_A_BLOCK)
            self.next = now + min(pause, max(LONGEST_PAUSE, (now - self._began) / 8))

    def succeeded(self, epoch: int) -> bool:
        """Note that a call has succeeded. Returns whether this has ended a block."""
        if epoch < self._epoch:
            return False
        was_block = bool(self)
        self.end()
        return was_block

    def end(self) -> None:
        """Forget the cuts so far."""
        self._cuts = 0
        self.next = -math.inf
