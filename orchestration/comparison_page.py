"""comparison.html: the comparison's tables and pictures as one page that needs nothing but a browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from orchestration.comparison_table import markdown
from orchestration.page import page

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_STYLE = """
h1 { font-size: 1.25rem; }
main > table, main > p, main > figure { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
  padding: .7rem 1rem; margin: .8rem 0; }
main > table { display: block; overflow-x: auto; font-size: .85rem; }
main code { overflow-wrap: anywhere; }
figure img { width: 100%; max-width: 44rem; display: block; margin: 0 auto; }
figcaption { color: var(--dim); font-size: .85rem; }
"""


def comparison_page(document: Mapping[str, Any], plots: Sequence[Path]) -> str:
    """The page; plots: SVG files, which become part of it. Names and causes in it are text, whatever they hold."""
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(document, ()))
    pictures = "".join(_picture(plot) for plot in plots)
    return page(str(document["name"]), f"<main>{text}{pictures}</main>", _STYLE, _POLICY)


def _picture(plot: Path) -> str:
    data = base64.b64encode(plot.read_bytes()).decode()
    name = escape(plot.stem)
    image = f'<img alt="{name}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"
