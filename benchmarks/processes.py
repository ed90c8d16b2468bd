"""What `in_process` gains: CPU-bound items in worker processes, against the same in a plain loop.

Prints the time of each and their ratio, medians over some rounds. On a machine with nothing else to do the ratio
comes close to the number of CPUs. Run it with the extra `process` installed: ``python benchmarks/processes.py``.
"""

from __future__ import annotations

import os
import statistics
import time

import trio

import trio_fanout as fanout

ROUNDS = 5
ITEMS = 16
STEPS = 3_000_000  # of a loop, for each item: some hundred milliseconds


def work(item):
    total = item
    for step in range(STEPS):
        total = (total * 31 + step) % 1_000_003
    return total


async def main():
    spread = fanout.in_process(work)
    loop_times, process_times = [], []
    expected = await fanout.map(spread, range(ITEMS))  # also starts the processes, which is not what is measured
    for _ in range(ROUNDS):
        start = time.perf_counter()
        assert list(map(work, range(ITEMS))) == expected
        middle = time.perf_counter()
        assert await fanout.map(spread, range(ITEMS)) == expected
        loop_times.append(middle - start)
        process_times.append(time.perf_counter() - middle)
    ratios = [loop / process for loop, process in zip(loop_times, process_times, strict=True)]
    print(f"{ITEMS} items on {os.cpu_count()} CPUs, medians of {ROUNDS} rounds")
    print(f"  plain loop  {statistics.median(loop_times):6.3f} s")
    print(f"  in_process  {statistics.median(process_times):6.3f} s")
    print(f"  ratio       {statistics.median(ratios):6.2f}   (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    trio.run(main)
