"""How a run ends: what is printed, what is said of it, what happens to what runs, and the exit code."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from cli_helpers import COMMAND, PATIENCE, Cli, Ran, is_gone, number_in, run, started, wait_for, wait_until_it_handles

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")

BAD = ["sh", "-c", 'case $1 in bad*) exit 3;; esac; echo "$1"', "sh", "{}"]
"""A program that fails for an item that begins with `bad`."""

WAITS = [
    "sh",
    "-c",
    'echo $$ >pid-$1; mv pid-$1 began-$1; while ! [ -e go ]; do sleep 0.01; done; echo "$1"',
    "sh",
    "{}",
]
"""A program that says that it has begun, and waits."""

HINT = " (-k goes on after a failure)"


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


def lines(*items):
    return "".join(f"{item}\n" for item in items)


def numbers(count):
    return lines(*range(count))


@pytest.fixture
def nobody():
    """The end of a pipe that nobody reads from."""
    ours, theirs = os.pipe()
    os.close(ours)
    yield theirs
    os.close(theirs)


# What was not run


@pytest.mark.parametrize("how", [["--items", "list"], ["--items", "list", "--no-progress"], ["-a-"]])
@pytest.mark.parametrize("command", ["map", "do"])
def test_after_a_failure_it_is_said_what_was_not_run(cli, tmp_path, command, how):
    (tmp_path / "list").write_text(lines(0, 1, "bad", 3, 4))
    ran = cli(command, "-j1", *how, *BAD, stdin=lines(0, 1, "bad", 3, 4))
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "trio-fanout: item 2 ('bad') failed: exit code 3",
        f"trio-fanout: 2 done, 1 failed, 2 not run{HINT}",
    ]


def test_what_was_ended_was_not_run(cli, tmp_path):
    (tmp_path / "list").write_text(numbers(4))
    script = "case $1 in 0) echo >began; exec sleep 1000;; *) while ! [ -e began ]; do sleep 0.01; done; exit 3;; esac"
    ran = cli("map", "-j2", "--items", "list", "sh", "-c", script, "sh", "{}")
    assert ran.column("index") == [1]
    assert ran.err.splitlines()[-1] == f"trio-fanout: 0 done, 1 failed, 3 not run{HINT}"


def test_it_is_counted_in_items_even_with_batches(cli, tmp_path):
    (tmp_path / "list").write_text(lines(*"abc", "bad", *"efgh"))
    script = 'for i; do test "$i" != bad || exit 1; done'
    ran = cli("do", "-j1", "-n3", "--items", "list", "sh", "-c", script, "sh")
    assert ran.err.splitlines()[-1] == f"trio-fanout: 3 done, 3 failed, 2 not run{HINT}"


def test_of_a_pipe_nobody_knows_how_much_there_is():
    with started("do", "-j1", *BAD) as process:
        process.stdin.write(lines(0, "bad", 2).encode())
        process.stdin.flush()
        assert process.wait(PATIENCE) == 1
        said = process.stderr.read().decode().splitlines()
    assert said[-1] == f"trio-fanout: 1 done, 1 failed; the rest of the input was not run{HINT}"


@pytest.mark.parametrize("options", [[], ["--items", "list"], ["--json"], ["--json", "--items", "list"], ["-0"]])
@pytest.mark.parametrize("rest", [[], ["-k"], ["--max-failures", "1"]])
def test_nothing_is_said_of_it_when_everything_ran(cli, tmp_path, options, rest):
    data = {"--json": '"a"\n"bad"\n', "-0": "a\0bad\0"}.get(options[0] if options else "", "a\nbad\n")
    (tmp_path / "list").write_text(data)
    ran = cli("map", "-j1", *options, *rest, *BAD, stdin=data)
    assert (ran.code, ran.err) == (1, "trio-fanout: item 1 ('bad') failed: exit code 3\n")


@pytest.mark.parametrize(
    ("options", "data"), [(["--json"], '["a", "bad", "c", ["d"]]'), (["--json", "--items", "list"], None)]
)
def test_json_has_a_total_if_it_is_an_array_or_a_file(cli, tmp_path, options, data):
    (tmp_path / "list").write_text('"a"\n\n"bad"\n \n7\n{}')
    ran = cli("map", "-j1", *options, *BAD, stdin=data or "")
    assert ran.err.splitlines()[-1] == f"trio-fanout: 1 done, 1 failed, 2 not run{HINT}"


def test_what_the_log_has_is_not_counted(cli, tmp_path):
    (tmp_path / "list").write_text(lines("a", "bad", "b", "c"))
    cli("do", "-k", "--log", "log", *BAD, stdin=lines("c", "a"))
    ran = cli("do", "-j1", "--log", "log", "--resume", "--items", "list", *BAD)
    assert ran.err.splitlines() == [
        "trio-fanout: skipped what the log says has succeeded (1)",
        "trio-fanout: item 1 ('bad') failed: exit code 3",
        f"trio-fanout: 0 done, 1 failed, 1 not run{HINT}",
    ]


def test_programs_of_fan_out_are_counted(cli):
    ran = cli("fan-out", "-j1", "cat", "false", "wc", "sort", stdin="a\n")
    assert ran.err.splitlines()[-1] == f"trio-fanout: 1 done, 1 failed, 2 not run{HINT}"


def test_of_a_program_that_is_missing_it_is_not_said_that_anything_would_go_on(cli, tmp_path):
    (tmp_path / "list").write_text(numbers(9))
    for options in ([], ["-k"]):
        ran = cli("do", "-j1", *options, "--items", "list", "nothing")
        assert ran.err.splitlines()[-1] == "trio-fanout: 0 done, 1 failed, 8 not run"


# Failures up to a number of them


@pytest.mark.parametrize(("most", "indices"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3, 4])])
def test_it_goes_on_until_so_many_have_failed(cli, tmp_path, most, indices):
    (tmp_path / "list").write_text(lines(0, "bad", 2, "bad", "bad", 5))
    ran = cli("map", "-j1", "--max-failures", str(most), "--items", "list", *BAD)
    assert ran.code == 1
    assert ran.column("index") == indices
    done = len(indices) - most
    assert ran.err.splitlines()[-1] == f"trio-fanout: {done} done, {most} failed, {5 - indices[-1]} not run{HINT}"
    assert "item 1 ('bad')" in ran.err


def test_fewer_failures_end_nothing(cli):
    ran = cli("map", "--max-failures", "3", *BAD, stdin=lines("bad", 1, "bad", 3))
    assert ran.code == 1
    assert ran.column("failed") == [True, False, True, False]
    assert ran.err == "trio-fanout: 2 of 4 items failed; first: item 0 ('bad'): exit code 3\n"


def test_programs_are_counted_and_not_items(cli):
    ran = cli("map", "-j1", "-n2", "--max-failures", "2", "false", stdin=numbers(8))
    assert ran.column("index") == [0, 2]


# Input that is wrong


@pytest.mark.parametrize("wrong", ['"c" "d"', '{"c": ', "nonsense", '"c'])
@pytest.mark.parametrize("batch", [[], ["-n2"]])
def test_what_comes_before_wrong_input_still_runs(cli, tmp_path, wrong, batch):
    ran = cli("map", "-k", "--json", *batch, "-j2", "cat", stdin=f'"/dev/null"\n"list"\n"none"\n{wrong}\n"e"\n')
    assert ran.code == 2
    items = [item for record in ran.records for item in record.get("items", [record.get("item")])]
    assert items == ["/dev/null", "list", "none"]
    assert "trio-fanout: standard input: line 4: " in ran.err
    assert ran.err.splitlines()[-1].endswith(" failed; the rest of the input was not run")


def test_what_waits_for_its_turn_still_runs_when_the_input_is_wrong(cli):
    ran = cli("map", "-k", "--json", "--rate", "20", "-j4", "echo", stdin='"a"\n"b"\n"c"\nwrong')
    assert (ran.code, ran.column("item")) == (2, ["a", "b", "c"])


def test_without_k_wrong_input_ends_what_runs_and_what_finished_is_printed(tmp_path):
    script = "test $1 = 1 || { echo $$ >pid; mv pid began; exec sleep 1000; }"
    with started("map", "-j3", "--json", "sh", "-c", script, "sh", "{}", "{#}") as process:
        process.stdin.write(b"1\n1\n2\n")
        process.stdin.flush()
        first = [json.loads(process.stdout.readline())["item"] for _ in range(2)]
        wait_for((tmp_path / "began").exists)
        process.stdin.write(b"wrong\n")
        process.stdin.close()
        assert first + [json.loads(line)["item"] for line in process.stdout.read().splitlines()] == ["1", "1"]
        assert process.wait(PATIENCE) == 2
        assert process.stderr.read().decode().splitlines() == [
            "trio-fanout: standard input: line 4: Expecting value",
            "trio-fanout: 2 done, 0 failed; the rest of the input was not run",
        ]
    assert is_gone(number_in(tmp_path / "began"))


@pytest.mark.parametrize("array", ['["a", "b"', '["a", "b",]', '["a", "b"] "c"', '["a" "b"]', '["a", oops]', "["])
def test_an_array_that_is_wrong_is_wrong_use(cli, array):
    ran = cli("map", "-k", "--json", "echo", stdin=array)
    assert (ran.code, ran.out) == (2, b"")
    assert ran.err.startswith("trio-fanout: standard input: line 1: ")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("batch", [[], ["-n2"]])
def test_a_lone_surrogate_is_a_failure(cli, batch):
    ran = cli("map", "-k", "-j1", "--json", *batch, "echo", stdin='["a", "b", "\\ud800", "c", "d"]')
    assert ran.code == 1
    assert ran.column("failed") == ([False, True, False] if batch else [False, False, True, False, False])
    ran = cli("map", "-j1", "--json", *batch, "echo", stdin='["\\ud800", "b", "c"]')
    assert (ran.code, ran.column("failed")) == (1, [True])
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("batch", [[], ["-n2"]])
def test_a_dry_run_shows_the_others(cli, batch):
    ran = cli("do", "--dry-run", "--json", *batch, "echo", stdin='["a", "b", "\\ud800", "c", "d"]')
    assert (ran.code, ran.out) == (1, b"echo a b\necho d\n" if batch else b"echo a\necho b\necho c\necho d\n")
    what = "item 2 ('\\ud800')" + (" and 1 more" if batch else "")
    assert ran.err.startswith(f"trio-fanout: {what} failed: cannot start: ")


def test_a_dry_run_knows_that_no_argument_holds_a_nul(cli):
    ran = cli("do", "--dry-run", "echo", stdin="a\nb\0\nc\n")
    assert (ran.code, ran.out) == (1, b"echo a\necho c\n")
    assert ran.err == "trio-fanout: item 1 ('b\\x00') failed: cannot start: embedded null byte\n"


def test_input_without_an_end_is_wrong():
    # What the system gives it would not do for much more than one item that is too long.
    command = ["sh", "-c", 'ulimit -v 1500000; exec "$@" </dev/zero', "-", *COMMAND, "map", "echo"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "trio-fanout: standard input: no end of an item in 64 MiB: items end with a newline, or with --null, a NUL\n"
    )


def test_a_dry_run_of_wrong_input(cli):
    ran = cli("do", "--dry-run", "--json", "echo", stdin='"a"\n"b"\nwrong')
    assert ran == Ran(2, b"echo a\necho b\n", "trio-fanout: standard input: line 3: Expecting value\n")


def test_a_dry_run_that_is_interrupted():
    with started("do", "--dry-run", "echo") as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"echo a\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b""


# A log or an output that cannot be written


def test_with_k_what_runs_finishes_when_the_log_is_full(tmp_path):
    (tmp_path / "list").write_text(numbers(9))
    script = "test $1 = 1 && while ! [ -e go ]; do sleep 0.01; done; test $1 = 1 || { touch go; }"
    ran = run("map", "-k", "-j2", "--log", "/dev/full", "--items", "list", "sh", "-c", script, "sh", "{}")
    assert ran.code == 1
    assert ran.column("item") == ["0", "1"]
    assert ran.err.splitlines() == [
        "trio-fanout: cannot write the log '/dev/full': No space left on device",
        "trio-fanout: 2 done, 0 failed, 7 not run",
    ]


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ""])
def test_trouble_with_standard_error_is_no_reason_to_fail(nobody, where):
    command = ["sh", "-c", f'exec "$@" {where}', "-", *COMMAND, "map", "--output", "text", "-j1"]
    command += ["sh", "-c", "echo $0 >&2; echo $0"]
    done = subprocess.run(
        command, input=b"0\n1\n2\n", stdout=subprocess.PIPE, stderr=nobody, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"0\n1\n2\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["list", "link", "hard"])
@pytest.mark.parametrize("options", [["--items", "list"], [], ["-0"]])
def test_the_log_is_not_the_input(cli, tmp_path, name, options):
    (tmp_path / "list").write_text("a\nb\n")
    (tmp_path / "link").symlink_to("list")
    os.link("list", "hard")
    with (tmp_path / "list").open() as file:
        ran = run("map", "--log", name, *options, "touch", stdin=file)
    assert (ran.code, ran.out, ran.err) == (2, b"", "trio-fanout: the log and the input are the same file\n")
    assert (tmp_path / "list").read_text() == "a\nb\n"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", ["map", "do", "fan-out"])
def test_the_log_is_not_the_output(tmp_path, command):
    with (tmp_path / "log").open("ab") as file:
        done = subprocess.run(
            [*COMMAND, command, "--log", "log", "true"],
            input=b"a\n",
            stdout=file,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, b"trio-fanout: the log and standard output are the same file\n")
    assert (tmp_path / "log").read_bytes() == b""


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_the_log_is_not_where_messages_go(tmp_path, resume):
    with (tmp_path / "log").open("w") as file:
        done = subprocess.run(
            [*COMMAND, "do", "-k", "--log", "log", *resume, "sh", "-c", "echo >&2; false"],
            input=b"a\nb\n",
            stderr=file,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 2
    assert (tmp_path / "log").read_text() == "trio-fanout: the log and standard error are the same file\n"


@pytest.mark.slow
def test_the_input_is_not_the_output(tmp_path):
    (tmp_path / "list").write_text("a\n")
    with (tmp_path / "list").open() as source, (tmp_path / "list").open("ab") as target:
        done = subprocess.run(
            [*COMMAND, "do", "echo"], stdin=source, stdout=target, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
        )
        assert done.returncode == 2
        done = subprocess.run(
            [*COMMAND, "fan-out", "cat"], stdin=source, stdout=target, timeout=PATIENCE, check=False
        )  # it has read all of it before
        assert done.returncode == 0
    assert len((tmp_path / "list").read_text().splitlines()) == 2


def test_logs_and_inputs_that_are_no_plain_files_may_be_the_same(cli):
    ran = run("map", "--log", "/dev/null", "true", stdin=subprocess.DEVNULL)
    assert ran.code == 0


def test_of_a_file_with_items_the_standard_input_may_be_anything(cli, tmp_path):
    (tmp_path / "list").write_text("a\n")
    (tmp_path / "log").touch()
    with (tmp_path / "log").open() as file:
        assert run("map", "--items", "list", "--log", "log", "true", stdin=file).code == 0


@pytest.mark.parametrize("arguments", [["do"], ["fan-out"], ["map", "--items", "-"], ["map", "--dry-run"]])
def test_a_closed_standard_input_is_said_to_be(arguments):
    command = ["sh", "-c", 'exec "$@" <&-', "-", *COMMAND, *arguments, "true"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (2, b"trio-fanout: cannot read standard input: it is closed\n")


def test_where_it_is_not_needed_a_closed_standard_input_is_none_of_our_business(tmp_path):
    (tmp_path / "list").write_text("a\n")
    command = ["sh", "-c", 'exec "$@" <&-', "-", *COMMAND, "map", "--items", "list", "cat"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (1, b"trio-fanout: item 0 ('a') failed: exit code 1\n")


# Results as they finish, and no result twice


def test_unordered_results_are_printed_as_they_finish(tmp_path):
    script = "test $1 != 0 || while ! [ -e go ]; do sleep 0.01; done; echo $1; echo $1"
    with started("map", "-j3", "--unordered", "--output", "text", "sh", "-c", script, "sh", "{}") as process:
        process.stdin.write(numbers(10).encode())
        process.stdin.close()
        first = [process.stdout.readline() for _ in range(18)]
        (tmp_path / "go").touch()
        pairs = [*first, *process.stdout.read().splitlines(keepends=True)]
        assert pairs[::2] == pairs[1::2]
        assert pairs[-2:] == [b"0\n", b"0\n"]
        assert {int(line) for line in pairs} == set(range(10))


@pytest.mark.parametrize("first", [["--log", "log"], ["--log", "log", "--resume"]])
@pytest.mark.parametrize("batch", [[], ["-n2"]])
def test_what_failed_is_printed_as_text_when_it_succeeds(cli, tmp_path, first, batch):
    script = 'for i; do echo "$i"; echo "about $i" >&2; done; test "$1" != 2 || test -e good'
    rest = ["-k", "-j1", "--output", "text", *batch, "sh", "-c", script, "sh"]
    one = cli("map", *first, *rest, stdin=numbers(5))
    assert one.code == 1
    assert b"2" not in one.out
    assert "about 2" in one.err
    assert any("2\n" in json.loads(line)["stdout"] for line in (tmp_path / "log").read_text().splitlines())
    (tmp_path / "good").touch()
    two = cli("map", "--log", "log", "--resume", *rest, stdin=numbers(5))
    assert two.code == 0
    assert sorted((one.out + two.out).split()) == [b"0", b"1", b"2", b"3", b"4"]


def test_without_a_log_what_failed_is_printed(cli):
    ran = cli("map", "-k", "--output", "text", "sh", "-c", "echo $0; false", stdin="a\n")
    assert ran.out == b"a\n"


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2])
@pytest.mark.parametrize("source", ["file", "pipe"])
def test_the_first_signal_is_the_exit_code_and_it_is_said_what_was_not_run(tmp_path, number, source):
    (tmp_path / "list").write_text(numbers(5))
    options = ["--items", "list"] if source == "file" else []
    with started("map", "-j2", *options, *WAITS) as process:
        process.stdin.write(numbers(5).encode())
        process.stdin.flush()
        wait_for(lambda: (tmp_path / "began-0").exists() and (tmp_path / "began-1").exists())
        process.send_signal(number)
        if number == signal.SIGINT:
            assert b"waiting for 2 running programs; press Ctrl-C again to terminate them" in process.stderr.readline()
            (tmp_path / "go").touch()
        done = 2 if number == signal.SIGINT else 0
        assert len(process.stdout.read().splitlines()) == done
        assert process.wait(PATIENCE) == 128 + number
        rest = f", {5 - done} not run" if source == "file" else "; the rest of the input was not run"
        assert process.stderr.read().decode() == f"trio-fanout: {done} done, 0 failed{rest}\n"


def test_a_second_signal_does_not_change_the_exit_code(tmp_path):
    with started("do", "-j1", *WAITS) as process:
        process.stdin.write(b"0\n1\n")
        process.stdin.flush()
        wait_for((tmp_path / "began-0").exists)
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 130
    assert is_gone(number_in(tmp_path / "began-0"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["output", "log"])
def test_who_asks_twice_does_not_wait_for_a_reader(tmp_path, where):
    os.mkfifo(tmp_path / "p")
    reader = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    log = ["--log", "p"] if where == "log" else []
    with started("map", "-j1", *log, "sh", "-c", "yes | head -c 1000000") as process:
        process.stdin.write(b"a\n")
        process.stdin.close()
        stands_still = process.stdout.fileno() if where == "output" else reader
        select.select([stands_still], [], [], PATIENCE)  # there is more to write than fits
        for number in (signal.SIGINT, signal.SIGUSR1):
            process.send_signal(number)
        assert process.stderr.readline().startswith(b"trio-fanout: 0 running; 1 done, 0 failed")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 130
    os.close(reader)


@pytest.mark.slow
def test_a_slow_reader_gets_all_that_has_finished_before_a_signal():
    with started("map", "sh", "-c", "yes | head -c 1000000") as process:
        process.stdin.write(b"a\n")
        process.stdin.close()
        out = b""
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            if not out:
                process.send_signal(signal.SIGTERM)
            out += piece
            time.sleep(0.4)  # it takes longer in all than somebody who stands still would have
        assert json.loads(out)["stdout"] == "y\n" * 500_000
        assert process.wait(PATIENCE) == 143


def test_a_signal_asks_how_far_it_is(tmp_path):
    (tmp_path / "list").write_text(lines("a", "bad", *range(3)))
    script = f"{BAD[2]}; case $1 in [0-9]) touch began; while ! [ -e go ]; do sleep 0.01; done;; esac"
    with started("do", "-k", "-j1", "--items", "list", "sh", "-c", script, "sh", "{}") as process:
        wait_for((tmp_path / "began").exists)
        assert process.stderr.readline().startswith(b"trio-fanout: item 1 ")
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == b"trio-fanout: 1 running; 1 done, 1 failed, 3 left\n"
        assert process.stderr.readline().startswith(b"  item 2 ('0') has run for ")
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 1


def test_a_signal_asks_before_the_input_is_open(tmp_path):
    os.mkfifo(tmp_path / "p")
    with started("do", "--items", "p", "true") as process:
        wait_until_it_handles(process.pid, signal.SIGUSR1)
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == b"trio-fanout: 0 running\n"
        (tmp_path / "p").write_text("a\n")
        assert process.wait(PATIENCE) == 0
