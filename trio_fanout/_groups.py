"""Which members of a group the exceptions are that a split of it gives."""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from ._core.exceptions import is_group, members_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def find_parts(parts: Sequence[BaseException], members: Sequence[BaseException]) -> dict[int, Any] | None:
    """Find the places of the members that `parts` are, or are parts of. None if any of them is neither.

    Each place counts once: one exception object that two items raised is two failures.
    """
    same: defaultdict[int, deque[int]] = defaultdict(deque)
    for index, member in enumerate(members):
        same[id(member)].append(index)
    found: dict[int, Any] = {}
    following = 0
    for part in parts:
        if same[id(part)]:
            place: int | None = same[id(part)].popleft()
        else:
            # A split gives the parts in the order of the members. So continuing where the last was found is linear,
            # even if all groups share their leaves. Only in parts put together by hand is any before that.
            places = chain(range(following, len(members)), range(following))
            place = next((place for place in places if place not in found and _is_part(part, members[place])), None)
        if place is None or place in found:
            return None
        found[place] = part
        following = place + 1
    return found


def _is_part(part: BaseException, whole: BaseException) -> bool:
    """Whether the group `part` came out of a split of `whole`."""
    if not is_group(part) or not is_group(whole):
        return False
    if part.__traceback__ is not None:
        return part.__traceback__ is whole.__traceback__  # copied by a split; groups that look alike have others
    # Unpickled, or never raised. A part has some of the same members, in the same order.
    candidates = iter(members_of(whole))  # each is looked at once
    return all(any(inner is exc or _is_part(inner, exc) for exc in candidates) for inner in members_of(part))
