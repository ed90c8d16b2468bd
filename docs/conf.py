"""How the site is built: `nox -s docs`."""

from __future__ import annotations

import inspect
import re
from html import escape
from importlib.metadata import version as version_of
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_overloads

from docutils import nodes
from sphinx.addnodes import pending_xref

import trio_fanout

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent

project = "trio-fanout"
author = "The contributors to trio-fanout"
project_copyright = author
release = version_of("trio-fanout")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True

# Docstrings: a name in single backticks is a link where there is something to link to.
default_role = "obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def names_of_arguments() -> set[str]:
    """What docstrings have in single backticks besides names to link to."""
    public = [getattr(trio_fanout, name) for name in trio_fanout.__all__]
    members = [member for thing in public if isinstance(thing, type) for member in vars(thing).values()]
    return {
        name
        for thing in [*public, *members]
        if callable(thing)
        for name in inspect.signature(inspect.unwrap(thing)).parameters
    }


nitpick_ignore = [("py:obj", name) for name in names_of_arguments() | {"total_tokens"}]
nitpick_ignore_regex = [
    ("py:obj", r"trio_parallel\..*|trio-parallel|cache_scope"),  # it has no inventory
    ("py:class", r"(trio_fanout\._\w+\.)?([A-Z]|[A-Z][a-z]|[A-Z]_co|NameT|ItemT|ValueT)"),  # type variables
    (
        "py:class",
        r"AbstractAsyncContextManager|Executor|Outcome|trio_fanout\._stream\.Completed",
    ),  # as they are imported
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Just what is referred to here, from files: a build needs no network. A name that is missing there is a warning.
intersphinx_mapping = {
    name: (url, f"inventories/{name}.inv")
    for name, url in {
        "python": "https://docs.python.org/3",
        "trio": "https://trio.readthedocs.io/en/stable",
        "outcome": "https://outcome.readthedocs.io/en/stable",
    }.items()
}

copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"trio-fanout {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "tango"
pygments_dark_style = "monokai"


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Make a public name in backticks a link, as it is in docstrings: `map`, `fanout.map(...)`, `trio.CancelScope`."""
    if app.env.docname == "command":  # whose `map` is another
        return
    for code in list(doctree.findall(nodes.literal)):
        match = re.fullmatch(r"(?:fanout\.)?([\w.]+)(?:\([^()]*\))?", code.astext())
        if match is None or isinstance(code.parent, (nodes.title, nodes.reference, pending_xref)):
            continue
        target = match[1]
        if target.partition(".")[0] in trio_fanout.__all__:
            target = f"trio_fanout.{target}"
        if target.startswith(("trio.", "trio_fanout.")):
            link = pending_xref(refdomain="py", reftype="obj", reftarget=target, refdoc=app.env.docname)
            code.replace_self(link)
            link += code


def readable_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Leave out what nobody calls; for what a policy decides, say all that may be returned."""
    if isinstance(thing, type) and (type(thing).__name__ == "NoPublicConstructor" or issubclass(thing, Exception)):
        return "", None  # only the package makes them
    if what == "function":
        fn = inspect.unwrap(thing)
        written = SimpleNamespace(__module__=fn.__globals__["__name__"], __qualname__=fn.__qualname__)
        results = dict.fromkeys(str(overload.__annotations__["return"]) for overload in get_overloads(written))
        result = " | ".join(results) or result
    return arguments and arguments.replace("tuple[Any, ...]", "tuple"), result


def readable_types(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Of an attribute's type, `Any` says nothing: an index is an int or, for a graph, the name of a step."""
    for number, line in reversed(list(enumerate(lines))):
        if re.fullmatch(r"\s*:type: Any", line):
            del lines[number]
        elif ":type:" in line:
            lines[number] = re.sub(r"\[[^]]*\bAny\b[^]]*\]", "", line)


def inline_pictures(app: Sphinx, doctree: nodes.document, _: str) -> None:
    """Put pictures and plots into the page, where their text and lines have the colour of the page's."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        folder = Path(image["uri"]).parent.name
        if folder in {"pictures", "plots"}:
            svg = (HERE / image["uri"]).read_text()
            svg = svg[svg.index("<svg") :]
            svg = re.sub(r"<(style|metadata)\b.*?</\1>\n", "", svg, flags=re.DOTALL)
            # What Matplotlib says of the colours of text, lines and background:
            svg = svg.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
            label = escape(image.get("alt", ""))
            html = f'<div class="picture {folder}" role="img" aria-label="{label}">{svg}</div>'
            image.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-process-docstring", readable_types, priority=900)  # after Napoleon
    app.connect("doctree-read", link_code)
    app.connect("doctree-resolved", inline_pictures)
