"""Running one program, and ending it with all that it has started.

Each program is the leader of a process group of its own. Ctrl-C in a terminal thus does not reach it, and a signal to
the group reaches its children. Three things are not done as `trio.run_process` does them, which takes ten times as
long: a program is started by `posix_spawn`, its end is waited for by a pidfd, and one task reads what all print.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from ._stdio import PIECE, FatalError, in_thread, reason, temporary_place
from ._system import signal_group, wait_for_group

if TYPE_CHECKING:
    from typing import Self

    from ._results import Kept, Spool

KILL_AFTER: Final = 5.0  # seconds from SIGTERM to SIGKILL

# As a plain dictionary: to encode it anew would take longer than all else that Python does to start a program.
_ENVIRONMENT: Final = dict(os.environb)

# Python ignores these, and a program that is started would, too.
_IGNORED_BY_PYTHON: Final = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]


class Launcher:
    """Starts programs, and reads what they print.

    It allows itself as many open files as that many programs need, if the system does. The programs get the limit that
    there was before.

    Args:
        parallel: how many programs run at once.
        spool: keeps what they print, instead of letting it through.
        stdin: the file that is the standard input of each.
    """

    def __init__(self, parallel: int, spool: Spool | None, stdin: str = os.devnull) -> None:
        self.spool: Final = spool
        self.pipes: Final = selectors.DefaultSelector()
        self._stdin = stdin
        self._inherited = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._raised = _more_open_files(self._inherited, 64 + 4 * parallel)

    def __enter__(self) -> Self:
        self._limit_open_files(self._raised)
        return self

    def __exit__(self, *_: object) -> None:
        self._limit_open_files(self._inherited)
        self.pipes.close()

    def start(self, words: list[bytes]) -> Program:
        """Start a program.

        Args:
            words: the program, found by PATH, and its arguments.

        Raises:
            OSError, ValueError: it cannot be started.
        """
        program = Program(self, self.outputs())
        # Each opens its standard input anew, for a position of its own in it.
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, self._stdin, os.O_RDONLY, 0)]
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for fd in () if self.spool is None else (1, 2):
                read, write = os.pipe()
                ours.append(read)
                theirs.append(write)
                actions.append((os.POSIX_SPAWN_DUP2, write, fd))
            self._limit_open_files(self._inherited)
            # Python marks all files that it opens to be closed here, so no other program holds these pipes open.
            pid = os.posix_spawnp(
                words[0], words, _ENVIRONMENT, file_actions=actions, setpgroup=0, setsigdef=_IGNORED_BY_PYTHON
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            self._limit_open_files(self._raised)
            for fd in theirs:
                os.close(fd)
        program.started(pid, ours)
        return program

    def outputs(self) -> list[Kept]:
        """What a program has printed that has printed nothing, if that is kept."""
        return [] if self.spool is None else [self.spool.open(), self.spool.open()]

    async def read_outputs(self) -> None:
        """Read what the programs print, until cancelled. A task for each would take longer than a short program."""
        while True:
            await trio.lowlevel.wait_readable(self.pipes)
            for key, _ in self.pipes.select(0):
                program: Program = key.data
                program.read(key.fd)

    def _limit_open_files(self, limits: tuple[int, int]) -> None:
        if self._raised != self._inherited:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _more_open_files(limits: tuple[int, int], needed: int) -> tuple[int, int]:
    soft, hard = limits
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    return needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard


class Program:
    """A program that has been started: its process, and what it has printed. A `Launcher` makes these."""

    def __init__(self, launcher: Launcher, outputs: list[Kept]) -> None:
        self.exit_code: int | None = None
        """None if it has not ended by itself; -N if signal N has killed it."""
        self.pid = 0
        self._launcher = launcher
        self.outputs: Final = outputs
        """What it has printed, if that is kept: standard output, then standard error."""
        self._pipes: dict[int, Kept] = {}  # those that have not ended
        self._pipes_ended = trio.Event()
        self._no_room: OSError | None = None  # why it cannot be kept
        self._scope: trio.CancelScope | None = None
        self._reaped = False
        self._pidfd: int | None = None

    def started(self, pid: int, pipes: list[int]) -> None:
        """Take over a process and the pipes from it."""
        self.pid = pid
        self._pidfd = _open_pidfd(pid)
        for pipe, output in zip(pipes, self.outputs, strict=False):
            os.set_blocking(pipe, False)
            self._pipes[pipe] = output
            self._launcher.pipes.register(pipe, selectors.EVENT_READ, self)

    async def run(self, scope: trio.CancelScope) -> bool:
        """Wait until the program is over, or end it when `scope` is cancelled.

        It is not over while a process that it has started holds its output open. If it fails, it leaves nothing
        behind; if it succeeds, what it has left in the background is its own affair.

        Returns:
            Whether it was over before `scope` was cancelled.
        """
        over = False
        self._scope = scope
        try:
            try:
                with scope:
                    await self._wait_for_exit()
                    self._poll()
                    self._read_what_is_there()
                    if self.exit_code == 0 and self._pipes:
                        await self._pipes_ended.wait()
                # A program that ended in the very moment has ended by itself.
                over = not scope.cancelled_caught or (self._poll() and (self.exit_code != 0 or not self._pipes))
            finally:
                # Whatever ends this, no process stays.
                if self.exit_code != 0 or not over:
                    with trio.CancelScope(shield=True):
                        await self._end_group()
            self._read_what_is_there()
        except BaseException:
            self.close()
            raise
        finally:
            # Only a process that has left the group can still hold the pipes open. It is not waited for.
            for pipe in list(self._pipes):
                self._close_pipe(pipe)
            if self._pidfd is not None:
                os.close(self._pidfd)
        if self._no_room is not None:
            self.close()
            msg = f"cannot keep what a program prints in {temporary_place()}: {reason(self._no_room)}"
            raise FatalError(msg)
        return over

    def signal(self, number: int) -> None:
        """Send a signal to the group, and to the program itself if it has joined another one."""
        signal_group(self.pid, number)
        if not self._reaped:
            with suppress(OSError):  # it may be that of another user
                if os.getpgid(self.pid) != self.pid:
                    os.kill(self.pid, number)

    def close(self) -> None:
        """Forget what it has printed."""
        for output in self.outputs:
            output.close()

    def read(self, pipe: int) -> bool:
        """Read a piece of what it prints; false if there is nothing now, or nothing more."""
        try:
            piece = os.read(pipe, PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._close_pipe(pipe)
            return False
        try:
            self._pipes[pipe].write(piece)
        except OSError as exc:
            self._no_room = exc
            assert self._scope is not None
            self._scope.cancel()
            return False
        return True

    def _read_what_is_there(self) -> None:
        # A pipe holds a piece, or a few if it was widened. A process that writes endlessly must not keep us here.
        for pipe in list(self._pipes):
            all(self.read(pipe) for _ in range(16))  # up to the first that reads nothing

    def _close_pipe(self, pipe: int) -> None:
        self._launcher.pipes.unregister(pipe)
        os.close(pipe)
        del self._pipes[pipe]
        if not self._pipes:
            self._pipes_ended.set()

    async def _wait_for_exit(self) -> None:
        """Wait until the process has exited; it still has to be reaped then."""
        if self._pidfd is not None:
            await trio.lowlevel.wait_readable(self._pidfd)
        else:
            # Not Trio's own limit on threads: this must not wait for a turn.
            await in_thread(os.waitid, os.P_PID, self.pid, os.WEXITED | os.WNOWAIT, limiter=trio.CapacityLimiter(1))

    def _poll(self) -> bool:
        """Whether the process has exited by itself. Only called before it is sent a signal."""
        if not self._reaped:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._reaped = True
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self._reaped

    async def _end_group(self) -> None:
        """End the program and all processes of its group, with SIGTERM, and after a while with SIGKILL.

        Those of another user cannot be ended. They are waited for: as long as they run, they take up their place.
        """
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # one that is stopped would not notice
        with trio.move_on_after(KILL_AFTER):
            await self._wait_for_end()
            return
        self.signal(signal.SIGKILL)
        await self._wait_for_end()

    async def _wait_for_end(self) -> None:
        """Wait until the program has exited, and no process is left in its group."""
        if not self._reaped:
            await self._wait_for_exit()
            os.waitpid(self.pid, 0)  # noqa: ASYNC222  # it has exited
            self._reaped = True
        await wait_for_group(self.pid)


def _open_pidfd(pid: int) -> int | None:
    """A file that can be waited for; None where there is no such thing, or no room for it."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
