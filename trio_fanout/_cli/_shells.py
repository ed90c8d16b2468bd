"""Whether an item would become part of a shell's script: any character in it could then do anything."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

WITH_A_SHELL: Final = """sh -c '... "$1" ...' sh {}"""
"""How a shell gets an item."""

_MEANS_SOMETHING: Final = frozenset("|&;<>$`\n")
_SHELLS: Final = frozenset(["sh", "bash", "rbash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh"])


class _Options(NamedTuple):
    """Which options of a program take the next word as their value: the letters, and the long names."""

    letters: str = ""
    names: tuple[str, ...] = ()


_WRAPPERS: Final = {
    "busybox": _Options(),
    "command": _Options(),
    "doas": _Options("aCu"),
    "env": _Options("uCPS", ("--unset", "--chdir", "--split-string", "--argv0")),
    "ionice": _Options("cnpPu", ("--class", "--classdata")),
    "nice": _Options("n", ("--adjustment",)),
    "nohup": _Options(),
    "setsid": _Options(),
    "stdbuf": _Options("ioe", ("--input", "--output", "--error")),
    "sudo": _Options(
        "aCcDghpRrTtUu",
        (
            *("--auth-type", "--close-from", "--login-class", "--chdir", "--group", "--host", "--prompt", "--chroot"),
            *("--role", "--command-timeout", "--type", "--other-user", "--user"),
        ),
    ),
    "time": _Options("fo", ("--format", "--output")),
    "timeout": _Options("ks", ("--kill-after", "--signal")),
}
"""Programs that start the program that is named by the words after their own options."""

_SHELL: Final = _Options("oO", ("--rcfile", "--init-file"))  # of which no value is a part of the same word
_FISH: Final = _Options("cCdDfo", ("--command", "--init-command", "--debug", "--debug-output", "--features"))


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
        options = dict(_take_options(rest, _WRAPPERS[name]))
        if name == "timeout":
            del rest[:1]  # how long
        if name == "env" and (line := options.get("S", options.get("--split-string"))) is not None:
            rest[:0] = ["env", *_split(line)]
        while name in ("env", "sudo") and rest and "=" in rest[0]:
            del rest[0]
    return None


_PLACE: Final = re.compile(r"\{\{\}\}|\{\}")


def _takes_item(word: str) -> bool:
    return "{}" in _PLACE.findall(word)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # quotes that do not match: `env` will not take it either
        return []


def _scripts(shell: str, rest: list[str]) -> list[str]:
    """What a shell takes for scripts, of the words after its name."""
    if shell == "fish":
        return [value for option, value in _take_options(rest, _FISH) if option in _SCRIPTS_OF_FISH]
    has_script = any(option == "c" for option, _ in _take_options(rest, _SHELL, attached=False))
    return rest[:1] if has_script else []


_SCRIPTS_OF_FISH: Final = ("c", "C", "--command", "--init-command")


def _take_options(rest: list[str], takes: _Options, *, attached: bool = True) -> list[tuple[str, str]]:
    """Take the options off the beginning of `rest`.

    Args:
        rest: the words after a program's name.
        takes: which options have values.
        attached: whether the value of a letter is what follows it in the same word, if anything does.

    Returns:
        A letter or a long name, and a value, for each.
    """
    options: list[tuple[str, str]] = []
    while rest and rest[0].startswith(("-", "+")):
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = next((full for full in takes.names if full.startswith(name)), name)  # it may be cut short
            if name in takes.names and not equals:
                value = "".join(rest[:1])
                del rest[:1]
            options.append((name, value))
            continue
        letters = word[1:]
        while letters:
            letter, letters, value = letters[0], letters[1:], ""
            if letter in takes.letters:
                if attached and letters:
                    value, letters = letters, ""
                else:
                    value = "".join(rest[:1])
                    del rest[:1]
            options.append((letter, value))
    return options
