"""What came of a job, and the two forms in which it is written down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._history import Words
    from ._items import Job
    from ._spool import Kept

_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode


@final
@attrs.frozen(eq=False)
class Result:
    """What came of a program that was started.

    Attributes:
        job: the item that it was started for, or several.
        program: its words, with places for items.
        exit_code: None if it did not end by itself, -N if signal N killed it.
        outputs: what it printed, if that was kept: standard output, then standard error.
        started: when it was, in seconds since the epoch.
        seconds: how long it ran.
        error: why it failed; None if it succeeded.
        attempts: how many times it was started; None if it was not to be tried again.
        batch: whether it was started for up to so many items, so that the record tells them in a list.
        found: whether there is such a program.
        hopeless: whether another attempt would fail as well.
    """

    job: Job
    program: Words
    exit_code: int | None
    outputs: Sequence[Kept]
    started: float
    seconds: float
    error: str | None
    attempts: int | None = None
    batch: bool = False
    found: bool = True
    hopeless: bool = False

    def json_line(self) -> bytes:
        r"""The result as a line of JSON.

        A byte that is not UTF-8 stands in it as an escaped lone surrogate, ``\udc80`` to ``\udcff``: what Python's
        `surrogateescape` makes of it and, encoding, makes it of again.
        """
        first = self.job[0]
        record: dict[str, Any] = {"index": first.index}
        if self.batch:
            record["items"] = [item.text for item in self.job]
            if any(item.occurrence for item in self.job):
                record["occurrences"] = [item.occurrence for item in self.job]
        else:
            record["item"] = first.text
            if first.occurrence:
                record["occurrence"] = first.occurrence
        record["failed"] = self.error is not None
        record["exit_code"] = self.exit_code
        for name, output in zip(("stdout", "stderr"), self.outputs, strict=False):
            record[name] = b"".join(output.pieces()).decode("utf-8", "surrogateescape")
        record["started"] = round(self.started, 6)
        record["seconds"] = round(self.seconds, 6)
        if self.attempts is not None:
            record["attempts"] = self.attempts
        if self.error is not None:
            record["error"] = self.error
        record["program"] = self.program
        # Other surrogates come from JSON items. `backslashreplace` writes them all as JSON does.
        return _ENCODE(record).encode("utf-8", "backslashreplace") + b"\n"

    def text(self) -> Iterator[tuple[int, bytes]]:
        """What the program printed, in pieces, each with the file descriptor that it printed it to."""
        for fd, output in enumerate(self.outputs, start=1):
            for piece in output.pieces():
                yield fd, piece

    def close(self) -> None:
        """Forget what the program printed."""
        for output in self.outputs:
            output.close()
