"""What a call costs or weighs, as an exact number.

Sums of floats drift: after a hundred thousand calls that cost 0.1 each, a bound would be off by more than its rounding.
But every float is a multiple of the smallest one, 2 ** -1074. So units are counted in ints, whose sums are exact and
have no largest value, and become a float again only where they are compared with a time or a limit.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final

from ._arguments import close_if_coroutine, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BITS: Final = 1074

ONE: Final = 1 << _BITS
"""One unit."""


def exact(units: float) -> int:
    """A finite number, as a multiple of the smallest float."""
    numerator, denominator = units.as_integer_ratio()
    return numerator << _BITS + 1 - denominator.bit_length()  # the denominator is a power of two


def most_within(limit: float) -> float:
    """The largest sum of units that, rounded to a float, is not above `limit`."""
    if limit > sys.float_info.max:
        return limit if limit == math.inf else int(limit) << _BITS
    return exact(limit) + exact(math.ulp(limit)) // 2


def units_of(count: Callable[..., float], args: tuple[Any, ...], kwargs: Mapping[str, Any], argument: str) -> int:
    """Ask `count`, the function passed as `argument`, for the units of a call with these arguments."""
    units: object = count(*args, **kwargs)
    takes = f"{argument} must return a finite number of 0 or more, got {describe(units)} from it"
    if not isinstance(units, (int, float)) or isinstance(units, bool):
        close_if_coroutine(units)
        raise TypeError(takes)
    if not 0 <= units <= sys.float_info.max:  # written so that NaN fails
        raise ValueError(takes)
    return exact(units)
