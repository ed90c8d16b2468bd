"""The command line: what it runs, what it prints, how it ends."""

import errno
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import trio

from cli_helpers import COMMAND, PATIENCE, Cli, Ran, is_gone, number_in, run, started, wait_for
from trio_fanout._cli import _json, _options, _programs, _results, _run, _system, main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command needs POSIX")

LASTS = """
if [ $0 = 0 ]; then sleep 1000 & echo $! >child; mv child there; wait; else while ! [ -e there ]; do sleep 0.01; done;
"""
"""The beginning of a script: item 0 lasts, as does its child, whose number is in the file `there`."""

FAILS_AT_3 = ["sh", "-c", "echo $0; test $0 != 3"]


@pytest.fixture
def cli(capfdbinary):
    return Cli(capfdbinary)


# What is run


def test_map_prints_an_object_for_each_item(cli):
    began = time.time()
    ran = cli("map", "--", "sh", "-c", "echo out-$0; echo err >&2", stdin="a\nb")
    assert ran.code == 0
    assert ran.err == ""
    started, seconds = ran.column("started"), ran.column("seconds")
    assert all(began <= value < began + PATIENCE for value in started)
    assert all(0 < value < PATIENCE for value in seconds)
    assert ran.records == [
        {
            "index": index,
            "item": item,
            "failed": False,
            "exit_code": 0,
            "stdout": f"out-{item}\n",
            "stderr": "err\n",
            "started": started[index],
            "seconds": seconds[index],
            "program": ["sh", "-c", "echo out-$0; echo err >&2"],
        }
        for index, item in enumerate(["a", "b"])
    ]


def test_results_come_in_the_order_of_the_items(cli):
    # The first waits for the last.
    script = "if [ $0 = 0 ]; then while ! [ -e done ]; do sleep 0.01; done; elif [ $0 = 5 ]; then touch done; fi"
    ran = cli("map", "-j", "2", "sh", "-c", script, stdin="0\n1\n2\n3\n4\n5\n")
    assert ran.column("index") == [0, 1, 2, 3, 4, 5]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["it;em $HOME '\""]),
        (["a", "b"], ["a", "b", "it;em $HOME '\""]),
        (["<{}>", "x{}{}", "{#}"], ["<it;em $HOME '\">", "xit;em $HOME '\"it;em $HOME '\"", "0"]),
        (["{#}"], ["0", "it;em $HOME '\""]),
        (["{}", "{", "}", "{ }"], ["it;em $HOME '\"", "{", "}", "{ }"]),
        (["{{}}", "{{#}}", "{{{}}}"], ["{}", "{#}", "{{}}", "it;em $HOME '\""]),
        (["-j", "--null", "--"], ["-j", "--null", "--", "it;em $HOME '\""]),
    ],
)
def test_braces_become_the_item_or_it_comes_last(cli, arguments, words):
    ran = cli("map", "printf", "%s\n", *arguments, stdin="it;em $HOME '\"\n")
    assert ran.column("stdout") == ["".join(f"{word}\n" for word in words)]


def test_an_item_with_braces_is_left_alone(cli):
    assert cli("map", "echo", "{#} {}", stdin="{#} {}\n").column("stdout") == ["0 {#} {}\n"]


def test_the_program_can_be_the_item(cli):
    assert cli("map", "{}", "x", stdin="echo\nprintf\n").column("stdout") == ["x\n", "x"]


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_a_program_follows_the_options_with_or_without_dashes(cli, dashes):
    ran = cli("map", "-j2", *dashes, "echo", "-n", "--", "-j", stdin="x\n")
    assert ran.column("stdout") == ["-- -j x"]


def test_do_lets_output_through(cli):
    ran = cli("do", "sh", "-c", "echo $0; echo e$0 >&2", stdin="a\n")
    assert ran == Ran(0, b"a\n", "ea\n")


def test_fan_out_gives_standard_input_to_each_program(cli):
    ran = cli("fan-out", "-j", "1", "cat", "tr a-z A-Z", "sh -c 'wc -c; echo \"a  b\"'", stdin=b"hello\xff")
    assert ran.column("item") == ["cat", "tr a-z A-Z", "sh -c 'wc -c; echo \"a  b\"'"]
    assert ran.column("stdout") == ["hello\udcff", "HELLO\udcff", "6\na  b\n"]


def test_programs_have_an_empty_standard_input(cli):
    assert cli("map", "sh", "-c", "cat; echo $0", stdin="a\nb\n").column("stdout") == ["a\n", "b\n"]


def test_items_from_a_file(cli, tmp_path):
    (tmp_path / "it ems").write_text("a\nb\n")
    assert cli("map", "--items", "it ems", "echo", stdin="not me").column("item") == ["a", "b"]


def test_null_and_json_items(cli):
    assert cli("map", "--null", "echo", stdin=b"a\nb\0c").column("item") == ["a\nb", "c"]
    ran = cli("map", "--json", "printf", "%s", stdin='["a", {"b": [1, "é"]}]')
    assert ran.column("stdout") == ran.column("item") == ["a", '{"b":[1,"é"]}']


def test_bytes_that_are_not_utf_8_go_through_and_are_told(cli):
    ran = cli("map", "printf", "%s|\\200", stdin=b"\xff\xc3\xa9\n")
    assert ran.column("item") == ["\udcffé"]
    assert ran.column("stdout")[0].encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9|\x80"
    assert b"\\udcff\xc3\xa9" in ran.out  # what can be read is left readable
    text = cli("map", "--output", "text", "printf", "%s|\\200", stdin=b"\xff\xc3\xa9\n")
    assert text.out == b"\xff\xc3\xa9|\x80"


def test_text_output_goes_where_the_program_sent_it_in_the_order_of_the_items(cli):
    ran = cli("map", "--output", "text", "sh", "-c", "printf 1$0; printf 2$0 >&2", stdin="a\nb\nc\n")
    assert ran == Ran(0, b"1a1b1c", "2a2b2c")


def test_output_beyond_what_is_kept_in_memory(cli, monkeypatch):
    monkeypatch.setattr(_results, "MEMORY", 100_000)
    ran = cli("map", "--output", "text", "-j3", "sh", "-c", "yes $0 | head -c 1000000", stdin="a\nb\nc\n")
    assert ran.out == b"a\n" * 500_000 + b"b\n" * 500_000 + b"c\n" * 500_000


def test_so_many_at_once_and_no_more(cli):
    script = "touch in-$0; ls | grep -c in-; rm in-$0"
    ran = cli("map", "-j", "3", "sh", "-c", script, stdin="".join(f"{number}\n" for number in range(20)))
    assert {int(count) for count in ran.column("stdout")} <= {1, 2, 3}
    # Each waits until all are there.
    script = "touch begun-$0; while [ $(ls | grep -c begun-) -lt 3 ]; do sleep 0.01; done"
    assert cli("do", "-j", "3", "sh", "-c", script, stdin="0\n1\n2\n").code == 0


def test_as_many_at_once_as_there_are_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert _options.parse(["map", "x"]).parallel == 3
    assert _options.parse(["map", "-j", "0", "x"]).parallel == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _options.parse(["map", "x"]).parallel == 1


def test_rate_spaces_the_starts(cli, monkeypatch):
    asked = []
    throttle = _run.fanout.throttle

    def spy(fn, rate):
        asked.append(rate)
        return throttle(fn, 1000)

    monkeypatch.setattr(_run.fanout, "throttle", spy)
    assert cli("map", "--rate", "0.5", "echo", stdin="a\nb\n").column("item") == ["a", "b"]
    assert asked == [0.5]


def test_no_items_is_fine(cli):
    assert cli("map", "echo") == Ran(0, b"", "")
    assert cli("do", "--json", "echo") == Ran(0, b"", "")


# Failures


def test_fail_fast_prints_what_finished_and_names_the_failure(cli):
    ran = cli("map", "-j1", *FAILS_AT_3, stdin="1\n2\n3\n4\n5\n")
    assert ran.code == 1
    assert ran.column("failed") == [False, False, True]
    assert ran.records[2]["exit_code"] == 1
    assert ran.records[2]["error"] == "exit code 1"
    assert ran.err.splitlines() == [
        "trio-fanout: item 2 ('3') failed: exit code 1",
        "trio-fanout: 2 done, 1 failed, 2 not run (-k goes on after a failure)",
    ]


def test_fail_fast_prints_what_finished_after_the_failed_item_too(cli):
    # 0 is ended, 1 fails when 2 has finished.
    script = "case $0 in 0) exec sleep 1000;; 1) while ! [ -e two ]; do sleep 0.01; done; exit 7;; 3) touch two;; esac"
    ran = cli("map", "-j3", "sh", "-c", script, stdin="0\n1\n2\n3\n")
    assert ran.code == 1
    assert ran.column("index")[:2] == [1, 2]
    assert ran.records[0]["exit_code"] == 7
    assert ran.err.startswith("trio-fanout: item 1 ('1') failed: exit code 7")


def test_no_fail_fast_goes_on(cli):
    ran = cli("map", "--no-fail-fast", *FAILS_AT_3, stdin="3\n1\n3\n2\n")
    assert ran.code == 1
    assert ran.column("failed") == [True, False, True, False]
    assert ran.column("stdout") == ["3\n", "1\n", "3\n", "2\n"]
    assert ran.err == "trio-fanout: 2 of 4 items failed; first: item 0 ('3'): exit code 1\n"


@pytest.mark.parametrize("mode", [["map", "--output", "text"], ["do"]])
def test_where_output_is_plain_each_failure_is_told(cli, mode):
    ran = cli(*mode, "-j1", "--no-fail-fast", *FAILS_AT_3, stdin="3\n1\n3\n")
    assert ran.out == b"3\n1\n3\n"
    assert ran.err.splitlines() == [
        "trio-fanout: item 0 ('3') failed: exit code 1",
        "trio-fanout: item 2 ('3') failed: exit code 1",
        "trio-fanout: 2 of 3 items failed; first: item 0 ('3'): exit code 1",
    ]


@pytest.mark.parametrize(("number", "error"), [(15, "killed by SIGTERM"), (40, "killed by signal 40")])
def test_a_signal_is_a_failure(cli, number, error):
    (record,) = cli("map", "sh", "-c", "kill -$0 $$", stdin=f"{number}\n").records
    assert (record["exit_code"], record["error"]) == (-number, error)


def test_a_timeout_is_a_failure_that_keeps_what_was_printed(cli):
    ran = cli("map", "--timeout", "0.9", "sh", "-c", "echo before; exec sleep 1000", stdin="a\n")
    assert ran.code == 1
    (record,) = ran.records
    assert (record["exit_code"], record["stdout"]) == (None, "before\n")
    assert record["error"] == "timed out after 0.9 seconds"


@pytest.mark.parametrize(
    ("program", "item", "error"),
    [
        ("./nothing", b"a", "cannot start './nothing': No such file or directory"),
        ("nothing-{}", b"a", "cannot start 'nothing-a': No such file or directory"),
        ("/", b"a", "cannot start '/': Permission denied"),
        ("echo", b"x" * 1_000_000, "cannot start 'echo': Argument list too long"),
        ("echo", b"a\0b", "cannot start: embedded null byte"),
    ],
)
def test_a_program_that_cannot_start_has_failed(cli, program, item, error):
    ran = cli("map", program, stdin=item)
    assert ran.code == 1
    (record,) = ran.records
    assert (record["failed"], record["exit_code"], record["error"]) == (True, None, error)
    assert (record["stdout"], record["stderr"]) == ("", "")
    assert error in ran.err
    assert len(ran.err) < 300


def test_a_surrogate_that_stands_for_no_byte_cannot_be_an_argument(cli):
    ran = cli("map", "--json", "--no-fail-fast", "echo", stdin='["\\ud800", "a"]')
    assert ran.column("failed") == [True, False]
    assert ran.column("item") == ["\ud800", "a"]
    assert "surrogates not allowed" in ran.records[0]["error"]


def test_no_room_for_pipes_is_a_failed_item(cli, monkeypatch):
    pipe, made = os.pipe, []

    def scarce():
        made.append(pipe())
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return made[-1]

    monkeypatch.setattr(os, "pipe", scarce)
    ran = cli("map", "echo", stdin="a\n")
    assert ran.records[0]["error"] == "cannot start: Too many open files"


@pytest.mark.parametrize("mode", [["map"], ["do", "-j1"], ["map", "-n2"]])
def test_a_program_that_cannot_be_found_ends_the_run(cli, mode):
    ran = cli(*mode, "--keep-going", "nothing", stdin="a\n" * 10_000)
    assert ran.code == 1
    assert ran.err.count("cannot start 'nothing': No such file or directory") == 1
    assert len(ran.err) < 1000


def test_a_program_that_is_missing_for_one_item_is_that_items_failure(cli, tmp_path):
    ran = cli("map", "-k", "-j1", "./{}", "x", stdin="nothing\nneither\n")
    assert ran.column("failed") == [True, True]
    (tmp_path / "there").write_text("#!/bin/sh\nrm there\n")
    (tmp_path / "there").chmod(0o700)
    ran = cli("map", "-k", "-j1", "./there", stdin="a\nb\nc\n")
    assert ran.column("failed") == [False, True, True]


def test_one_missing_program_of_several_is_its_own_failure(cli):
    ran = cli("fan-out", "-k", "-j1", "nothing", "cat", stdin="a\n")
    assert ran.column("failed") == [True, False]


@pytest.mark.parametrize("program", ["echo {} | wc", "cd $HOME && ls"])
def test_a_command_for_a_shell_is_told_that_there_is_none(cli, program):
    ran = cli("do", "-k", program, stdin="a\nb\n")
    assert ran.code == 1
    assert """no shell is involved: to use one, run sh -c '... "$1" ...' sh {}""" in ran.err
    assert "item 1" not in ran.err


@pytest.mark.parametrize("arguments", [["map"], ["do", "-k"]])
def test_a_signal_that_goes_to_all_processes_fails_no_item(arguments):
    # It comes to the program a moment earlier.
    script = "setsid sh -c 'touch there; sleep 0.2; kill -TERM '$PPID & "
    script += "while ! [ -e there ]; do sleep 0.01; done; kill -TERM $$; sleep 1000"
    code = "from trio_fanout._cli import _run, main; _run.MOMENT = 20; import sys; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments, "sh", "-c", script]
    done = subprocess.run(command, input=b"a\n", capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (143, b"")
    assert done.stderr == b"trio-fanout: 0 done, 0 failed, 1 not run\n"


def test_where_no_thread_can_be_started_a_message_says_so(cli, monkeypatch):
    async def fail(*args, **kwargs):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    ran = cli("map", "echo", stdin="a\n")
    assert (ran.code, ran.out) == (1, b"")
    assert ran.err.splitlines() == [
        "trio-fanout: cannot start a thread: can't start new thread",
        "trio-fanout: 0 done, 0 failed; the rest of the input was not run",
    ]


# Ends


@pytest.mark.parametrize("how", ["fails", "timeout"])
def test_no_child_of_a_child_is_left(cli, how, tmp_path):
    script = "sleep 1000 & echo $! > child; echo $$ > self; "
    script += {"fails": "exit 3", "timeout": "wait"}[how]
    ran = cli("map", "--timeout", "0.9" if how == "timeout" else "1000", "sh", "-c", script, stdin="a\n")
    assert ran.code == 1
    assert is_gone(number_in(tmp_path / "child"))
    assert is_gone(number_in(tmp_path / "self"))


def test_the_others_are_ended_with_all_their_children(cli, tmp_path):
    assert cli("map", "-j2", "sh", "-c", f"{LASTS} false; fi", stdin="0\n1\n").code == 1
    assert is_gone(number_in(tmp_path / "there"))


def test_who_ignores_sigterm_is_killed(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(_programs, "KILL_AFTER", 0.1)
    # The child says so when it ignores the signal. The parent dies of it.
    script = "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.01; done' & wait"
    ran = cli("map", "--timeout", "0.9", "sh", "-c", script, stdin="a\n")
    assert ran.records[0]["error"] == "timed out after 0.9 seconds"
    assert is_gone(number_in(tmp_path / "child"))


def test_who_takes_a_moment_to_end_has_it(cli, tmp_path):
    script = "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done"
    (record,) = cli("map", "--timeout", "0.9", "sh", "-c", script, stdin="a\n").records
    assert (record["stdout"], record["exit_code"], record["failed"]) == ("hello\nbye\n", None, True)


def test_a_program_that_is_stopped_can_be_ended(cli):
    (record,) = cli("map", "--timeout", "0.2", "sh", "-c", "kill -STOP $$", stdin="a\n").records
    assert record["error"] == "timed out after 0.2 seconds"


def test_a_program_that_has_joined_another_group_is_ended(cli, tmp_path):
    (tmp_path / "joins.py").write_text(
        """import os, time
os.setpgid(0, os.getpgid(os.getppid()))
with open("self", "w") as file:
    file.write(str(os.getpid()))
os.rename("self", "there")
time.sleep(1000)
"""
    )
    script = f"test $0 != 0 || exec {sys.executable} joins.py; while ! [ -e there ]; do sleep 0.01; done; exit 1"
    assert cli("map", "-j2", "sh", "-c", script, stdin="0\n1\n").code == 1
    assert is_gone(number_in(tmp_path / "there"))


OF_ANOTHER_USER = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-kill", "--inh-caps=-all"]
"""What starts a program of another user, and what starts one that may not signal it."""


@pytest.mark.parametrize("who", ["program", "child"])
def test_what_may_not_be_signalled_is_waited_for(tmp_path, who):
    try:
        subprocess.run([*WITHOUT_RIGHTS, *OF_ANOTHER_USER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot start a program of another one")
    os.mkfifo(tmp_path / "release")
    other = shlex.join([*OF_ANOTHER_USER, "sh", "-c", "echo begun; read line; echo over"])
    script = f"exec <>release {other}" if who == "program" else f"{other} <>release; true"
    with started("do", "-j1", "sh", "-c", script, before=WITHOUT_RIGHTS) as process:
        process.stdin.write(b"0\n1\n")
        process.stdin.close()
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        for _ in range(3):  # at the latest when the second has been answered, the program would be taken for ended
            process.send_signal(signal.SIGUSR1)
            assert process.stderr.readline().startswith(b"trio-fanout: 1 running; 0 done, 0 failed")
            pid = int(process.stderr.readline().split()[-1])
            wait_for(lambda pid=pid: who == "program" or is_gone(pid))
        with (tmp_path / "release").open("w") as file:
            file.write("\n")
        assert process.stdout.read() == b"over\n"
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_an_item_lasts_as_long_as_somebody_holds_its_output(cli):
    script = "(while ! [ -e go ]; do sleep 0.01; done; echo late) & echo early; touch go"
    (record,) = cli("map", "sh", "-c", script, stdin="a\n").records
    assert (record["stdout"], record["failed"]) == ("early\nlate\n", False)
    (record,) = cli("map", "--timeout", "0.9", "sh", "-c", "sleep 1000 & echo early", stdin="a\n").records
    assert (record["stdout"], record["failed"], record["exit_code"]) == ("early\n", True, 0)


def test_what_a_success_leaves_in_the_background_is_its_own_affair(cli, tmp_path):
    script = "sleep 1000 >/dev/null 2>&1 & echo $! > child"
    assert cli("map", "sh", "-c", script, stdin="a\n").code == 0
    child = number_in(tmp_path / "child")
    assert not is_gone(child)
    os.kill(child, signal.SIGKILL)


def test_nobody_waits_for_a_process_that_left_the_group(cli, tmp_path):
    script = (
        "setsid sh -c 'echo $$ > child; exec sleep 1000' & while ! [ -s child ]; do sleep 0.01; done; echo x; exit 1"
    )
    (record,) = cli("map", "sh", "-c", script, stdin="a\n").records
    assert (record["exit_code"], record["stdout"]) == (1, "x\n")
    os.kill(number_in(tmp_path / "child"), signal.SIGKILL)


def test_nobody_waits_for_a_process_that_left_the_group_and_prints_on_and_on(cli):
    script = "setsid sh -c 'echo >there; exec yes' & while ! [ -e there ]; do sleep 0.01; done; exit 1"
    ran = cli("map", "--output", "text", "sh", "-c", script, stdin="a\n")
    assert ran.code == 1
    assert set(ran.out) <= set(b"y\n")


def test_without_pidfds_a_thread_waits(cli, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    ran = cli("map", "--no-fail-fast", "--timeout", "0.9", "sh", "-c", "test $0 = a || exec sleep 1000", stdin="a\nb\n")
    assert ran.column("failed") == [False, True]


def test_without_proc_the_group_is_asked(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(_system, "_PROC", tmp_path / "nothing")
    script = "sleep 1000 & echo $! > child; exit 1"
    assert cli("map", "sh", "-c", script, stdin="a\n").code == 1
    assert is_gone(number_in(tmp_path / "child"))


def test_head_ends_it_quietly():
    command = 'yes | "$@" map echo | head -1; echo ${PIPESTATUS[@]}'
    done = subprocess.run(["bash", "-c", command, "-", *COMMAND], capture_output=True, timeout=PATIENCE, check=False)
    first, status = done.stdout.splitlines()
    assert json.loads(first)["index"] == 0
    assert (status.split()[1:], done.stderr) == ([b"1", b"0"], b"")


def test_head_ends_do_quietly_too():
    command = 'yes | "$@" do echo | head -1'
    done = subprocess.run(["bash", "-c", command, "-", *COMMAND], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == (b"y\n", b"")


@pytest.mark.parametrize("how", ["output", "log", "closed"])
def test_a_full_disk_ends_all_with_a_message(how, tmp_path):
    command = {"output": 'exec "$@" >/dev/full', "log": 'exec "$@"', "closed": 'exec "$@" >&-'}[how]
    log = ["--log", "/dev/full"] if how == "log" else []
    program = ["map", "--output", "json", "-j2", *log, "--items", "items", "sh", "-c", f"{LASTS} fi"]
    (tmp_path / "items").write_text("1\n0\n2\n")
    done = subprocess.run(
        ["sh", "-c", command, "-", *COMMAND, *program], capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        {
            "output": "trio-fanout: cannot write to standard output: No space left on device",
            "log": "trio-fanout: cannot write the log '/dev/full': No space left on device",
            "closed": "trio-fanout: cannot write to standard output: Bad file descriptor",
        }[how],
        "trio-fanout: 1 done, 0 failed, 2 not run",
    ]
    assert [json.loads(line)["item"] for line in done.stdout.splitlines()] == (["1"] if how == "log" else [])
    assert is_gone(number_in(tmp_path / "there"))


def no_room(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_for_output_ends_all_with_a_message(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(_results, "MEMORY", 10)
    monkeypatch.setattr(os, "pwrite", no_room)
    ran = cli("map", "sh", "-c", "yes", stdin="a\n")
    assert ran.code == 1
    assert ran.err.startswith("trio-fanout: cannot keep what a program prints in ")
    assert ": No space left on device\ntrio-fanout: 0 done, 0 failed" in ran.err


def test_no_room_for_input_ends_fan_out_with_a_message(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "mkstemp", no_room)
    ran = cli("fan-out", "cat", stdin="a\n")
    assert ran.code == 1
    assert ran.err.startswith("trio-fanout: cannot keep a copy of standard input in ")
    assert ran.err.endswith(": No space left on device\ntrio-fanout: 0 done, 0 failed, 1 not run\n")


@pytest.mark.parametrize("arguments", [["fan-out", "cat"], ["map", "head", "-c", "20000000"]])
def test_a_disk_that_is_full_from_the_start_ends_all_with_a_message(arguments):
    # Coverage could not write its data either.
    done = limited("unset COVERAGE_PROCESS_CONFIG; ulimit -f 0", *arguments, input=b"/dev/zero\n")
    assert done.returncode == 1
    assert done.stderr.startswith(b"trio-fanout: cannot keep ")
    assert b" in a temporary file: No usable temporary directory found in " in done.stderr
    assert b"\ntrio-fanout: 0 done, 0 failed" in done.stderr


@pytest.mark.slow
def test_memory_is_flat_on_endless_input_and_output(tmp_path):
    (tmp_path / "items").write_text("x\n")
    usage = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3); "
    usage += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"

    def memory(*command):
        done = subprocess.run(
            [sys.executable, "-c", usage, *command], capture_output=True, timeout=PATIENCE, check=True
        )
        return int(done.stdout) // 1024

    plain = memory(*COMMAND, "map", "--items", "items", "true")
    big = memory(*COMMAND, "map", "--output", "text", "--items", "items", "head", "-c", "300M", "/dev/zero")
    assert big < plain + 30
    # A gibibyte of items, of which hardly any are read.
    endless = memory("bash", "-c", 'yes $(printf %1000d 1) | "$@" map true | head -300', "-", *COMMAND)
    assert endless < plain + 30


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["mop"], "invalid choice: 'mop'"),
        (["map"], "the program to run is missing"),
        (["map", "--"], "the program to run is missing"),
        (["map", "--bogus", "echo"], "unrecognized arguments: --bogus"),
        (["map", "--para", "2", "echo"], "--para"),
        (["map", "-j", "-1", "echo"], "argument -j/--parallel: must be a whole number, 0 or more, got '-1'"),
        (["map", "-j", "2.5", "echo"], "argument -j/--parallel: must be a whole number, 0 or more, got '2.5'"),
        (["map", "--timeout", "0", "echo"], "argument --timeout: must be a number of seconds above 0, got '0'"),
        (["map", "--timeout", "nan", "echo"], "argument --timeout: must be a number of seconds above 0, got 'nan'"),
        (["do", "--rate", "inf", "echo"], "argument --rate: must be a number above 0, got 'inf'"),
        (["do", "--output", "text", "echo"], "unrecognized arguments: --output"),
        (["map", "--null", "--json", "echo"], "argument --json: not allowed with argument --null"),
        (["map", "--resume", "echo"], "--resume needs --log FILE, to know what is done"),
        (["fan-out", "sort 'x"], "No closing quotation"),
        (["fan-out", ""], "'' names no program"),
        (["do", "-1", "echo"], "unrecognized arguments: -1"),
        (["map", "-x y", "echo"], "unrecognized arguments: -x y"),
        (["map", "-", "echo"], "unrecognized arguments: -"),
        (["map", "--resume", "--bogus", "--", "echo"], "unrecognized arguments: --bogus"),
        (["fan-out", "-n2", "cat"], "unrecognized arguments: -n2"),
    ],
)
def test_wrong_use(cli, arguments, message):
    ran = cli(*arguments)
    assert ran.code == 2
    assert ran.out == b""
    assert message in ran.err
    assert ran.err.startswith("usage: trio-fanout")
    command = f" {arguments[0]}" if arguments and arguments[0] != "mop" else ""
    assert f"\ntrio-fanout{command}: error: " in ran.err


@pytest.mark.parametrize("program", ["-x", "-1", "-"])
def test_a_program_may_begin_with_a_dash_after_two(cli, program, tmp_path, monkeypatch):
    (tmp_path / program).write_text("#!/bin/sh\necho $1\n")
    (tmp_path / program).chmod(0o700)
    monkeypatch.setitem(_programs._ENVIRONMENT, b"PATH", os.fsencode(tmp_path) + b":" + os.environb[b"PATH"])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert cli("map", "-0", "--", program, stdin=b"a\0b").column("stdout") == ["a\n", "b\n"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--items", "nothing"], "", "cannot open 'nothing': No such file or directory"),
        (["--items", "."], "", "cannot read '.': Is a directory"),
        (["--json"], '"a', "standard input: line 1: Unterminated string starting at"),
        (["--json"], '["a"]\n["b"]\n', f"standard input: line 2: {_json.LINES_OF_ARRAYS}"),
        (["--json"], '\ufeff["a"]', f"standard input: {_json.BYTE_ORDER_MARK}"),
        (["--log", "nowhere/log"], "", "cannot open the log 'nowhere/log': No such file or directory"),
    ],
)
def test_input_that_cannot_be_used(cli, arguments, stdin, message):
    ran = cli("map", *arguments, "echo", stdin=stdin)
    assert (ran.code, ran.err) == (2, f"trio-fanout: {message}\n")


def test_what_was_done_before_wrong_input_is_printed(cli):
    ran = cli("map", "-j1", "--json", "echo", stdin='"a"\n"b"\n"c"\noops')
    assert ran.code == 2
    assert ran.column("item")[:1] == ["a"]


@pytest.mark.parametrize("command", ["map", "do", "fan-out"])
def test_help_has_groups_and_an_example(cli, command):
    ran = cli(command, "--help")
    out = ran.out.decode()
    assert ran.code == 0
    assert out.startswith(f"usage: trio-fanout {command} [options] [--] ")
    assert all(f"\n{group}:\n" in out for group in ["running", "log", "output"])
    assert all(option in out for option in ["-k, --keep-going", "--dry-run", "the same program has done"])
    assert ("--batch N" in out) == ("\nitems:\n" in out) == (command != "fan-out")
    assert "Example: " in out
    assert f"trio-fanout {command} " in out.partition("Example: ")[2]


def test_help_names_all_commands(cli):
    ran = cli("--help")
    assert ran.code == 0
    assert all(f"\n  {command} " in ran.out.decode() for command in ["map", "do", "fan-out"])


def test_version(cli):
    ran = cli("--version")
    assert ran.code == 0
    assert ran.out.startswith(b"trio-fanout ")


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
def test_where_it_cannot_be_printed_help_is_no_failure(option, output):
    done = limited(f"exec {output}; export PYTHONUNBUFFERED=1", option)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


# Surroundings


def test_the_module_runs(tmp_path):
    assert run("map", "echo", input=b"a\n").column("stdout") == ["a\n"]


def test_a_closed_standard_input_is_an_error(tmp_path):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "-", *COMMAND, "map", "echo"], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (2, b"trio-fanout: cannot read standard input: it is closed\n")


def test_files_that_somebody_has_made_non_blocking():
    pipe = "import os; [os.set_blocking(fd, False) for fd in (0, 1)]; os.execvp(os.sys.argv[1], os.sys.argv[1:])"
    program = ["map", "--output", "text", "sh", "-c", "yes | head -c 500000"]
    with subprocess.Popen(
        [sys.executable, "-c", pipe, *COMMAND, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        begun = process.stdout.read(10)  # the input waits, and there is more output than a pipe holds
        process.stdin.write(b"b\n")
        process.stdin.close()
        rest = process.stdout.read()
    assert (process.returncode, len(begun + rest)) == (0, 1_000_000)


@pytest.mark.parametrize("limits", ["ulimit -Sn 40", "ulimit -n 150"])
def test_many_at_once_need_many_files(limits):
    program = ["map", "-j30", "--no-fail-fast", "true"]
    command = ["sh", "-c", f'{limits}; exec "$@"', "-", *COMMAND, *program]
    done = subprocess.run(command, input=b"a\n" * 60, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 60)


def limited(limits, *arguments, **options):
    """Run the command where a shell has set limits."""
    command = ["sh", "-c", f'{limits}; exec "$@"', "-", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, **options)


def test_programs_have_the_limit_of_open_files_that_was_there_before():
    done = limited("ulimit -Sn 100", "map", "-j100", "--output", "text", "sh", "-c", "ulimit -Sn", input=b"a\nb\n")
    assert (done.returncode, done.stdout) == (0, b"100\n100\n")


@pytest.mark.slow
def test_results_that_wait_use_up_no_open_files(tmp_path):
    # The first waits for the last; each has more output than is kept in memory for all.
    script = "if [ $0 = 0 ]; then while ! [ -e done ]; do sleep 0.01; done; else head -c 1100000 /dev/zero; fi"
    items = b"".join(b"%d\n" % number for number in range(150))
    script += "; test $0 != 149 || touch done"
    done = limited("ulimit -n 120", "map", "-j2", "--output", "text", "sh", "-c", script, input=items)
    assert (done.returncode, len(done.stdout)) == (0, 149 * 1_100_000)


def test_fan_out_to_more_programs_than_open_files():
    done = limited("ulimit -n 64", "fan-out", "-j2", *["wc -c"] * 150, input=b"hello")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 150)


def test_fan_out_without_a_folder_of_open_files(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cli("fan-out", "cat", "cat", stdin="hello").column("stdout") == ["hello", "hello"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_results_that_wait_are_not_all_in_memory(tmp_path):
    script = "if [ $0 = 0 ]; then while ! [ -e done ]; do sleep 0.01; done; fi; "
    script += "head -c 500000 /dev/zero; head -c 500000 /dev/zero >&2; "
    script += "test $0 != 150 || { grep VmHWM /proc/$PPID/status >there; mv there done; }"
    items = b"".join(b"%d\n" % number for number in range(151))
    done = limited("true", "map", "-j2", "--output", "text", "sh", "-c", script, input=items)
    assert done.returncode == 0
    assert int((tmp_path / "done").read_text().split()[1]) < 120_000  # kilobytes; all results are 150,000


def test_a_closed_standard_error_is_no_reason_to_fail():
    program = ["do", "-j1", "--no-fail-fast", "sh", "-c", "echo $0; test $0 = b"]
    command = ["sh", "-c", 'exec "$@" 2>&-', "-", *COMMAND, *program]
    done = subprocess.run(command, input=b"a\nb\n", capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (1, b"a\nb\n")


def test_an_ignored_sigchld_hides_nothing():
    command = ["sh", "-c", 'trap "" CHLD; exec "$@"', "-", *COMMAND, "map", "sh", "-c", "exit 3"]
    done = subprocess.run(command, input=b"a\n", capture_output=True, timeout=PATIENCE, check=False)
    assert json.loads(done.stdout)["exit_code"] == 3


def test_the_module_can_be_imported():
    importlib.import_module("trio_fanout.__main__")


def test_programs_get_the_usual_signals(cli):
    # Python itself ignores SIGPIPE.
    (record,) = cli("map", "sh", "-c", "yes | head -1", stdin="a\n").records
    assert (record["stdout"], record["stderr"], record["failed"]) == ("y\n", "", False)


def test_interrupted_before_it_began(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("trio.run", interrupt)
    assert main(["map", "echo"]) == 130


def test_the_library_knows_nothing_of_the_command():
    code = "import sys, trio_fanout; sys.exit(any('_cli' in name or name == 'argparse' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE).returncode == 0
