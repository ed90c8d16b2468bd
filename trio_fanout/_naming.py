"""The name of an adapter: that of the function that it wraps."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from ._arguments import attribute_of, name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")

_COPIED: Final[dict[str, type]] = {
    "__module__": str,
    "__name__": str,
    "__qualname__": str,
    "__doc__": str,
    "__annotations__": dict,
    "__annotate__": FunctionType,  # instead of those, from Python 3.14
    "__type_params__": tuple,  # from Python 3.12
}
"""What an adapter takes over from its function, and of which type: an object may answer every name with anything."""


def named_like(fn: Callable[P, object]) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Give an adapter the name and the docstring of what it wraps, and so tasks that run it: `map(resize)`."""

    def rename(adapter: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        assigned = [
            name
            for name, kind in _COPIED.items()
            if name in functools.WRAPPER_ASSIGNMENTS and attribute_of(fn, name, kind) is not None
        ]
        updated = ["__dict__"] if attribute_of(fn, "__dict__", dict) is not None else []
        functools.update_wrapper(adapter, fn, assigned, updated)
        # An object with a `__call__` and a partial have no name to copy.
        adapter.__name__ = name_of(fn)
        return adapter

    return rename
