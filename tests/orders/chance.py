"""Plans, drawn by lot."""

import random
from dataclasses import replace
from math import inf

from trio_fanout import Collect, FailFast, FirstSuccess, Settle

from .plans import ANY, Item, Plan

CALLS = ("map", "map", "do", "fan_out", *["stream"] * 4, *["open_group"] * 3, "run_graph", "run_graph")


class Chance(random.Random):
    def one_in(self, number):
        return self.random() * number < 1

    def wait(self):
        return self.choice((0, 0, 1, 1, 2))

    def waits(self, most):
        return tuple(self.wait() for _ in range(self.randint(0, most)))

    def when(self):
        return self.choice((ANY, ANY, 0, 1, 2))


def random_plan(chance):
    """A plan. Every other one comes to its end."""
    call = chance.choice(CALLS)
    has_block = call in {"stream", "open_group"}
    wild = chance.one_in(2)
    plan = {
        "items": random_items(chance, call, wild=wild),
        "limit": chance.choice((1, 2, 2, 3, 3, 3, 4, inf)),
        "policy": random_policy(chance, call),
        "item_timeout": chance.choice((0.5, 1, 1.5)) if chance.one_in(8) else None,
        "shared": chance.one_in(3),
        "looks": 30 if chance.one_in(3) else 0,
    }
    if call in {"map", "do", "stream"}:
        plan |= random_source(chance, wild=wild)
    if has_block:
        plan["pace"] = chance.waits(2)
    if call == "stream":
        plan["ordered"] = chance.one_in(2)
        plan["buffer"] = chance.choice((None, 0, 0, 1, 2, inf))
    if call == "open_group" and chance.one_in(4):
        plan["leaving"] = "wait"
    if wild:
        plan |= random_end(chance, call)
    if (plan["shared"] or has_block) and chance.one_in(2):
        plan["changes"] = random_changes(chance)
    if (plan["shared"] or has_block) and chance.one_in(2):
        plan["borrows"] = tuple((chance.when(), chance.wait()) for _ in range(chance.randint(1, 2)))
    return Plan(call, **plan)


def random_items(chance, call, *, wild):
    size = chance.randint(0, 6) if chance.one_in(3) else chance.randint(3, 6)
    risk = chance.choice((0, 0.2, 0.5)) if wild else chance.choice((0, 0, 0.2))
    jobs = 2 if call == "open_group" else 0
    items = [random_item(chance, risk, jobs=jobs, wild=wild) for _ in range(size)]
    if call == "run_graph":
        places = chance.sample(range(size), size)
        for number, place in enumerate(places):
            needs = tuple(other for other in places[:number] if chance.one_in(2.5))
            items[place] = replace(items[place], needs=needs, settled=bool(needs) and chance.one_in(3))
    return tuple(items)


def random_item(chance, risk, *, jobs=0, wild=False, inner=True):
    item = {
        "waits": chance.waits(2),
        "fails": chance.random() < risk,
        "fatal": chance.one_in(4),
        "if_cancelled": chance.choice(("stop", "stop", "fail", "succeed", "shield")),
        "sets": chance.one_in(8),
    }
    if chance.one_in(8):
        item["leaves"] = chance.choice(("scope", "shield", "cancelled", "expiring"))
    if wild and chance.one_in(40):
        item |= chance.choice(({"quits": True}, {"leaves": "nursery"}, {"stops": True}))
    if inner and chance.one_in(20):
        items = tuple(random_item(chance, risk, inner=False) for _ in range(chance.randint(1, 3)))
        item["inner"] = Plan("map", items, limit=chance.randint(1, 2), policy=random_policy(chance, "map"))
    if jobs and chance.one_in(3):
        item["jobs"] = tuple(random_item(chance, risk, jobs=jobs - 1, wild=wild) for _ in range(chance.randint(1, 2)))
    return Item(**item)


def random_policy(chance, call):
    policies = [FailFast(), FailFast(), Collect(), Collect(max_failures=chance.randint(1, 2))]
    if call != "do":
        policies += [Settle(), Settle()]
    if call in {"map", "fan_out"}:
        policies += [FirstSuccess(), FirstSuccess()]
    if call in {"map", "fan_out", "run_graph"}:
        policies.append(Settle(move_on_after=chance.choice((0, 1, 1.5))))
    return chance.choice(policies)


def random_source(chance, *, wild):
    source = {"source": chance.choice(("list", "generator", "async generator", "async iterator", "timed"))}
    if source["source"] not in {"list", "generator"}:
        source["delays"] = chance.waits(3)
    if wild and chance.one_in(5):
        source["source_error"] = True
    if wild and chance.one_in(10):
        source["stopped_by"] = chance.randint(0, 4)
    return source


def random_end(chance, call):
    """What ends a run early."""
    end = {}
    if chance.one_in(2):
        end["cancelled"] = chance.when()
    if call in {"stream", "open_group"} and chance.one_in(3):
        end["stopped"] = chance.when()
    if call == "stream" and chance.one_in(2):
        end["leaving"] = chance.choice(("break", "raise", "stop", "aclose"))
        end["reads"] = chance.randint(0, 3)
    if call == "open_group" and chance.one_in(2):
        end["leaving"] = chance.choice(("raise", "stop", "cancel"))
    return end


def random_changes(chance):
    """How tokens come and go. In the end there are some, or a run could not end."""
    changes = [(chance.when(), chance.choice((0, 0, 1, 2, 3))) for _ in range(chance.randint(1, 3))]
    return (*changes, (chance.when(), chance.randint(1, 3)))
