"""The report's learning curves, each drawn twice: against updates and against sampled tokens. The reader chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestration.charts import Chart, short

# Without a script: two radio buttons before the charts say which of each pair is shown.
STYLE = """
.axis { margin: 0 .9rem 0 .25rem; white-space: nowrap; }
.charts { display: grid; gap: 1rem; margin-top: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.charts h3 { margin: 0 0 .3rem; font-size: .95rem; display: flex; flex-wrap: wrap; gap: 0 .9rem; }
.charts h3 span { font-weight: normal; }
.by-tokens, #axis-tokens:checked ~ .charts .by-updates { display: none; }
#axis-tokens:checked ~ .charts .by-tokens { display: block; }
.key-0 { color: var(--line-0); } .key-1 { color: var(--line-1); }
.key-2 { color: var(--line-2); } .key-3 { color: var(--line-3); }
svg { display: block; width: 100%; height: auto; }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .label { fill: var(--dim); font-size: 11px; }
svg path.line-0 { stroke: var(--line-0); } svg path.line-1 { stroke: var(--line-1); }
svg path.line-2 { stroke: var(--line-2); } svg path.line-3 { stroke: var(--line-3); }
svg circle.line-0 { fill: var(--line-0); } svg circle.line-1 { fill: var(--line-1); }
svg circle.line-2 { fill: var(--line-2); } svg circle.line-3 { fill: var(--line-3); }
svg .faint { opacity: .3; stroke-width: 1; }
"""

# (name of the axis, metric, words for the reader)
_AXES = (("updates", "update", "updates"), ("tokens", "generated_tokens", "sampled tokens"))
_COUNT, _SHARE = (0.0,), (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Card:
    """One card: `series` are (legend, metric), four at most. optional: left out where no line has a value of it."""

    title: str
    series: tuple[tuple[str, str], ...]
    axis: tuple[float, ...] = ()
    optional: bool = False


HELD_OUT = (
    Card("Success on held-out seeds", (("share", "success"),), _SHARE),
    Card("Coverage on held-out seeds", (("share", "coverage"),), _SHARE),
    Card("Answer entropy on held-out seeds, nats", (("mean", "answer_entropy"),), _COUNT),
)
CARDS = (
    Card("Reward", (("mean", "reward_mean"),)),
    Card("Success while training", (("share", "success"),), _SHARE),
    Card("Coverage of the right answers", (("share", "coverage"),), _SHARE),
    Card("Groups without advantage", (("share", "zero_advantage_share"),), _SHARE),
    Card("Entropy, nats", (("mean", "entropy"),), _COUNT),
    Card("Different answers of a group", (("all", "distinct_answers_mean"), ("correct", "distinct_solutions_mean"))),
    Card("Different sketches", (("share", "distinct_sketches_share"),), _SHARE, optional=True),
    Card("Pivots", (("recovered", "pivots_recovered_share"), ("gain", "pivot_gain_mean")), _COUNT, optional=True),
    Card(
        "Recovered by quarter of depth",
        (
            ("I", "recovered_depth_0_25"),
            ("II", "recovered_depth_25_50"),
            ("III", "recovered_depth_50_75"),
            ("IV", "recovered_depth_75_100"),
        ),
        _SHARE,
        optional=True,
    ),
    Card("Policy lag, updates", (("mean", "policy_lag_mean"), ("largest", "policy_lag_max")), _COUNT),
    Card("Tokens in a second", (("sampled", "rollout_tokens_per_s"), ("learned", "learner_tokens_per_s")), _COUNT),
    Card("Idle share", (("actors", "actor_idle_share"), ("learner", "learner_idle_share")), _SHARE),
)


def curves(lines: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]] = ()) -> str:
    """The choice of the axis and the cards, as HTML; lines of metrics.jsonl and evaluations.jsonl, in their order."""
    choice = "".join(
        f'<input type="radio" name="axis" id="axis-{name}"{" checked" if i == 0 else ""}>'
        f'<label class="axis" for="axis-{name}">{escape(words)}</label>'
        for i, (name, _, words) in enumerate(_AXES)
    )
    # Before and after alone are no curve, and stand at the page's head.
    charts = "".join(_card(card, evaluations) for card in HELD_OUT) if len(evaluations) > 2 else ""
    charts += "".join(
        _card(card, lines) for card in CARDS if not card.optional or any(_has(line, card) for line in lines)
    )
    return f'<div><span class="dim">against </span>{choice}<div class="charts">{charts}</div></div>'


def _has(line: dict[str, Any], card: Card) -> bool:
    return any(line.get(metric) is not None for _, metric in card.series)


def _card(card: Card, lines: Sequence[dict[str, Any]]) -> str:
    values = [(legend, [line.get(metric) for line in lines]) for legend, metric in card.series]
    keys = "".join(
        f'<span class="key-{i}">{escape(legend)} {_latest(column)}</span>' for i, (legend, column) in enumerate(values)
    )
    charts = "".join(
        f'<div class="by-{name}">'
        f"{Chart(f'{card.title}, against {words}', [line[place] for line in lines], values, card.axis).svg()}</div>"
        for name, place, words in _AXES
    )
    return f'<div class="card"><h3>{escape(card.title)}{keys}</h3>{charts}</div>'


def _latest(column: Sequence[float | None]) -> str:
    known = [value for value in column if value is not None]
    return short(known[-1]) if known else "–"
