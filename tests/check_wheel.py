"""Run by `nox -s wheel` where nothing but the wheel was installed: did just what it needs come, and does it work?"""

from __future__ import annotations

from importlib.metadata import distributions

import trio

import trio_fanout as fanout

NEEDED = {"trio-fanout", "trio", "attrs", "outcome"}
NEEDED_BY_TRIO = {"cffi", "idna", "pycparser", "sniffio", "sortedcontainers"}
COMES_WITH_A_NEW_ENVIRONMENT = {"pip", "setuptools"}


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


def check() -> None:
    installed = {dist.name.lower().replace("_", "-") for dist in distributions()}
    assert installed >= NEEDED, installed
    extra = installed - NEEDED - NEEDED_BY_TRIO - COMES_WITH_A_NEW_ENVIRONMENT
    assert not extra, extra

    async def main() -> list[int]:
        return await fanout.map(double, range(5), limit=2)

    assert trio.run(main) == [0, 2, 4, 6, 8]


check()
