"""From runs' folders to the document, the tables and the pictures: numbers worked by hand."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from configs.comparison import load_comparison
from orchestration.comparison_aggregate import as_text, document
from orchestration.comparison_page import comparison_page
from orchestration.comparison_plan import DEFAULT_ROOT, Plan, make_plan
from orchestration.comparison_plots import COLOURS, INK, STYLES, look, write_plots
from orchestration.comparison_results import CHANGES, COSTS, CURVES, ResultError, judged_figures, read_results
from orchestration.comparison_table import markdown
from orchestration.judgement import Judgement
from orchestration.metrics import Summary
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics
from tests.orchestration.compared_runs import (
    COMPARISON,
    comparison_file,
    judged,
    leave_judgement,
    leave_run,
    planned,
    write_lines,
)

JUDGED = COMPARISON + "evaluate: {modes: [plain], samples: 3, episodes: 4}\n"
AFTER = {"one-seed-0": 0.3, "one-seed-1": 0.5, "two-seed-0": 0.6, "two-seed-1": 0.7}


def finish(plan: Plan, *names: str, **summary: Any) -> None:
    for run in plan.runs:
        if run.name in names:
            leave_run(run.folder, run.config, **{"success_after": AFTER[run.name], **summary})


def compared(path: Path, root: Path, failed: dict[str, str] | None = None) -> dict[str, Any]:
    comparison = load_comparison(path)
    shown = make_plan(comparison, path, DEFAULT_ROOT, DEFAULT_ROOT)
    plan = planned(path, root)
    return document(comparison, path, plan, shown, *read_results(plan), failed or {})


def test_means_intervals_and_differences_by_hand(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    found = compared(path, tmp_path)
    one, two = found["methods"]["one"], found["methods"]["two"]
    # Half width of two values: 12.7062 * |a - b| / 2.
    assert one["figures"]["success_after"] == {
        "mean": 0.4, "low": pytest.approx(0.4 - 1.27062), "high": pytest.approx(0.4 + 1.27062), "seeds": 2
    }  # fmt: skip
    assert one["figures"]["success_gain"]["mean"] == pytest.approx(0.2)
    # Differences 0.3 and 0.2.
    difference = two["against_first"]["success_after"]
    assert difference["mean"] == pytest.approx(0.25)
    assert difference["low"] == pytest.approx(0.25 - 12.7062 * 0.05, abs=1e-4)
    assert one["against_first"] == {}
    # Gains 0.2 and 0.45.
    assert two["gain_ratio"] == {
        "mean": pytest.approx(2.25), "low": None, "high": None, "seeds": 2,
        "by_seed": {"0": pytest.approx(4.0), "1": pytest.approx(5 / 3)},
    }  # fmt: skip
    assert two["figures"]["rollout_tokens_per_s"]["mean"] == 320
    assert two["figures"]["entropy_last_tenth"]["mean"] == pytest.approx(0.4)
    assert two["figures"]["env_steps"]["mean"] == 50
    assert two["figures"]["pass_at_8_after"]["mean"] == pytest.approx(0.7)
    assert (found["seeds"], found["budget_tokens"], found["first"]) == ([0, 1], 1000, "one")


def test_curves_are_compared_at_the_same_tokens(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    found = compared(path, tmp_path)
    assert found["grid_tokens"][20] == 500
    curve = found["methods"]["two"]["curves"]["success"]
    # From 0.2 at 0 tokens to 0.6 and 0.7 at 1100: at 500 0.2 + 0.45 * 500 / 1100.
    assert curve["mean"][0] == pytest.approx(0.2)
    assert curve["mean"][20] == pytest.approx(0.2 + 0.45 * 500 / 1100)
    assert curve["high"][20] == pytest.approx(curve["mean"][20] + 12.7062 * 0.05 * 500 / 1100, abs=1e-4)
    # Entropy is first known at the first update's 550 tokens.
    entropy = found["methods"]["two"]["curves"]["entropy"]
    assert entropy["mean"][21] is None
    assert entropy["mean"][22] == pytest.approx(0.6)
    assert "coverage" not in found["methods"]["two"]["curves"]


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    found = compared(path, tmp_path, {})
    plots = write_plots(found, tmp_path / "x")
    html = comparison_page(found, plots)
    assert re.search(r"<td[^>]*>two</td>\s*<td[^>]*>2 of 2</td>", html)
    assert html.count('<img alt="x-') == len(plots) > 1
    assert {address[:5] for address in re.findall(r'(?:src|href)="([^"]*)"', html)} == {"data:"}
    assert "default-src &#x27;none&#x27;" in html


def test_names_and_causes_are_text_in_the_page(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    first, *others = AFTER
    finish(planned(path, tmp_path), *others)
    evil = "<img src=x onerror=alert(1)>"
    html = comparison_page(compared(path, tmp_path, {first: evil}), [])
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<img" not in html
    assert "<script" not in html


def test_a_run_that_is_missing_is_in_no_mean_and_is_named(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), "one-seed-0", "one-seed-1", "two-seed-1")
    found = compared(path, tmp_path, {"two-seed-0": "exit status 1"})
    two = found["methods"]["two"]
    assert two["missing"] == {"0": "exit status 1"}
    assert two["finished_seeds"] == [1]
    assert two["figures"]["success_after"] == {"mean": 0.7, "low": None, "high": None, "seeds": 1}
    assert two["against_first"]["success_after"]["mean"] == pytest.approx(0.7 - 0.5)  # the seed both have
    assert (two["gain_ratio"]["mean"], two["gain_ratio"]["seeds"]) == (pytest.approx(0.5 / 0.3), 1)
    assert [run["status"] for run in found["runs"]] == ["finished", "exit status 1", "finished", "finished"]
    text = markdown(found, [])
    assert "| two | 1 of 2 |" in text
    assert "**two, seed 0, is missing: exit status 1.**" in text


def test_a_method_without_any_run_is_a_row_without_figures(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), "one-seed-0", "one-seed-1")
    found = compared(path, tmp_path)
    assert found["methods"]["two"]["figures"] == {}
    assert found["methods"]["two"]["gain_ratio"] is None
    assert "| two | 0 of 2 |" in markdown(found, [])
    assert len(write_plots(found, tmp_path / "x")) > 0


def test_a_run_that_spent_less_than_its_budget_is_named(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    plan = planned(path, tmp_path)
    finish(plan, "one-seed-0", "one-seed-1", "two-seed-0")
    finish(plan, "two-seed-1", generated_tokens=999)
    found = compared(path, tmp_path)
    assert found["methods"]["two"]["short_of_tokens"] == {"1": 999}
    assert "**two, seed 1, ended before its budget: 999 tokens (run.updates?).**" in markdown(found, [])


def test_the_judges_figures_are_beside_the_runs_own(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, JUDGED)
    plan = planned(path, tmp_path)
    finish(plan, *AFTER)
    for judgement, success in zip(plan.judgements, (0.3, 0.4, 0.6, 0.5, 0.6), strict=True):
        leave_judgement(judgement, success)
    found = compared(path, tmp_path)
    assert found["start"]["plain"]["success"] == 0.3
    assert found["methods"]["one"]["figures"]["plain.success"]["mean"] == pytest.approx(0.45)
    assert found["methods"]["two"]["figures"]["plain.pass_at_3"]["mean"] == pytest.approx(0.8)
    text = markdown(found, [])
    assert "## Final judge, plain" in text
    assert re.search(r"\| start \|  \| 0\.300 \| 0\.300 \| 0\.500 \|", text)
    pictures = {picture.name for picture in write_plots(found, tmp_path / "x")}
    assert "x-pass-at-k-plain.svg" in pictures


def test_a_judgement_that_is_missing_is_told_in_its_cell(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, JUDGED)
    plan = planned(path, tmp_path)
    finish(plan, *AFTER)
    leave_judgement(plan.judgements[1], 0.4)
    assert "0.400, 1 only" in markdown(compared(path, tmp_path), [])


def test_the_document_is_plain_and_names_no_machine(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, JUDGED)
    finish(planned(path, tmp_path / "elsewhere"), *AFTER)
    found = compared(path, tmp_path / "elsewhere")
    text = as_text(found)
    assert json.loads(text) == found
    assert "elsewhere" not in text
    assert "[ 0, 1 ]" in text  # short lists on one line
    assert found["command"] == "python -m orchestration.compare --config few.yaml"
    assert "run.root=runs/compare/few run.name=one-seed-0" in found["runs"][0]["command"]
    assert found["runs"][0]["summary"]["success_after"] == 0.3
    assert found["runs"][0]["evaluations"]["success"][-1] == [1100, pytest.approx(0.3)]


def test_the_table_by_hand(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    head, rule, one, two = [line for line in markdown(compared(path, tmp_path), []).splitlines() if line[:1] == "|"]
    assert head == (
        "| method | seeds | success before | after | gain | gain above one | distinct solutions | pass@8 "
        "| generated tokens | environment steps | wall time, s | sampled tokens/s |"
    )
    assert rule.count("---") == head.count("|") - 1
    assert one == (
        "| one | 2 of 2 | 0.200 | 0.400 (-0.871 to 1.671) | +0.200 (-1.071 to +1.471) |  | 1.500 (1.500 to 1.500) "
        "| 0.700 (0.700 to 0.700) | 1.1k | 50 | 9.5 | 320 |"
    )
    assert "| +0.250 (-0.385 to +0.885) |" in two


def test_ratios_of_gains_are_told_with_each_seeds(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    assert "each seed's): two 2.25 (no bounded interval; 4.00, 1.67)." in markdown(compared(path, tmp_path), [])


def test_a_method_that_goes_on_from_another_one_says_so(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, COMPARISON.replace("  one: []", "  one: []\n  again: {after: one}"))
    finish(planned(path, tmp_path), *AFTER)
    text = markdown(compared(path, tmp_path), [])
    assert "again starts from the policies that one's runs of the same seeds left" in text
    assert text.count("starts from the policies") == 1


class TestFiles:
    def test_a_damaged_one_is_named(self, tmp_path: Path) -> None:
        path = comparison_file(tmp_path)
        plan = planned(path, tmp_path)
        finish(plan, "one-seed-0")
        (plan.runs[0].folder / "summary.json").write_text("{")
        with pytest.raises(ResultError, match=r"one-seed-0/summary\.json: cannot be read"):
            read_results(plan)
        finish(plan, "one-seed-0")
        write_lines(plan.runs[0].folder / "metrics.jsonl", [{"no": "update"}])
        with pytest.raises(ResultError, match=r"metrics\.jsonl: line 1 is no line of metrics"):
            read_results(plan)

    @pytest.mark.parametrize("other", [{"policies": []}, {"policies": [{}]}, {"command": "python 'x"}, {"env": 3}])
    def test_an_evaluation_that_is_none_of_ours_is_in_no_table(self, tmp_path: Path, other: dict[str, Any]) -> None:
        plan = planned(comparison_file(tmp_path, JUDGED), tmp_path)
        leave_judgement(plan.judgements[0], 0.4)
        assert read_results(plan)[1] == {"plain": judged_figures(judged(0.4))}
        leave_judgement(plan.judgements[0], 0.4, **other)
        assert read_results(plan)[1] == {}

    def test_a_run_without_evaluations_has_no_curve_of_them(self, tmp_path: Path) -> None:
        path = comparison_file(tmp_path)
        plan = planned(path, tmp_path)
        finish(plan, *AFTER)
        (plan.runs[0].folder / "evaluations.jsonl").unlink()
        curves = {name: set(m["curves"]) for name, m in compared(path, tmp_path)["methods"].items()}
        assert curves == {"one": {"entropy"}, "two": {"entropy", "success"}}

    def test_the_names_are_those_that_runs_write(self) -> None:
        summary = {field.name for field in fields(Summary)}
        assert {f"{name}_{when}" for name in CHANGES for when in ("before", "after")} <= summary
        assert {*COSTS, "pass_at_k_before", "pass_at_k_after"} <= summary
        lines = {"metrics.jsonl": UpdateMetrics, "evaluations.jsonl": HeldOutMetrics}
        for name, source in CURVES.items():
            assert {name, "generated_tokens"} <= {field.name for field in fields(lines[source])}

    def test_the_judges_names_are_those_it_writes(self) -> None:
        names = {field.name for field in fields(Judgement)}
        assert set(judged(0.5)["policies"][0]) - {"name"} <= names
        assert judged_figures(judged(0.5))["pass_at_2"] == pytest.approx(0.6)


class TestPictures:
    def test_every_method_looks_another_way(self) -> None:
        looks = [look(number) for number in range(len(COLOURS) * len(STYLES))]
        assert len(set(looks)) == len(looks)
        assert looks[:3] == [(COLOURS[0], "-"), (COLOURS[1], "--"), (COLOURS[2], "-.")]
        assert looks[8] == (COLOURS[0], "--")

    def test_a_method_looks_the_same_in_all_of_them(self, tmp_path: Path) -> None:
        """The judge has nothing of the first method, the run's own evaluations have."""
        path = comparison_file(tmp_path, JUDGED)
        plan = planned(path, tmp_path)
        finish(plan, *AFTER)
        for judgement in plan.judgements:
            if judgement.after is None or judgement.after.startswith("two"):
                leave_judgement(judgement, 0.4)
        pictures = {p.name: p.read_text() for p in write_plots(compared(path, tmp_path), tmp_path / "x")}
        assert COLOURS[0] in pictures["x-pass-at-k.svg"]
        for name in ("x-pass-at-k.svg", "x-pass-at-k-plain.svg", "x-success.svg"):
            assert COLOURS[1] in pictures[name]
        assert COLOURS[0] not in pictures["x-pass-at-k-plain.svg"]

    def test_of_an_earlier_call_that_do_not_apply_are_removed(self, tmp_path: Path) -> None:
        path = comparison_file(tmp_path)
        finish(planned(path, tmp_path), *AFTER)
        others = [tmp_path / name for name in ("x-y-success.svg", "x-mine.svg", "y-coverage.svg")]
        for file in (*others, tmp_path / "x-coverage.svg", tmp_path / "x-coverage-at-k-guided.svg"):
            file.write_text("old")
        pictures = write_plots(compared(path, tmp_path), tmp_path / "x")
        assert {*tmp_path.glob("*.svg")} == {*pictures, *others}

    def test_are_drawn_of_what_is_there_and_are_the_same_each_time(self, tmp_path: Path) -> None:
        path = comparison_file(tmp_path)
        finish(planned(path, tmp_path), *AFTER)
        found = compared(path, tmp_path)
        pictures = write_plots(found, tmp_path / "x")
        assert [p.name for p in pictures] == ["x-success.svg", "x-entropy.svg", "x-pass-at-k.svg"]
        first = [p.read_bytes() for p in pictures]
        assert [p.read_bytes() for p in write_plots(found, tmp_path / "x")] == first
        for picture in pictures:
            text = "".join(ET.parse(picture).getroot().itertext())
            assert "one" in text
            assert "two" in text

    def test_an_axis_ends_where_shares_do(self, tmp_path: Path) -> None:
        path = comparison_file(tmp_path)
        finish(planned(path, tmp_path), *AFTER)  # two seeds: the interval of success reaches from -0.87 to 1.67
        picture = write_plots(compared(path, tmp_path), tmp_path / "x")[0]
        shown = {float(t) for t in ET.parse(picture).getroot().itertext() if re.fullmatch(r"\d\.\d+", t.strip())}
        assert shown
        assert max(shown) <= 1

    def test_can_be_read_on_white_and_on_black(self) -> None:
        for colour in COLOURS:
            assert min(contrast(colour, "#ffffff"), contrast(colour, "#0d1117")) >= 3  # WCAG 2.1, graphics
        assert contrast(INK, "#ffffff") >= 4.5  # text
        assert contrast(INK, "#0d1117") >= 4


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
