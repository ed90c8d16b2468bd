"""The power of the campaign in orders.py: changes to the engine that depend on the order of tasks, which it should find.

    python tests/tools/order_mutants.py [--minutes 0.25] [PART ...]

Each change is made to a copy of the package, and the campaign is run on that for a quarter of a minute of CPU time. With
PARTs, only changes of which the file or a text has one of them are tried.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPINS = 20  # seconds of CPU time, above those of the campaign, until a run that never ends is ended

RUN, LIMITS, SOURCES, FEEDING = "_core/run.py", "_core/limits.py", "_core/sources.py", "_core/feeding.py"
WINDOWS, STREAM, GROUP, GRAPH, LEDGERS = "_core/windows.py", "_stream.py", "_group.py", "_graph.py", "_ledgers.py"

MUTANTS = [
    # Who starts a worker
    (RUN, "most, room)) - coming\n", "most, room)) - coming - 1\n"),
    (RUN, "coming = self._workers - len(self._idle) - unfinished", "coming = self._workers - unfinished"),
    (RUN, "        self._source.wake_reader()\n        self.start_workers()\n", "        self.start_workers()\n"),
    (RUN, "        self._source.wake_reader()\n        self.start_workers()\n", "        self._source.wake_reader()\n"),
    (RUN, "        self._source.wake_reader()\n        self.start_workers(COMING)\n", "        self.start_workers(COMING)\n"),
    (RUN, "        self._source.wake_reader()\n        self.start_workers(COMING)\n", "        self._source.wake_reader()\n"),
    (RUN, "                if self._workers != self._max_workers or (workers_wait and self._idle):", "                if self._workers != self._max_workers:"),
    (RUN, "self.start_workers(self.taken - self._finished)", "pass"),
    (RUN, "        if replace and self._max_workers:\n", "        if False:\n"),
    (RUN, "        if replace and self._max_workers:\n", "        if replace and self._max_workers and self._source.ready(self.taken):\n"),
    # What ends a run
    (RUN, "        self._max_workers = 0\n        if self._idle:\n            self._idle.unpark_all()\n", "        self._max_workers = 0\n"),
    (RUN, "        self._source.stop()\n        self._idle.unpark_all()\n", "        self._idle.unpark_all()\n"),
    (RUN, "        self._source.stop()\n        self._idle.unpark_all()\n", "        self._source.stop()\n"),
    (RUN, "        self._tokens.turn_away()\n", ""),
    (RUN, "        self._max_workers = 0\n        self._tokens.turn_away()\n", "        self._tokens.turn_away()\n"),
    (RUN, "        self._tokens.turn_away()\n        self.discard()\n", "        self._tokens.turn_away()\n"),
    (RUN, "            if not ended:\n                self._start_no_more()\n", ""),
    (RUN, "                self._start_no_more()\n            self._source.wake_reader()\n", "                self._start_no_more()\n"),
    (RUN, "self._workers - len(self._idle) > self._max_workers", "self._workers - len(self._idle) >= self._max_workers"),
    (RUN, "if self._workers > self._max_workers and self._workers - len(self._idle) > self._max_workers:", "if self._workers > self._max_workers:"),
    (RUN, "                    if not source.open:\n                        self.source_ended()\n", "                    if not source.open:\n                        self._exhausted = True\n"),
    (RUN, "                    source.wake_reader()\n                    await self._idle.park()", "                    await self._idle.park()"),
    (RUN, "                if reason is not None:\n", "                if reason is not None and self._idle:\n"),
    (RUN, "        if self._max_workers:\n            self._max_workers = self._tokens.workers", "        if True:\n            self._max_workers = self._tokens.workers"),
    # The reader of an async source
    (RUN, "self.unfinished() + source.ready() >= self._max_workers", "self.unfinished() + source.ready() > self._max_workers"),
    (RUN, "self.unfinished() + source.ready() >= self._max_workers", "self.unfinished() >= self._max_workers"),
    (RUN, " or source.is_full()):", "):"),
    (RUN, "            with trio.CancelScope(shield=True):\n                await source.reader.park()", "            with trio.CancelScope():\n                await source.reader.park()"),
    (RUN, "        while self._max_workers and (self.unfinished()", "        if self._max_workers and (self.unfinished()"),
    (FEEDING, "                run.start_workers()\n", ""),
    (FEEDING, "                    if not source.ready():\n                        run.source_ended()\n", "                    run.source_ended()\n"),
    (FEEDING, "                    if not source.ready():\n                        run.source_ended()\n", ""),
    (FEEDING, "await iterator.aclose()", "pass"),
    (SOURCES, '            self.reading.cancel("no more items are started")\n        self.wake_reader()', '            self.reading.cancel("no more items are started")'),
    (SOURCES, '            self.reading.cancel("no more items are started")\n', "            pass\n"),
    # What is counted
    (RUN, "                finally:\n                    self._finished += 1\n", "                finally:\n                    self._finished += reason is None\n"),
    (RUN, "            if not start:\n                self._finished += 1\n", "            if not start:\n"),
    (RUN, "        self._workers -= 1\n", "        self._workers -= not replace\n"),
    # Tokens, and the order of starts
    (RUN, "                    if shared:\n                        tokens.put_back(task)\n", ""),
    (RUN, "may_start = not unstarted and (has_token or tokens.borrow(task))", "may_start = has_token or tokens.borrow(task)"),
    (RUN, "                if unstarted or not starts_at_once:", "                if not starts_at_once:"),
    (RUN, "                    has_token = not shared\n", "                    has_token = True\n"),
    (RUN, "        self._tokens.put_back(trio.lowlevel.current_task())\n", ""),
    (RUN, "            self._idle.unpark_all()  # idle workers may hold tokens that the limiter has no more: they put them back\n", "            pass\n"),
    (RUN, "if limit_changes and (tokens.overdrawn or limiter.total_tokens != tokens.total):", "if limit_changes and limiter.total_tokens != tokens.total:"),
    (RUN, "                    if tokens.overdrawn:\n                        tokens.put_back(task)", "                    if False:\n                        tokens.put_back(task)"),
    (RUN, "self._limit_changes = tokens.shared or limiter_shown", "self._limit_changes = tokens.shared"),
    (LIMITS, "        if self.unstarted:\n            self.put_back(task)", "        if False:\n            self.put_back(task)"),
    (LIMITS, "                    await turn.wait()\n", "                    pass\n"),
    (LIMITS, "            for next_turn in self.unstarted.values():\n                next_turn.set()\n                break\n", ""),
    (LIMITS, "                start = not scope.cancel_called\n", "                start = True\n"),
    (LIMITS, "                    self._borrowers.add(task)\n", ""),
    (LIMITS, "        except trio.WouldBlock:\n            self._borrowers.remove(task)\n", "        except trio.WouldBlock:\n"),
    (LIMITS, "        self.total = self.limiter.total_tokens\n        self.overdrawn = self.total < len", "        self.total = self.limiter.total_tokens\n        self.overdrawn = self.total <= len"),
    (LIMITS, "        self.limiter.release_on_behalf_of(task)\n        self.overdrawn = self.total < len(self._borrowers)\n", "        self.limiter.release_on_behalf_of(task)\n"),
    (LIMITS, "return self.total or 1", "return self.total"),
    (LIMITS, "for scope in self._scopes:", "for scope in list(self._scopes)[:1]:"),
    # What is handed over
    (WINDOWS, "        self.outstanding -= 1\n", "        self.outstanding -= self.outstanding > 1\n"),
    (WINDOWS, "self._refused = self._window.available() <= 0", "self._refused = self._window.available() < 0"),
    (WINDOWS, "min(max(self._pull.ready(taken), self._refused), self._window.available())", "min(self._pull.ready(taken), self._window.available())"),
    (WINDOWS, "return self._window.available() <= 0\n", "return self._window.available() < 0\n"),
    (STREAM, "                self.due += 1\n        self.wake()\n", "                self.due += 1\n"),
    (STREAM, "            self.ready.clear()\n        self.wake()\n\n    def close", "            self.ready.clear()\n\n    def close"),
    (STREAM, "        self.window.free()  # it will not be handed over\n", ""),
    (STREAM, "        if self.ledger.skips_gaps:\n            self._add(index, None)\n", ""),
    (STREAM, "            for index in sorted(self.early):\n                self._give(self.early[index])\n", "            pass\n"),
    (STREAM, "                self._give(self.early.pop(self.due))\n                self.due += 1\n", "                self._give(self.early.pop(self.due))\n                self.due += 1\n                break\n"),
    (STREAM, "        self._run.room_freed()\n", ""),
    (STREAM, "                while not results.has_news():\n", "                if not results.has_news():\n"),
    (STREAM, "self.ready) or self.over or self.closed", "self.ready) or self.closed"),
    (STREAM, "        self._results.winding_down = True\n", ""),
    # Jobs and steps
    (GROUP, "            self._run.start_workers(COMING)\n", "            pass\n"),
    (GROUP, "        if self._run.stopped:\n            self._run.discard()\n", "        if self._run.stopped:\n            pass\n"),
    (GROUP, "return not self.closing or bool(self._waiting) or bool(self._running)", "return not self.closing or bool(self._waiting)"),
    (GROUP, "return not self.closing or bool(self._waiting) or bool(self._running)", "return not self.closing or bool(self._running)"),
    (GROUP, "        if exc is None and not self._jobs.open:\n            self._run.source_ended()\n", ""),
    (GROUP, "            self.waited_for.set()\n", "            pass\n"),
    (GROUP, "        job.end(None)\n        self._running.pop", "        self._running.pop"),
    (GRAPH, "        self._ended += 1\n        self._ledger.succeeded(index, item, value)\n", "        self._ledger.succeeded(index, item, value)\n"),
    (GRAPH, "        if len(self._ready) <= ticket - len(self.started):\n", "        if len(self._ready) < ticket - len(self.started):\n"),
    (GRAPH, "return len(self._ready) - taken + len(self.started)", "return len(self._ready) - taken + self._ended"),
    (GRAPH, "                    heappush(self._ready, step)\n", "                    self._ready.append(step)\n"),
    (GRAPH, "                    ended.append(step)\n", "                    pass\n"),
    # What comes of it
    (LEDGERS, "if not secondary and (self._primary is None or index < self._primary):", "if self._primary is None or index < self._primary:"),
    (LEDGERS, "if not secondary and (self._primary is None or index < self._primary):", "if not secondary and self._primary is None:"),
    (LEDGERS, "if self._left <= 0 else None", "if self._left < 0 else None"),
    (LEDGERS, "        if not self.results:  # others may succeed while they are cancelled\n            self.results.append(value)", "        self.results = [value]"),
    (LEDGERS, "            results[index] = value\n        else:", "            pass\n        else:"),
]  # fmt: skip
"""The file, a text that it has once, and what stands there instead."""

CAMPAIGN = """
import sys
sys.path[:0] = [{folder!r}, {tests!r}]
import trio_fanout
assert trio_fanout.__file__.startswith({folder!r}), trio_fanout.__file__
import orders
sys.argv[1:] = ["--minutes", {minutes!r}]
orders.main()
"""


def change(folder, path, old, new):
    """Make a change to a new copy of the package in `folder`."""
    shutil.copytree(ROOT / "trio_fanout", folder / "trio_fanout", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "trio_fanout" / path
    text = file.read_text()
    if text.count(old) != 1:
        sys.exit(f"{path} has this {text.count(old)} times, not once:\n{old}")
    file.write_text(text.replace(old, new))


def find(folder, minutes):
    """Run the campaign on the package in `folder`. Returns what it has found, or None."""

    def limit_time():
        seconds = int(60 * minutes + SPINS)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    program = CAMPAIGN.format(folder=str(folder), tests=str(ROOT / "tests"), minutes=str(minutes))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limit_time, cwd=folder, check=False
    )
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return "it never ends"
    wrong = [line for line in done.stderr.splitlines() if "Wrong: " in line]
    if not wrong:
        sys.exit(done.stderr)
    return wrong[-1].partition("]: ")[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.25)
    parser.add_argument("parts", nargs="*", metavar="PART")
    args = parser.parse_args()
    chosen = [one for one in MUTANTS if not args.parts or any(part in text for part in args.parts for text in one)]
    missed = 0
    for number, (path, old, new) in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            change(Path(folder), path, old, new)
            before = os.times()
            found = find(Path(folder), args.minutes)
            after = os.times()
        took = after.children_user - before.children_user
        missed += found is None
        sys.stdout.write(f"{number:3} {took:5.1f} s  {path}: {'MISSED' if found is None else found}\n")
        if found is None:
            sys.stdout.write(f"{old}--->\n{new}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} found\n")


if __name__ == "__main__":
    main()
