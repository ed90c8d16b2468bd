"""What goes to standard error."""

from __future__ import annotations

from ._files import write_all

SHOWN_ITEM = 60
"""How many characters of an item a message shows."""


class UsageError(Exception):
    """Wrong use that comes to light while running: input that cannot be read or understood."""


class FatalError(Exception):
    """What makes it impossible to go on: no room for results, say."""


def say(message: str) -> None:
    """Print a message."""
    tell(f"trio-fanout: {message}\n")


def tell(text: str) -> None:
    """Write to standard error. That this cannot be done is no reason to fail: the exit code tells, too."""
    try:
        write_all(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def reason(exc: Exception) -> str:
    """What went wrong, in the words of the system where it was the system."""
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def shown(item: str) -> str:
    """An item as messages show it: in one line, cut if it is long."""
    return repr(item if len(item) <= SHOWN_ITEM else item[: SHOWN_ITEM - 3] + "...")
