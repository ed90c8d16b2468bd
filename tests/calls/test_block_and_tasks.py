"""Which exception leaves the block of a group, where the block and its tasks have raised one each."""

import pytest
import trio

import trio_fanout as fanout
from helpers import check_no_cycles, nothing_left


def returns_nothing():
    """No async function: what calls it raises a `TypeError`."""


async def leave(code):
    raise SystemExit(code)


async def test_that_of_the_block_comes_first(autojump_clock):
    with nothing_left(), pytest.raises(ValueError, match="block") as info:
        async with fanout.open_group() as group:
            group.start_soon(returns_nothing)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("block")
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize("block_code", [1, 2])
async def test_so_it_does_where_both_end_the_program(block_code, autojump_clock):
    with nothing_left(), pytest.raises(SystemExit) as info:
        async with fanout.open_group() as group:
            group.start_soon(leave, 3)
            try:
                await trio.sleep_forever()
            finally:
                raise SystemExit(block_code)
    assert info.value.code == block_code


async def test_what_ends_the_program_comes_before_what_does_not(autojump_clock):
    with nothing_left(), pytest.raises(SystemExit) as info:
        async with fanout.open_group() as group:
            group.start_soon(leave, 3)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("block")
    assert info.value.code == 3


async def test_a_cancelled_block_with_jobs_asleep_leaves_no_cycle(autojump_clock):
    async def once():
        with trio.move_on_after(1):
            async with fanout.open_group() as group:
                for _ in range(3):
                    group.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

    await check_no_cycles(once)


def test_a_block_that_cancels_its_own_group_ends_without_an_exception():
    """In a run of its own, as pytest-trio takes a `Cancelled` that leaves a test for its end."""

    async def main():
        async with fanout.open_group() as group:
            group.start_soon(trio.sleep_forever)
            group.cancel_scope.cancel()
            await trio.sleep_forever()
        return "went on"

    assert trio.run(main) == "went on"
