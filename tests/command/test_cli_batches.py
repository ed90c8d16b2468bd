"""`--batch`, `--dry-run`, and where in the words of a program its items go."""

import os
import shlex
import subprocess
import sys

import pytest

from cli_helpers import COMMAND, PATIENCE, Cli, Ran
from trio_fanout._cli import _words

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


def numbers(count):
    return "".join(f"{number}\n" for number in range(count))


def test_a_batch_is_up_to_so_many_items_as_the_last_arguments(cli):
    ran = cli("map", "-n", "3", "echo", "-", stdin=numbers(7))
    assert ran.column("index") == [0, 3, 6]
    assert ran.column("items") == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert ran.column("stdout") == ["- 0 1 2\n", "- 3 4 5\n", "- 6\n"]
    assert not any("item" in record for record in ran.records)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["{}", "end"], "0 1 end\n2 end\n"),
        (["<{}>", "{#}", "x"], "<0> <1> 0 x\n<2> 2 x\n"),
        (["{#}:{}"], "0:0 1:1\n2:2\n"),
        (["{{}}"], "{} 0 1\n{} 2\n"),
    ],
)
def test_a_word_with_braces_is_there_once_for_each_item(cli, words, printed):
    assert cli("map", "--output", "text", "--batch", "2", "echo", *words, stdin=numbers(3)).out.decode() == printed


def test_batches_of_all_kinds_of_items(cli):
    assert cli("map", "-n2", "-0", "echo", stdin="a\nb\0c\0d").column("items") == [["a\nb", "c"], ["d"]]
    assert cli("map", "-n2", "--json", "echo", stdin='["a", 1.0, {"b": 2}]').column("items") == [
        ["a", "1.0"],
        ['{"b":2}'],
    ]


def test_batches_come_in_order(cli):
    # The first waits for the last.
    script = "if [ $0 = 0 ]; then while ! [ -e done ]; do sleep 0.01; done; elif [ $0 = 6 ]; then touch done; fi"
    ran = cli("map", "-j2", "-n2", "sh", "-c", script, stdin=numbers(8))
    assert ran.column("index") == [0, 2, 4, 6]


def test_a_batch_fails_as_one(cli):
    ran = cli("map", "-k", "-n2", "sh", "-c", "test $0 != 2", stdin=numbers(5))
    assert ran.column("failed") == [False, True, False]
    assert (ran.code, ran.err) == (1, "trio-fanout: item 2 ('2') and 1 more failed: exit code 1\n")
    ran = cli("do", "-k", "-j1", "-n2", "sh", "-c", "test $0 = 4", stdin=numbers(5))
    assert ran.err.splitlines() == [
        "trio-fanout: item 0 ('0') and 1 more failed: exit code 1",
        "trio-fanout: item 2 ('2') and 1 more failed: exit code 1",
        "trio-fanout: 4 of 5 items failed; first: item 0 ('0') and 1 more: exit code 1",
    ]


def test_a_batch_that_takes_too_long_fails(cli):
    (record,) = cli("map", "-n9", "--timeout", "0.2", "sh", "-c", "exec sleep 1000", stdin=numbers(3)).records
    assert (record["items"], record["error"]) == (["0", "1", "2"], "timed out after 0.2 seconds")


def test_fail_fast_starts_no_other_batch(cli):
    ran = cli("map", "-j1", "-n2", "sh", "-c", "test $0 != 2", stdin=numbers(8))
    assert ran.column("items") == [["0", "1"], ["2", "3"]]


def test_resume_of_batches_goes_by_item(cli, tmp_path):
    arguments = ["--log", "log", "--resume", "-k", "-j1", "sh", "-c", 'echo "$@" >>ran; ! grep -q 3 ran', "-"]
    assert cli("do", "-n2", *arguments, stdin=numbers(3)).code == 0
    ran = cli("map", "-n3", *arguments, stdin="2\n5\n0\n4\n3\n1\n6\n")
    assert ran.column("items") == [["5", "4", "3"], ["6"]]
    assert ran.column("index") == [1, 6]
    assert [record["failed"] for record in ran.records] == [True, True]
    (tmp_path / "ran").unlink()
    assert cli("map", *arguments, stdin="6\n5\n2\n").column("item") == ["6", "5"]  # also without batches


def test_equal_items_of_a_batch_are_told_apart(cli):
    arguments = ["map", "-n2", "--log", "log", "--resume", "-j1", "true"]
    assert [record.get("occurrences") for record in cli(*arguments, stdin="a\na\nb\nc\na\n").records] == [
        [0, 1],
        None,
        [2],
    ]
    assert cli(*arguments, stdin="b\na\na\na\na\n").column("items") == [["a"]]


def test_as_many_items_as_the_system_takes(cli, monkeypatch):
    items = "".join(f"{number:0100}\n" for number in range(30_000))
    ran = cli("map", "-n", "100000", "sh", "-c", "echo $#", stdin=items)
    counts = [int(text) + 1 for text in ran.column("stdout")]  # the first is $0
    assert sum(counts) == 30_000
    assert len(counts) > 10
    assert min(counts[:-1]) > 1000
    monkeypatch.setattr(_words, "room_for_arguments", lambda: -1)
    assert cli("map", "-n", "5", "echo", stdin=numbers(3)).column("stdout") == ["0\n", "1\n", "2\n"]


@pytest.mark.parametrize("environment", [{}, {"LARGE": "x" * 100_000}])
def test_the_room_for_arguments_is_what_the_system_has(environment):
    # The least that Linux allows, whatever the stack: some of it is taken by the environment.
    command = ["sh", "-c", 'ulimit -s 256; exec "$@"', "-", *COMMAND, "do", "-n", "1000000", "true"]
    items = b"".join(b"%d\n" % number for number in range(50_000))
    done = subprocess.run(
        command, input=items, capture_output=True, timeout=PATIENCE, check=False, env={**os.environ, **environment}
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_dry_run_prints_what_would_be_run(cli, tmp_path):
    ran = cli(
        "map", "--dry-run", "--log", "log", "touch", "a b", "x{}", "{#}", stdin="0\nit's\n\xff\n".encode("latin-1")
    )
    assert ran == Ran(0, b"touch 'a b' x0 0\ntouch 'a b' 'xit'\"'\"'s' 1\ntouch 'a b' 'x\xff' 2\n", "")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_batches_that_are_resumed(cli, tmp_path):
    cli("do", "--log", "log", "true", stdin="1\n3\n")
    before = (tmp_path / "log").read_text()
    ran = cli("do", "--dry-run", "--resume", "--log", "log", "-n2", "true", stdin=numbers(6))
    assert ran.out == b"true 0 2\ntrue 4 5\n"
    assert (tmp_path / "log").read_text() == before


def test_dry_run_of_fan_out_runs_nothing(cli, tmp_path):
    ran = cli("fan-out", "--dry-run", "touch a", "sh -c 'wc -l; touch  b'")
    assert [shlex.split(line) for line in ran.out.decode().splitlines()] == [
        ["touch", "a"],
        ["sh", "-c", "wc -l; touch  b"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_head_ends_a_dry_run_quietly():
    command = 'yes | "$@" do --dry-run echo | head -1'
    done = subprocess.run(["bash", "-c", command, "-", *COMMAND], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == (b"echo y\n", b"")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_a_batch_has_at_least_one_item(cli, number):
    ran = cli("do", "-n", number, "true")
    assert ran.code == 2
    assert f"argument -n/--batch: must be a whole number, 1 or more, got '{number}'" in ran.err
    assert "trio-fanout do: error: " in ran.err
