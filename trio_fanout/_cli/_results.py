"""What came of an item, and the two forms in which it is written down."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE = 1 << 20
"""Bytes of output that are copied at once."""


@final
@attrs.frozen(eq=False)
class Result:
    """What came of an item that was started.

    Attributes:
        exit_code: None if the program did not end by itself, -N if signal N killed it.
        outputs: what it printed, if that was kept: standard output, then standard error.
        seconds: how long it ran.
        error: why it failed; None if it succeeded.
    """

    index: int
    item: str
    exit_code: int | None
    outputs: Sequence[IO[bytes]]
    seconds: float
    error: str | None

    def json_line(self) -> bytes:
        r"""The result as a line of JSON.

        A byte that is not UTF-8 stands in it as an escaped lone surrogate, ``\udc80`` to ``\udcff``: what Python's
        `surrogateescape` makes of it and, encoding, makes it of again.
        """
        record: dict[str, Any] = {
            "index": self.index,
            "item": self.item,
            "failed": self.error is not None,
            "exit_code": self.exit_code,
        }
        for name, output in zip(("stdout", "stderr"), self.outputs, strict=False):
            output.seek(0)
            record[name] = output.read().decode("utf-8", "surrogateescape")
        record["seconds"] = round(self.seconds, 6)
        if self.error is not None:
            record["error"] = self.error
        # Other surrogates come from JSON items. `backslashreplace` writes them all as JSON does.
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def text(self) -> Iterator[tuple[int, bytes]]:
        """What the program printed, in pieces, each with the file descriptor that it printed it to."""
        for fd, output in enumerate(self.outputs, start=1):
            output.seek(0)
            while piece := output.read(PIECE):
                yield fd, piece

    def close(self) -> None:
        """Forget what the program printed."""
        for output in self.outputs:
            output.close()
