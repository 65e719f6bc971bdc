"""The report page: self-contained, escaped, and drawn from what the run left."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from configs.load import to_yaml
from configs.schema import RunConfig
from envs.codec import encode_group
from orchestration.charts import WIDTH, Chart, moving_average, piled, short, ticks
from orchestration.metrics import MetricsLog, metric_problem, write_summary
from orchestration.metrics_table import HeldOutMetrics, metrics_table
from orchestration.report import write_report
from orchestration.report_curves import ACTORS_SAMPLE, CARDS, HELD_OUT, LANES, STYLE, curves
from orchestration.surroundings import look_around, note
from tests.orchestration.test_metrics import SUMMARY, metrics
from tests.orchestration.test_rollouts import TOKENIZER, group
from tests.orchestration.test_surroundings import NODES

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "path", "circle", "input"}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run's folder of so many updates; keywords change the summary."""

    def make_run(updates: int = 60, name: str = "a-run", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(RunConfig()))
        write_summary(folder / "summary.json", replace(SUMMARY, **changes))
        with MetricsLog(folder / "metrics.jsonl") as log:
            for update in range(1, updates + 1):
                log.append(metrics(update, reward_mean=math.nan if update % 7 == 0 else math.sin(update / 9)))
        return folder

    return make_run


class Page(HTMLParser):
    """Reads a page; notes its text, what it would fetch, and whether its tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [f"{tag} {value}" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_tells_of_the_run(make_run: MakeRun) -> None:
    folder = make_run()
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for text in ("a-run", "frozen_lake, sampler sesa, seed 0, 100 updates, 3 min", "30.0 %", "60.0 %", "pass@8"):
        assert text in page.text
    for text in (
        "+30.0 points",
        "(95 % interval +25.0 to +35.0)",
        "500,000",
        "The ledger balances.",
        "groups_per_update: 16",
    ):
        assert text in page.text
    assert page.tags.count("svg") == 2 * len(CARDS + LANES)
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html", "summary.json"]


def test_it_needs_nothing_from_elsewhere_and_follows_the_readers_colours(make_run: MakeRun) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    page = Page(html)
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not any(sign in html for sign in ("url(", "@import", "http:", "https:"))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_all_text_is_escaped(make_run: MakeRun) -> None:
    evil = "<script>alert('&')</script>"
    folder = make_run(
        name="<b>run&amp;", env=evil, sampler=evil, tickets={"issued": 1, evil: 1}, pass_at_k_before={evil: 1.0}
    )
    (folder / "config.yaml").write_text(evil)
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert evil in page.text
    assert "<b>run&amp;" in page.text


def test_a_secret_of_an_older_configuration_is_not_shown(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of today are refused when they hold one."""
    monkeypatch.setenv("WANDB_API_KEY", "9c41d7aa03be5588")
    folder = make_run()
    with (folder / "config.yaml").open("a") as file:
        file.write("# 9c41d7aa03be5588 https://me:pw@host\n")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "[WANDB_API_KEY] https://[...]@host" in page
    assert "9c41d7aa" not in page


def test_where_it_ran(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Not noted." in write_report(folder).read_text()
    for _ in range(2):
        note(folder / "surroundings.json", look_around(NODES))
    page = Page(write_report(folder).read_text())
    for text in ("2 times", "16 CPUs, 128 GiB, 2 GPUs H200", "8 CPUs, 16 GiB", f"ray {version('ray')}"):
        assert text in " ".join(page.text.split())


def test_the_newest_groups_are_in_the_page(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    assert "No groups were kept" in write_report(folder).read_text()
    (folder / "samples").mkdir()
    for update in (10, 20):
        (folder / "samples" / f"update-{update:06d}.msgpack").write_bytes(encode_group(group()))
    TOKENIZER.save_pretrained(folder / "policy")
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("script") == 2  # the data, and what shows it
    assert page.fetched == []
    assert "2 of 2 are here" in page.text
    assert '"update":20' in html
    monkeypatch.setattr("orchestration.report._MOST_ROLLOUT_BYTES", 10)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "0 of 2 are here; all: python -m orchestration.view" in page.text
    assert "script" not in page.tags


def test_missing_values_are_dashes(make_run: MakeRun) -> None:
    nothing = math.nan
    folder = make_run(
        updates=0,
        success_before=nothing,
        success_gain_ci95=(nothing, nothing),
        wall_s=nothing,
        pass_at_k_after={},
        tickets={"issued": 0},
        ledger_balanced=False,
    )
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.text.count("no values") == 2 * sum(not card.optional for card in CARDS)
    assert "points" not in page.text
    assert "The ledger does not balance." in page.text


def test_each_curve_is_drawn_against_updates_and_against_sampled_tokens() -> None:
    lines = [{"update": update, "generated_tokens": tokens, "success": 0.5} for update, tokens in [(1, 100), (2, 900)]]
    html = curves(lines)
    charts = re.findall(r'<div class="by-(\w+)"><svg[^>]*aria-label="([^"]*)"', html)
    assert charts[2:4] == [
        ("updates", "Success while training, against updates"),
        ("tokens", "Success while training, against sampled tokens"),
    ]
    assert [name for name, _ in charts[::2]] == ["updates"] * (len(charts) // 2)
    by_updates, by_tokens = re.findall(r"<title>Success while training.*?</svg>", html)
    assert "800</text>" not in by_updates
    assert "800</text>" in by_tokens  # the axis goes from 100 to 900
    assert html.count(" checked>") == 1


def test_the_axis_is_chosen_without_a_script() -> None:
    """The buttons come before the charts and beside them, as the style's `~` asks for."""
    html = curves([])
    for name in ("updates", "tokens"):
        assert f'id="axis-{name}"' in html
        assert f'for="axis-{name}"' in html
    assert html.index("axis-tokens") < html.index('<div class="charts">')
    assert ".by-tokens, #axis-tokens:checked ~ .charts .by-updates { display: none; }" in STYLE
    assert "#axis-tokens:checked ~ .charts .by-tokens { display: block; }" in STYLE


def test_only_runs_with_sketches_or_pivots_have_curves_of_them(make_run: MakeRun) -> None:
    one = {"update": 1, "generated_tokens": 5}
    assert "Pivots" not in curves([one])
    assert "Different sketches" not in curves([{**one, "distinct_sketches_share": None}])
    assert "Different sketches" in curves([one, {**one, "update": 2, "distinct_sketches_share": 0.0}])
    with_pivots = curves([{**one, "recovered_depth_75_100": 0.25}])
    assert "Recovered by quarter of depth" in with_pivots
    assert ">IV 0.25<" in with_pivots
    assert ">II –<" in with_pivots


def test_evaluations_while_training_are_curves_too(make_run: MakeRun) -> None:
    folder = make_run(updates=2)
    line = {"success": 0.25, "coverage": 0.5, "answer_entropy": 1.5}
    lines = [json.dumps({"update": update, "generated_tokens": 50 * update, **line}) + "\n" for update in range(3)]
    for there, cards in [([], 0), (lines[:2], 0), (lines, 3)]:  # before and after alone are no curve
        (folder / "evaluations.jsonl").write_text("".join(there))
        html = write_report(folder).read_text(encoding="utf-8")
        assert Page(html).tags.count("svg") == 2 * (len(CARDS + LANES) + cards)
        assert html.count("<h3>Answer entropy on held-out seeds, nats") == bool(cards)


def test_the_curves_are_of_metrics_there_are() -> None:
    asked = {metric for card in CARDS + LANES for _, metric in card.series} - {ACTORS_SAMPLE}
    assert [problem for metric in asked if (problem := metric_problem(metric))] == []
    held_out = {metric.name for metric in metrics_table(HeldOutMetrics)}
    assert {metric for card in HELD_OUT for _, metric in card.series} | {*(HELD_OUT[0].band or ())} <= held_out
    assert max(len(card.series) for card in CARDS) == 4  # as many colours as the style has
    assert all(f"line-{i}" in STYLE and f".key-{i}" in STYLE for i in range(4))


def test_where_the_time_went() -> None:
    """Idle 0.2 and paused 0.1: actors sample the other 0.7."""
    line = {"update": 1, "generated_tokens": 5, "actor_idle_share": 0.2, "actor_paused_share": 0.1}
    html = curves([line, line | {"update": 2}]).replace("&#x27;", "'")
    assert ">sample 0.7<" in html
    assert "The actors' time" in html
    assert "The learner's time" not in html  # an older run, which did not write it down
    learner = {"learner_step_share": 0.5, "learner_sync_share": 0.1, "learner_idle_share": 0.3}
    assert "The learner's time" in curves([line | learner]).replace("&#x27;", "'")


def test_areas_lie_on_top_of_each_other() -> None:
    assert piled([[0.5, None, 0.25], [0.25, 1.0, 0.5]]) == [[0.5, None, 0.25], [0.75, None, 0.75]]
    assert piled([[], []]) == [[], []]
    svg = Chart("x", [1, 2], [("a", [0.5, 0.5]), ("b", [0.5, 0.25])], (0.0, 1.0), stacked=True).svg()
    low, high = re.findall(r'class="area-\d" d="M(.*?)Z"', svg)
    # The first one's upper edge is the second one's lower edge, walked backwards.
    assert low.split("L")[:2] == high.split("L")[:1:-1]
    assert "line-0" not in svg


def test_an_interval_is_drawn_around_the_first_curve() -> None:
    svg = Chart("x", [1, 2, 3], [("a", [0.5, None, 0.5])], (), ([0.4, None, 0.3], [0.6, None, 0.7])).svg()
    (band,) = re.findall(r'class="band" d="M(.*?)Z"', svg)
    assert len(band.split("L")) == 4
    assert svg.index('class="band"') < svg.index('class="line-0"')
    assert 'class="band"' not in Chart("x", [1], [("a", [0.5])], (), ([None], [None])).svg()


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_missing_file_is_named(make_run: MakeRun, missing: str) -> None:
    folder = make_run()
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("n", [0, 1, 2, 39, 40, 1000, 20_000])
def test_charts_stay_inside_their_frame_and_small(n: int) -> None:
    values = [None if i % 10 == 3 else math.cos(i / 50) * 1e4 for i in range(n)]
    svg = Chart('a "chart" <', range(1, n + 1), [("one", values), ("two", [0.0] * n)]).svg()
    assert len(svg) < 30_000
    for element in ElementTree.fromstring(svg):
        for pair in element.get("d", "").lstrip("M").replace("H", "L").split("L"):
            assert all(-0.1 <= float(number) <= WIDTH for number in pair.split())


def test_a_constant_curve_and_a_lone_point_can_be_drawn() -> None:
    assert "<path" in Chart("x", [1, 2], [("one", [3.0, 3.0])]).svg()
    assert "<circle" in Chart("x", [5], [("one", [3.0])], axis=(0.0, 1.0)).svg()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.0, 100.0, [20.0, 40.0, 60.0, 80.0, 100.0]),
        (-0.03, 0.04, [-0.02, 0.0, 0.02, 0.04]),
        (7.0, 7.0, [7.0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == expected


def test_the_moving_average_by_hand() -> None:
    points = [(1.0, 0.0), (2.0, 3.0), (3.0, 6.0), (4.0, 0.0)]
    assert moving_average(points, 1) == [(1.0, 1.5), (2.0, 3.0), (3.0, 3.0), (4.0, 3.0)]
    assert moving_average(points, 0) == points


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.25, "0.25"), (0.0, "0"), (12, "12"), (3500, "3.5k"), (2e6, "2M"), (1e-5, "1e-05"), (-1500, "-1.5k")],
)
def test_short_numbers(value: float, expected: str) -> None:
    assert short(value) == expected
