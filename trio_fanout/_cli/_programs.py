"""Running one program, and ending it with all that it has started.

Each program is the leader of a process group of its own. Ctrl-C in a terminal thus does not reach it, and a signal to
the group reaches its children. Two things are not done with `trio.run_process`, which takes 2 ms of the event loop's
thread where this takes a quarter of one: a program is started by `posix_spawn`, and its end is waited for by a pidfd.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from ._stdio import PIECE, FatalError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

KILL_AFTER: Final = 5.0
"""Seconds from SIGTERM to SIGKILL."""

SPOOL_ABOVE: Final = 1 << 20
"""Bytes of one output stream of one program that are kept in memory; more goes to a temporary file."""

_PROC: Final = Path("/proc")

# As a plain dictionary: to encode it anew would take longer than all else that Python does to start a program.
_ENVIRONMENT: Final = dict(os.environb)

# Python ignores these, and a program that is started would, too.
_IGNORED_BY_PYTHON: Final = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]


class Program:
    """A program that has been started: its process, and what it has printed.

    Args:
        words: the program, found by PATH, and its arguments.
        stdin: a file that is its standard input, which is empty if this is None.
        capture: whether to keep what it prints, instead of letting it through.

    Raises:
        OSError, ValueError: it cannot be started.
    """

    def __init__(self, words: list[bytes], *, stdin: int | None = None, capture: bool = True) -> None:
        self.exit_code: int | None = None
        """None if it has not ended by itself; -N if signal N has killed it."""
        self.outputs: list[IO[bytes]] = []
        """What it has printed, if that is kept: standard output, then standard error."""
        self._pipes: list[int] = []
        self._open_pipes = 0
        self._outputs_ended: Final = trio.Event()
        self._reaped = False
        empty = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        actions: list[Any] = [empty if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0)]
        with ExitStack() as at_end, ExitStack() as on_error:
            for fd in (1, 2) if capture else ():
                spool = tempfile.SpooledTemporaryFile(SPOOL_ABOVE)  # noqa: SIM115
                on_error.callback(spool.close)
                read, write = os.pipe()
                on_error.callback(os.close, read)
                at_end.callback(os.close, write)
                os.set_blocking(read, False)
                actions.append((os.POSIX_SPAWN_DUP2, write, fd))
                self.outputs.append(spool)
                self._pipes.append(read)
            # Python marks all files that it opens to be closed here, so no other program holds these pipes open.
            self._pid: Final = os.posix_spawnp(
                words[0], words, _ENVIRONMENT, file_actions=actions, setpgroup=0, setsigdef=_IGNORED_BY_PYTHON
            )
            on_error.pop_all()
        self._pidfd: Final = _open_pidfd(self._pid)

    async def run(self, scope: trio.CancelScope) -> bool:
        """Wait until the program is over, or end it when `scope` is cancelled.

        It is not over while a process that it has started holds its output open. If it fails, it leaves nothing
        behind; if it succeeds, what it has left in the background is its own affair.

        Returns:
            Whether it was over before `scope` was cancelled.
        """
        over = False
        try:
            async with trio.open_nursery() as readers:
                for pipe, output in zip(self._pipes, self.outputs, strict=True):
                    self._open_pipes += 1
                    readers.start_soon(self._read, pipe, output)
                try:
                    with scope:
                        await self._wait_for_exit()
                        self._poll()
                        if self.exit_code == 0 and self._open_pipes:
                            await self._outputs_ended.wait()
                    # A program that ended in the very moment has ended by itself.
                    over = not scope.cancelled_caught or (
                        self._poll() and (self.exit_code != 0 or not self._open_pipes)
                    )
                finally:
                    # Whatever ends this, no process stays.
                    if self.exit_code != 0 or not over:
                        with trio.CancelScope(shield=True):
                            await self._end_group()
                # The readers still take what is in the pipes. Only a process that has left the group can hold these
                # open now, and nobody waits for that.
                readers.cancel_scope.cancel()
        except ExceptionGroup as group:
            # A reader found no room for the output.
            msg = f"cannot keep what a program prints in {tempfile.gettempdir()}: {reason(group.exceptions[0])}"
            self.close()
            raise FatalError(msg) from None
        except BaseException:
            self.close()
            raise
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
        return over

    def signal(self, number: int) -> bool:
        """Send a signal to the group; false if there is nobody who can be sent it."""
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def close(self) -> None:
        """Forget what it has printed."""
        for output in self.outputs:
            output.close()

    async def _read(self, pipe: int, output: IO[bytes]) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(pipe)
                piece = os.read(pipe, PIECE)
                if not piece:
                    break
                output.write(piece)
        except trio.Cancelled:
            # What was printed before the end. A pipe holds a piece, or little more if it was widened.
            for _ in range(16):
                try:
                    output.write(os.read(pipe, PIECE))
                except BlockingIOError:
                    break
            raise
        finally:
            os.close(pipe)
            self._open_pipes -= 1
            if not self._open_pipes:
                self._outputs_ended.set()

    async def _wait_for_exit(self) -> None:
        """Wait until the process has exited; it still has to be reaped then."""
        if self._pidfd is not None:
            await trio.lowlevel.wait_readable(self._pidfd)
        else:
            # Not Trio's own limit on threads: this must not wait for a turn.
            await trio.to_thread.run_sync(
                os.waitid,
                os.P_PID,
                self._pid,
                os.WEXITED | os.WNOWAIT,
                limiter=trio.CapacityLimiter(1),
                abandon_on_cancel=True,
            )

    def _poll(self) -> bool:
        """Whether the process has exited by itself. Only called before it is sent a signal."""
        if not self._reaped:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._reaped = True
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self._reaped

    async def _end_group(self) -> None:
        """End all processes of the group, with SIGTERM, and after a while with SIGKILL."""
        if not self.signal(signal.SIGTERM):
            return  # nobody is left
        self.signal(signal.SIGCONT)  # one that is stopped would not notice
        with trio.move_on_after(KILL_AFTER):
            await self._wait_for_group()
            return
        self.signal(signal.SIGKILL)
        await self._wait_for_group()

    async def _wait_for_group(self) -> None:  # if nobody is left
        if not self._reaped:
            await self._wait_for_exit()
            os.waitpid(self._pid, 0)  # noqa: ASYNC222  # it has exited
            self._reaped = True
        pause = 0.005
        while self.signal(0) and _lives(self._pid):
            # Nothing tells when a process goes that is not a child. The number of the group may be given to another
            # one then, but not before the system has used all others.
            await trio.sleep(pause)
            pause = min(2 * pause, 0.2)


def allow_open_files(programs: int) -> None:
    """Have the system allow as many open files as so many programs at once need here, or as many as it will."""
    needed = 64 + 4 * programs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _open_pidfd(pid: int) -> int | None:
    """A file that can be waited for; None where there is no such thing, or no room for it."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _lives(group: int) -> bool:
    """Whether any process of the group does more than wait for its parent to notice that it has exited.

    Where the first process of a container does not reap the orphans that it inherits, that takes for ever.
    """
    if not _PROC.is_dir():
        return True
    return any(stat[2] == b"%d" % group and stat[0] not in (b"Z", b"X") for stat in _process_stats())


def _process_stats() -> Iterator[list[bytes]]:
    """For each process its state, its parent's number and its group's, and more: see proc_pid_stat(5)."""
    for process in _PROC.iterdir():
        if process.name.isdigit():
            try:
                # The name of the program, in parentheses, can hold anything.
                yield (process / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                pass  # it has just gone
