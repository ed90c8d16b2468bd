"""Reading items: lazily, from a file that may be a terminal, a pipe, or endless.

A *splitter* is told of each piece of the input, and gives the items that are then complete. Items are text in which a
byte that is not UTF-8 is a lone surrogate (`surrogateescape`, PEP 383), so that none is lost.
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol

import trio

from ._stdio import UsageError, read_some, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STANDARD_INPUT: Final = "standard input"

LONGEST_TOKEN: Final = 16
"""Characters of JSON, other than those of a string, that the end of a piece may cut in two: an escaped surrogate pair
has twelve, ``-Infinity`` nine."""

_BLANKS: Final = " \t\r\n"  # what JSON takes for white space


class Job(NamedTuple):
    """An item and its index."""

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    item: str


class Splitter(Protocol):
    """Makes items of pieces of input. Both methods give a `ValueError` for input that is wrong."""

    def feed(self, piece: bytes, /) -> Iterator[str]: ...
    def finish(self) -> Iterator[str]: ...


class Items:
    """The jobs that are in a file, as an async iterator.

    Args:
        fd: the file to read, from where it stands.
        name: what to call it in messages.
        splitter: what finds the items in it.
        wanted: whether a job is to be done at all.
    """

    def __init__(self, fd: int, name: str, splitter: Splitter, wanted: Callable[[Job], bool]) -> None:
        self._fd: Final = fd
        self._name: Final = name
        self._splitter: Final = splitter
        self._wanted: Final = wanted
        self._ready: Iterator[str] = iter(())
        self.ended = False
        self.count = 0
        """How many items there have been so far; all of them, once `ended`."""
        self.skipped = 0
        """How many of them were not wanted."""

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Job:
        await trio.lowlevel.checkpoint()
        while True:  # there has just been one, and reading is another
            try:
                item = next(self._ready, None)
            except ValueError as exc:
                msg = f"{self._name}: {exc}"
                raise UsageError(msg) from None
            if item is not None:
                job = Job(self.count, item)
                self.count += 1
                if self._wanted(job):
                    return job
                self.skipped += 1
            elif self.ended:
                raise StopAsyncIteration
            else:
                await self._read()

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
        # In a thread, since nothing else reads any kind of file and never holds up the others. When there is no need
        # for the input any more, the thread is left to its wait.
        return await trio.to_thread.run_sync(read_some, fd, abandon_on_cancel=True)
    except OSError as exc:
        msg = f"cannot read {name}: {reason(exc)}"
        raise UsageError(msg) from None


def splitter_for(kind: str) -> Splitter:
    """The splitter for a format of the options: ``lines``, ``null`` or ``json``."""
    if kind == "json":
        return Json()
    return Lines(b"\0" if kind == "null" else b"\n")


class Lines:
    """Items that each end with the same byte, except maybe the last. An empty line is an empty item."""

    def __init__(self, end: bytes = b"\n") -> None:
        self._end: Final = end
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


class Json:
    """The members of an array, if the input begins with ``[``; JSON Lines otherwise."""

    def __init__(self) -> None:
        self._beginning = b""
        self._chosen: Splitter | None = None

    def feed(self, piece: bytes) -> Iterator[str]:
        """The items that `piece` completes."""
        if self._chosen is None:
            piece = self._beginning = self._beginning + piece
            first = piece.lstrip(_BLANKS.encode())[:1]
            if not first:
                return
            self._chosen = _Array() if first == b"[" else _JsonLines()
        yield from self._chosen.feed(piece)

    def finish(self) -> Iterator[str]:
        """The last item, if its end is missing."""
        if self._chosen is not None:
            yield from self._chosen.finish()


class _JsonLines:
    """JSON Lines: a value on each line that is not blank."""

    def __init__(self) -> None:
        self._lines: Final = Lines()
        self._line = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        for line in self._lines.feed(piece):
            yield from self._value(line)

    def finish(self) -> Iterator[str]:
        for line in self._lines.finish():
            yield from self._value(line)

    def _value(self, line: str) -> Iterator[str]:
        self._line += 1
        if text := line.strip(_BLANKS):
            try:
                value, end = _decode(text, 0)
                if end != len(text):
                    msg = f"a second value in one line: {text[end:].lstrip(_BLANKS)[:20]!r}"
                    raise ValueError(msg)
                yield _as_argument(value)
            except ValueError as exc:
                _raise_at(self._line, exc)


class _Array:
    """A JSON array, of which each member is an item as soon as it is there."""

    def __init__(self) -> None:
        self._decoder: Final = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0  # all before it is done with
        self._line = 1
        self._expected = "["  # or "value or ]", "value", ", or ]", "end"

    def feed(self, piece: bytes) -> Iterator[str]:
        self._text = self._text[self._at :] + self._decoder.decode(piece)
        self._at = 0
        return self._members(final=False)

    def finish(self) -> Iterator[str]:
        self._text = self._text[self._at :] + self._decoder.decode(b"", final=True)
        self._at = 0
        yield from self._members(final=True)
        if self._expected != "end":
            _raise_at(self._line, "the array is not closed")

    def _members(self, *, final: bool) -> Iterator[str]:
        while char := self._next_char():
            if "value" in self._expected and not (char == "]" and "]" in self._expected):
                try:
                    found = self._value(final=final)
                except ValueError as exc:
                    _raise_at(self._line, exc)
                if found is None:
                    return
                self._expected = ", or ]"
                yield found
            elif char in self._expected and self._expected != "end":
                self._at += 1
                self._expected = {"[": "value or ]", ",": "value", "]": "end"}[char]
            elif self._expected == "end":
                _raise_at(self._line, "there is more after the end of the array")
            else:
                _raise_at(self._line, f"expected {self._expected}, got {char!r}")

    def _next_char(self) -> str:
        """The next character that is not blank; an empty string where there is none."""
        while self._at < len(self._text) and self._text[self._at] in _BLANKS:
            self._line += self._text[self._at] == "\n"
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _value(self, *, final: bool) -> str | None:
        """The value that begins here, or None if the end of it is not there yet."""
        try:
            value, end = _decode(self._text, self._at)
        except json.JSONDecodeError as exc:
            near_end = exc.pos > len(self._text) - LONGEST_TOKEN
            if not final and (near_end or exc.msg.startswith("Unterminated string")):
                return None
            self._line += self._text.count("\n", self._at, exc.pos)
            raise
        if not final and type(value) in (int, float) and not self._text[end : end + LONGEST_TOKEN].strip(".eE+-"):
            return None  # a number may go on
        item = _as_argument(value)
        self._line += self._text.count("\n", self._at, end)
        self._at = end
        return item


def _decoded(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-8", "surrogateescape")


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


_JSON: Final = json.JSONDecoder(parse_constant=_no_constant)


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends."""
    try:
        return _JSON.raw_decode(text, start)
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None


def _as_argument(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _raise_at(line: int, error: ValueError | str) -> NoReturn:
    what = error.msg if isinstance(error, json.JSONDecodeError) else error
    msg = f"line {line}: {what}"
    raise ValueError(msg) from None
