"""The rollout viewer's part of a page: style, data and the one script the page may run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

_PAGES = files("orchestration") / "pages"
STYLE = (_PAGES / "rollouts.css").read_text(encoding="utf-8")
SCRIPT = (_PAGES / "rollouts.js").read_text(encoding="utf-8")


def policy(live: bool) -> str:
    """The page's content security policy: whatever a text smuggles in, no script runs but ours, and nothing is fetched.

    live: the script may ask the server the page came from.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    asks = "connect-src 'self'; " if live else ""
    return f"default-src 'none'; {asks}style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"


def viewer(names: Sequence[str], groups: Sequence[dict[str, Any]], live: bool) -> str:
    """The viewer as HTML. names: of all samples, newest first; groups: those that come with the page."""
    data = as_json({"live": live, "files": list(names), "groups": list(groups)})
    return (
        '<div id="rollouts"></div>'
        f'<script type="application/json" id="rollouts-data">{data}</script><script>{SCRIPT}</script>'
    )


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
