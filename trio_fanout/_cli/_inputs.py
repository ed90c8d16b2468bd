"""What there is to do: jobs, and a program to start for each of them."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ._items import STANDARD_INPUT, Items, Job, read_piece, splitter_for
from ._programs import Program
from ._progress import count_items, position_in
from ._stdio import FatalError, UsageError, reason, write_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable
    from contextlib import ExitStack

    from ._parser import Options


class Input(Protocol):
    """What there is to do."""

    @property
    def jobs(self) -> Iterable[Job] | AsyncIterable[Job]: ...
    def total(self) -> int | None: ...
    def start(self, job: Job, /) -> Program: ...


class ItemInput:
    """`map` and `do`: the same program for each item that is read.

    Args:
        options: those of the command line.
        wanted: whether a job is to be done at all.
        stack: closes the files when all is over.
    """

    def __init__(self, options: Options, wanted: Callable[[Job], bool], stack: ExitStack) -> None:
        self._fd: Final = 0 if options.items is None else _open(options.items)
        if self._fd:
            stack.callback(os.close, self._fd)
        name = STANDARD_INPUT if options.items is None else repr(options.items)
        self.jobs: Final = Items(self._fd, name, splitter_for(options.format), wanted)
        self._end: Final = b"\0" if options.format == "null" else b"\n"
        self._counted: int | None = None
        self._position: Final = position_in(self._fd)
        self._words: Final = [os.fsencode(word) for word in options.program]
        if not any(b"{}" in word for word in self._words):
            self._words.append(b"{}")
        self._capture: Final = options.command == "map"

    def total(self) -> int | None:
        """How many jobs there are, or None as long as nobody knows."""
        counted = self.jobs.count if self.jobs.ended else self._counted
        return None if counted is None else counted - self.jobs.skipped

    async def count(self) -> None:
        """Find out how many items there are, other than JSON, if they are in a plain file."""
        if self._position is not None:
            self._counted = await trio.to_thread.run_sync(
                count_items, self._fd, self._position, self._end, abandon_on_cancel=True
            )

    def start(self, job: Job, /) -> Program:
        """Start the program for a job."""
        values = {b"{}": job.item.encode("utf-8", "surrogateescape"), b"{#}": b"%d" % job.index}
        # In one go, as an item may hold braces, too.
        words = [re.sub(rb"\{#?\}", lambda found: values[found[0]], word) for word in self._words]
        return Program(words, capture=self._capture)


class CommandInput:
    """`fan-out`: several programs, each with a copy of all of standard input."""

    def __init__(self, options: Options, wanted: Callable[[Job], bool], stack: ExitStack) -> None:
        self._commands: Final[list[tuple[str, list[str]]]] = options.program
        self._stack: Final = stack
        self._inputs: list[int] = []
        jobs = [Job(index, _text(command)) for index, (command, _) in enumerate(self._commands)]
        self.jobs: Final = [job for job in jobs if wanted(job)]

    def total(self) -> int:
        """How many programs there are to run."""
        return len(self.jobs)

    async def read_input(self) -> None:
        """Read all of standard input into a file, since the last program may start when the first has ended."""
        try:
            copy, name = tempfile.mkstemp()
            self._stack.callback(os.close, copy)
            try:
                for _ in self._commands:
                    # Opened again and again, since each program needs a position of its own in it.
                    self._inputs.append(os.open(name, os.O_RDONLY))
                    self._stack.callback(os.close, self._inputs[-1])
            finally:
                Path(name).unlink()  # noqa: ASYNC240  # as quick as opening it
            while piece := await read_piece(0, STANDARD_INPUT):
                write_all(copy, piece)
        except OSError as exc:
            msg = f"cannot keep a copy of standard input in {tempfile.gettempdir()}: {reason(exc)}"
            raise FatalError(msg) from None

    def start(self, job: Job, /) -> Program:
        """Start a program."""
        words = [os.fsencode(word) for word in self._commands[job.index][1]]
        return Program(words, stdin=self._inputs[job.index])


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as exc:
        msg = f"cannot open {path!r}: {reason(exc)}"
        raise UsageError(msg) from None


def _text(argument: str) -> str:
    """An argument of ours as items are written, whatever the locale has made of it."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")
