"""Web pages that need nothing else: one file with its styles, scripts and pictures inside, for browsers without a network.

What all pages share (head, colours for light, dark and paper, text) is the template `page.html` beside this file; a room's own
template extends it. Pages run only the scripts that are given here: the content security policy names each by its SHA-256, so
whatever a name or a note in somebody's file may say, a browser runs none of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_tprune.errors import missing_package
from edge_tprune.version import __version__

_HERE = Path(__file__).parent

MADE_BY = "edge-tprune"
OWN_FILES = {
    ".html": re.compile(rb'.{0,400}<meta name="generator" content="edge-tprune">', re.DOTALL),
    ".png": re.compile(rb"\x89PNG.{0,400}tEXtSoftware\0edge-tprune", re.DOTALL),
    ".svg": re.compile(rb".{0,2000}<dc:title>edge-tprune</dc:title>", re.DOTALL),
}
"""How our files begin, by the ending of their names."""


def render(template: Path, scripts: Sequence[str] = (), **values: Any) -> str:
    """The page that `template` makes of `values`; `scripts` are its `scripts` and the only ones that will run.

    Names in values are escaped wherever a template puts them; `to_json` (a filter there) gives data for a script.

    Raises:
        UserError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise missing_package("jinja2", "analysis", error) from error
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["to_json"] = lambda value: Markup(to_json(value))
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    page: str = environment.get_template(template.name).render(
        version=__version__,
        scripts=[Markup(text) for text in scripts],
        script_hashes=hashes,
        **values,
    )
    return page


def to_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: no name in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
