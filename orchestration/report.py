"""report.html: one page on a run that needs nothing but a browser, from the files of the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from configs.shown import redacted
from learner.durable import replace_durably
from orchestration.metrics import read_metrics
from orchestration.report_curves import STYLE as CURVES_STYLE
from orchestration.report_curves import curves

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1c1e21; --dim: #63686f; --rule: #e3e4e6;
  --line-0: #2563c9; --line-1: #c2571a; --line-2: #1f8a4c; --line-3: #8b3fb0; --good: #1f8a4c; --bad: #b3261e; }
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
<title>{name}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(run_folder: Path) -> Path:
    """Write report.html into a finished run's folder, and return its path.

    Reads config.yaml, metrics.jsonl and summary.json; evaluations.jsonl if it is there. Raises FileNotFoundError naming
    the one that is missing.
    """
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    lines = read_metrics(run_folder / "metrics.jsonl")
    held_out = run_folder / "evaluations.jsonl"
    evaluations = read_metrics(held_out) if held_out.exists() else []
    config = (run_folder / "config.yaml").read_text(encoding="utf-8")
    name = run_folder.resolve().name
    body = "\n".join(
        (
            _head(name, summary),
            f"<h2>Success on held-out seeds</h2>{_success(summary)}",
            f"<h2>Figures</h2>{_figures(summary)}",
            f"<h2>Curves</h2>{curves(lines, evaluations)}",
            f"<h2>Tickets</h2>{_tickets(summary)}",
            '<h2>Configuration</h2><details class="card"><summary>config.yaml</summary>'
            f"<pre>{escape(redacted(config))}</pre></details>",
        )
    )
    path = run_folder / "report.html"
    replace_durably(path, _PAGE.format(name=escape(name), style=_STYLE + CURVES_STYLE, body=body).encode())
    return path


def _head(name: str, summary: dict[str, Any]) -> str:
    about = f"{summary['env']}, sampler {summary['sampler']}, seed {summary['seed']}, {summary['updates']} updates"
    return f'<h1>{escape(name)}</h1><div class="dim">{escape(about)}, {_duration(summary["wall_s"])}</div>'


def _success(summary: dict[str, Any]) -> str:
    before, after = summary["success_before"], summary["success_after"]
    low, high = summary["success_gain_ci95"]
    gain = "–" if before is None or after is None else f"{100 * (after - before):+.1f} points"
    interval = "" if low is None or high is None else f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    bars = "".join(
        f'<div class="bar {when}"><span>{when}</span><div><i style="width:{100 * (share or 0):.1f}%"></i></div>'
        f"<span>{_percent(share)}</span></div>"
        for when, share in (("before", before), ("after", after))
    )
    note = '<div class="dim">Plain prompt, without sketches.</div>'
    return f'<div class="card"><p class="gain"><strong>{gain}</strong>{interval}</p>{bars}{note}</div>'


def _figures(summary: dict[str, Any]) -> str:
    rows = [("", "before", "after"), ("success", *map(_percent, (summary["success_before"], summary["success_after"])))]
    for k, before in summary["pass_at_k_before"].items():
        rows.append((f"pass@{k}", _percent(before), _percent(summary["pass_at_k_after"].get(k))))
    solutions = (_number(summary[f"distinct_solutions_{when}"]) for when in ("before", "after"))
    rows.append(("different solutions of a seed", *solutions))
    for name, key, shown in (("coverage", "coverage", _percent), ("answer entropy, nats", "answer_entropy", _number)):
        rows.append((name, *(shown(summary[f"{key}_{when}"]) for when in ("before", "after"))))
    whole = [
        ("tokens sampled", _number(summary["generated_tokens"])),
        ("answers judged by environments", _number(summary["env_steps"])),
        ("groups without advantage", _percent(summary["zero_advantage_share_mean"])),
        ("repeated sketches", _percent(summary["duplicate_sketches_share"])),
        ("tokens sampled in a second", _number(summary["rollout_tokens_per_s"])),
        ("tokens learned in a second", _number(summary["learner_tokens_per_s"])),
        ("weight broadcast, mean", f"{_number(summary['weight_sync_s_mean'])} s"),
        ("learner idle", _percent(summary["learner_idle_fraction"])),
        ("actors idle", _percent(summary["actor_idle_fraction"])),
        ("log-probs, learner against engine, mean", _number(summary["logprob_abs_diff_mean"])),
        ("log-probs, learner against engine, largest", _number(summary["logprob_abs_diff_max"])),
        ("largest policy lag", f"{_number(summary['policy_lag_max'])} updates"),
    ]
    return _table(rows) + "<br>" + _table([("the whole run", ""), *whole])


def _tickets(summary: dict[str, Any]) -> str:
    tickets = summary["tickets"]
    issued = tickets["issued"]
    rows = [("", "tickets", "share")]
    rows += [(state, _number(n), _percent(n / issued if issued else None)) for state, n in tickets.items()]
    balanced = (
        "The ledger balances." if summary["ledger_balanced"] else '<b class="bad">The ledger does not balance.</b>'
    )
    return _table(rows) + f'<div class="dim">{balanced}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A card with a table; the first row is its head. All text is escaped."""
    tags = ("th", *["td"] * (len(rows) - 1))
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>"
        for tag, row in zip(tags, rows, strict=True)
    )
    return f'<div class="card"><table>{body}</table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
