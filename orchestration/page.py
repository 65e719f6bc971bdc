"""What all pages have in common: frame, colours for light and dark, cards and tables."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1c1e21; --dim: #5c6168; --rule: #e3e4e6;
  --line-0: #2563c9; --line-1: #b84f14; --line-2: #1a7d43; --line-3: #8b3fb0; --good: #1a7d43; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f24; --text: #e7e8ea; --dim: #9aa0a8;
  --rule: #31353c; --line-0: #74a7ff; --line-1: #f0a06a; --line-2: #5bc98a; --line-3: #cf93ea; --good: #5bc98a;
  --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .6rem; font-size: 1.1rem; }
.dim { color: var(--dim); }
.bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: .9rem 1rem;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem 0 .3rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: normal; color: var(--dim); }
th:first-child, td:first-child { padding-left: 0; text-align: left; white-space: normal; }
tr:last-child td { border-bottom: 0; }
.gain { margin: 0 0 .7rem; font-size: 1.15rem; }
.bar { display: grid; grid-template-columns: 4rem 1fr 4rem; gap: .7rem; align-items: center; margin: .3rem 0; }
.bar div { background: var(--rule); border-radius: .3rem; height: .9rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--dim); }
.bar.after i { background: var(--good); }
pre { margin: 0; font: .85rem/1.45 ui-monospace, monospace; }
summary { cursor: pointer; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(name: str, body: str, style: str, policy: str) -> str:
    """A whole page. body: HTML, escaped by its makers. style: beyond the common one. policy: what may load and run."""
    return _PAGE.format(name=escape(name), style=STYLE + style, body=body, policy=escape(policy))
