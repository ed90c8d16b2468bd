"""Where the outcomes of items go."""

from __future__ import annotations

from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


class Sink(Protocol[T_contra, R_contra]):
    """What a run tells about its items."""

    def succeeded(self, index: int, item: T_contra, value: R_contra, /) -> str | None:
        """Called for an item that returned. Returns a reason to cancel the run, or None."""

    def failed(self, index: int, item: T_contra, exc: Exception, /, *, secondary: bool) -> str | None:
        """Called for an item that failed; `secondary` if that came out of a cancellation. Returns as `succeeded`."""

    def cancelled(self, index: int, item: T_contra, /) -> None:
        """Called for an item that was cancelled, or that will never start."""

    def label(self, index: int, /) -> str:
        """What an item is called in messages: ``item 3``."""
        ...

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the run raises, or None, when all tasks have ended.

        `leaving` is what it would raise if there were no failures; `started` is how many items were started; `complete`
        says whether all items were taken and each has succeeded or failed.
        """
