"""What the objects that `stream` and `open_group` return, and those that they give to their blocks, have in common."""

from __future__ import annotations

from abc import ABCMeta
from typing import TYPE_CHECKING, Any, ClassVar

import trio

if TYPE_CHECKING:
    from trio.lowlevel import TrioToken


class OpensOnce:
    """Base class of an async context manager that is entered once, and does not take other uses in silence."""

    opener: ClassVar[str]
    """The name of the function that makes it."""

    opens: ClassVar[type]
    """The class of what the block gets."""

    _entered = False

    def note_entry(self) -> None:
        """Raise `RuntimeError` if it was entered before, or if this is not a Trio task."""
        check_in_trio(self.opener)
        if self._entered:
            msg = f"what {self.opener}() returns can be entered once, and this was; call {self.opener}() again"
            raise RuntimeError(msg)
        self._entered = True

    if not TYPE_CHECKING:  # pragma: no branch  # type checkers find these uses by themselves

        def __enter__(self) -> None:
            self._refuse(f"with {self.opener}(...)")

        def __exit__(self, *_: object) -> None:
            raise AssertionError  # pragma: no cover  # never called, but looked for before `__enter__` is called

        def __iter__(self) -> None:
            self._refuse(f"for ... in {self.opener}(...)")

        def __aiter__(self) -> None:
            self._refuse(f"async for ... in {self.opener}(...)")

        def __await__(self) -> None:
            self._refuse(f"await {self.opener}(...)")

        def __getattr__(self, name: str) -> None:
            if name.startswith("_") or not hasattr(self.opens, name):
                msg = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(msg, name=name, obj=self)
            msg = f"{self._instead_of(f'{self.opener}(...).{name}')}: {name!r} belongs to what the block gets"
            raise AttributeError(msg)

        def _refuse(self, use: str) -> None:
            raise RuntimeError(self._instead_of(use))

        def _instead_of(self, use: str) -> str:
            return f"use 'async with {self.opener}(...) as ...', not '{use}'"


class NoPublicConstructor(ABCMeta):
    """Metaclass of public classes that only this package makes instances of, by `create`."""

    def __call__(cls, *args: object, **kwargs: object) -> None:
        """Raise `TypeError`."""
        msg = f"{cls.__name__} has no public constructor"
        raise TypeError(msg)


def create(cls: type[Any], *args: Any) -> Any:
    """Make an instance of a class that has no public constructor."""
    return type.__call__(cls, *args)


def check_in_trio(call: str) -> None:
    """Raise `RuntimeError` unless this is called from a Trio task."""
    if trio.lowlevel.in_trio_task():
        return
    msg = (
        f"{call}() needs Trio, and this is not a Trio task: call it from an async function that trio.run(...) runs; "
        "see 'From asyncio, notebooks, web applications and plain code' in the documentation"
    )
    raise RuntimeError(msg)


def check_in_run(token: TrioToken, call: str) -> None:
    """Raise `RuntimeError` unless this is called from a task of the Trio run that `token` belongs to."""
    if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is token:
        return
    msg = f"{call} must be called from a task of its own Trio run; from another thread, use trio.from_thread.run_sync"
    raise RuntimeError(msg)
