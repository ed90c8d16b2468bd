"""Ctrl-C loses no work: the first one starts nothing new and lets what is running finish; the second one gives up."""

import itertools
import signal
import sys

import trio

import trio_fanout as fanout


async def fetch(number):
    await trio.sleep(0.5)
    if number == 13:
        await trio.sleep_forever()  # a server that never answers
    return f"<page {number}>"


async def stop_on_ctrl_c(results, *, task_status):
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
    # Outside the block, Ctrl-C is a KeyboardInterrupt again: it ends the program, whatever hangs.
    results.stop()
    print("finishing what is running; Ctrl-C again to give up", flush=True)


async def main():
    saved = 0
    try:
        async with trio.open_nursery() as nursery:
            async with fanout.stream(fetch, itertools.count(), limit=4, ordered=False) as results:
                await nursery.start(stop_on_ctrl_c, results)
                async for _, number, _page in results:
                    saved += 1
                    print("saved", number, flush=True)
            nursery.cancel_scope.cancel()  # the task may still be waiting for a Ctrl-C
    finally:
        print(saved, "pages are saved")


if __name__ == "__main__":
    interrupted = False
    try:
        trio.run(main)
    except* KeyboardInterrupt:  # the nursery has put it into a group
        interrupted = True
    sys.exit(130 if interrupted else 0)
