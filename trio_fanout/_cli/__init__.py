"""The command line, `trio-fanout`: `map`, `do` and `fan-out`, for programs.

It uses the library as any application would, and the library knows nothing of it.

`_options` is what the user asked for, `_run` does it, and `_end` knows how it ends. Each of the others has one part of
it: the items (`_items`, `_json`), the words of a program (`_words`), the program (`_programs`, `_system`), what came of
it (`_results`), where that is printed (`_output`) and kept (`_log`), and files of all kinds (`_stdio`).
"""

from __future__ import annotations

import os
import signal
import sys

from ._options import parse
from ._stdio import say


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: the arguments, without the name of the program; those of the process by default.
    """
    if sys.platform == "win32":  # pragma: no cover
        say("this needs process groups and signals, which Windows does not have")
        return 2
    try:
        options = parse(argv)
    except SystemExit as exit_:  # argparse has said what is wrong, or helped
        return int(exit_.code or 0)
    _have_standard_files()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, it would hide exit codes
    import trio  # noqa: PLC0415  # both of them need POSIX

    from ._run import run  # noqa: PLC0415

    try:
        return trio.run(run, options)
    except KeyboardInterrupt:  # before the signal could be received in another way
        return 128 + signal.SIGINT


def _have_standard_files() -> None:
    """Make sure that no file that is opened later is taken for a standard one, if one of these was closed.

    What stands in for it is opened so that using it is an error, as it should be.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if fd == 0 else os.O_RDONLY)
            os.set_inheritable(fd, True)  # noqa: FBT003
