"""report.html: one page on a run that needs nothing but a browser, from the files of the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from configs.shown import redacted, safe
from learner.durable import replace_durably
from orchestration import rollouts_page
from orchestration.metrics import read_metrics
from orchestration.page import page
from orchestration.report_curves import STYLE as CURVES_STYLE
from orchestration.report_curves import curves
from orchestration.rollouts import Rollouts, RolloutsError
from orchestration.surroundings import Surroundings
from orchestration.surroundings import read as read_surroundings

_MOST_ROLLOUT_BYTES = 2_000_000  # of the groups that are in the page


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
            f"<h2>Rollouts</h2>{_rollouts(run_folder)}",
            f"<h2>Where it ran</h2>{_surroundings(read_surroundings(run_folder / 'surroundings.json'))}",
            '<h2>Configuration</h2><details class="card"><summary>config.yaml</summary>'
            f"<pre>{escape(redacted(config))}</pre></details>",
        )
    )
    path = run_folder / "report.html"
    style = CURVES_STYLE + rollouts_page.STYLE
    replace_durably(path, page(name, body, style, rollouts_page.policy(live=False)).encode())
    return path


def _rollouts(run_folder: Path) -> str:
    """The newest groups that were kept, as many as the page should carry; why there are none."""
    try:
        rollouts = Rollouts(run_folder)
        groups = list(rollouts.newest(_MOST_ROLLOUT_BYTES, lambda group: len(rollouts_page.as_json(group))))
    except RolloutsError as error:
        return f'<div class="card dim">No groups can be shown: {escape(safe(error))}</div>'
    kept = len(rollouts.files())
    if not kept:
        return '<div class="card dim">No groups were kept (observe.sample_every).</div>'
    rest = f' <span class="dim">{len(groups)} of {kept} are here; all: python -m orchestration.view</span>'
    if not groups:
        return rest
    return rest + rollouts_page.viewer([group["file"] for group in groups], groups, live=False)


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


def _surroundings(starts: Sequence[Surroundings]) -> str:
    """Of the last start; how many there were."""
    if not starts:
        return '<div class="card dim">Not noted.</div>'
    last = starts[-1]
    machines = [
        f"{_number(m.cpus)} CPUs, {_number(m.memory_gib)} GiB" + (f", {_number(m.gpus)} GPUs {m.gpu}" if m.gpus else "")
        for m in last.machines
    ]
    rows = [
        ("", last.began),
        ("started", f"{len(starts)} times" if len(starts) > 1 else "once"),
        ("this program", last.commit or "–"),
        ("Python, system", f"{last.python}, {last.system}"),
        ("processor of the driver", last.processor),
        *(("machine", machine) for machine in machines),
        *last.packages.items(),
    ]
    return _table(rows)


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
