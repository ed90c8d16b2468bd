"""`run_graph`: order, results, failures and wrong use."""

import contextvars
import copy
import functools
import math
import pickle
from contextlib import suppress
from graphlib import CycleError
from types import MappingProxyType

import pytest
import trio
from outcome import Error, Value
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    DO_POLICIES,
    GROUP_POLICIES,
    LIMITS,
    Gauge,
    busy,
    fail_when_cancelled,
    leaves,
    limit_of,
    no_cycles,
    notes_of,
    nothing_left,
    task_names,
)
from trio_fanout import Step

var = contextvars.ContextVar("var")


class Steps:
    """Makes steps that take their time, and notes when each began."""

    def __init__(self):
        self.began = {}

    def __call__(self, name, seconds=1, needs=(), *, error=None):
        async def fn(*args):
            self.began[name] = trio.current_time()
            await trio.sleep(seconds)
            if error is not None:
                raise error
            return name

        return Step(fn, needs=needs)


@pytest.fixture
def step():
    return Steps()


async def same(*args):
    return args


async def fail(*args):
    await trio.lowlevel.checkpoint()
    raise ValueError("no")


# Results


async def test_results_are_passed_by_position_in_the_order_of_needs():
    async def constant(x):
        return x

    results = await fanout.run_graph(
        {
            "all": Step(same, needs=("c", "a", "b", "a")),
            "a": Step(functools.partial(constant, 1)),
            "b": Step(functools.partial(constant, 2)),
            "c": Step(same, needs=["b"]),
            "none": Step(same),
        }
    )
    assert results == {"all": ((2,), 1, 2, 1), "a": 1, "b": 2, "c": (2,), "none": ()}
    assert list(results) == ["all", "a", "b", "c", "none"]


async def test_a_result_of_none_is_passed_on():
    results = await fanout.run_graph({"a": Step(trio.lowlevel.checkpoint), "b": Step(same, needs=("a",))})
    assert results == {"a": None, "b": (None,)}


async def test_names_are_any_hashable_things():
    key = object()
    results = await fanout.run_graph(
        {key: Step(same), 3: Step(same, needs=(key,)), ("t", 1): Step(same, needs=(3, key))}
    )
    assert results == {key: (), 3: ((),), ("t", 1): (((),), ())}


async def test_any_mapping_and_any_iterable_of_needs_is_accepted():
    steps = MappingProxyType({"a": Step(same), "b": Step(same, needs=(name for name in "a"))})
    assert await fanout.run_graph(steps) == {"a": (), "b": ((),)}
    assert await fanout.run_graph(steps) == {"a": (), "b": ((),)}


async def test_a_mapping_changed_by_a_step_is_not_looked_at_again():
    async def change():
        steps.clear()

    steps = {"a": Step(change), "b": Step(same, needs=("a",))}
    assert await fanout.run_graph(steps, limit=1) == {"a": None, "b": (None,)}


@GROUP_POLICIES
async def test_an_empty_graph_is_a_checkpoint(shared, policy):
    limiter = trio.CapacityLimiter(0)
    with assert_checkpoints():
        assert await fanout.run_graph({}, policy=policy, limit=limiter if shared else 1) == {}
    with trio.CancelScope() as scope:
        scope.cancel()
        await fanout.run_graph({}, policy=policy)
    assert scope.cancelled_caught


@GROUP_POLICIES
async def test_steps_that_never_wait_are_a_checkpoint(policy):
    with assert_checkpoints():
        await fanout.run_graph({"a": Step(same), "b": Step(same, needs=("a",))}, policy=policy)


async def test_steps_that_never_wait_notice_cancellation():
    async def work(*args):
        busy(0.001)

    chain = {x: Step(work, needs=(x - 1,) if x else ()) for x in range(1000)}
    with trio.move_on_after(0.05) as scope:
        await fanout.run_graph(chain)
    assert scope.cancelled_caught


@pytest.mark.slow
async def test_a_large_graph():
    """100,000 steps and 300,000 edges."""
    count = 100_000

    async def add(*args):
        return 1 + max(args, default=0)

    steps = {x: Step(add, needs=[need for need in (x - 1, x // 2, x // 3) if 0 <= need < x]) for x in range(count)}
    results = await fanout.run_graph(steps)
    assert list(results.values()) == list(range(1, count + 1))


async def test_a_graph_of_many_steps_that_are_ready_at_once_needs_a_task_for_each_that_runs():
    peak = 0

    async def look(*args):
        nonlocal peak
        await trio.lowlevel.checkpoint()
        peak = max(peak, trio.lowlevel.current_statistics().tasks_living)

    before = trio.lowlevel.current_statistics().tasks_living
    steps = {"root": Step(look), **{x: Step(look, needs=("root",)) for x in range(1000)}}
    await fanout.run_graph(steps, limit=5)
    assert peak - before == 5


# When steps start


async def test_a_step_starts_when_its_own_needs_are_done(step, autojump_clock):
    """Level by level, it would take 20 seconds."""
    await fanout.run_graph(
        {
            "slow": step("slow", 10),
            "quick": step("quick", 1),
            "after quick": step("after quick", 10, ["quick"]),
            "after slow": step("after slow", 1, ["slow"]),
            "last": step("last", 1, ["after slow", "after quick"]),
        }
    )
    assert step.began == {"slow": 0, "quick": 0, "after quick": 1, "after slow": 10, "last": 11}
    assert trio.current_time() == 12


@LIMITS
async def test_never_more_steps_run_than_the_limit(limit, autojump_clock):
    gauge = Gauge()

    async def fn(*args):
        with gauge.running():
            await trio.sleep(1)

    steps = {"root": Step(fn), **{x: Step(fn, needs=("root",)) for x in range(7)}}
    with nothing_left():
        await fanout.run_graph(steps, limit=limit_of(limit))
    most = {1: 1, 3: 3, math.inf: 7, "shared 1": 1, "shared 3": 3}[limit]
    assert gauge.peak == most
    assert trio.current_time() == 1 + math.ceil(7 / most)


async def test_the_order_is_that_of_the_mapping_when_more_are_ready_than_tokens(shared, step, autojump_clock):
    await fanout.run_graph(
        {
            "e": step("e", 1, ["root"]),
            "late": step("late", 1, ["e"]),
            "c": step("c", 1, ["root"]),
            "a": step("a", 1, ["root"]),
            "root": step("root"),
            "z": step("z", 1, ["root"]),
            "free": step("free"),
        },
        limit=limit_of(1, shared),
    )
    assert list(step.began) == ["root", "e", "late", "c", "a", "z", "free"]
    assert trio.current_time() == 7


async def test_of_those_made_ready_together_the_first_in_the_mapping_starts_first(shared, step, autojump_clock):
    names = [7, 3, 9, 1, 5, 8]
    graph = {name: step(name, 1, ["root"]) for name in names}
    await fanout.run_graph({**graph, "root": step("root")}, limit=limit_of(3, shared))
    assert list(step.began) == ["root", *names]
    assert list(step.began.values()) == [0, 1, 1, 1, 2, 2, 2]


async def test_the_order_is_that_of_the_mapping_when_a_token_comes_free(step, autojump_clock):
    """Not that in which steps became ready: while `z` waits for a token of a shared limiter, `b` comes before it."""
    limiter = trio.CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("other")
    await fanout.run_graph({"a": step("a"), "b": step("b", 1, ["a"]), "z": step("z")}, limit=limiter)
    assert step.began == {"a": 0, "b": 1, "z": 2}


async def test_workers_come_back_when_one_step_makes_many_ready(step, autojump_clock):
    graph = {x: step(x) for x in range(4)}
    graph["middle"] = step("middle", 1, range(4))
    graph.update({x: step(x, 1, ["middle"]) for x in range(10, 14)})
    await fanout.run_graph(graph, limit=4)
    assert trio.current_time() == 3


async def test_a_shared_limiter_whose_tokens_change_in_number(step, autojump_clock):
    limiter = trio.CapacityLimiter(1)

    async def change():
        await trio.sleep(1.5)
        limiter.total_tokens = 0
        await trio.sleep(3.5)
        limiter.total_tokens = 2

    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await fanout.run_graph({x: step(x) for x in range(6)}, limit=limiter)
    assert list(step.began.values()) == [0, 1, 5, 5, 6, 6]


async def test_a_step_may_run_a_graph_on_a_limiter_of_its_own():
    limiter = trio.CapacityLimiter(1)

    async def nested(limit):
        return await fanout.run_graph({"inner": Step(same)}, limit=limit)

    graph = {"outer": Step(functools.partial(nested, 1))}
    assert await fanout.run_graph(graph, limit=limiter) == {"outer": {"inner": ()}}
    with pytest.raises(RuntimeError, match=r"CapacityLimiter.*run_graph\(outer\)"):
        await fanout.run_graph({"outer": Step(functools.partial(nested, limiter))}, limit=limiter)


async def test_a_graph_inside_a_job_inside_a_map_item(step, autojump_clock):
    async def item(x):
        async with fanout.open_group() as group:
            handle = group.start_soon(fanout.run_graph, {x: step(x), "b": Step(same, needs=(x,))})
        return handle.value

    assert await fanout.map(item, range(2)) == [{0: 0, "b": (0,)}, {1: 1, "b": (1,)}]


async def test_worker_tasks_carry_the_name_of_their_step():
    names = []

    async def look(*args):
        names.extend(task_names())

    await fanout.run_graph({"plan": Step(look)})
    assert "run_graph(plan)" in names


async def test_the_frames_of_a_step_are_visible():
    frames = []

    async def deep(task):
        await trio.lowlevel.checkpoint()
        frames.extend(frame.f_code.co_name for frame, _ in task.iter_await_frames())

    async def fn():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deep, trio.lowlevel.current_task())
            await trio.sleep(0.01)

    await fanout.run_graph({"a": Step(fn)})
    assert "fn" in frames


@LIMITS
async def test_variables_of_a_step_are_its_own(limit):
    var.set("the caller's")

    async def fn(*args):
        before = var.get()
        var.set("the step's")
        await trio.lowlevel.checkpoint()
        return before

    steps = {x: Step(fn, needs=(x // 2,) if x else ()) for x in range(10)}
    assert set((await fanout.run_graph(steps, limit=limit_of(limit))).values()) == {"the caller's"}
    assert var.get() == "the caller's"


# FailFast


async def test_fail_fast_raises_the_failure_unwrapped_and_starts_nothing_more(shared, step, autojump_clock):
    error = ValueError("no")
    with nothing_left(), pytest.raises(ValueError, match="no") as info:
        await fanout.run_graph(
            {
                "a": step("a", 5),
                "plan": step("plan", 1, error=error),
                "after": step("after", 1, ["plan"]),
                "b": step("b", 1, ["a"]),
                "queued": step("queued"),
            },
            limit=limit_of(2, shared),
        )
    assert info.value is error
    assert notes_of(error) == ["step 'plan'"]
    assert error.__context__ is None
    assert list(step.began) == ["a", "plan"]
    assert trio.current_time() == 1


async def test_fail_fast_raises_the_first_in_the_mapping_and_tells_of_the_others(autojump_clock):
    async def fail_at_once(what):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        raise ValueError(what)

    with pytest.raises(ValueError, match="one") as info:
        await fanout.run_graph(
            {
                "zero": Step(functools.partial(fail_when_cancelled, KeyError("clean-up"))),
                "one": Step(functools.partial(fail_at_once, "one")),
                ("two", 2): Step(functools.partial(fail_at_once, "two")),
            }
        )
    assert notes_of(info.value) == [
        "step 'one'",
        "step 'zero' also failed: KeyError: 'clean-up'",
        "step ('two', 2) also failed: ValueError: two",
    ]


async def test_a_time_out_is_a_failure_of_its_step(step, autojump_clock):
    with pytest.raises(trio.TooSlowError) as info:
        await fanout.run_graph({"a": step("a", 1), "b": step("b", 3, ["a"])}, item_timeout=2)
    assert notes_of(info.value) == ["step 'b'"]
    assert trio.current_time() == 3


# Collect


async def test_collect_runs_all_that_depends_on_no_failure(step, autojump_clock):
    error = ValueError("no")
    with nothing_left(), pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(
            {
                "report": step("report", 1, ["check", "pack"]),
                "pack": step("pack", 1, ["other", "build", "check"]),
                "other": step("other", 3),
                "check": step("check", 1, ["build"]),
                "build": step("build", 1, error=error),
                "docs": step("docs", 1, ["other"]),
            },
            policy=fanout.Collect(),
        )
    failed = info.value
    assert failed.indices == ("report", "pack", "check", "build")
    assert list(failed.failures) == ["report", "pack", "check", "build"]
    assert tuple(failed.failures.values()) == failed.exceptions
    assert failed.results == {"other": "other", "docs": "docs"}
    assert list(failed.results) == ["other", "docs"]
    assert failed.total == 6
    assert str(failed).startswith("4 of 6 items failed (3 DependencyFailed, 1 ValueError): 'report', 'pack', 'check', ")
    assert failed.failures["build"] is error
    told = {}
    for name in ("report", "pack", "check"):
        skipped = failed.failures[name]
        assert isinstance(skipped, fanout.DependencyFailed)
        assert skipped.step == name
        assert skipped.__cause__ is failed.failures[skipped.dependency]
        told[name] = skipped.dependency
    assert told == {"report": "check", "pack": "build", "check": "build"}
    assert list(step.began) == ["other", "build", "docs"]
    assert trio.current_time() == 4


async def test_the_dependency_named_is_the_first_of_the_needs_and_not_the_first_to_fail(step, autojump_clock):
    with pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(
            {
                "early": step("early", 1, error=ValueError("early")),
                "late": step("late", 2, error=ValueError("late")),
                "both": step("both", 1, ["late", "early"]),
            },
            policy=fanout.Collect(),
        )
    skipped = info.value.failures["both"]
    assert skipped.dependency == "late"
    assert str(skipped.__cause__) == "late"


async def test_skipped_steps_do_not_count_as_failures_that_cancel(step, autojump_clock):
    with pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(
            {
                "a": step("a", 1, error=ValueError()),
                **{x: step(x, 1, ["a"]) for x in range(5)},
                "b": step("b", 3),
                "c": step("c", 1, ["b"]),
            },
            policy=fanout.Collect(max_failures=2),
        )
    assert info.value.indices == ("a", 0, 1, 2, 3, 4)
    assert info.value.results == {"b": "b", "c": "c"}


async def test_the_most_failures_cancel_the_graph(step, autojump_clock):
    with nothing_left(), pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(
            {
                "x": step("x", 1, ["a"]),
                "ok": step("ok", 1),
                "a": step("a", 1, error=ValueError()),
                "b": step("b", 2, error=ValueError()),
                "slow": step("slow", 9),
                "y": step("y", 1, ["slow"]),
            },
            policy=fanout.Collect(max_failures=2),
        )
    assert info.value.indices == ("x", "a", "b")
    assert info.value.results == {"ok": "ok"}
    assert info.value.total == 6
    assert trio.current_time() == 2


async def test_a_step_that_raises_dependency_failed_itself_is_a_failure_like_any_other():
    own = fanout.DependencyFailed("mine", "yours")

    async def fn():
        raise own

    with pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph({"a": Step(fn), "b": Step(same, needs=("a",))}, policy=fanout.Collect(max_failures=1))
    assert info.value.failures["a"] is own
    assert info.value.failures["b"].__cause__ is own


async def test_the_error_can_be_split_pickled_and_copied(step, autojump_clock):
    with pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(
            {"a": step("a", 1, error=ValueError("no")), "b": step("b", 1, ["a"]), "c": step("c")},
            policy=fanout.Collect(),
        )
    error = info.value
    skipped, others = error.split(fanout.DependencyFailed)
    assert isinstance(skipped, fanout.FanOutError)
    assert isinstance(others, fanout.FanOutError)
    assert skipped.indices == ("b",)
    assert others.indices == ("a",)
    assert skipped.results == others.results == {"c": "c"}
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert again.indices == ("a", "b")
        assert again.results == {"c": "c"}
        assert again.total == 3
        assert (again.failures["b"].step, again.failures["b"].dependency) == ("b", "a")
        assert str(again) == str(error)
    assert "'b'" in str(error.failures["b"])
    assert "'a'" in str(error.failures["b"])


@pytest.mark.slow
async def test_a_long_chain_of_skipped_steps():
    steps = {0: Step(fail), **{x: Step(same, needs=(x - 1,)) for x in range(1, 10_000)}}
    with pytest.raises(fanout.FanOutError) as info:
        await fanout.run_graph(steps, policy=fanout.Collect(max_failures=1))
    assert len(info.value.failures) == 10_000
    assert len(str(info.value)) < 200
    outcomes = await fanout.run_graph(steps, policy=fanout.Settle())
    assert all(isinstance(outcome, Error) for outcome in outcomes.values())


# Settle


async def test_settle_gives_an_outcome_for_each_step(step, autojump_clock):
    error = ValueError("no")
    outcomes = await fanout.run_graph(
        {"b": step("b", 1, ["a"]), "a": step("a", 1, error=error), "c": step("c")}, policy=fanout.Settle()
    )
    assert list(outcomes) == ["b", "a", "c"]
    assert outcomes["c"] == Value("c")
    assert isinstance(outcomes["a"], Error)
    assert outcomes["a"].error is error
    assert isinstance(outcomes["b"], Error)
    assert isinstance(outcomes["b"].error, fanout.DependencyFailed)
    assert outcomes["b"].error.__cause__ is error


async def test_settle_moves_on_when_the_time_is_up(shared, step, autojump_clock):
    with nothing_left():
        outcomes = await fanout.run_graph(
            {
                "done": step("done", 1),
                "failed": step("failed", 1, error=ValueError()),
                "slow": step("slow", 9, ["done"]),
                "skipped": step("skipped", 1, ["slow", "failed"]),
                "waiting": step("waiting", 1, ["slow"]),
                "running": step("running", 9),
                "queued": step("queued", 9),
            },
            policy=fanout.Settle(move_on_after=3),
            limit=limit_of(2, shared),
        )
    assert trio.current_time() == 3
    assert outcomes["done"] == Value("done")
    assert type(outcomes["failed"].error) is ValueError
    assert type(outcomes["skipped"].error) is fanout.DependencyFailed
    assert outcomes["skipped"].error.dependency == "failed"
    unfinished = {name: outcomes[name].error for name in ("slow", "waiting", "running", "queued")}
    assert all(type(error) is fanout.Unfinished for error in unfinished.values())
    assert [error.index for error in unfinished.values()] == list(unfinished)
    started = {name: error.started for name, error in unfinished.items()}
    assert started == {"slow": True, "waiting": False, "running": True, "queued": False}


async def test_settle_with_no_time_at_all(step, autojump_clock):
    outcomes = await fanout.run_graph({"a": step("a"), "b": step("b", 1, ["a"])}, policy=fanout.Settle(move_on_after=0))
    assert list(outcomes) == ["a", "b"]
    assert all(isinstance(outcome, Error) for outcome in outcomes.values())
    assert trio.current_time() == 0


async def test_a_step_that_waits_for_a_token_counts_as_not_started(step, autojump_clock):
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("other")
    outcomes = await fanout.run_graph({"a": step("a")}, policy=fanout.Settle(move_on_after=1), limit=limiter)
    assert outcomes["a"].error.started is False


# Cancellation and interrupts


@GROUP_POLICIES
async def test_cancellation_from_outside_is_prompt_and_propagates(shared, policy, step, autojump_clock):
    with nothing_left(), trio.move_on_after(3) as scope:
        await fanout.run_graph(
            {"a": step("a", 1), "b": step("b", 9, ["a"]), "c": step("c", 9), "d": step("d", 1, ["b"]), "e": step("e")},
            limit=limit_of(2, shared),
            policy=policy,
        )
    assert scope.cancelled_caught
    assert trio.current_time() == 3
    assert list(step.began) == ["a", "c", "b"]


@DO_POLICIES
async def test_a_failure_outranks_a_cancellation_from_outside(policy, autojump_clock):
    steps = {"a": Step(functools.partial(fail_when_cancelled, KeyError)), "b": Step(same, needs=("a",))}
    with trio.move_on_after(1) as scope, pytest.raises((KeyError, fanout.FanOutError)) as info:
        await fanout.run_graph(steps, policy=policy)
    assert not scope.cancelled_caught
    assert type(leaves(info.value)[0]) is KeyError


async def test_under_settle_the_cancellation_outranks_failures(step, autojump_clock):
    with trio.move_on_after(2) as scope:
        await fanout.run_graph(
            {"a": step("a", 1, error=ValueError()), "b": step("b", 1, ["a"]), "c": step("c", 9)}, policy=fanout.Settle()
        )
    assert scope.cancelled_caught


@GROUP_POLICIES
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_interrupt_in_a_step_propagates_unwrapped(cancelled, interrupt, shared, policy, step, autojump_clock):
    error = interrupt("stop")

    async def stop(name):
        try:
            await trio.sleep(9 if cancelled else 1.5)
        finally:
            raise error

    with nothing_left(), trio.move_on_after(3) as scope:
        with pytest.raises(interrupt) as info:
            await fanout.run_graph(
                {
                    "a": step("a", 1),
                    "stop": Step(stop, needs=("a",)),
                    "failed": step("failed", 1.5 if policy != fanout.FailFast() else 9, error=ValueError()),
                    "skipped": step("skipped", 1, ["failed"]),
                    "after": step("after", 1, ["stop"]),
                },
                limit=limit_of(2, shared),
                policy=policy,
            )
        assert info.value is error
        chain = [error]
        while chain[-1].__context__ is not None:
            chain.append(chain[-1].__context__)
        told = [type(leaf) for link in chain for leaf in leaves(link)]
        assert policy == fanout.FailFast() or ValueError in told
    assert not scope.cancelled_caught
    assert trio.current_time() == (3 if cancelled else 2.5)


# Wrong use


@pytest.mark.parametrize("steps", [None, 3, "steps", [("a", Step(same))], {"a", "b"}, same])
async def test_steps_that_are_no_mapping_are_a_type_error(steps):
    with pytest.raises(TypeError, match=r"^steps must be a mapping"):
        await fanout.run_graph(steps)


@pytest.mark.parametrize("wrong", [same, None, (same, ("a",)), Step])
async def test_values_that_are_no_steps_are_a_type_error(wrong):
    with pytest.raises(TypeError, match=r"Step.*'second'"):
        await fanout.run_graph({"first": Step(same), "second": wrong})


@pytest.mark.parametrize("needs", ["plan", b"plan", "", 3, None])
def test_needs_that_are_a_string_or_no_iterable_are_a_type_error(needs):
    with pytest.raises(TypeError, match=r"^needs of a Step must be an iterable of names"):
        Step(same, needs=needs)


def test_a_step_of_no_function_is_a_type_error():
    with pytest.raises(TypeError, match=r"^fn of a Step must be an async function, got 3"):
        Step(3)
    with pytest.raises(TypeError, match="without calling it"):
        Step(same())


def test_a_step_is_a_value():
    step = Step(same, needs=["a", "b"])
    assert step.needs == ("a", "b")
    assert step == Step(same, ("a", "b"))
    assert hash(step) == hash(Step(same, ("a", "b")))
    assert pickle.loads(pickle.dumps(step)) == step
    with pytest.raises(AttributeError):
        step.needs = ()


@GROUP_POLICIES
async def test_an_unknown_need_is_a_value_error_that_names_both(policy, step):
    with pytest.raises(ValueError, match=r"'plan'.*'hotel'"):
        await fanout.run_graph({"hotels": step("hotels"), "plan": step("plan", 1, ["hotels", "hotel"])}, policy=policy)
    assert step.began == {}


@GROUP_POLICIES
async def test_a_cycle_is_told_by_names(policy, step):
    with pytest.raises(CycleError) as info:
        await fanout.run_graph(
            {
                "free": step("free"),
                "a": step("a", 1, ["free", "c"]),
                "b": step("b", 1, ["a"]),
                "c": step("c", 1, ["b"]),
                "after": step("after", 1, ["c"]),
            },
            policy=policy,
        )
    cycle = info.value.args[1]
    assert cycle[0] == cycle[-1]
    assert sorted(cycle[1:]) == ["a", "b", "c"]
    assert "".join(cycle[1:]) in "abcabc"  # each is needed by the next, as graphlib has it
    assert "cycle" in str(info.value)
    assert info.value.__context__ is None or info.value.__suppress_context__
    assert step.began == {}


async def test_a_step_that_needs_itself_is_a_cycle(step):
    with pytest.raises(CycleError) as info:
        await fanout.run_graph({"a": step("a", 1, ["a"])})
    assert info.value.args[1] == ["a", "a"]


@pytest.mark.parametrize("policy", [fanout.FirstSuccess(), fanout.Collect, None])
async def test_wrong_policies_are_type_errors(policy, step):
    with pytest.raises(TypeError, match=r"^policy of run_graph must be"):
        await fanout.run_graph({"a": step("a")}, policy=policy)
    assert step.began == {}


@GROUP_POLICIES
async def test_wrong_limits_and_timeouts_raise_at_once(policy, step):
    graph = {"a": step("a")}
    with pytest.raises(TypeError, match=r"^limit must be"):
        await fanout.run_graph(graph, limit=2.5, policy=policy)
    with pytest.raises(ValueError, match=r"^limit must be"):
        await fanout.run_graph(graph, limit=0, policy=policy)
    with pytest.raises(ValueError, match=r"^item_timeout must be"):
        await fanout.run_graph(graph, item_timeout=0, policy=policy)
    assert step.began == {}


@GROUP_POLICIES
async def test_a_function_that_returns_no_awaitable_is_wrong_use(policy, step):
    with nothing_left(), pytest.raises(TypeError, match=r"run_graph\(b\).*in_thread"):
        await fanout.run_graph({"a": Step(same), "b": Step(len, needs=("a",)), "c": step("c", 99)}, policy=policy)


async def test_wrong_arguments_are_a_failure_of_the_step():
    async def no_arguments(): ...

    with pytest.raises(TypeError, match="positional argument") as info:
        await fanout.run_graph({"a": Step(same), "b": Step(no_arguments, needs=("a",))})
    assert notes_of(info.value) == ["step 'b'"]


# What is left behind

ENDS = ["success", "failure", "interrupt", "timeout", "outside", "cycle", "unknown"]


async def attempt(kind, policy, limit):
    """One graph, and nothing kept of it."""

    async def fn(x, *args):
        await trio.sleep(x % 3)
        if x == 6 and kind == "failure":
            raise ValueError(x)
        if x == 6 and kind == "interrupt":
            raise KeyboardInterrupt
        if x >= 6 and kind in ("timeout", "outside"):
            await trio.sleep_forever()
        return x

    steps = {x: Step(functools.partial(fn, x), needs=[need for need in (x - 3, x - 5) if need >= 0]) for x in range(12)}
    if kind == "cycle":
        steps[0] = Step(fn, needs=(11,))
    if kind == "unknown":
        steps[0] = Step(fn, needs=(99,))
    with trio.move_on_after(20 if kind == "outside" else 1000):
        with suppress(Exception, KeyboardInterrupt):
            await fanout.run_graph(steps, limit=limit, policy=policy, item_timeout=5 if kind == "timeout" else None)


@pytest.mark.parametrize(
    "policy", [fanout.FailFast(), fanout.Collect(), fanout.Settle(), fanout.Settle(move_on_after=3)], ids=str
)
@pytest.mark.parametrize("kind", ENDS)
async def test_no_reference_cycle_is_left(kind, policy, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    await attempt(kind, policy, 3)  # what is made once and kept forever is no leak
    for limit in (3, limiter):
        with no_cycles(), nothing_left(limiter):
            await attempt(kind, policy, limit)


async def test_a_waiting_graph_is_cancelled_where_it_waits_for_tokens():
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("other")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.run_graph, {"a": Step(same)}, limit=limiter))
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 1
        nursery.cancel_scope.cancel()
    assert limiter.statistics().tasks_waiting == 0


async def test_steps_are_known_by_the_names_that_the_mapping_shows():
    """A mapping that folds case finds `A` for `a`; the graph does not."""

    class Folding(dict):
        def __contains__(self, key):
            return super().__contains__(str(key).lower())

        def __getitem__(self, key):
            return super().__getitem__(key.lower())

    async def one():
        return 1

    async def increment(number):
        return number + 1

    with pytest.raises(ValueError, match="step 'b' needs 'A', which is not one of the steps"):
        await fanout.run_graph(Folding(a=fanout.Step(one), b=fanout.Step(increment, needs=("A",))))
    assert await fanout.run_graph(Folding(a=fanout.Step(one), b=fanout.Step(increment, needs=("a",)))) == {
        "a": 1,
        "b": 2,
    }
