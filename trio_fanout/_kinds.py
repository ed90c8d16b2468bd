"""Sorting failures into kinds, by type and place of origin."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


def sort_into_kinds(failures: Sequence[BaseException], by_type: type[BaseException]) -> list[list[int]]:
    """The places of `failures`, in a list for each kind: the largest first, then by first place.

    Failures of the class `by_type` are sorted by their type alone.
    """
    kinds: defaultdict[Any, list[int]] = defaultdict(list)
    kind_of: dict[int, Any] = {}  # by object, as thousands of items may raise the same
    for place, exc in enumerate(failures):
        if id(exc) not in kind_of:
            kind_of[id(exc)] = id(type(exc)), None if isinstance(exc, by_type) else _origin(exc)
        kinds[kind_of[id(exc)]].append(place)
    return sorted(kinds.values(), key=len, reverse=True)  # stable, so the first place decides among kinds of one size


def _origin(exc: BaseException) -> tuple[str, int | None] | None:
    """File and line of the frame where an exception came from: the innermost of the program's own, if there is one."""
    innermost = own = None
    tb = exc.__traceback__
    while tb is not None:
        innermost = tb
        if _is_own(tb.tb_frame.f_code.co_filename):
            own = tb
        tb = tb.tb_next
    origin = innermost if own is None else own
    return None if origin is None else (origin.tb_frame.f_code.co_filename, origin.tb_lineno)


@functools.lru_cache(maxsize=1024)
def _is_own(filename: str) -> bool:
    """Whether a file belongs to the program that uses this package, and to no library."""
    return not filename.startswith(_LIBRARIES) and _SITE_PACKAGES.isdisjoint(Path(filename).parts)


_LIBRARIES: Final = (
    "<frozen ",  # modules of the standard library that come with the interpreter
    *(str(Path(file).parent) + os.sep for file in (functools.__file__, __file__)),  # the others, and this package
)
_SITE_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})  # of any environment; the second is Debian's
