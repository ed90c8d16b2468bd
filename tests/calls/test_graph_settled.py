"""Settled steps of `run_graph`: they run when all their needs have ended, and are given outcomes."""

from __future__ import annotations

import contextvars
import math
import pickle
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import AlreadyUsedError, Error, Value
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import no_cycles, notes_of, nothing_left
from trio_fanout import Step

GOING_ON = pytest.mark.parametrize("policy", [fanout.Collect(), fanout.Settle()], ids=str)
POLICIES = pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Collect(), fanout.Settle()], ids=str)

var = contextvars.ContextVar("var")


class Steps:
    """Makes steps that take their time, and notes when each began and what it was given."""

    def __init__(self):
        self.began = {}
        self.given = {}

    def __call__(self, name, seconds=1, needs=(), *, error=None, settled=False):
        async def fn(*args):
            self.began[name] = trio.current_time()
            self.given[name] = args
            await trio.sleep(seconds)
            if error is not None:
                raise error
            return name

        return Step(fn, needs=needs, settled=settled)


@pytest.fixture
def step():
    return Steps()


async def same(*args):
    return args


async def outcomes_of(steps, policy, **options):
    """The outcome of each step that has one, whether the policy gives them back or raises."""
    try:
        results = await fanout.run_graph(steps, policy=policy, **options)
    except fanout.FanOutError as error:
        ends = {name: Value(value) for name, value in error.results.items()}
        return ends | {name: Error(failure) for name, failure in error.failures.items()}
    return results if isinstance(policy, fanout.Settle) else {name: Value(value) for name, value in results.items()}


# What it is given


@POLICIES
async def test_settled_step_is_given_values_of_needs_that_succeeded(policy):
    steps = {"a": Step(same), "b": Step(same), "all": Step(same, needs=("b", "a", "b"), settled=True)}
    ends = await outcomes_of(steps, policy)
    assert ends["all"] == Value((Value(()), Value(()), Value(())))


@GOING_ON
async def test_settled_step_is_given_outcomes_in_the_order_of_needs(policy, step, autojump_clock):
    error = ValueError("dead")
    await outcomes_of(
        {
            "answer": step("answer", 1, ["web", "dead", "wiki"], settled=True),
            "wiki": step("wiki", 1),
            "dead": step("dead", 2, error=error),
            "web": step("web", 3),
        },
        policy,
    )
    web, dead, wiki = step.given["answer"]
    assert (web, wiki) == (Value("web"), Value("wiki"))
    assert dead.error is error


async def test_outcome_of_none_is_a_value():
    steps = {"a": Step(trio.lowlevel.checkpoint), "b": Step(same, needs=("a",), settled=True)}
    assert (await fanout.run_graph(steps))["b"] == (Value(None),)


async def test_value_that_is_an_outcome_or_an_exception_is_a_value():
    error = ValueError("a value")

    async def give(value):
        return value

    steps = {
        "outcome": Step(partial(give, Error(error))),
        "exception": Step(partial(give, error)),
        "all": Step(same, needs=("outcome", "exception"), settled=True),
    }
    first, second = (await fanout.run_graph(steps, policy=fanout.Collect()))["all"]
    assert first == Value(Error(error))
    assert second == Value(error)


@GOING_ON
async def test_skipped_need_is_a_dependency_that_failed(policy, step, autojump_clock):
    error = ValueError("no plan")
    ends = await outcomes_of(
        {
            "plan": step("plan", error=error),
            "tool": step("tool", 1, ["plan"]),
            "answer": step("answer", 1, ["tool"], settled=True),
        },
        policy,
    )
    (tool,) = step.given["answer"]
    assert isinstance(tool.error, fanout.DependencyFailed)
    assert (tool.error.step, tool.error.dependency) == ("tool", "plan")
    assert tool.error.__cause__ is error
    assert ends["tool"].error is tool.error
    assert ends["answer"] == Value("answer")


@GOING_ON
async def test_each_settled_step_has_outcomes_of_its_own_to_unwrap(policy, autojump_clock):
    error = ValueError("dead")

    async def fail():
        raise error

    async def unwrap(end):
        with pytest.raises(ValueError, match="dead") as caught:
            end.unwrap()
        assert caught.value is error
        with pytest.raises(AlreadyUsedError):
            end.unwrap()

    ends = await outcomes_of(
        {
            "dead": Step(fail),
            "one": Step(unwrap, needs=("dead",), settled=True),
            "two": Step(unwrap, needs=("dead",), settled=True),
        },
        policy,
    )
    assert ends["one"] == ends["two"] == Value(None)


@GOING_ON
async def test_settled_step_that_raises_what_it_was_given_has_failed(policy):
    error = ValueError("dead")

    async def fail():
        raise error

    async def unwrap(end):
        return end.unwrap()

    ends = await outcomes_of({"dead": Step(fail), "next": Step(unwrap, needs=("dead",), settled=True)}, policy)
    assert ends["dead"].error is ends["next"].error is error


@POLICIES
async def test_settled_step_without_needs_is_a_step_like_others(policy):
    assert await outcomes_of({"a": Step(same, settled=True)}, policy) == {"a": Value(())}


# When it runs


@GOING_ON
async def test_settled_step_starts_when_the_last_need_has_ended_and_not_at_the_first_failure(
    policy, step, autojump_clock
):
    await outcomes_of(
        {
            "dead": step("dead", 1, error=ValueError("dead")),
            "slow": step("slow", 5),
            "answer": step("answer", 1, ["dead", "slow"], settled=True),
        },
        policy,
    )
    assert step.began["answer"] == 5
    assert trio.current_time() == 6


@GOING_ON
async def test_settled_step_starts_as_the_failure_of_the_last_need_ends_it(policy, step, autojump_clock):
    await outcomes_of(
        {
            "answer": step("answer", 1, ["quick", "dead"], settled=True),
            "quick": step("quick", 1),
            "dead": step("dead", 3, error=ValueError("dead")),
            "other": step("other", 9),
        },
        policy,
    )
    assert step.began["answer"] == 3


@GOING_ON
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
async def test_settled_step_waits_for_its_token_in_the_order_of_the_mapping(policy, shared, step, autojump_clock):
    limit = trio.CapacityLimiter(1) if shared else 1
    with nothing_left(*[limit] if shared else []):
        await outcomes_of(
            {
                "dead": step("dead", error=ValueError("dead")),
                "first": step("first"),
                "answer": step("answer", 1, ["dead"], settled=True),
                "last": step("last"),
            },
            policy,
            limit=limit,
        )
    assert step.began == {"dead": 0, "first": 1, "answer": 2, "last": 3}


@GOING_ON
async def test_chain_of_settled_steps_each_of_which_fails(policy, step, autojump_clock):
    errors = [ValueError(n) for n in range(50)]
    ends = await outcomes_of(
        {n: step(n, 1, [n - 1] if n else [], error=errors[n], settled=True) for n in reversed(range(50))}, policy
    )
    assert [ends[n].error for n in range(50)] == errors
    assert [step.given[n][0].error for n in range(1, 50)] == errors[:-1]
    assert trio.current_time() == 50


@GOING_ON
async def test_time_limit_of_a_need_is_an_outcome_and_holds_for_the_settled_step_too(policy, step, autojump_clock):
    ends = await outcomes_of(
        {
            "hangs": step("hangs", math.inf),
            "answer": step("answer", 1, ["hangs"], settled=True),
            "slow": step("slow", 9, ["hangs"], settled=True),
        },
        policy,
        item_timeout=2,
    )
    assert isinstance(step.given["answer"][0].error, trio.TooSlowError)
    assert ends["answer"] == Value("answer")
    assert isinstance(ends["slow"].error, trio.TooSlowError)
    assert trio.current_time() == 4


@POLICIES
async def test_settled_step_runs_in_a_context_of_its_own_and_in_a_task_that_is_named_like_it(policy):
    var.set("the caller's")
    names = []

    async def look(*ends):
        names.append(trio.lowlevel.current_task().name)
        assert var.get() == "the caller's"
        var.set("the step's")

    await outcomes_of({"a": Step(look), "b": Step(look, needs=("a",), settled=True)}, policy)
    assert names == ["run_graph(a)", "run_graph(b)"]
    assert var.get() == "the caller's"


# What depends on it


@GOING_ON
async def test_step_after_a_settled_one_is_given_its_result(policy, step, autojump_clock):
    ends = await outcomes_of(
        {
            "dead": step("dead", error=ValueError("dead")),
            "rank": step("rank", 1, ["dead"], settled=True),
            "answer": step("answer", 1, ["rank"]),
        },
        policy,
    )
    assert step.given["answer"] == ("rank",)
    assert ends["answer"] == Value("answer")


@GOING_ON
async def test_step_after_a_settled_one_that_failed_is_skipped(policy, step, autojump_clock):
    error = LookupError("nothing found")
    ends = await outcomes_of(
        {
            "dead": step("dead", error=ValueError("dead")),
            "rank": step("rank", 1, ["dead"], settled=True, error=error),
            "answer": step("answer", 1, ["rank"]),
        },
        policy,
    )
    assert isinstance(ends["answer"].error, fanout.DependencyFailed)
    assert ends["answer"].error.dependency == "rank"
    assert ends["answer"].error.__cause__ is error
    assert "answer" not in step.began


@GOING_ON
async def test_plain_step_is_skipped_beside_a_settled_one_with_the_same_needs(policy, step, autojump_clock):
    ends = await outcomes_of(
        {
            "dead": step("dead", error=ValueError("dead")),
            "plain": step("plain", 1, ["dead"]),
            "settled": step("settled", 1, ["dead"], settled=True),
        },
        policy,
    )
    assert isinstance(ends["plain"].error, fanout.DependencyFailed)
    assert ends["settled"] == Value("settled")
    assert list(step.began) == ["dead", "settled"]


# FailFast


async def test_under_fail_fast_a_failure_ends_the_run_all_the_same(step, autojump_clock):
    error = ValueError("dead")
    with nothing_left(), pytest.raises(ValueError, match="dead") as caught:
        await fanout.run_graph(
            {
                "web": step("web", 5),
                "dead": step("dead", 1, error=error),
                "answer": step("answer", 1, ["web", "dead"], settled=True),
                "alone": step("alone", 1, ["dead"], settled=True),
            }
        )
    assert caught.value is error
    assert notes_of(error) == ["step 'dead'"]
    assert error.__context__ is None
    assert list(step.began) == ["web", "dead"]
    assert trio.current_time() == 1


async def test_under_fail_fast_the_failure_of_a_settled_step_is_raised(step, autojump_clock):
    error = ValueError("no answer")
    with pytest.raises(ValueError, match="no answer") as caught:
        await fanout.run_graph({"a": step("a"), "answer": step("answer", 1, ["a"], settled=True, error=error)})
    assert caught.value is error
    assert notes_of(error) == ["step 'answer'"]


# Collect


async def test_collect_raises_the_failures_of_needs_though_the_settled_step_succeeded(step, autojump_clock):
    dead = ValueError("dead")
    with nothing_left(), pytest.raises(fanout.FanOutError) as caught:
        await fanout.run_graph(
            {
                "answer": step("answer", 1, ["web", "dead"], settled=True),
                "web": step("web"),
                "dead": step("dead", error=dead),
            },
            policy=fanout.Collect(),
        )
    assert caught.value.indices == ("dead",)
    assert caught.value.failures == {"dead": dead}
    assert caught.value.results == {"answer": "answer", "web": "web"}
    assert caught.value.total == 3


async def test_settled_step_runs_while_fewer_fail_than_cancel_the_run(step, autojump_clock):
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.run_graph(
            {
                "dead": step("dead", error=ValueError("dead")),
                "skipped": step("skipped", 1, ["dead"]),  # does not count
                "answer": step("answer", 1, ["dead", "skipped"], settled=True),
            },
            policy=fanout.Collect(max_failures=2),
        )
    assert caught.value.indices == ("dead", "skipped")
    assert caught.value.results == {"answer": "answer"}


async def test_failure_of_a_settled_step_counts_towards_those_that_cancel_the_run(step, autojump_clock):
    with nothing_left(), pytest.raises(fanout.FanOutError) as caught:
        await fanout.run_graph(
            {
                "dead": step("dead", error=ValueError("dead")),
                "answer": step("answer", 1, ["dead"], settled=True, error=ValueError("no answer")),
                "slow": step("slow", 9),
            },
            policy=fanout.Collect(max_failures=2),
        )
    assert caught.value.indices == ("dead", "answer")
    assert trio.current_time() == 2


async def test_failure_that_cancels_the_run_starts_no_settled_step(step, autojump_clock):
    """It has no outcome then, as any step that was not started; what depends on it alone has none either."""
    with nothing_left(), pytest.raises(fanout.FanOutError) as caught:
        await fanout.run_graph(
            {
                "web": step("web"),
                "dead": step("dead", 2, error=ValueError("dead")),
                "answer": step("answer", 1, ["web", "dead"], settled=True),
                "print": step("print", 1, ["answer"]),
                "mail": step("mail", 1, ["answer", "dead"]),
            },
            policy=fanout.Collect(max_failures=1),
        )
    assert caught.value.indices == ("dead", "mail")
    assert caught.value.failures["mail"].dependency == "dead"
    assert caught.value.results == {"web": "web"}
    assert caught.value.total == 5
    assert list(step.began) == ["web", "dead"]


# Settle(move_on_after=...)


async def test_agent_with_a_dead_tool_answers_in_time(step, autojump_clock):
    tools = ["web", "wiki", "code", "mail"]
    ends = await fanout.run_graph(
        {
            "plan": step("plan"),
            **{name: step(name, math.inf if name == "wiki" else 1, ["plan"]) for name in tools},
            "rank": step("rank", 1, tools, settled=True),
            "answer": step("answer", 1, ["rank"]),
        },
        policy=fanout.Settle(move_on_after=10),
        item_timeout=3,
    )
    assert ends.pop("wiki").error.__class__ is trio.TooSlowError
    assert ends == {name: Value(name) for name in ["plan", "web", "code", "mail", "rank", "answer"]}
    assert [isinstance(end, Value) for end in step.given["rank"]] == [True, False, True, True]
    assert trio.current_time() == 6


async def test_settled_step_whose_needs_have_not_ended_in_time_is_unfinished(step, autojump_clock):
    with nothing_left():
        ends = await fanout.run_graph(
            {
                "dead": step("dead", error=ValueError("dead")),
                "hangs": step("hangs", math.inf),
                "rank": step("rank", 1, ["dead", "hangs"], settled=True),
                "answer": step("answer", 1, ["rank"]),
            },
            policy=fanout.Settle(move_on_after=3),
        )
    unfinished = {name: ends[name].error for name in ("hangs", "rank", "answer")}
    assert {name: (type(error), error.index, error.started) for name, error in unfinished.items()} == {
        "hangs": (fanout.Unfinished, "hangs", True),
        "rank": (fanout.Unfinished, "rank", False),
        "answer": (fanout.Unfinished, "answer", False),
    }
    assert trio.current_time() == 3


async def test_settled_step_that_is_cut_short_is_unfinished_and_started(step, autojump_clock):
    ends = await fanout.run_graph(
        {
            "dead": step("dead", error=ValueError("dead")),
            "answer": step("answer", 9, ["dead"], settled=True),
        },
        policy=fanout.Settle(move_on_after=3),
    )
    assert type(ends["dead"].error) is ValueError
    assert type(ends["answer"].error) is fanout.Unfinished
    assert ends["answer"].error.started


async def test_settled_step_that_waits_for_a_token_in_vain_is_unfinished_and_not_started(step, autojump_clock):
    limiter = trio.CapacityLimiter(1)
    with nothing_left(limiter):
        ends = await fanout.run_graph(
            {
                "dead": step("dead", error=ValueError("dead")),
                "slow": step("slow", 9),
                "answer": step("answer", 1, ["dead"], settled=True),
            },
            policy=fanout.Settle(move_on_after=3),
            limit=limiter,
        )
    assert type(ends["answer"].error) is fanout.Unfinished
    assert not ends["answer"].error.started


async def test_failure_out_of_the_cancellation_starts_no_settled_step(step, autojump_clock):
    async def fail_when_cancelled():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("clean-up")

    ends = await fanout.run_graph(
        {"tidy": Step(fail_when_cancelled), "answer": step("answer", 1, ["tidy"], settled=True)},
        policy=fanout.Settle(move_on_after=3),
    )
    assert type(ends["tidy"].error) is KeyError
    assert type(ends["answer"].error) is fanout.Unfinished
    assert step.began == {}


# Messages


async def test_messages_name_steps(step, autojump_clock):
    ends = await fanout.run_graph(
        {
            "dead": step("dead", error=ValueError("dead")),
            "tool": step("tool", 1, ["dead"]),
            "slow": step("slow", 9),
            "plan": step("plan", 1, ["slow"], settled=True),
        },
        policy=fanout.Settle(move_on_after=3),
    )
    assert str(ends["tool"].error) == "step 'tool' was not run, because 'dead' failed"
    assert str(ends["slow"].error) == "step 'slow' was started but not finished in time"
    assert str(ends["plan"].error) == "step 'plan' was not started in time"
    assert str(pickle.loads(pickle.dumps(ends["plan"].error))) == str(ends["plan"].error)


# Cancellation


@POLICIES
async def test_cancellation_from_outside_ends_a_settled_step(policy, step, autojump_clock):
    with nothing_left(), trio.move_on_after(2) as scope:
        await fanout.run_graph({"a": step("a"), "b": step("b", 9, ["a"], settled=True)}, policy=policy)
    assert scope.cancelled_caught
    assert trio.current_time() == 2


@GOING_ON
async def test_nothing_is_left_for_the_garbage_collector(policy):
    async def fail():
        raise ValueError("dead")

    steps = {"dead": Step(fail), "skipped": Step(same, needs=("dead",))}
    steps["answer"] = Step(same, needs=("dead", "skipped"), settled=True)
    with no_cycles():
        await outcomes_of(steps, policy)


# Wrong use


@pytest.mark.parametrize("wrong", [None, 1, "yes", ()], ids=repr)
def test_settled_that_is_no_bool_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=r"^settled of a Step must be True or False, got"):
        Step(same, settled=wrong)


def test_settled_is_given_by_name():
    with pytest.raises(TypeError):
        Step(same, (), True)


def test_settled_is_part_of_what_a_step_is():
    settled = Step(same, ("a",), settled=True)
    assert settled.settled
    assert not Step(same).settled
    assert settled != Step(same, ("a",))
    assert pickle.loads(pickle.dumps(settled)) == settled


async def test_needs_of_a_settled_step_are_checked_before_anything_starts(step):
    with pytest.raises(ValueError, match=r"step 'b' needs 'c', which is not one of the steps"):
        await fanout.run_graph({"a": step("a"), "b": step("b", 1, ["c"], settled=True)})
    with pytest.raises(CycleError):
        await fanout.run_graph({"a": step("a", 1, ["b"]), "b": step("b", 1, ["a"], settled=True)})
    assert step.began == {}


# A model


@dataclass(frozen=True)
class Plan:
    """A graph, and how it is run. No two steps end at the same time: each takes a power of two of its own as well."""

    needs: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    fails: frozenset[int]
    settled: frozenset[int]
    policy: Any


@st.composite
def plans(draw):
    count = draw(st.integers(1, 9))
    some = st.frozensets(st.integers(0, count - 1))
    return Plan(
        needs=tuple(tuple(draw(st.lists(st.integers(0, n - 1), max_size=3))) if n else () for n in range(count)),
        seconds=tuple(draw(st.integers(1, 5)) + math.ldexp(1, -1 - n) for n in range(count)),
        fails=draw(some),
        settled=draw(some),
        policy=draw(
            st.builds(fanout.Collect, st.none() | st.integers(1, 4))
            | st.builds(fanout.Settle, st.none() | st.integers(1, 12).map(lambda whole: whole + math.ldexp(1, -20)))
        ),
    )


def ends_of(plan):
    """When each step is ready and ends with no limit, no most failures and no deadline, and how."""
    ready, ends, hows = [], [], []
    for n, needs in enumerate(plan.needs):
        ready.append(max((ends[need] for need in needs), default=0))
        skipped = n not in plan.settled and any(hows[need] != "value" for need in needs)
        hows.append("skipped" if skipped else "error" if n in plan.fails else "value")
        ends.append(ready[n] if skipped else ready[n] + plan.seconds[n])
    return ready, ends, hows


def simulate(plan):
    """When each step began, and how it ended, if it did: with "value", with "error", or the need that is to blame."""
    ready, ends, hows = ends_of(plan)
    cut = getattr(plan.policy, "move_on_after", None) or math.inf
    most = getattr(plan.policy, "max_failures", None)
    failed = sorted(end for end, how in zip(ends, hows, strict=True) if how == "error")
    if most is not None and len(failed) >= most:
        cut = failed[most - 1]
    began, ended = {}, {}
    for n, how in enumerate(hows):
        if how != "skipped" and ready[n] < cut:
            began[n] = ready[n]
            if ends[n] <= cut:
                ended[n] = how
        elif n not in plan.settled:
            blamed = [need for need in plan.needs[n] if ended.get(need, "value") != "value"]
            if blamed:
                ended[n] = blamed[0]
    return began, ended


@pytest.mark.slow
@settings(max_examples=300)
@given(plan=plans(), limit=st.sampled_from([math.inf, 40, 1, 2]))
def test_graph_with_settled_steps_does_as_the_simulation(plan, limit):
    uncut = plan.policy in (fanout.Collect(), fanout.Settle())
    trio.run(check, plan, limit if uncut else math.inf, clock=MockClock(autojump_threshold=0))


async def check(plan, limit):
    began, ended = simulate(plan)
    step = Steps()
    errors = {n: ValueError(n) for n in plan.fails}
    count = len(plan.needs)
    steps = {
        n: step(n, plan.seconds[n], plan.needs[n], error=errors.get(n), settled=n in plan.settled) for n in range(count)
    }
    with nothing_left():
        got = await outcomes_of(steps, plan.policy, limit=limit)
    if limit >= count:
        assert step.began == began
    assert step.began.keys() == began.keys()

    if isinstance(plan.policy, fanout.Settle):
        assert list(got) == list(range(count))
        for n in set(range(count)) - ended.keys():
            unfinished = got.pop(n).error
            assert type(unfinished) is fanout.Unfinished
            assert (unfinished.index, unfinished.started) == (n, n in began)
    assert got.keys() == ended.keys()
    for n, how in ended.items():
        if how == "value":
            assert got[n] == Value(n)
        elif how == "error":
            assert got[n].error is errors[n]
        else:
            assert (got[n].error.step, got[n].error.dependency) == (n, how)
            assert got[n].error.__cause__ is got[how].error
    for n, args in step.given.items():
        if n in plan.settled:
            assert list(map(type, args)) == [type(got[need]) for need in plan.needs[n]]
            assert all(
                arg == got[need] or arg.error is got[need].error for arg, need in zip(args, plan.needs[n], strict=True)
            )
        else:
            assert args == plan.needs[n]
