"""The options: what `trio-fanout --help` shows, and what is wrong use."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Options: TypeAlias = argparse.Namespace
"""What the parser gives, with these attributes: `command`, `program` (a list of words; for fan-out, of commands),
`parallel`, `fail_fast`, `retries`, `timeout`, `rate`, `log`, `resume`, `dry_run`, `progress`, `output` (``json``,
``text`` or ``none``), `batch` (None for no batches) and, except for fan-out, `items` and `format` (``lines``, ``null``
or ``json``)."""

_EXIT_CODES = """\
exit codes: 0 all well, 1 something failed, 2 wrong use, 130 interrupted.
Ctrl-C once: nothing more is started, and what runs may finish. Twice: it is ended.
"""

_ABOUT = f"""\
Run programs, a few at a time.

  map      a program for each item; prints a JSON object for each, in the order of the items
  do       the same, but the output of the programs goes straight through
  fan-out  several programs, each with all of standard input

"trio-fanout COMMAND --help" tells more.

{_EXIT_CODES}"""

_ITEMS = """\
An item is a line of standard input. {} in an argument becomes the item, {#} its index, from 0; with no {} anywhere,
the item is the last argument. {{}} is a plain {}. No shell is involved: an item with spaces, quotes or ";" is one
argument. A program's own standard input is empty.
"""

_JSON = """\
Each object has: index, item (with --batch, items), failed, exit_code (null if the program did not end by itself; -N if
signal N killed it), stdout, stderr, started (seconds since 1970), seconds, attempts (with --retries), error (if failed)
and program. A byte that is not UTF-8 stands in it as \\udc80 to \\udcff.
"""

_MAP = f"""\
Run a program for each item, and print what came of it, in the order of the items.

{_ITEMS}
{_JSON}"""

_DO = f"""\
Run a program for each item, with its output left alone.

{_ITEMS}"""

_FAN_OUT = f"""\
Run several programs, each with all of standard input as its own, and print what came of each, in their order.

Each program is one argument, with words as in a shell, but no shell runs it. In what follows, it is an item.

{_JSON}"""

_MAP_EXAMPLE = """\
example: checksums of all pictures below this directory, four at a time
  find . -name '*.jpg' -print0 | trio-fanout map -j 4 -0 -n 500 --output text -- sha256sum
"""

_DO_EXAMPLE = """\
example: convert what is not yet converted, after a failure go on, and try again later just what failed
  trio-fanout do -k --log done.jsonl --resume --items wanted.txt -- convert {} -resize 50% small/{}
"""

_FAN_OUT_EXAMPLE = """\
example: three answers to one question
  trio-fanout fan-out --output text 'wc -w' 'sha256sum' 'tail -n 1' < notes.txt
"""


def parse(argv: list[str] | None) -> Options:
    """The options in `argv`. Exits with a message if they are wrong, or with help."""
    parser = _parser()
    options, unknown = parser.parse_known_args(argv)
    chosen: argparse.ArgumentParser = options.parser
    if options.program[:1] == ["--"]:
        del options.program[0]
    elif options.program and options.program[0].startswith("-"):  # `-1`, say, which argparse takes for a number
        unknown.append(options.program[0])
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    if not options.program:
        chosen.error("the program to run is missing")
    if options.command == "fan-out":
        options.program = [_words(command, chosen) for command in options.program]
    if options.resume and options.log is None:
        chosen.error("--resume needs --log FILE, to know what is done")
    options.parallel = options.parallel or usable_cpus()
    return options


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _words(command: str, parser: argparse.ArgumentParser) -> tuple[str, list[str]]:
    """A command and its words."""
    try:
        words = shlex.split(command)
    except ValueError as exc:
        parser.error(f"{command!r}: {exc}")
    if not words:
        parser.error(f"{command!r} names no program")
    return command, words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "trio-fanout",
        usage="trio-fanout {map,do,fan-out} [options] [--] PROGRAM [ARG ...]",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)

    def add(name: str, about: str, usage: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            prog=f"trio-fanout {name}",
            usage=f"trio-fanout {name} [options] [--] {usage}",
            description=about,
            epilog=f"{example}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(parser=command)
        command.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        if name == "fan-out":
            command.set_defaults(batch=None)
        else:
            _add_items(command)
        _add_running(command)
        _add_output(command, captures=name != "do")
        # With `-0` as an option argparse takes the -1 of `-j -1` for one, too, and would not say what is wrong with it.
        command._has_negative_number_optionals.clear()  # noqa: SLF001
        return command

    add("map", _MAP, "PROGRAM [ARG ...]", _MAP_EXAMPLE)
    add("do", _DO, "PROGRAM [ARG ...]", _DO_EXAMPLE)
    add("fan-out", _FAN_OUT, "'PROGRAM ARG ...' ...", _FAN_OUT_EXAMPLE)
    return parser


def _add_items(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("items")
    group.add_argument("--items", metavar="FILE", help="read items from FILE instead of standard input")
    formats = group.add_mutually_exclusive_group()
    formats.add_argument(
        "--null",
        "-0",
        dest="format",
        action="store_const",
        const="null",
        default="lines",
        help="items end with a NUL, as from find -print0, not with a newline",
    )
    formats.add_argument(
        "--json",
        dest="format",
        action="store_const",
        const="json",
        help="items are the members of a JSON array, or JSON values, one a line; a string is used as it is, anything "
        "else without the white space in it",
    )
    group.add_argument(
        "-n",
        "--batch",
        metavar="N",
        type=_number(int, "a whole number, 1 or more", lambda n: n >= 1),
        help="start the program for up to N items at once, fewer where the system takes no more arguments; they fail "
        "and succeed together",
    )


def _add_running(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("running")
    group.add_argument(
        "-j",
        "--parallel",
        metavar="N",
        type=_number(int, "a whole number, 0 or more", lambda n: n >= 0),
        default=0,
        help="how many programs run at once; 0, the default, is the number of CPUs this process may use",
    )
    group.add_argument(
        "--rate",
        metavar="N",
        type=_number(float, "a number above 0", lambda n: 0 < n < math.inf),
        help="start no more than N programs a second, evenly spaced",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_number(float, "a number of seconds above 0", lambda n: 0 < n < math.inf),
        help="a program that takes longer is ended, and has failed",
    )
    group.add_argument(
        "--retries",
        metavar="N",
        type=_number(int, "a whole number, 0 or more", lambda n: n >= 0),
        help="start a program that has failed again, up to N times, after 1, 2, 4 ... 60 seconds, more or less; while "
        "it waits, others run",
    )
    group.add_argument(
        "-k",
        "--keep-going",
        "--no-fail-fast",
        dest="fail_fast",
        action="store_false",
        help="after a failure go on with the others, instead of ending them",
    )
    group.add_argument("--dry-run", action="store_true", help="run nothing, but print what would be run")
    group = command.add_argument_group("log")
    group.add_argument("--log", metavar="FILE", type=Path, help="append each result to FILE as soon as it is there")
    group.add_argument(
        "--resume",
        action="store_true",
        help="skip what the log says the same program has done: an item is known by itself, wherever it stands now, "
        "and equal ones by how many came before",
    )


def _add_output(command: argparse.ArgumentParser, *, captures: bool) -> None:
    group = command.add_argument_group("output")
    if captures:
        group.add_argument(
            "--output",
            choices=["json", "text"],
            default="json",
            help="json, the default, is a JSON object a line; text is just what the programs print",
        )
    else:
        command.set_defaults(output="none")
    group.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no progress on standard error, where that is a terminal",
    )


def _number(kind: Callable[[str], float], takes: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """A type of argument for argparse: a number within bounds."""

    def convert(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not accepts(number):
            msg = f"must be {takes}, got {text!r}"
            raise argparse.ArgumentTypeError(msg)
        return number

    return convert


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than all the rest of the parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        sys.stdout.write(f"trio-fanout {version('trio-fanout')}\n")
        parser.exit()
