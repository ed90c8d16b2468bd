"""Ctrl-C loses no work: the first one starts nothing more and lets what runs finish; the second one is Python's own."""

import itertools
import signal

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
    # Out of the block, Ctrl-C is a KeyboardInterrupt again: it ends the program, whatever hangs.
    results.stop()
    print("finishing what runs; Ctrl-C again to give up", flush=True)


async def main():
    saved = 0
    try:
        async with trio.open_nursery() as nursery:
            async with fanout.stream(fetch, itertools.count(), limit=4, ordered=False) as results:
                await nursery.start(stop_on_ctrl_c, results)
                async for _, number, _page in results:
                    saved += 1
                    print("saved", number, flush=True)
            nursery.cancel_scope.cancel()  # it may still wait for a Ctrl-C
    finally:
        print(saved, "pages are saved")


if __name__ == "__main__":
    trio.run(main)
