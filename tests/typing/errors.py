"""What the attributes and methods of a `FanOutError` are to type checkers. Checked by mypy and pyright; never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import trio_fanout as fanout


def an_error_says_what_it_has(error: fanout.FanOutError) -> None:
    assert_type(error.indices, tuple[Any, ...])
    assert_type(error.failures, Mapping[Any, Exception])
    assert_type(error.items, Mapping[Any, Any])
    assert_type(error.kinds(), tuple[fanout.FanOutError, ...])
    assert_type(error.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
    fanout.FanOutError({1: ValueError()}, {0: "a"}, 2)
    fanout.FanOutError({1: ValueError()}, {0: "a"}, 2, items={1: "b"})
    fanout.FanOutError({1: "no exception"}, {}, 2)  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
