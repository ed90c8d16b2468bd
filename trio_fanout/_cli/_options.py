"""The options: what `trio-fanout --help` shows, and what is wrong use."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from ._stdio import shown
from ._system import usable_cpus
from ._words import WITH_A_SHELL, script_with_item

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Options:
    """What the user asked for."""

    command: Literal["map", "do", "fan-out"]
    program: list[str]  # its words; for fan-out, the command lines
    items: str | None  # the file with them; None for standard input
    format: Literal["lines", "null", "json"]  # of the items
    batch: int | None  # how many items a program gets, at most; None for one, which is then not in a list
    parallel: int  # how many programs run at once
    rate: float | None  # how many are started per second, at most
    timeout: float | None  # seconds that each may take
    retries: int | None  # how often one that failed is started again; None if records are not to have `attempts`
    max_failures: float  # how many fail before the run ends
    dry_run: bool  # print the programs, and run nothing
    log: Path | None  # results are appended to it
    resume: bool  # skip what succeeded according to the log
    output: Literal["json", "text", "none"]  # how results are printed; none: nothing is captured
    ordered: bool  # print them in the order of the items
    progress: bool  # show it on a terminal


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
    if given.command != "fan-out":
        elsewhere = [word[:2] for word in unknown]
        if ":::" in words and "--" not in words[: words.index(":::")]:
            elsewhere.append(":::")
        for word in filter(_ELSEWHERE.get, elsewhere):
            parser.error(f"there is no {word} here: {_ELSEWHERE[word]}")
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
    """Its help fits 80 columns, on any terminal."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        layout = partial(argparse.RawDescriptionHelpFormatter, width=79)
        super().__init__(prog, allow_abbrev=False, formatter_class=layout, **kwargs)


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than all the rest of the parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        # As the help is printed: a standard output that is closed or full is no reason to fail.
        parser._print_message(f"trio-fanout {version('trio-fanout')}\n", sys.stdout)  # noqa: SLF001
        parser.exit()


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


_FROM_0 = _number(int, "a whole number, 0 or more", lambda n: n >= 0)
_FROM_1 = _number(int, "a whole number, 1 or more", lambda n: n >= 1)
_RATE = _number(float, "a number above 0", lambda n: 0 < n < math.inf)
_SECONDS = _number(float, "a number of seconds above 0", lambda n: 0 < n < math.inf)

_HELP: Final = {
    "--items": "read items from FILE instead of standard input, which is also FILE -; -a and --arg-file are the same",
    "--null": "items end with a NUL, as those of find -print0 do, instead of a newline",
    "--json": "items are the elements of a JSON array, which is read whole before the first program starts, or one "
    "JSON value per line, read line by line; a string is used as it is, anything else as compact JSON",
    "--batch": "pass up to N items to each program, fewer if the system takes no more arguments; they succeed or fail "
    "together",
    "--parallel": "how many programs run at once; 0, the default, is the number of CPUs this process may use; -P, "
    "--jobs and --max-procs are the same",
    "--rate": "start no more than N programs per second, evenly spaced",
    "--timeout": "a program that takes longer is terminated, and has failed",
    "--retries": "retry a program that failed, up to N times, after 1, 2, 4 ... 60 seconds, with jitter; other items "
    "run meanwhile",
    "--keep-going": "go on after failures, instead of terminating the other programs",
    "--max-failures": "go on until N programs have failed; the default is 1",
    "--dry-run": "run nothing, but print what would be run",
    "--log": "append each result to FILE as it finishes",
    "--resume": "skip what the log says the same program has done; items are matched by value, not by position, and "
    "duplicates are counted",
    "--output": "json, the default, is a JSON object per line; text is only what the programs print (with --log, what "
    "failed ones print to standard output is in the log alone, since --resume will run them again)",
    "--unordered": "print results as they finish, not in the order of the items",
    "--no-progress": "show no progress on standard error, if that is a terminal",
}


def _parser() -> _Parser:
    usage = "trio-fanout {map,do,fan-out} [options] [--] PROGRAM [ARG ...]"
    parser = _Parser("trio-fanout", usage=usage, description=_ABOUT)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, about, words, example in (
        ("map", _MAP, "PROGRAM [ARG ...]", _MAP_EXAMPLE),
        ("do", _DO, "PROGRAM [ARG ...]", _DO_EXAMPLE),
        ("fan-out", _FAN_OUT, "'PROGRAM ARG ...' ...", _FAN_OUT_EXAMPLE),
    ):
        prog = f"trio-fanout {name}"
        usage = f"{prog} [options] [--] {words}"
        command = commands.add_parser(name, prog=prog, usage=usage, description=about, epilog=f"{example}\n{_ENDS}")
        output = "none" if name == "do" else "json"
        command.set_defaults(parser=command, items=None, format="lines", batch=None, parallel=0, output=output)
        command.set_defaults(ordered=True)
        _add_options(command, name)
        # With `-0` as an option argparse takes the -1 of `-j -1` for one, too, and would not say what is wrong with it.
        command._has_negative_number_optionals.clear()  # noqa: SLF001
    return parser


def _add_options(command: _Parser, name: str) -> None:
    """Add those of one of the three commands. The aliases that others have are not shown, in the help and messages."""
    command.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    hidden = argparse.SUPPRESS
    if name != "fan-out":
        group = command.add_argument_group("items")
        add = group.add_argument
        add("--items", metavar="FILE", help=_HELP["--items"])
        add("-a", "--arg-file", dest="items", help=hidden)
        formats = group.add_mutually_exclusive_group().add_argument
        formats("--null", "-0", dest="format", action="store_const", const="null", help=_HELP["--null"])
        formats("--json", dest="format", action="store_const", const="json", help=_HELP["--json"])
        add("-n", "--batch", metavar="N", type=_FROM_1, help=_HELP["--batch"])
    add = command.add_argument_group("running").add_argument
    add("-j", "--parallel", metavar="N", type=_FROM_0, help=_HELP["--parallel"])
    add("-P", "--jobs", "--max-procs", dest="parallel", type=_FROM_0, help=hidden)
    add("--rate", metavar="N", type=_RATE, help=_HELP["--rate"])
    add("--timeout", metavar="SECONDS", type=_SECONDS, help=_HELP["--timeout"])
    add("--retries", metavar="N", type=_FROM_0, help=_HELP["--retries"])
    add("-k", "--keep-going", "--no-fail-fast", action="store_true", help=_HELP["--keep-going"])
    add("--max-failures", metavar="N", type=_FROM_1, help=_HELP["--max-failures"])
    add("--dry-run", action="store_true", help=_HELP["--dry-run"])
    add = command.add_argument_group("log").add_argument
    add("--log", metavar="FILE", type=Path, help=_HELP["--log"])
    add("--resume", action="store_true", help=_HELP["--resume"])
    add = command.add_argument_group("output").add_argument
    if name != "do":
        add("--output", choices=["json", "text"], help=_HELP["--output"])
    if name == "map":
        add("--unordered", dest="ordered", action="store_false", help=_HELP["--unordered"])
    add("--no-progress", dest="progress", action="store_false", help=_HELP["--no-progress"])
