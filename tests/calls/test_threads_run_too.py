"""Functions that never wait leave other threads their share of the interpreter.

Each test has a process of its own: within pytest, other things let go of the interpreter too.
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BESIDE_A_THREAD = """
import time, trio, trio_fanout as fanout

async def noop(item):
    pass

def items(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield None

async def count_trips():
    global trips
    while True:
        await trio.to_thread.run_sync(time.sleep, 0.01)
        trips += 1

async def main():
    global trips
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_trips)
        await trio.to_thread.run_sync(time.sleep, 0)  # the threads are there
        trips = 0
        await fanout.do(noop, items(2))
        nursery.cancel_scope.cancel()
    print(trips)

trips = 0
trio.run(main)
"""

INTERRUPTED_BY_A_THREAD = """
import itertools, os, signal, threading, time, trio, trio_fanout as fanout

async def noop(item):
    pass

def interrupt():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    trio.run(fanout.do, noop, itertools.count())
except KeyboardInterrupt:
    print("interrupted")
"""


def output_of(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_thread_comes_back_all_the_while():
    # Where it is starved, it comes back once or never. Where it is not, some 80 times, fewer on a busy machine.
    assert int(output_of(BESIDE_A_THREAD)) >= 8


@pytest.mark.skipif(sys.platform == "win32", reason="`os.kill` ends the process there")
def test_ctrl_c_from_a_thread_arrives():
    assert output_of(INTERRUPTED_BY_A_THREAD) == "interrupted\n"
