"""Reading items: lazily, from a file that may be a terminal, a pipe, or endless.

A *splitter* is told of each piece of the input, and gives the items that are then complete. Items are text in which a
byte that is not UTF-8 is a lone surrogate (`surrogateescape`, PEP 383), so that none is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import trio

from ._stdio import UsageError, in_thread, read_some, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._history import History

STANDARD_INPUT: Final = "standard input"


class Item(NamedTuple):
    """A part of the input, its place in it, and how many equal ones came before."""

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    text: str
    occurrence: int = 0


Job: TypeAlias = tuple[Item, ...]
"""What a program is started for: an item or, with ``--batch``, several."""


class Splitter(Protocol):
    """Makes items of pieces of input. Both methods give a `ValueError` for input that is wrong."""

    def feed(self, piece: bytes, /) -> Iterator[str]: ...
    def finish(self) -> Iterator[str]: ...


class Items:
    """The items that are in a file, as an async iterator.

    Args:
        fd: the file to read, from where it stands.
        name: what to call it in messages.
        splitter: what finds the items in it.
        history: tells which items need not be done again; None if all are to be done.
    """

    def __init__(self, fd: int, name: str, splitter: Splitter, history: History | None) -> None:
        self._fd = fd
        self._name = name
        self._splitter = splitter
        self._history = history
        self._ready: Iterator[str] = iter(())
        self.ended = False
        self.count = 0
        """How many items there have been so far; all of them, once `ended`."""
        self.skipped = 0
        """How many of them have been done before."""

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Item:
        await trio.lowlevel.checkpoint()
        return await self.next()

    async def next(self) -> Item:
        """The next item, without a checkpoint where it is there already: many may be wanted at once.

        Raises:
            StopAsyncIteration: there are no more.
        """
        while True:
            try:
                text = next(self._ready, None)
            except ValueError as exc:
                msg = f"{self._name}: {exc}"
                raise UsageError(msg) from None
            if text is not None:
                item, done = self._item(text)
                if not done:
                    return item
                self.skipped += 1
            elif self.ended:
                raise StopAsyncIteration
            else:
                await self._read()

    def _item(self, text: str) -> tuple[Item, bool]:
        index = self.count
        self.count += 1
        if self._history is None:
            return Item(index, text), False
        occurrence, done = self._history.meet(text)
        return Item(index, text, occurrence), done

    async def _read(self) -> None:
        piece = await read_piece(self._fd, self._name)
        self.ended = not piece
        self._ready = self._splitter.feed(piece) if piece else self._splitter.finish()


async def read_piece(fd: int, name: str) -> bytes:
    """Read what there is of a file, `name` for short; nothing at its end.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return await in_thread(read_some, fd)
    except OSError as exc:
        msg = f"cannot read {name}: {reason(exc)}"
        raise UsageError(msg) from None


class Lines:
    """Items that each end with the same byte, except maybe the last. An empty line is an empty item."""

    def __init__(self, end: bytes = b"\n") -> None:
        self._end = end
        self._begun: list[bytes] = []  # the parts of an item of which the end is not there yet

    def feed(self, piece: bytes) -> Iterator[str]:
        """The items that `piece` completes."""
        first, *others = piece.split(self._end)
        self._begun.append(first)
        for part in others:
            yield _decoded(self._begun)
            self._begun = [part]

    def finish(self) -> Iterator[str]:
        """The last item, if its end is missing."""
        if last := _decoded(self._begun):
            yield last


def _decoded(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-8", "surrogateescape")
