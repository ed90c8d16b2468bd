"""What calls cost or weigh, and the exact sum of it."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from ._arguments import close_if_coroutine, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def units_of(count: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any], argument: str) -> float:
    """Ask `count`, the function passed as `argument`, for the units of a call with these arguments."""
    units = count(*args, **kwargs)
    takes = f"{argument} must return a finite number of 0 or more, got {describe(units)} from it"
    if not isinstance(units, (int, float)) or isinstance(units, bool):
        close_if_coroutine(units)
        raise TypeError(takes)
    if not 0 <= units <= sys.float_info.max:  # written so that NaN fails
        raise ValueError(takes)
    return units


class Total:
    """A sum of ints and floats, without rounding errors.

    A running sum of floats drifts: after a hundred thousand calls of 0.1, it is off by more than the last digit. But
    every float is an int divided by a power of two. So the sum is kept as an int, with as many bits behind the point as
    any of its terms has needed. It becomes a float again only where it is compared with a limit or a time. Ints also
    have no largest value.
    """

    __slots__ = ("_bits", "_sum")

    def __init__(self, units: int = 0) -> None:
        self._sum = units
        self._bits = 0  # behind the point

    def add(self, units: float) -> None:
        """Add a finite number."""
        exact = self._exact(units)  # first, as this may shift the sum
        self._sum += exact

    def subtract(self, units: float) -> None:
        """Subtract a finite number."""
        exact = self._exact(units)
        self._sum -= exact

    def plus(self, units: float, numerator: int = 1, denominator: int = 1) -> float:
        """The sum with `units` added, times a fraction: the nearest float, which may be infinite."""
        exact = self._exact(units)
        product = (self._sum + exact) * numerator
        try:
            return product / (denominator << self._bits)
        except OverflowError:
            return math.inf if product > 0 else -math.inf

    def _exact(self, units: float) -> int:
        if isinstance(units, int):
            return units << self._bits
        numerator, denominator = units.as_integer_ratio()
        finer = denominator.bit_length() - 1 - self._bits
        if finer <= 0:
            return numerator << -finer
        self._bits += finer
        self._sum <<= finer
        return numerator
