"""`kill -USR1` prints each running call of this program, its age, and the line that it is waiting at."""

import os
import signal
import sys
import traceback

import trio

import trio_fanout as fanout


async def read_page(url):
    await trio.sleep(60 if "slow" in url else 0.1)


async def fetch(url):
    await read_page(url)


def dump(meter):
    for call in meter.running():
        stack = traceback.StackSummary.extract(call.task.iter_await_frames())
        frame = [frame for frame in stack if frame.filename == __file__][-1]  # not those of Trio
        print(f"{trio.current_time() - call.started:.1f} s  {call.args[0]}", file=sys.stderr)
        print(f"    {frame.name}, line {frame.lineno}: {frame.line}", file=sys.stderr)


async def dump_on_signal(meter, *, task_status):
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            dump(meter)


async def main():
    meter = fanout.Meter()
    urls = [f"https://{speed}.example/{n}" for n in range(10) for speed in ("fast", "slow")]
    async with trio.open_nursery() as nursery:
        await nursery.start(dump_on_signal, meter)
        print(f"kill -USR1 {os.getpid()}", flush=True)
        await fanout.map(meter.wrap(fetch), urls, limit=4)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
