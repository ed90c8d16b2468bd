"""Ctrl-C while the command line is being imported.

`python -m trio_fanout` and the script `trio-fanout` import this package first, and with it Trio. That takes a tenth of
a second, in which an interrupt would print a traceback. Nothing runs yet that would have to be cleaned up.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
"""The exit code of a command that was interrupted."""


def _exit(*_: object) -> None:
    os._exit(INTERRUPTED)  # pragma: no cover  # what is covered is not written then


def _is_the_command() -> bool:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""  # noqa: PTH119  # pathlib takes its time to import
    return name == "trio-fanout" or (name == "-m" and "trio_fanout" in sys.orig_argv)


if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit)
