"""Mutation testing: small changes are made to the package, one at a time, and some test should fail for each.

A plugin of pytest, run by ``nox -s mutants``. It collects the suite once, finds out which tests run which lines, and
then forks for each mutant: the child puts the changed code into the existing function, and runs the tests of that line,
quickest first, until one fails. So a mutant costs little more than the tests that it needs, and functions with
decorators are changed, too, which tools that rewrite functions pass over.

A mutant that no test notices is printed, unless `survivors.toml` says why that is right. An entry of that file is
printed if there is no such mutant any more, or if a test notices it now: delete it. The command is not mutated, because
code that only a subprocess runs is not seen.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import gc
import itertools
import json
import os
import resource
import signal
import time
import tomllib
import traceback
import types
from pathlib import Path

import coverage
import pytest
import trio

PROTECTION = trio._core._ki._CODE_KI_PROTECTION_STATUS_WMAP  # functions that Ctrl-C does not interrupt

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "trio_fanout"
CACHE = HERE.parents[1] / ".mutants.json"
TROUBLE = HERE.parents[1] / ".mutants.log"
JUDGED = HERE / "survivors.toml"
ALARM = 15  # seconds that a test may take, and 20 times as long as it took before
CPU = 3  # the same of CPU time, for loops without an end

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [file for file in FILES if not file.startswith(("_cli/", "__main__"))]
SKIPPED = {"test_docs", "test_docstrings", "test_examples", "test_figures", "test_packaging"}  # and the command's

KILLED = ("killed", "killed by time")
SURVIVED = ("survived", "no test", "trouble")

OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip


# Which changes are made


class Mutant:
    """One change: `field` of `node` (or its `place`-th entry) becomes `new`."""

    def __init__(self, path, function, node, field, place, new, line, last):
        self.path, self.function, self.line, self.last = path, function, line, last
        self.node, self.field, self.place, self.new = node, field, place, new

    def __enter__(self):
        self.old = getattr(self.node, self.field)
        if self.place is None:
            setattr(self.node, self.field, self.new)
        else:
            changed = list(self.old)
            changed[self.place] = self.new
            setattr(self.node, self.field, changed)

    def __exit__(self, *args):
        setattr(self.node, self.field, self.old)

    def describe(self):
        """What it was and what it is, in one line, wherever the lines of the file move to."""
        shown = self.node if isinstance(self.node, (ast.expr, ast.keyword, ast.AugAssign, ast.Return)) else None
        if shown is None and self.place is None:
            shown = getattr(self.node, self.field)
        if shown is None:
            before = ast.unparse(getattr(self.node, self.field)[self.place])
            after = ast.unparse(self.new)
        else:
            before = ast.unparse(shown)
            with self:
                after = ast.unparse(self.node if shown is self.node else self.new)
        before, after = (" ".join(text.split()) for text in (before, after))
        return f"{self.path}: {self.function[0]}: {before} -> {after}"


def mutants_of(path, tree):
    """All changes to the functions of a module."""
    for function, qualname in functions_of(tree):
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        for node, line in [(function, function.lineno), *walk(function.body, function.lineno)]:
            for field, place, new in changes(node):
                statement = getattr(node, field)[place] if isinstance(new, ast.stmt) else node
                if isinstance(new, ast.AST):
                    ast.fix_missing_locations(ast.copy_location(new, statement))
                at = getattr(statement, "lineno", line)
                yield Mutant(path, (qualname, first), node, field, place, new, at, function.end_lineno)


def functions_of(tree, prefix=""):
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_overload(node):
            yield node, prefix + node.name


def is_overload(function):
    return any(ast.unparse(decorator) == "overload" for decorator in function.decorator_list)


def walk(body, line):
    """All nodes below, with the line of what is run, without annotations, docstrings and what only asserts."""
    for node in body:
        yield from walk_node(node, line)


def walk_node(node, line):
    if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    line = getattr(node, "lineno", line)
    yield node, line
    if isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "cast":
        yield from walk_node(node.args[1], line)  # the first is a type
        return
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_comment"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk_node(child, line)


def changes(node):
    """The field, the place in it and the new value of each change that is made to this node."""
    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                yield "ops", place, OTHER[type(op)]()
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if type(node.op) in OTHER:
            yield "op", None, OTHER[type(node.op)]()
        case ast.If() | ast.IfExp() | ast.While() if not isinstance(node.test, ast.Constant):
            yield "test", None, ast.UnaryOp(ast.Not(), node.test)
        case ast.Constant(value=bool()):
            yield "value", None, not node.value
        case ast.Constant(value=int() | float()):
            yield "value", None, node.value + 1
        case ast.Constant(value=str()):
            yield "value", None, f"XX{node.value}"
        case ast.JoinedStr():
            yield "values", None, [ast.copy_location(ast.Constant("XX"), node), *node.values]
        case ast.Assign() | ast.Return(value=ast.expr()):
            if not isinstance(node.value, ast.Constant):  # another constant would do
                yield "value", None, ast.Constant(None)
    for field in ("body", "orelse", "finalbody"):
        if isinstance(getattr(node, field, None), list):
            for place, statement in enumerate(getattr(node, field)):
                match statement:
                    case ast.Continue():
                        yield field, place, ast.Break()
                    case ast.Break():
                        yield field, place, ast.Continue()
                    case ast.Raise() | ast.AugAssign() | ast.Delete():
                        yield field, place, ast.Pass()
                    case ast.Expr(value=ast.Call() | ast.Await()):
                        yield field, place, ast.Pass()


# How they get into the functions


def code_of(code, function):
    """The code of a function (name, first line) within that of its module."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if (constant.co_qualname, constant.co_firstlineno) == function:
                return constant
            found = code_of(constant, function)
            if found is not None:
                return found
    return None


def put_in(mutant, tree):
    """Give each function object of this place the changed code."""
    filename = str(PACKAGE / mutant.path)
    with mutant:
        compiled = compile(tree, filename, "exec", flags=0x1000000, dont_inherit=True)  # annotations are not evaluated
    new = code_of(compiled, mutant.function)
    changed = 0
    gc.unfreeze()  # conftest.py hides from `gc` what lives as long as the suite
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename == filename:
            old = thing.__code__
            if (old.co_qualname, old.co_firstlineno) == mutant.function:
                thing.__code__ = new.replace(co_freevars=old.co_freevars)  # a code object of its own, for what follows
                with contextlib.suppress(KeyError):
                    PROTECTION[thing.__code__] = PROTECTION[old]
                changed += 1
    gc.freeze()
    return changed


# How the tests are run


def run_items(items, each=lambda item, took: None, durations=None):
    """The first item that fails, or None."""
    failed = []

    class Watch:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                failed.append(report.nodeid)

    plugins = items[0].config.pluginmanager
    plugins.unregister(name="terminalreporter")
    plugins.register(Watch())
    for item, following in itertools.zip_longest(items, items[1:]):
        if durations is not None:
            limit_time(20 * durations[item.nodeid])
        began = time.process_time()
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        except KeyboardInterrupt:
            failed.append(item.nodeid)
        each(item, time.process_time() - began)
        if failed and durations is not None:
            return failed[0]
    return failed or None


def limit_time(seconds):
    """Have the system end this process if the next test takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(ALARM + seconds))
    used = int(time.process_time() + CPU + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used, resource.RLIM_INFINITY))


def in_child(work):
    """The process id of a fork that does `work`, quietly."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        work()
    except (KeyboardInterrupt, pytest.exit.Exception):
        TROUBLE.write_text(traceback.format_exc())
        os._exit(1)
    except BaseException:  # noqa: BLE001
        TROUBLE.write_text(traceback.format_exc())
        os._exit(3)
    os._exit(0)


def map_lines(items, workers):
    """Which tests run which lines of the package, and how long they take, with no test among them that fails."""
    names = [item.nodeid for item in items]
    numbers = {name: number for number, name in enumerate(names)}
    parts = [(items[start::workers], CACHE.with_suffix(f".{start}")) for start in range(workers)]

    def measure(part, path):
        seen, durations = collections.defaultdict(list), {}
        cov = coverage.Coverage(data_file=None, config_file=False, include=[f"{PACKAGE}/*"], messages=False)
        cov.set_option("run:disable_warnings", ["no-data-collected"])

        def note(item, took):
            cov.stop()
            data = cov.get_data()
            durations[item.nodeid] = took
            for filename in data.measured_files():
                for line in data.lines(filename):
                    seen[f"{Path(filename).relative_to(PACKAGE)}:{line}"].append(numbers[item.nodeid])
            cov.erase()
            cov.start()

        cov.start()
        bad = run_items(part, note)
        cov.stop()
        path.write_text(json.dumps({"lines": seen, "durations": durations, "bad": bad or []}))

    pids = [in_child(lambda part=part, path=path: measure(part, path)) for part, path in parts]
    for pid in pids:
        os.waitpid(pid, 0)
    known = {"names": names, "lines": collections.defaultdict(list), "durations": {}, "bad": []}
    for _, path in parts:
        part = json.loads(path.read_text())
        path.unlink()
        for line, tests in part["lines"].items():
            known["lines"][line] += tests
        known["durations"] |= part["durations"]
        known["bad"] += part["bad"]
    CACHE.write_text(json.dumps(known))


def tests_of(mutant, known, budget):
    """The tests of its line, for `budget` seconds: first its module's own. Half of the time is for those that are quick
    and run what few run of its function, and half for those that run little besides, as tests of wrong arguments do.
    """
    durations, lines, (_, first) = known["durations"], known["lines"], mutant.function
    of_line = {line: lines.get(f"{mutant.path}:{line}", ()) for line in range(first, mutant.last + 1)}
    seen = next((of_line[line] for line in range(mutant.line, first, -1) if of_line[line]), ())
    score = dict.fromkeys(set(seen) - set(known["bad"]), 0.0)
    for tests in of_line.values():
        for test in tests:
            if test in score:
                score[test] += 1 / len(tests)
    own = f"/test_{Path(mutant.path).stem.strip('_')}"
    worth = sorted(score, key=lambda test: (own not in test, -score[test] / (0.02 + durations[test]), test))
    special = sorted(score, key=lambda test: (known["breadth"][test], test))
    chosen, total = {}, 0.0
    for order, until in ((worth, budget / 2), (special, budget)):
        for test in order:
            if test not in chosen and total + durations[test] <= until:
                chosen[test] = None
                total += durations[test]
    return [*chosen]


# The plugin


def pytest_addoption(parser):
    group = parser.getgroup("mutants")
    group.addoption("--mutate", default=",".join(MODULES), help="files of the package, separated by commas")
    group.addoption("--workers", type=int, default=os.cpu_count(), help="mutants at once")
    group.addoption("--budget", type=float, default=30, help="seconds of tests for each mutant")
    group.addoption("--known", action="store_true", help="use the map of lines to tests of the last time")
    # Written with `=`: pytest takes other words that are paths into account as it looks for its configuration.
    group.addoption(
        "--among", type=Path, help="only mutants that this file names, as the output of an earlier run does"
    )


def pytest_collection_modifyitems(items):
    items[:] = [
        item
        for item in items
        if item.path.parent.name != "command" and item.path.stem not in SKIPPED and not item.get_closest_marker("dask")
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    option = session.config.option
    by_name = {item.nodeid: item for item in session.items}
    known = known_of(session, by_name)
    if known["bad"]:
        print("these fail without any change, and are left out:", *known["bad"], sep="\n  ", flush=True)
    judged = {text for group in tomllib.loads(JUDGED.read_text())["judged"] for text in group["mutants"]}
    among = option.among.read_text() if option.among else None
    outcomes = collections.Counter()
    stale = {text for text in judged if text.partition(":")[0] not in FILES}
    for path in option.mutate.split(","):
        of_file, survivors = try_mutants(path, among, judged, by_name, known, option)
        print(f"{path}: {dict(of_file)}", flush=True)
        outcomes += of_file
        if among is None:
            stale |= {text for text in judged - survivors if text.startswith(f"{path}:")}
    total = outcomes.total() - outcomes["not put in"]
    killed = sum(outcomes[what] for what in KILLED)
    share = 100 * killed / max(total, 1)
    print(f"{killed} of {total} mutants killed, {share:.1f} %; of the others {outcomes['judged']} judged")
    if stale:
        print(f"to be deleted from {JUDGED.name}, as no such mutant survives:", *sorted(stale), sep="\n  ")
    session.testsfailed = sum(outcomes[what] for what in SURVIVED) + len(stale) + (not killed)
    return True


def known_of(session, by_name):
    """Which of these tests run which lines, by name."""
    option = session.config.option
    if not (option.known and CACHE.exists()):
        print(f"\nwhich of {len(by_name)} tests run which lines", flush=True)
        map_lines(session.items, option.workers)
    known = json.loads(CACHE.read_text())
    known["durations"] = {test: took for test, took in known["durations"].items() if test in by_name}
    for line, numbers in known["lines"].items():
        names = [known["names"][number] for number in numbers]
        known["lines"][line] = [name for name in names if name in by_name]
    known["breadth"] = collections.Counter(itertools.chain(*known["lines"].values()))
    return known


def try_mutants(path, among, judged, by_name, known, option):
    """How many mutants of a file came to which end, and those that survived, judged or not."""
    tree = ast.parse((PACKAGE / path).read_text())
    waiting = [mutant for mutant in mutants_of(path, tree) if among is None or mutant.describe() in among]
    running, outcomes, survivors = {}, collections.Counter(), set()
    while waiting or running:
        while waiting and len(running) < option.workers:
            mutant = waiting.pop(0)
            running[in_child(lambda: child(mutant, tree, by_name, known, option.budget))] = mutant  # noqa: B023
        pid, status = os.wait()
        mutant = running.pop(pid)
        what, text = outcome_of(status), mutant.describe()
        if what not in KILLED:
            survivors.add(text)
        if what in SURVIVED and text in judged:
            what = "judged"
        elif what in SURVIVED:
            print(f"  line {mutant.line}: {what}: {text}", flush=True)
        outcomes[what] += 1
    return outcomes, survivors


def child(mutant, tree, by_name, known, budget):
    if not put_in(mutant, tree):
        os._exit(4)
    tests = tests_of(mutant, known, budget)
    if not tests:
        os._exit(5)
    os._exit(1 if run_items([by_name[test] for test in tests], durations=known["durations"]) else 0)


def outcome_of(status):
    if os.WIFSIGNALED(status):
        return "killed by time" if os.WTERMSIG(status) in {signal.SIGALRM, signal.SIGXCPU} else "killed"
    return {0: "survived", 1: "killed", 3: "trouble", 4: "not put in", 5: "no test"}[os.WEXITSTATUS(status)]
