"""How failures cross from one process to another.

What is raised in a worker process is pickled to get back, and not everything can be: a lock among the arguments, a
cause that holds a socket, a class whose `__init__` takes more than its `args`, a traceback of a thousand frames. If
only the executor finds that out, the failure is lost: the caller gets a `TypeError` about a lock, or all calls get a
broken pool. So it is tried out where the failure was raised.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from typing import TYPE_CHECKING, Any, Final, cast

from outcome import Error

from ._core.exceptions import is_group, members_of, set_links
from ._errors import text_of
from ._tracebacks import entries_of, set_entries

if TYPE_CHECKING:
    from collections.abc import Callable

    Trial = Callable[[Error], Error]

MAX_ENTRIES: Final = 50
"""The most entries kept of each end of a traceback that has to be cut: pickling recurses into it."""

MAX_LINKS: Final = 50
"""The most causes and contexts that are kept if one of them cannot be pickled, for the same reason."""


def plain_trial(error: Error) -> Error:
    """Pickle and unpickle an error as `multiprocessing` does."""
    copy: Error = pickle.loads(pickle.dumps(error))  # noqa: S301  # it was made right here
    return copy


def best_trial(error: Error) -> Error:
    """Pickle and unpickle an error as trio-parallel and Dask do: classes by value, and tracebacks, if they can."""
    tblib: Any = sys.modules.get("tblib.pickling_support")
    if tblib is not None:
        tblib.install(error.error)
    copy: Error = pickler().loads(pickler().dumps(error))
    return copy


@functools.cache
def pickler() -> Any:  # it may have no types
    """The module that trio-parallel and Dask pickle with if it is installed, or the standard one."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return pickle


def portable(exc: Exception, trial: Trial) -> Exception:
    """`exc`, changed by as little as it takes to be pickled.

    A cause, a context or a member of a group that cannot be pickled is replaced by an exception that has its type's
    name and its text. So is `exc` itself, if need be.
    """
    try:
        made = cast("Exception", _portable(exc, trial, set()))
        # What is made of groups hundreds of levels deep may be too deep itself.
        return made if made is exc or _survives(made, trial) else _text_alone(exc)
    except Exception:  # noqa: BLE001  # groups in groups, a thousand deep; attributes that raise
        return _text_alone(exc)


def _portable(exc: BaseException, trial: Trial, seen: set[int]) -> BaseException:
    if _survives(exc, trial):
        return exc
    seen.add(id(exc))
    cause, context, suppress = exc.__cause__, exc.__context__, exc.__suppress_context__
    set_links(exc, None, None, suppress=suppress)
    entries = entries_of(exc)
    if len(entries) > 2 * MAX_ENTRIES:
        set_entries(exc, entries[:MAX_ENTRIES] + entries[-MAX_ENTRIES:])
    made = exc if _survives(exc, trial) else _stand_in(exc, trial, seen)
    new_cause = _link(cause, trial, seen)
    new_context = new_cause if context is cause else _link(context, trial, seen)
    set_links(made, new_cause, new_context, suppress=suppress)
    if not _survives(made, trial):  # each of them does, but together they are too deep, or a circle
        set_links(made, None, None, suppress=suppress)
    return made


def _link(exc: BaseException | None, trial: Trial, seen: set[int]) -> BaseException | None:
    """What stands for a cause or a context; None if the chain is too long, or has come back to where it was."""
    return None if exc is None or id(exc) in seen or len(seen) >= MAX_LINKS else _portable(exc, trial, seen)


def _survives(exc: BaseException, trial: Trial) -> bool:
    """Whether pickling and unpickling leaves an exception, and no other kind of one."""
    try:
        copy = cast("object", trial(Error(exc)).error)  # its `__reduce__` may make anything
    except BaseException:  # noqa: ASYNC103, BLE001  # a SystemExit, for example, is as good an answer
        return False  # noqa: ASYNC104
    return isinstance(copy, Exception if isinstance(exc, Exception) else BaseException)


def _stand_in(exc: BaseException, trial: Trial, seen: set[int]) -> Exception:
    """Make an exception of a builtin type that has the text of `exc`, the name of its type, its notes and traceback."""
    if not is_group(exc):
        return _text_alone(exc)
    plain = type(exc) in {ExceptionGroup, BaseExceptionGroup}
    members = [
        cast("Exception", _portable(member, trial, seen)) if isinstance(member, Exception) else _text_alone(member)
        for member in members_of(exc)
    ]
    group = ExceptionGroup(exc.message if plain else f"{type(exc).__name__}: {exc.message}", members)
    return _dressed_like(exc, group)


def _text_alone(exc: BaseException) -> Exception:
    # The type is that of most errors about pickling: what the caller would get for this one.
    text = f"{type(exc).__name__}: {text_of(exc)} (this stands for an exception that cannot be pickled)"
    return _dressed_like(exc, TypeError(text))


def _dressed_like(exc: BaseException, made: Exception) -> Exception:
    try:
        made.__notes__ = [note for note in exc.__notes__ if type(note) is str]
    except Exception:  # noqa: BLE001, S110
        pass  # there are none, or they are not what they should be
    return made.with_traceback(exc.__traceback__)
