"""The command line, `trio-fanout`: `map`, `do` and `fan-out`, for programs.

It uses the library as any application would, and the library knows nothing of it.

=================  =====================================================================================
`_options`         what the user asked for: the parser, its help, and what is wrong use
`_words`           the words of a program, where in them items go, and where they must not go
`_items`, `_json`  items, one by one, out of lines, NUL-separated text, or JSON
`_log`             the log, and what it says has been done
`_programs`        starting a program, reading what it prints, ending it
`_system`          process groups, orphans, and how many CPUs there are
`_results`         what came of a program, and what it printed
`_output`          printing results, messages and progress
`_end`             how a run ends, and why: the exit code, the last words, what happens to what runs
`_run`             one run, from the options to the exit code
`_stdio`           files of any kind, errors, messages
=================  =====================================================================================
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
