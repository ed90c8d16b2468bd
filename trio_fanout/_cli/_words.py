"""The words of a program: where in them its items go, how many fit, and that none becomes part of a shell's script."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._items import Item, Items, Job

Words: TypeAlias = list[str]

# Bytes of arguments that a batch has at most, whatever the system allows: more would gain nothing.
ARGUMENTS: Final = 1 << 17

_PLACE: Final = re.compile(rb"(\{\{#?\}\}|\{#?\})")


class Commands:
    """The programs of `fan-out`: a command line is the item, and its words are the program."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.items: Final = [as_text(command) for command in commands]
        self._words = [shlex.split(command) for command in commands]
        self.all: Final = [[as_text(word) for word in words] for words in self._words]  # as records have them
        self.are_one: Final = False  # whether each job runs the same program

    def program(self, job: Job) -> Words:
        """The words of the program, as a record has them."""
        return self.all[job[0].index]

    def words(self, job: Job) -> list[bytes]:
        """The words of the program."""
        return [os.fsencode(word) for word in self._words[job[0].index]]


class Template:
    """The words of `map` and `do`: ``{}`` becomes the item, ``{#}`` its index, ``{{}}`` a plain ``{}``.

    A word with ``{}`` in it is there once for each item; with no such word, the items come last.

    Args:
        words: as they were given.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.all: Final = [[as_text(word) for word in words]]
        self._words = [_Word(os.fsencode(word)) for word in words]
        # What was meant for a shell is none, whatever its items are.
        self.are_one: Final = not self._words[0].takes_item or is_for_a_shell(words[0])
        if not any(word.takes_item for word in self._words):
            self._words.append(_Word(b"{}"))
        takes_item = [word for word in self._words if word.takes_item]
        self._places = sum(word.places for word in takes_item)
        self._size_beside_item = sum(word.size() for word in takes_item)

    def program(self, job: Job) -> Words:
        """The words of the program, with places for items, as a record has them."""
        return self.all[0]

    def words(self, job: Job) -> list[bytes]:
        """The program and its arguments for a job.

        Raises:
            ValueError: an item has a NUL, which ends an argument, or a lone surrogate, from JSON, which is not a byte.
        """
        words: list[bytes] = []
        for word in self._words:
            words += [word.filled(item) for item in (job if word.takes_item else job[:1])]
        return words

    def fixed_size(self) -> int:
        """Bytes that the words take, apart from those that hold items, when the program is started."""
        return sum(word.size() for word in self._words if not word.takes_item)

    def size_of(self, item: Item) -> int:
        """Bytes that the words take that hold an item."""
        # Starting the program will find a lone surrogate.
        return self._size_beside_item + self._places * len(item.text.encode("utf-8", "surrogatepass"))


Programs: TypeAlias = Commands | Template
"""What is started for each job."""


class _Word:
    """A word in parts, of which every other one, if there are several, is ``{}`` or the like."""

    def __init__(self, word: bytes) -> None:
        self._parts = _PLACE.split(word)
        self.places: Final = self._parts.count(b"{}")
        self.takes_item: Final = self.places > 0

    def size(self) -> int:
        """Bytes that it takes apart from items: with a zero at its end, a pointer to it, and all digits of an index."""
        return len(b"".join(self._parts)) + 9 + 20 * self._parts.count(b"{#}")

    def filled(self, item: Item) -> bytes:
        """The word with an item in its place."""
        if len(self._parts) == 1:
            return self._parts[0]
        text = item.text.encode("utf-8", "surrogateescape")
        if b"\0" in text:
            msg = "embedded null byte"  # as Python would say when it starts the program
            raise ValueError(msg)
        if self._parts == _JUST_ITEM:
            return text
        # In one go, as an item may hold braces, too.
        values = {b"{}": text, b"{#}": b"%d" % item.index, b"{{}}": b"{}", b"{{#}}": b"{#}"}
        parts = list(self._parts)
        parts[1::2] = [values[place] for place in parts[1::2]]
        return b"".join(parts)


_JUST_ITEM: Final = [b"", b"{}", b""]


class Batches:
    """The items a few at a time, as an async iterator.

    Args:
        items: where they come from.
        template: what they are put into.
        most: how many there are in each; fewer at the end, or where the system takes no more arguments.
    """

    def __init__(self, items: Items, template: Template, most: int) -> None:
        self._items = items
        self._template = template
        self._most = most
        self._room = room_for_arguments() - template.fixed_size()
        self._left: Item | None = None  # one that the last batch had no room for

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Job:
        await trio.lowlevel.checkpoint()  # items that are ready take none
        first = await self._items.next() if self._left is None else self._left
        self._left = None
        batch = [first]
        room = self._room - self._template.size_of(first)
        while len(batch) < self._most:
            try:
                item = await self._items.next()
            except StopAsyncIteration:
                break
            room -= self._template.size_of(item)
            if room < 0:
                self._left = item
                break
            batch.append(item)
        return tuple(batch)


def room_for_arguments() -> int:
    """How many bytes of arguments a program can be started with."""
    environment = sum(len(name) + len(value) + 10 for name, value in os.environb.items())
    # POSIX asks to leave 2048 bytes to the program, which may change its environment.
    return min(ARGUMENTS, os.sysconf("SC_ARG_MAX") - environment - 2048)


def as_text(argument: str) -> str:
    """An argument of ours as items are written, whatever the locale has made of it."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")


# Shells: any character of an item in a script could do anything.

WITH_A_SHELL: Final = """sh -c '... "$1" ...' sh {}"""  # how a script gets an item
_MEANS_SOMETHING: Final = frozenset("|&;<>$`\n")
_SHELLS: Final = frozenset(["sh", "bash", "rbash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh"])
_WRAPPERS: Final = {
    "busybox": "",
    "chroot": "g G u --groups --userspec",
    "chrt": "D P T --sched-deadline --sched-period --sched-runtime",
    "command": "",
    "doas": "a C u",
    "env": "a u C P S --unset --chdir --split-string --argv0",
    "flock": "E w --conflict-exit-code --timeout --wait",
    "ionice": "c n p P u --class --classdata",
    "nice": "n --adjustment",
    "nohup": "",
    "setpriv": "--ambient-caps --apparmor-profile --bounding-set --egid --euid --groups --inh-caps --landlock-access "
    "--landlock-rule --pdeathsig --ptracer --regid --reuid --rgid --ruid --seccomp-filter --securebits --selinux-label",
    "setsid": "",
    "stdbuf": "i o e --input --output --error",
    # Not those that begin with --summary, which is one without a value, and would be taken for one of them, cut short.
    "strace": "a b e E I o O p P s S u U X --abbrev --argv0 --attach --columns --const-print-style --detach-on --env "
    "--fault --inject --interruptible --kvm --output --raw --read --signal --status --string-limit --trace "
    "--trace-path --user --verbose --write",
    "sudo": "a C c D g h p R r T t U u --auth-type --close-from --login-class --chdir --group --host --prompt --chroot "
    "--role --command-timeout --type --other-user --user",
    "taskset": "",
    "time": "f o --format --output",
    "timeout": "k s --kill-after --signal",
    "unshare": "G l R S w --boottime --load-interp --map-group --map-groups --map-user --map-users --monotonic "
    "--propagation --root --setgid --setgroups --setuid --wd",
}
"""Programs that start the program that is named after their own options, and those of these that have a value."""

_TAKE_A_WORD: Final = frozenset(["chroot", "chrt", "flock", "taskset", "timeout"])
"""Those that have a word of their own between the options and the program."""

_FISH: Final = "c C d D f o --command --init-command --debug --debug-output --features"
_OTHER_SHELLS: Final = "o O --rcfile --init-file --emulate"


def is_for_a_shell(name: str) -> bool:
    """Whether the name of a program has characters that mean something to a shell, and are in few names."""
    return not _MEANS_SOMETHING.isdisjoint(name)


def script_with_item(words: Sequence[str]) -> str | None:
    """The script of a shell that would have an item in it, if these words of a program start such a shell."""
    rest = list(words) if any(map(_takes_item, words)) else [*words, "{}"]
    while rest:
        name = os.path.basename(rest.pop(0))  # noqa: PTH119  # a name, not a path
        if name in _SHELLS:
            return next(filter(_takes_item, _scripts(name, rest)), None)
        if name not in _WRAPPERS:
            break
        _take_options(rest, _WRAPPERS[name])
        if name in _TAKE_A_WORD:
            del rest[:1]
        if name == "flock" and rest[:1] in (["-c"], ["--command"]):
            return next(filter(_takes_item, rest[1:2]), None)
        while name in ("env", "sudo") and rest and "=" in rest[0]:
            del rest[0]
    return None


def _takes_item(word: str) -> bool:
    return _Word(os.fsencode(word)).takes_item


def _scripts(shell: str, rest: list[str]) -> list[str]:
    """What a shell takes for scripts, of the words after its name."""
    if shell == "fish":
        have_script = ("c", "C", "--command", "--init-command")
        return [value for option, value in _take_options(rest, _FISH) if option in have_script]
    scripts: list[str] = []
    for attached in (True, False):  # `-opipefail` is an option and its value to zsh and ksh, and many options to bash
        words = list(rest)
        if any(option == "c" for option, _ in _take_options(words, _OTHER_SHELLS, attached=attached)):
            scripts += words[:1]
    return scripts


def _take_options(rest: list[str], have_values: str, *, attached: bool = True) -> list[tuple[str, str]]:
    """Take the options off the beginning of `rest`: a letter or a long name each, and a value.

    Args:
        rest: the words after a program's name.
        have_values: the letters and the long names that have a value.
        attached: whether the value of a letter is what follows it in the same word, if anything does.
    """
    options: list[tuple[str, str]] = []
    names = have_values.split()

    def add(option: str, value: str | None) -> None:
        if value is None:
            value = rest.pop(0) if option in names and rest else ""
        options.append((option, value))
        if option in ("S", "--split-string") and "--split-string" in names:  # of `env`
            with suppress(ValueError):  # quotes that do not match, which `env` will not take either
                rest[:0] = shlex.split(value)

    while rest and rest[0].startswith(("-", "+")):
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            full = next((full for full in names if full.startswith(name)), name)  # it may be cut short
            add(full, value if equals else None)
            continue
        for end, letter in enumerate(word[1:], start=2):
            value = word[end:] if attached and letter in names else ""
            add(letter, value or None)
            if value:
                break
    return options
