"""errors.md has an entry for every message that the package raises: the message, why, and what to do.

Messages are found in the source: what is assigned to `msg` or `takes`; what is passed to an exception as it is made, to
`sys.exit()`, or to `error()` of a parser; what a method returns that is raised by way of it; and what the `__str__` of
an exception says. A message may be a constant of its module. Parts that differ from case to case may be anything, so
the page shows a message as users see it. An entry begins with the message in backticks, then says **Why** and what to
**Do**.
"""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "trio_fanout"
PAGE = PROJECT / "docs" / "errors.md"
pytestmark = pytest.mark.skipif(not PACKAGE.exists(), reason="its source is not here")

NAMES = {"msg", "takes", "message"}
NOT_MESSAGES = re.compile(r"^(\W|\.\*)*(\w{0,3})(\W|\.\*)*$|object has no attribute|^module .* has no attribute")
"""What is put together from parts that are no words; and what Python says of any attribute."""


def text_of(node):
    """A pattern of the text that an expression makes, or None if it makes no text."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) if isinstance(part, ast.Constant) else ".*" for part in parts)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            texts = [text_of(left) or ".*", text_of(right) or ".*"]
            return None if texts == [".*", ".*"] else "".join(texts)
    return None


def name_of(called):
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def is_an_exception(called):
    return re.search(r"(Error|Exception|^SystemExit|^Unfinished|^NotAwaitable)$", name_of(called)) is not None


def texts_in(tree):
    """The nodes that messages are made by."""
    raised_by = {
        name_of(node.exc.args[0].func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and node.exc.args
        and isinstance(node.exc.args[0], ast.Call)
    }
    yield from returned_by(tree, {"_message"})
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMES:
                yield value
            case ast.Call(func=called, args=[first, *_]) if is_an_exception(called) or name_of(called) in {
                "error",
                "exit",
            }:
                yield first
            case ast.ClassDef() if any(is_an_exception(base) for base in node.bases):
                yield from returned_by(node, {"__str__"})
            case ast.ClassDef():
                yield from returned_by(node, raised_by)


def is_a_constant(node):
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None


def alternatives(node, constants):
    """The nodes of which an expression is one: both sides of a condition, and what a constant stands for."""
    match node:
        case ast.IfExp(body=one, orelse=other):
            yield from alternatives(one, constants)
            yield from alternatives(other, constants)
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case _:
            yield node


def returned_by(parent, names):
    for function in ast.walk(parent):
        if isinstance(function, ast.FunctionDef) and function.name in names:
            yield from (node.value for node in ast.walk(function) if isinstance(node, ast.Return))


def messages():
    """Each message as a pattern, and where it is made."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {node.target.id: node.value for node in tree.body if is_a_constant(node)}
        for node in chain.from_iterable(alternatives(node, constants) for node in texts_in(tree)):
            pattern = text_of(node)
            if pattern and not NOT_MESSAGES.search(re.sub(r"\\(.)", r"\1", pattern)):
                yield pattern, f"{path.relative_to(PROJECT)}:{node.lineno}"


MESSAGES = dict(messages())


def readable(pattern):
    return re.sub(r"\\(.)", r"\1", pattern.replace(".*", "..."))


def entries():
    """The message and the text of each entry."""
    for entry in re.findall(r"^- `.*\n(?:  .*\n|\n(?=  ))*", PAGE.read_text(), re.MULTILINE):
        yield re.match(r"- (`+) ?(.*?) ?\1(?!`)", entry)[2], entry


def test_messages_are_found():
    assert len(MESSAGES) > 40


def test_each_message_is_on_the_page():
    shown = [message for message, _ in entries()]
    missing = [
        f"{place}: {readable(pattern)}"
        for pattern, place in MESSAGES.items()
        if not any(re.fullmatch(pattern, message, re.DOTALL) for message in shown)
    ]
    assert missing == [], "docs/errors.md has no entry for:\n" + "\n".join(missing)


@pytest.mark.parametrize(("message", "entry"), [pytest.param(*entry, id=entry[0][:60]) for entry in entries()])
def test_each_entry_is_of_a_message_and_says_why_and_what_to_do(message, entry):
    assert any(re.fullmatch(pattern, message, re.DOTALL) for pattern in MESSAGES), f"nothing says {message!r} any more"
    assert re.search(r"\*\*Why:\*\* .*\*\*Do:\*\* ", entry, re.DOTALL), entry
