"""Protection from Ctrl-C, class by class.

Trio raises `KeyboardInterrupt` in the running task, between any two bytecodes. Interrupted halfway, a method that moves
a token, counts a worker, or wakes a task would leave others waiting forever. So a class that holds such state protects
all its methods, as Trio's own classes do; the interrupt is then raised where Trio next looks for it. The exceptions are
methods that call functions of the user's: these must stay interruptible.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, TypeVar

from trio.lowlevel import disable_ki_protection, enable_ki_protection

if TYPE_CHECKING:
    from collections.abc import Callable

ClassT = TypeVar("ClassT", bound=type)


def protected(*, but: str | tuple[str, ...] = ()) -> Callable[[ClassT], ClassT]:
    """Protect the methods that a class defines, but for those named in `but`, which run the user's functions."""
    unprotected = (but,) if isinstance(but, str) else but

    def protect(cls: ClassT) -> ClassT:
        for name, method in vars(cls).items():
            if isinstance(method, FunctionType):
                (disable_ki_protection if name in unprotected else enable_ki_protection)(method)
        return cls

    return protect
