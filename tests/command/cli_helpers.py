"""What the tests of the command line share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import trio

from trio_fanout._cli import _run, main

COMMAND = [sys.executable, "-m", "trio_fanout"]

PATIENCE = 60
"""Seconds after which a test that waits for another process has failed."""


@dataclass
class Ran:
    """How a run of the command ended."""

    code: int
    out: bytes
    err: str

    @property
    def records(self):
        return [json.loads(line) for line in self.out.splitlines()]

    def column(self, name):
        return [record[name] for record in self.records]


class Cli:
    """Runs the command in this process."""

    def __init__(self, capture):
        self._capture = capture

    def __call__(self, *args, stdin=b""):
        with (
            standard_input(stdin.encode() if isinstance(stdin, str) else stdin),
            mock.patch.object(_run, "run", run_and_leave_no_reader),
        ):
            code = main(list(args))
        out, err = self._capture.readouterr()
        return Ran(code, out, err.decode())


async def run_and_leave_no_reader(options, run=_run.run):
    """Run a command, and wait for threads that were left to their reading: they would read the next test's input."""
    try:
        return await run(options)
    finally:
        await all_threads_ended()


async def all_threads_ended():
    """Wait until each thread has ended that was left to what it did."""
    limiter = trio.to_thread.current_default_thread_limiter()
    with trio.fail_after(PATIENCE, shield=True):
        while limiter.borrowed_tokens:  # noqa: ASYNC110  # a thread has no event
            await trio.sleep(0.001)


@contextmanager
def standard_input(data):
    """Have `data` on this process's standard input."""
    saved = os.dup(0)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            os.dup2(file.fileno(), 0)
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def run(*args, **kwargs):
    """Run the command in a process of its own."""
    done = subprocess.run([*COMMAND, *args], capture_output=True, timeout=PATIENCE, check=False, **kwargs)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


@contextmanager
def started(*args, before=(), **kwargs):
    """Start the command in a process of its own, with pipes to and from it. It must end within the block.

    Args:
        args: its arguments.
        before: a program, with arguments, that starts it.
        kwargs: options of `Popen`.
    """
    options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*before, *COMMAND, *args], **(options | kwargs)) as process:
        try:
            yield process
            process.wait(PATIENCE)
        finally:
            process.kill()


def shell_item(directory):
    """A program that says that it has begun, waits to be released, and leaves its child's number.

    It says so to the FIFO `begun` in `directory`, and waits for the FIFO `release`. Its child does nothing for long.
    """
    for name in ("begun", "release"):
        os.mkfifo(directory / name)
    script = (
        f"cd '{directory}'; sleep 1000 & echo $! >child-$0; echo $0 >begun; read line <release; kill -9 $!; echo $line"
    )
    return ["sh", "-c", script]


def is_gone(pid):
    """Whether a process has ended; one that nobody has reaped counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def number_in(path):
    return int(path.read_text())


def wait_for(condition):
    """Wait until a condition holds that another process brings about."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def wait_until_it_handles(pid, number):
    """Wait until a process would handle a signal."""

    def handles():
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return bool(caught and int(caught[1], 16) >> (number - 1) & 1)

    wait_for(handles)
