"""What is inferred of settled steps. Checked by mypy and pyright; never run."""

from __future__ import annotations

from typing import Any, assert_type

from outcome import Outcome

import trio_fanout as fanout
from trio_fanout import Step


async def search() -> list[str]:
    return ["a page"]


async def answer(*pages: Outcome[list[str]]) -> str:
    return f"from {len(pages)} tools"


async def main() -> None:
    settled = Step(answer, needs=["web", "wiki"], settled=True)
    assert_type(settled, Step[str])
    assert_type(settled.settled, bool)
    steps: dict[str, Step[Any]] = {"web": Step(search), "wiki": Step(search), "answer": settled}
    ends = await fanout.run_graph(steps, policy=fanout.Settle(move_on_after=5))
    assert_type(ends, dict[str, Outcome[Any]])

    Step(answer, ["web"], True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Step(answer, settled="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
