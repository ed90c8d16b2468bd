"""No item becomes part of a shell's script."""

import sys

import pytest

from cli_helpers import Cli
from trio_fanout._cli._words import script_with_item

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


@pytest.mark.parametrize(
    "words",
    [
        *(
            [*shell.split(), "-c", "touch {}"]
            for shell in ["sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "busybox sh", "/bin/sh"]
        ),
        ["sh", "-c"],
        ["sh", "-c", "{}"],
        ["sh", "-ec", "{}"],
        ["sh", "-c", "-e", "echo {}"],
        ["sh", "-c", "--", "echo {}"],
        ["sh", "-e", "-c", "echo {} {#} {{}}"],
        ["bash", "-eo", "pipefail", "-c", "echo {}"],
        ["bash", "-oc", "pipefail", "echo {}"],
        ["zsh", "-opipefail", "-c", "echo {}"],
        ["bash", "--norc", "--rcfile", "x", "--init-file=y", "+O", "extglob", "-c", "echo {}"],
        ["fish", "--command=echo {}"],
        ["fish", "--command", "echo {}"],
        ["fish", "-C", "true", "-cecho {}"],
        ["fish", "-C", "cd {}", "-c", "true"],
        ["env", "A=1", "sh", "-c", "echo {}"],
        ["env", "-", "-u", "B", "--chdir", "x", "--unset=C", "--unset=", "A=1", "sh", "-c"],
        ["env", "-a", "x", "sh", "-c", "echo {}"],
        ["env", "-S", "A=1 sh -c 'echo {}'"],
        ["env", "-iS", "-u A sh", "-c", "echo {}"],
        ["env", "--split-string=sh -c", "echo {}"],
        ["nice", "-n", "5", "sh", "-c", "echo {}"],
        ["nice", "-n5", "sh", "-c", "echo {}"],
        ["nice", "-5", "sh", "-c", "echo {}"],
        ["nice", "--adj", "5", "sh", "-c", "echo {}"],
        ["nohup", "sh", "-c", "echo {}"],
        ["timeout", "5", "bash", "-c", "echo {}"],
        ["timeout", "-k", "1", "--signal", "KILL", "5", "bash", "-c", "echo {}"],
        ["sudo", "-u", "x", "sh", "-c", "echo {}"],
        ["sudo", "-nHu", "x", "--", "A=1", "sh", "-c", "echo {}"],
        ["sudo", "-ux", "--group=y", "nice", "env", "A=1", "busybox", "ash", "-c", "echo {}"],
        ["stdbuf", "-oL", "sh", "-c", "echo {}"],
        ["setsid", "time", "-f", "%e", "sh", "-c", "echo {}"],
        ["zsh", "--emulate", "sh", "-c", "echo {}"],
        ["flock", "x", "sh", "-c", "echo {}"],
        ["flock", "-nw", "5", "-E1", "x", "sh", "-c", "echo {}"],
        ["flock", "x", "-c", "echo {}"],
        ["flock", "--timeout", "5", "x", "--command", "echo {}"],
        ["flock", "x", "-c"],
        ["chroot", "--userspec", "a:b", "/", "sh", "-c", "echo {}"],
        ["unshare", "-rS", "0", "--mount", "-w", "/", "--propagation", "slave", "sh", "-c", "echo {}"],
        ["taskset", "-c", "0,1", "chrt", "-f", "-T", "5", "1", "ionice", "-c3", "sh", "-c", "echo {}"],
        ["setpriv", "--reuid", "1", "--clear-groups", "--regid=1", "sh", "-c", "echo {}"],
        ["strace", "--summary", "-ff", "-o", "x", "-e", "trace=file", "--string-limit", "5", "sh", "-c", "echo {}"],
    ],
    ids=" ".join,
)
def test_an_item_in_a_script_is_seen(words):
    assert script_with_item(words) is not None


@pytest.mark.parametrize(
    "words",
    [
        ["echo"],
        ["{}", "-c", "x"],
        ["python3", "-c", "{}"],
        ["grep", "-c", "{}"],
        ["env", "grep", "sh", "-c", "{}"],
        ["sh", "script"],
        ["sh", "-e", "script", "-c", "{}"],
        ["sh", "-c", "echo $0"],
        ["sh", "-c", 'echo "$1"', "sh", "{}"],
        ["sh", "-c", "echo {{}} {#} {{#}} $0"],
        ["sh", "-c", "{#}"],
        ["env", "A={}", "sh", "-c", "echo $A"],
        ["env", "-S", "'"],
        ["env", "-u"],
        ["flock", "x"],
        ["flock", "{}", "-c", "true"],
        ["flock", "x", "grep", "-c", "{}"],
        ["taskset", "sh", "grep", "-c", "{}"],
        ["fish", "-c", "echo $argv", "{}"],
        ["timeout", "5"],
        ["sudo"],
        ["bash", "-o"],
        ["bash", "--rcfile", "{}", "-c", "true"],
        ["timeout", "-s", "{}", "5", "sh", "-c", "true"],
    ],
    ids=" ".join,
)
def test_an_item_that_is_in_no_script_is_left_alone(words):
    assert script_with_item(words) is None


@pytest.mark.parametrize("options", [[], ["-n2"], ["--dry-run"], ["--"]])
@pytest.mark.parametrize("words", [["sh", "-c", "touch {}.x"], ["env", "bash", "-ec"]])
def test_it_is_refused_before_anything_runs(cli, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = cli("do", *options, *words, stdin="a b\n$(touch pwned)\n")
    assert (ran.code, ran.out) == (2, b"")
    assert """sh -c '... "$1" ...' sh {}""" in ran.err
    assert "trio-fanout do: error: an item would become part of a shell's script" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_what_the_message_shows_works(cli):
    ran = cli("map", "--output", "text", "sh", "-c", 'echo "<$1>"', "sh", "{}", stdin="$(touch pwned); a  b\n")
    assert ran.out == b"<$(touch pwned); a  b>\n"
