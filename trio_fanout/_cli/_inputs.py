"""Where jobs come from, and what is started for each: the words of a program and its standard input."""

from __future__ import annotations

import math
import os
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ._items import STANDARD_INPUT, Item, Items, Lines, read_piece
from ._json import Json
from ._progress import count_items, position_in
from ._stdio import FatalError, UsageError, in_thread, reason, write_all
from ._template import Template

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Generator, Iterable
    from contextlib import AbstractContextManager, ExitStack

    from ._history import History, Words
    from ._items import Job
    from ._parser import Options

ARGUMENTS: Final = 1 << 17
"""Bytes of arguments that a batch has at most, whatever the system allows: more would gain nothing."""


class Input(Protocol):
    """What there is to do."""

    @property
    def jobs(self) -> Iterable[Job] | AsyncIterable[Job]: ...
    @property
    def skipped(self) -> int: ...
    @property
    def has_one_program(self) -> bool: ...
    async def count(self) -> None: ...
    def total(self) -> int | None: ...
    def program(self, job: Job, /) -> Words: ...
    def words(self, job: Job, /) -> list[bytes]: ...
    def stdin(self, job: Job, /) -> AbstractContextManager[int | None]: ...


class ItemInput:
    """`map` and `do`: the same program for each item that is read, or for each few.

    Args:
        options: those of the command line.
        fd: the file with the items.
        history: tells which items have been done before; None if none need be told.
    """

    def __init__(self, options: Options, fd: int, history: History | None) -> None:
        self._fd = fd
        name = STANDARD_INPUT if options.items is None else repr(options.items)
        self._end = b"\0" if options.format == "null" else b"\n"
        splitter = Json() if options.format == "json" else Lines(self._end)
        self._counted: int | None = None
        self._position = None if options.format == "json" else position_in(self._fd)
        self._template = Template(options.program)
        (self._program,) = programs_of(options)
        self._items = Items(self._fd, name, splitter, history)
        self.jobs: Final = Batches(self._items, self._template, options.batch or 1)

    @property
    def skipped(self) -> int:
        """How many items have been done before."""
        return self._items.skipped

    def total(self) -> int | None:
        """How many items there are to do, or None while that is unknown."""
        counted = self._items.count if self._items.ended else self._counted
        return None if counted is None else counted - self._items.skipped

    async def count(self) -> None:
        """Find out how many items there are, other than JSON, if they are in a plain file."""
        # Only the progress display uses the count, so a failure does not matter.
        with suppress(FatalError, OSError):
            if self._position is None:
                return
            self._counted = await in_thread(count_items, self._fd, self._position, self._end)

    @property
    def has_one_program(self) -> bool:
        """Whether each job runs the same program."""
        return self._template.has_fixed_program

    def program(self, job: Job, /) -> Words:
        """The words of the program, with places for items."""
        return self._program

    def words(self, job: Job, /) -> list[bytes]:
        """The words of the program."""
        return self._template.words(job)

    def stdin(self, job: Job, /) -> AbstractContextManager[int | None]:
        """Its standard input: none."""
        return nullcontext()


class Batches:
    """The items a few at a time, as an async iterator.

    Args:
        items: where they come from.
        template: what they are put into.
        most: how many there are in each; fewer at the end, or where the system takes no more arguments.
    """

    def __init__(self, items: Items, template: Template, most: int) -> None:
        self._items = items
        self._template = template
        self._most = most
        self._room = room_for_arguments() - template.fixed_size() if most > 1 else math.inf
        self._left: Item | None = None  # one that the last batch had no room for

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Job:
        await trio.lowlevel.checkpoint()  # the items that are there take none
        first = await self._items.next() if self._left is None else self._left
        self._left = None
        if self._most == 1:
            return (first,)
        batch = [first]
        room = self._room - self._template.size_of(first)
        while len(batch) < self._most:
            try:
                item = await self._items.next()
            except StopAsyncIteration:
                break
            room -= self._template.size_of(item)
            if room < 0:
                self._left = item
                break
            batch.append(item)
        return tuple(batch)


def room_for_arguments() -> int:
    """How many bytes of arguments a program can be started with."""
    environment = sum(len(name) + len(value) + 10 for name, value in os.environb.items())
    # POSIX asks to leave 2048 bytes to the program, which may change its environment.
    return min(ARGUMENTS, os.sysconf("SC_ARG_MAX") - environment - 2048)


class CommandInput:
    """`fan-out`: several programs, each with a copy of all of standard input."""

    def __init__(self, options: Options, history: History | None, stack: ExitStack) -> None:
        self._commands: list[tuple[str, list[str]]] = options.program
        self._programs = programs_of(options)
        self._stack = stack
        self._copy = ""
        self.jobs: Final[list[Job]] = []
        for index, (command, _) in enumerate(self._commands):
            text = _text(command)
            occurrence, done = (0, False) if history is None else history.meet(text)
            if not done:
                self.jobs.append((Item(index, text, occurrence),))

    @property
    def skipped(self) -> int:
        """How many of the programs have succeeded before."""
        return len(self._commands) - len(self.jobs)

    @property
    def has_one_program(self) -> bool:
        """Whether each job runs the same program."""
        return False

    async def count(self) -> None:
        """Nothing to find out: the number of programs is known."""

    def total(self) -> int:
        """How many programs there are to run."""
        return len(self.jobs)

    async def read_input(self) -> None:
        """Read all of standard input into a file, since the last program may start when the first has ended."""
        try:
            copy, name = tempfile.mkstemp()
            self._stack.callback(os.close, copy)
            # A file without a name is removed with this process, however that ends. It can be opened again only
            # through this folder.
            self._copy = f"/proc/self/fd/{copy}"
            if os.path.exists(self._copy):  # noqa: ASYNC240, PTH110  # it asks no disk
                Path(name).unlink()  # noqa: ASYNC240  # as quick as making it
            else:
                self._copy = name
                self._stack.callback(Path(name).unlink)
            while piece := await read_piece(0, STANDARD_INPUT):
                write_all(copy, piece)
        except OSError as exc:
            msg = f"cannot keep a copy of standard input in {tempfile.gettempdir()}: {reason(exc)}"
            raise FatalError(msg) from None

    def program(self, job: Job, /) -> Words:
        """The words of the program."""
        return self._programs[job[0].index]

    def words(self, job: Job, /) -> list[bytes]:
        """The words of the program."""
        return [os.fsencode(word) for word in self._commands[job[0].index][1]]

    @contextmanager
    def stdin(self, job: Job, /) -> Generator[int, None, None]:
        """The copy of standard input, opened anew, since each program needs a position of its own in it."""
        fd = os.open(self._copy, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)


def programs_of(options: Options) -> list[Words]:
    """The words of each program that the options name, as records have them."""
    commands = [words for _, words in options.program] if options.command == "fan-out" else [options.program]
    return [list(map(_text, words)) for words in commands]


async def open_items(path: str | None, stack: ExitStack) -> int:
    """Open the file with the items, which can take any time: a named pipe waits for its writer.

    Raises:
        UsageError: it cannot be opened.
    """
    if path is None:
        return 0
    try:
        fd = await in_thread(os.open, path, os.O_RDONLY)
    except OSError as exc:
        msg = f"cannot open {path!r}: {reason(exc)}"
        raise UsageError(msg) from None
    stack.callback(os.close, fd)
    return fd


def _text(argument: str) -> str:
    """An argument of ours as items are written, whatever the locale has made of it."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")
