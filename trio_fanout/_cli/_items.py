"""Reading items: lazily, from a file that may be a terminal, a pipe, or endless.

A *splitter* is fed the pieces of the input, and yields the items that are then complete. Items are text in which a byte
that is not UTF-8 is a lone surrogate (`surrogateescape`, PEP 383), so that none is lost.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import trio

from ._stdio import FatalError, UsageError, in_thread, is_ready, read_piece, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ._log import History

COUNTING: Final = 1.0  # seconds that finding out how many items are left may hold up what is said of them
COUNTED: Final = 1 << 20  # bytes read at once to count items

# Bytes. No system takes so long an argument. But JSON may have blanks and escapes that the item will not have, and an
# item that is merely too long for an argument fails by itself.
LONGEST: Final = 1 << 26


class Item(NamedTuple):
    """A part of the input, its place in it, and how many equal ones came before."""

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    text: str
    occurrence: int = 0


Job: TypeAlias = tuple[Item, ...]
"""What a program is started for: an item or, with ``--batch``, several."""


def shown_job(job: Job) -> str:
    """A job as messages show it."""
    first = f"item {job[0].index} ({shown(job[0].text)})"
    return first if len(job) == 1 else f"{first} and {len(job) - 1} more"


class Splitter(Protocol):
    """Makes items of pieces of input, the last of which is empty. Input that is wrong is a `ValueError`."""

    def feed(self, piece: bytes, /) -> Iterator[str]: ...


class Lines:
    """Items that each end with the same byte, except maybe the last. An empty line is an empty item."""

    def __init__(self, end: bytes = b"\n") -> None:
        self._end = end
        self._begun: list[bytes] = []  # the parts of an item that has not ended
        self._size = 0  # of all of them

    def feed(self, piece: bytes) -> Iterator[str]:
        """The items that `piece` completes; an empty one is the end of the input."""
        first, *others = piece.split(self._end)
        self._begun.append(first)
        self._size = len(others[-1]) if others else self._size + len(first)
        for part in others:
            yield _decoded(self._begun)
            self._begun = [part]
        if self._size > LONGEST:
            msg = f"no end of an item in {LONGEST >> 20} MiB: items end with a newline, or with --null, a NUL"
            raise ValueError(msg)
        if not piece and (last := _decoded(self._begun)):
            yield last


def _decoded(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-8", "surrogateescape")


class Input(NamedTuple):
    """A file with items, which is read from where it stands."""

    fd: int
    name: str  # in messages
    splitter: Callable[[], Splitter]  # makes what finds the items in it


class Items:
    """The items that there are to run, as an async iterator of jobs. It just ends if the input is wrong.

    Args:
        source: where the items are, or the items.
        history: knows which items need not be run again; None if all are to be run.
        wrong: called if the input cannot be read or understood.
    """

    def __init__(
        self,
        source: Input | Iterable[str],
        history: History | None,
        wrong: Callable[[UsageError | FatalError], None],
    ) -> None:
        self._history = history
        self._wrong = wrong
        self._input: Input | None = None  # what has not been read to its end
        self._position: int | None = None  # where it begins, if it is a plain file
        self._splitter: Splitter = Lines()
        self._ready: Iterator[Item] = iter(())
        self._met = 0  # how many items have been read
        self.skipped = 0
        """How many of them have been done before."""
        self.total: int | None = None
        """How many items there are to run, if that is known."""
        if isinstance(source, Input):
            self._input = source
            self._splitter = source.splitter()
            if stat.S_ISREG(os.fstat(source.fd).st_mode):
                self._position = os.lseek(source.fd, 0, os.SEEK_CUR)
        else:
            self._take_last(source)

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Job:
        await trio.lowlevel.checkpoint()
        return (await self.next(),)

    async def next(self) -> Item:
        """The next item, without a checkpoint if it is ready: many may be wanted at once.

        Raises:
            StopAsyncIteration: there are no more.
        """
        source = self._input
        try:
            while (item := next(self._ready, None)) is None and (source := self._input) is not None:
                await self._read(source)
        except (UsageError, FatalError, ValueError) as exc:
            # No exception of the run: what came before stands, and `wrong` decides about what runs.
            assert source is not None
            self._input = item = None
            self._wrong(UsageError(f"{source.name}: {exc}") if isinstance(exc, ValueError) else exc)
        if item is None:
            raise StopAsyncIteration
        return item

    async def _read(self, source: Input) -> None:
        piece = await read_piece(source.fd, source.name)
        texts = self._splitter.feed(piece)
        if piece:
            self._ready = self._to_run(texts)
        else:
            self._take_last(texts)

    def _take_last(self, texts: Iterable[str]) -> None:
        """Take all items that are left, so their number is known."""
        self._ready = iter(list(self._to_run(texts)))
        self._input = None
        self.total = self._met - self.skipped

    def _to_run(self, texts: Iterable[str]) -> Iterator[Item]:
        for text in texts:
            occurrence, done = (0, False) if self._history is None else self._history.meet(text)
            index = self._met
            self._met += 1
            self.skipped += done
            if not done:
                yield Item(index, text, occurrence)

    async def count(self) -> None:
        """Find out how many items there are, if they are in a plain file."""
        source, position = self._input, self._position
        if source is not None and position is not None and self.total is None:
            # A failure does not matter: the reader of the items will come to it.
            with suppress(FatalError, OSError, ValueError):
                total = await in_thread(self._count, source, position)
                if self._input is not None:  # its reader has not come to the end meanwhile
                    self.total = total

    def _count(self, source: Input, position: int) -> int:
        splitter = source.splitter()
        history = None if self._history is None else self._history.anew()
        count, piece = 0, b"begun"
        while piece:
            piece = os.pread(source.fd, COUNTED, position)  # the position of the reader stays where it is
            position += len(piece)
            texts = splitter.feed(piece)
            count += sum(1 for text in texts if history is None or not history.meet(text)[1])
        return count

    async def settle(self) -> None:
        """Find out how many items there are, unless that takes long. Nothing more is read after this."""
        with trio.move_on_after(COUNTING), suppress(UsageError, FatalError, ValueError):
            await self.count()
            source = self._input
            # The end of a pipe may just not have been looked at.
            if source is not None and next(self._ready, None) is None and is_ready(source.fd, select.POLLIN):
                await self._read(source)
