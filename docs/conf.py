"""Sphinx settings. Nothing is fetched while building; every warning is an error (`make docs`)."""

import re
from typing import Any

from implicitppl import __version__

project = "implicitppl"
author = "The implicitppl developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"implicitppl {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # one backtick in a docstring means code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost", "Failure mode", ("Reference", "notes_style")]


def escape_mathematics(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keeps `|x - y|`, `a * b` and `x_` outside of backticks and doctests as they are written."""
    del app, what, name, obj, options
    in_doctest = False
    code = re.compile(r"(``.+?``|`[^`]*`)")
    for number, line in enumerate(lines):
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if in_doctest or re.match(r"\s*([*-] |\*{1,2}\w+(?: \(.*\))?:)", line):
            continue
        pieces = code.split(line)
        pieces[::2] = [
            re.sub(r"(?<!\\)([|*]|(?<=\w)_(?!\w))", r"\\\1", text) for text in pieces[::2]
        ]
        lines[number] = "".join(pieces)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_mathematics, priority=400)
