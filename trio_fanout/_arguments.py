"""Checks of what callers pass: an immediate error that names the argument, what it got and what it takes."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")


def attribute_of(fn: object, name: str, kind: type[T]) -> T | None:
    """An attribute of a callable, or None if it has none of this kind: some objects answer every name, or raise."""
    try:
        value = getattr(fn, name)
    except Exception:  # noqa: BLE001  # such as the `RuntimeError` of a proxy that has nothing behind it
        return None
    return value if isinstance(value, kind) else None


def name_of(fn: object) -> str:
    """A short name for what a task runs."""
    name = attribute_of(fn, "__name__", str)
    if name is not None:
        return name
    return name_of(fn.func) if isinstance(fn, functools.partial) else type(fn).__name__


_MOST_BITS: Final = 256  # of an int that is printed; of one with more than 4,300 digits, Python refuses that


def describe(value: object) -> str:
    """Describe `value` by its type, and by itself only where that is short and harmless."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"an int of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name.startswith(tuple('aeiouAEIOU')) else 'a'} {name}"


def check_function(fn: object, argument: str = "fn") -> None:
    """Raise `TypeError` unless `fn` can be called."""
    if callable(fn):
        return
    msg = f"{argument} must be an async function, got {describe(fn)}"
    if isinstance(fn, Coroutine):
        fn.close()  # or Python would warn that it was never awaited
        msg += ": pass the function itself, without calling it"
    raise TypeError(msg)


def check_functions(fns: list[Any], argument: str) -> None:
    """Raise `TypeError` unless all of `fns` can be called."""
    if all(map(callable, fns)):
        return
    first, *others = [index for index, fn in enumerate(fns) if not callable(fn)]
    for index in others:
        if isinstance(fns[index], Coroutine):
            fns[index].close()
    check_function(fns[first], f"{argument}[{first}]")


class NotAwaitable(TypeError):
    """A function returned something that cannot be awaited. A run makes a plain `TypeError` of it."""


def check_awaitable(value: object) -> None:
    """Raise `NotAwaitable` unless `value`, which a function has returned, can be awaited."""
    if not inspect.isawaitable(value):
        msg = (
            f"fn must be an async function, but calling it returned {describe(value)}; "
            "wrap a blocking function in trio_fanout.in_thread"
        )
        raise NotAwaitable(msg)


def check_iterable(value: object, argument: str, takes: str) -> None:
    """Raise `TypeError` unless `value` is a plain iterable."""
    if not (hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")):
        msg = f"{argument} must be {takes}, got {describe(value)}"
        raise TypeError(msg)


def check_seconds(seconds: object, argument: str, *, zero: bool = False) -> None:
    """Raise unless `seconds` is None or a number above 0 (or, with `zero`, not below)."""
    if seconds is None:
        return
    least = "of 0 or more" if zero else "above 0"
    takes = f"{argument} must be None or a number of seconds {least}, got {describe(seconds)}"
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(takes)
    if not (seconds >= 0 if zero else seconds > 0):  # written so that NaN fails
        raise ValueError(takes)
    if isinstance(seconds, int) and seconds > sys.float_info.max:
        msg = f"{argument} must be a number of seconds that fits a float; math.inf is one"
        raise ValueError(msg)


def check_count(count: object, argument: str, *, least: int = 1) -> None:
    """Raise unless `count` is an int of `least` or more."""
    takes = f"{argument} must be an int of {least} or more, got {describe(count)}"
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(takes)
    if count < least:
        raise ValueError(takes)


def check_bool(value: object, argument: str) -> None:
    """Raise `TypeError` unless `value` is True or False."""
    if not isinstance(value, bool):
        msg = f"{argument} must be True or False, got {describe(value)}"
        raise TypeError(msg)


def check_blocking(fn: object, caller: str) -> None:
    """Raise `TypeError` unless `fn` can be called, and is not an async function."""
    check_not_async(fn, f"fn of {caller}", hint=": Trio can run it as it is")


def check_not_async(fn: object, argument: str, *, hint: str = "") -> None:
    """Raise `TypeError` unless `fn` can be called, and is not an async function."""
    if not callable(fn):
        msg = f"{argument} must be a function that is not async, got {describe(fn)}"
        if inspect.iscoroutine(fn):
            fn.close()  # or Python would warn that it was never awaited
            msg += ": pass the function itself, without calling it"
        raise TypeError(msg)
    if is_async(fn):
        msg = f"{argument} must be a function that is not async, but {name_of(fn)} is{hint}"
        raise TypeError(msg)


def check_callback(fn: object, argument: str, *, hint: str = "") -> None:
    """Raise `TypeError` unless `fn` is None or a function that may be asked about each call."""
    if is_exception_class(fn):
        msg = f"{argument} must be a function that is not async, got {describe(fn)}{hint}"
        raise TypeError(msg)
    if fn is not None:
        check_not_async(fn, argument)


def is_exception_class(fn: object) -> bool:
    """Whether `fn` is an exception class. One can be called, and would answer each call with an exception."""
    return isinstance(fn, type) and issubclass(fn, BaseException)


def is_async(fn: object) -> bool:
    """Whether `fn` is an async function, or an object that is called like one."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    try:
        # A class that has one calls its instances by it.
        called = None if isinstance(fn, type) else getattr(fn, "__call__", None)  # noqa: B004
        return any(kind(fn) or kind(called) for kind in kinds)
    except Exception:  # noqa: BLE001  # raised by an attribute; see `attribute_of`
        return False


def close_if_coroutine(value: object) -> None:
    """Close a coroutine that comes where none should, or Python would warn that it was never awaited."""
    if inspect.iscoroutine(value):
        value.close()
