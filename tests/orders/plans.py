"""What a plan is: data that say what is called, and what its items and all others do."""

from dataclasses import dataclass, fields
from math import inf

from trio_fanout import FailFast

ANY = "any"  # as a time: at a turn of Trio's loop that is chosen as an order is


class Short:
    """Its `repr` has only what is not as usual."""

    def __repr__(self):
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = [f"{field.name}={shown[field.name]!r}" for field in fields(self) if shown[field.name] != field.default]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Item(Short):
    """An item, a job or a step: it waits, and ends."""

    waits: tuple = ()  # seconds, or 0 for a checkpoint
    fails: bool = False
    fatal: bool = False  # whether that ends a run under `Collect`
    quits: bool = False  # raises what is not an Exception
    if_cancelled: str = "stop"  # or fail, succeed, shield
    leaves: str = ""  # open: scope, shield, cancelled, expiring or nursery
    sets: bool = False  # a context variable
    stops: bool = False  # calls `stop()`
    inner: object = None  # a plan that it carries out
    jobs: tuple = ()  # that it starts
    waits_for_jobs: bool = False
    needs: tuple = ()  # of a step: other steps, by their place
    settled: bool = False


@dataclass(frozen=True, repr=False)
class Plan(Short):
    """A call."""

    call: str
    items: tuple
    limit: float = 2
    policy: object = FailFast()
    item_timeout: float | None = None
    shared: bool = False  # whether the limit is a limiter
    source: str = "list"  # or generator, async generator, async iterator, timed
    delays: tuple = ()  # of an async source, before each item
    source_error: bool = False  # whether the source raises where it should end
    stopped_by: float = inf  # the item at which the source calls `stop()`
    ordered: bool = True
    buffer: float | None = None
    pace: tuple = ()  # how long the block waits between results that it reads, or jobs that it starts
    reads: float = inf  # results, until it leaves
    leaving: str = ""  # the block: break, raise, stop, aclose; of a group: raise, stop, cancel, wait
    cancelled: object = None  # when that comes from outside
    stopped: object = None  # when another task calls `stop()`
    changes: tuple = ()  # of the limiter's tokens: when, how many
    borrows: tuple = ()  # by others: when, for how long
    looks: int = 0  # of the first looks whether a slice is over, it is chosen what they see
