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
svg path.area-0, svg path.area-1, svg path.area-2, svg path.area-3 { stroke: none; fill-opacity: .55; }
svg path.area-0 { fill: var(--line-0); } svg path.area-1 { fill: var(--line-1); }
svg path.area-2 { fill: var(--line-2); } svg path.area-3 { fill: var(--line-3); }
svg path.band { stroke: none; fill: var(--line-0); fill-opacity: .18; }
svg .faint { opacity: .3; stroke-width: 1; }
"""

# (name of the axis, metric, words for the reader)
_AXES = (("updates", "update", "updates"), ("tokens", "generated_tokens", "sampled tokens"))
_COUNT, _SHARE = (0.0,), (0.0, 1.0)
Band = tuple[Sequence[float | None], Sequence[float | None]]


# What is left of an actor's time; metrics.jsonl has the other two.
ACTORS_SAMPLE = "actor_sampling_share"


@dataclass(frozen=True, slots=True)
class Card:
    """One card: `series` are (legend, metric), four at most. optional: left out where no line has a value of it.

    band: metrics that are the ends of the first one's interval.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    axis: tuple[float, ...] = ()
    optional: bool = False
    band: tuple[str, str] | None = None
    stacked: bool = False


HELD_OUT = (
    Card("Success on held-out seeds", (("share", "success"),), _SHARE, band=("success_low", "success_high")),
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
    Card("Dropped tickets", (("no signal", "filtered"), ("stale", "stale"), ("failed", "failed")), _COUNT),
)
# Where the time of each update went.
LANES = (
    Card(
        "The learner's time",
        (("works", "learner_step_share"), ("hands out weights", "learner_sync_share"), ("waits", "learner_idle_share")),
        _SHARE, optional=True, stacked=True,
    ),
    Card(
        "The actors' time",
        (("sample", ACTORS_SAMPLE), ("stand still for weights", "actor_paused_share"), ("idle", "actor_idle_share")),
        _SHARE, optional=True, stacked=True,
    ),
)  # fmt: skip


def curves(lines: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]] = ()) -> str:
    """The choice of the axis and the cards, as HTML; lines of metrics.jsonl and evaluations.jsonl, in their order."""
    choice = "".join(
        f'<input type="radio" name="axis" id="axis-{name}"{" checked" if i == 0 else ""}>'
        f'<label class="axis" for="axis-{name}">{escape(words)}</label>'
        for i, (name, _, words) in enumerate(_AXES)
    )
    # Before and after alone are no curve, and stand at the page's head.
    charts = "".join(_card(card, evaluations) for card in HELD_OUT) if len(evaluations) > 2 else ""
    lines = [line | _rest(line) for line in lines]
    charts += "".join(
        _card(card, lines) for card in (*CARDS, *LANES) if not card.optional or any(_has(line, card) for line in lines)
    )
    return f'<div><span class="dim">against </span>{choice}<div class="charts">{charts}</div></div>'


def _has(line: dict[str, Any], card: Card) -> bool:
    """Of stacked ones all, as their sum means something."""
    known = [line.get(metric) is not None for _, metric in card.series]
    return all(known) if card.stacked else any(known)


def _rest(line: dict[str, Any]) -> dict[str, float]:
    idle, paused = line.get("actor_idle_share"), line.get("actor_paused_share")
    return {} if idle is None or paused is None else {ACTORS_SAMPLE: max(0.0, 1 - idle - paused)}


def _card(card: Card, lines: Sequence[dict[str, Any]]) -> str:
    values = [(legend, [line.get(metric) for line in lines]) for legend, metric in card.series]
    keys = "".join(
        f'<span class="key-{i}">{escape(legend)} {_latest(column)}</span>' for i, (legend, column) in enumerate(values)
    )
    low, high = ([line.get(metric) for line in lines] for metric in card.band or ("", ""))
    band = (low, high) if card.band else None
    charts = "".join(
        f'<div class="by-{name}">{_chart(card, words, [line[place] for line in lines], values, band)}</div>'
        for name, place, words in _AXES
    )
    return f'<div class="card"><h3>{escape(card.title)}{keys}</h3>{charts}</div>'


def _chart(
    card: Card,
    words: str,
    places: Sequence[int],
    values: Sequence[tuple[str, Sequence[float | None]]],
    band: Band | None,
) -> str:
    return Chart(f"{card.title}, against {words}", places, values, card.axis, band, card.stacked).svg()


def _latest(column: Sequence[float | None]) -> str:
    known = [value for value in column if value is not None]
    return short(known[-1]) if known else "–"
