"""Random small plans over all calls, each carried out under many orders: what must hold for any of them.

    nox -s orders -- --minutes 10

What the tests of the calls do not try is the order in which Trio runs tasks that are ready together. Here nothing is
said of times. The items of a plan tell an `Account` when they start and end, whatever the order. It knows what must be
true then, what may not have been forgotten when all tasks sleep, and what must come of the call.

A plan that goes wrong is printed in one line, which does the same again behind ``from orders import *``.

- `plans`: what a plan is; `chance` makes them.
- `account`: what must hold for any call; `mapped`, `streamed`, `grouped` and `graphed`: for each kind.
- `campaign`: carrying plans out.
"""

from math import inf

from trio_fanout import Collect, FailFast, FirstSuccess, Settle

from .campaign import RUNS, campaign, explore, main, replay
from .chance import Chance, random_plan
from .plans import ANY, Item, Plan

__all__ = [
    "ANY",
    "RUNS",
    "Chance",
    "Collect",
    "FailFast",
    "FirstSuccess",
    "Item",
    "Plan",
    "Settle",
    "campaign",
    "explore",
    "inf",
    "main",
    "random_plan",
    "replay",
]
