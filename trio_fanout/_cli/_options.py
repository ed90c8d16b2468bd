"""The options: what `trio-fanout --help` shows, and what is wrong use."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import attrs

from ._shells import WITH_A_SHELL, script_with_item
from ._stdio import shown
from ._system import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Options:
    """What the user asked for.

    Attributes:
        command: which of the three.
        program: the words of the program; for `fan-out`, its command lines.
        items: the file with the items; None for standard input.
        format: what items look like there.
        batch: how many items a program gets, at most; None for one, which is then not in a list.
        parallel: how many programs run at once.
        rate: how many programs are started per second, at most.
        timeout: seconds that a program may take.
        retries: how often a program that failed is started again; None if records are not to have `attempts`.
        max_failures: how many programs fail before the run ends.
        dry_run: whether the programs are only shown.
        log: the file that results are appended to.
        resume: whether what succeeded according to the log is skipped.
        output: how results are printed: as JSON, as text, or not at all since nothing is captured.
        ordered: whether they are printed in the order of the items.
        progress: whether progress is shown on a terminal.
    """

    command: Literal["map", "do", "fan-out"]
    program: list[str]
    items: str | None
    format: Literal["lines", "null", "json"]
    batch: int | None
    parallel: int
    rate: float | None
    timeout: float | None
    retries: int | None
    max_failures: float
    dry_run: bool
    log: Path | None
    resume: bool
    output: Literal["json", "text", "none"]
    ordered: bool
    progress: bool


_ENDS = """\
Exit codes: 0 all succeeded, 1 some failed, 2 wrong use or wrong input, 128 + N
if signal N asked for the end: 130 after Ctrl-C.
Ctrl-C once: nothing new is started, and running programs may finish. Twice:
they are terminated.
"""

_ABOUT = f"""\
Run programs, a few at a time.

  map      a program for each item; prints a JSON object for each, in order
  do       the same, but the output of the programs goes straight through
  fan-out  several programs, each with all of standard input

Run "trio-fanout COMMAND --help" for details.

{_ENDS}"""

_ITEMS = f"""\
An item is a line of standard input. {{}} in an argument becomes the item, {{#}}
its index, from 0. With no {{}} anywhere, the item is the last argument. {{{{}}}} is
a plain {{}}. No shell is involved: an item with spaces, quotes or ";" is one
argument. To use a shell, pass the item to its script:
  {WITH_A_SHELL}
A program's own standard input is empty.
"""

_RECORD = """\
Each object has: index, {item}, failed, exit_code (null
if the program did not end by itself; -N if signal N killed it), stdout,
stderr, started (seconds since 1970), seconds, attempts (with --retries),
error (if failed) and program. A byte that is not UTF-8 appears in it as
\\udc80 to \\udcff.
"""

_MAP = f"""\
Run a program for each item, and print the results, in the order of the items.

{_ITEMS}
{_RECORD.format(item="item (items, with --batch)")}"""

_DO = f"""\
Run a program for each item, and leave its output alone.

{_ITEMS}"""

_FAN_OUT = f"""\
Run several programs, each with all of standard input as its own, and print the
results, in the order of the programs.

Quote each program with its arguments, as one argument. It has words as in a
shell, but no shell runs it. It is the item of its result.

{_RECORD.format(item="item")}"""

_MAP_EXAMPLE = """\
Example: checksums of all pictures below this directory, four at a time
  find . -name '*.jpg' -print0 |
    trio-fanout map -j 4 -0 -n 500 -k --output text -- sha256sum
"""

_DO_EXAMPLE = """\
Example: convert pictures, go on after failures, and retry only those next time
  trio-fanout do -k --log done.jsonl --resume --items wanted.txt -- \\
    convert {} -resize 50% small/{}
"""

_FAN_OUT_EXAMPLE = """\
Example: three answers to one question
  trio-fanout fan-out --output text wc sha256sum 'sed 1q' < notes.txt
"""

_ELSEWHERE: Final = {
    "-I": "{} in an argument of the program becomes the item, without an option",
    "-L": "an item is a line, and -n N passes up to N of them to one program",
    "-l": "an item is a line, and -n N passes up to N of them to one program",
    "-d": "items end with a newline, or with a NUL (-0, --null); `tr` makes one of any other character",
    ":::": "items are the lines of standard input, or of a file (--items FILE)",
}
"""What xargs and GNU parallel have, and what there is here instead."""


def parse(argv: list[str] | None) -> Options:
    """The options in `argv`. Exits with a message if they are wrong, or with help."""
    given, unknown = _parser().parse_known_args(argv)
    parser: _Parser = given.parser
    given.program = _checked_program(given, unknown, parser)
    if given.keep_going and given.max_failures is not None:
        parser.error("--max-failures N ends the run after N failures, and -k never does: use one of them")
    if given.resume and given.log is None:
        parser.error("--resume needs --log FILE, to know what is done")
    given.max_failures = math.inf if given.keep_going else given.max_failures or 1
    given.items = None if given.items == "-" else given.items
    given.parallel = given.parallel or usable_cpus()
    return Options(**{field.name: getattr(given, field.name) for field in attrs.fields(Options)})


def _checked_program(given: argparse.Namespace, unknown: list[str], parser: _Parser) -> list[str]:
    """The words of the program, or the command lines."""
    words: list[str] = given.program
    if given.command != "fan-out" and ":::" in words and "--" not in words[: words.index(":::")]:
        parser.error_elsewhere(":::")
    if words[:1] == ["--"]:
        del words[0]
    elif words and words[0].startswith("-"):  # `-1`, say, which argparse takes for a number
        unknown = [*unknown, words[0]]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if not words:
        parser.error("the program to run is missing")
    if given.command == "fan-out":
        _check_commands(words, parser)
    elif (script := script_with_item(words)) is not None:
        parser.error(
            f"an item would become part of a shell's script ({shown(script)}), where any character in it could do "
            f"anything. Pass it to the script as an argument: {WITH_A_SHELL}"
        )
    return words


def _check_commands(commands: list[str], parser: _Parser) -> None:
    for index, command in enumerate(commands):
        if command == ":::" or (index and command.startswith("-")):
            parser.error(f"{command!r} is not a command line: quote each one with its arguments, as in 'wc -l'")
        try:
            words = shlex.split(command)
        except ValueError as exc:
            parser.error(f"{command!r}: {exc}")
        if not words:
            parser.error(f"{command!r} names no program")


class _Parser(argparse.ArgumentParser):
    """Fits 80 columns, on any terminal, and knows what there is here instead of the options of other programs."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        layout = partial(argparse.RawDescriptionHelpFormatter, width=79)
        super().__init__(prog, allow_abbrev=False, formatter_class=layout, **kwargs)

    def error_elsewhere(self, name: str) -> NoReturn:
        self.error(f"there is no {name} here: {_ELSEWHERE[name]}")


class _Elsewhere(argparse.Action):
    """An option of other programs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, _Parser)
        parser.error_elsewhere(self.option_strings[0])


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than all the rest of the parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        sys.stdout.write(f"trio-fanout {version('trio-fanout')}\n")
        parser.exit()


def _parser() -> _Parser:
    usage = "trio-fanout {map,do,fan-out} [options] [--] PROGRAM [ARG ...]"
    parser = _Parser("trio-fanout", usage=usage, description=_ABOUT)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)

    def add(name: str, about: str, words: str, example: str) -> None:
        prog = f"trio-fanout {name}"
        usage = f"{prog} [options] [--] {words}"
        command: _Parser = commands.add_parser(
            name, prog=prog, usage=usage, description=about, epilog=f"{example}\n{_ENDS}"
        )
        command.set_defaults(parser=command, items=None, format="lines", batch=None, output="none", ordered=True)
        command.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        if name != "fan-out":
            _add_items(command)
        _add_running(command)
        _add_log(command)
        _add_output(command, name)
        # With `-0` as an option argparse takes the -1 of `-j -1` for one, too, and would not say what is wrong with it.
        command._has_negative_number_optionals.clear()  # noqa: SLF001

    add("map", _MAP, "PROGRAM [ARG ...]", _MAP_EXAMPLE)
    add("do", _DO, "PROGRAM [ARG ...]", _DO_EXAMPLE)
    add("fan-out", _FAN_OUT, "'PROGRAM ARG ...' ...", _FAN_OUT_EXAMPLE)
    return parser


# Aliases that are known from other programs are options of their own, so that messages and the help stay short.


def _add_items(command: _Parser) -> None:
    group = command.add_argument_group("items")
    group.add_argument(
        "--items",
        metavar="FILE",
        help="read items from FILE instead of standard input, which is also FILE -; -a and --arg-file are the same",
    )
    group.add_argument("-a", "--arg-file", dest="items", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    formats = group.add_mutually_exclusive_group()
    formats.add_argument(
        "--null",
        "-0",
        dest="format",
        action="store_const",
        const="null",
        default=argparse.SUPPRESS,
        help="items end with a NUL, as those of find -print0 do, instead of a newline",
    )
    formats.add_argument(
        "--json",
        dest="format",
        action="store_const",
        const="json",
        default=argparse.SUPPRESS,
        help="items are the elements of a JSON array, which is read whole before the first program starts, or one JSON "
        "value per line, read line by line; a string is used as it is, anything else as compact JSON",
    )
    group.add_argument(
        "-n",
        "--batch",
        metavar="N",
        type=_number(int, "a whole number, 1 or more", lambda n: n >= 1),
        help="pass up to N items to each program, fewer if the system takes no more arguments; they succeed or fail "
        "together",
    )
    for name in _ELSEWHERE:
        if name.startswith("-"):
            command.add_argument(name, action=_Elsewhere, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_running(command: _Parser) -> None:
    group = command.add_argument_group("running")
    parallel = _number(int, "a whole number, 0 or more", lambda n: n >= 0)
    group.add_argument(
        "-j",
        "--parallel",
        metavar="N",
        type=parallel,
        default=0,
        help="how many programs run at once; 0, the default, is the number of CPUs this process may use; -P, --jobs "
        "and --max-procs are the same",
    )
    group.add_argument(
        *("-P", "--jobs", "--max-procs"),
        dest="parallel",
        type=parallel,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    group.add_argument(
        "--rate",
        metavar="N",
        type=_number(float, "a number above 0", lambda n: 0 < n < math.inf),
        help="start no more than N programs per second, evenly spaced",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_number(float, "a number of seconds above 0", lambda n: 0 < n < math.inf),
        help="a program that takes longer is terminated, and has failed",
    )
    group.add_argument(
        "--retries",
        metavar="N",
        type=_number(int, "a whole number, 0 or more", lambda n: n >= 0),
        help="retry a program that failed, up to N times, after 1, 2, 4 ... 60 seconds, with jitter; other items run "
        "meanwhile",
    )
    group.add_argument(
        "-k",
        "--keep-going",
        "--no-fail-fast",
        action="store_true",
        help="go on after failures, instead of terminating the other programs",
    )
    group.add_argument(
        "--max-failures",
        metavar="N",
        type=_number(int, "a whole number, 1 or more", lambda n: n >= 1),
        help="go on until N programs have failed; the default is 1",
    )
    group.add_argument("--dry-run", action="store_true", help="run nothing, but print what would be run")


def _add_log(command: _Parser) -> None:
    group = command.add_argument_group("log")
    group.add_argument("--log", metavar="FILE", type=Path, help="append each result to FILE as it finishes")
    group.add_argument(
        "--resume",
        action="store_true",
        help="skip what the log says the same program has done; items are matched by value, not by position, and "
        "duplicates are counted",
    )


def _add_output(command: _Parser, name: str) -> None:
    group = command.add_argument_group("output")
    if name != "do":
        command.set_defaults(output="json")
        group.add_argument(
            "--output",
            choices=["json", "text"],
            default=argparse.SUPPRESS,
            help="json, the default, is a JSON object per line; text is only what the programs print (with --log, what "
            "failed ones print to standard output is in the log alone, since --resume will run them again)",
        )
    if name == "map":
        group.add_argument(
            "--unordered",
            dest="ordered",
            action="store_false",
            default=argparse.SUPPRESS,
            help="print results as they finish, not in the order of the items",
        )
    group.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="show no progress on standard error, if that is a terminal",
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
