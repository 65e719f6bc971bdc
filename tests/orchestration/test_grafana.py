"""The dashboard asks for gauges that exist, shows all of them, and overlaps nowhere; so do the alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import prometheus, timeseries

from orchestration.cluster import ROOT
from orchestration.grafana import ROWS, UID, dashboard, queried
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics, metrics_table

MONITORING = ROOT / "configs" / "monitoring"
GAUGES = {f"ray_sesa_{metric.name}" for metric in metrics_table(UpdateMetrics)} | {
    f"ray_sesa_held_out_{metric.name}" for metric in metrics_table(HeldOutMetrics) if metric.name != "pass_at_k"
}
PASS_AT_K = "ray_sesa_held_out_pass_at_.+"  # a gauge for each k
ALERTS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]


def names_in(query: str) -> set[str]:
    """The metrics a query is about, of its syntax tree; raises ValueError where it is no PromQL."""
    return set(_names(promql_parser.parse(query.replace("$run", ".+"))))


def _names(part: Any) -> Iterator[str]:
    if isinstance(part, promql_parser.MatrixSelector):
        yield from _names(part.vector_selector)
    elif isinstance(part, promql_parser.VectorSelector):
        named = [matcher.value for matcher in part.matchers.matchers if matcher.name == "__name__"]
        yield part.name or named[0]
    elif isinstance(part, promql_parser.BinaryExpr):
        yield from _names(part.lhs)
        yield from _names(part.rhs)
    elif isinstance(part, promql_parser.Call):
        for argument in part.args:
            yield from _names(argument)
    elif isinstance(part, promql_parser.ParenExpr):
        yield from _names(part.expr)
    else:
        assert isinstance(part, promql_parser.NumberLiteral), type(part)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def test_panels_ask_for_every_gauge_and_no_other() -> None:
    asked = [name for panel in panels() for target in panel["targets"] for name in names_in(target["expr"])]
    assert set(asked) == GAUGES | {PASS_AT_K}
    assert len(asked) == len(set(asked)), "asked for twice"
    assert [target["expr"] for panel in panels() for target in panel["targets"]] == [
        query for row in ROWS for panel in row.panels for query in queried(panel)
    ]


def test_grafana_knows_every_field() -> None:
    """Read with Grafana's own types, and written again: what they do not know would be missing."""
    register_default_plugins()
    read = grafana.Dashboard.from_json(dashboard())
    assert list(lost(dashboard(), json.loads(json.dumps(read, cls=JSONEncoder)))) == []
    drawn = [panel for panel in read.panels or [] if isinstance(panel, grafana.Panel)]
    assert len(drawn) == len(panels())
    for panel in drawn:
        assert isinstance(panel.options, timeseries.Options)
        assert panel.targets
        assert all(isinstance(target, prometheus.Dataquery) and target.ref_id for target in panel.targets)


def test_a_field_that_grafana_does_not_know_is_found() -> None:
    register_default_plugins()
    wrong = dashboard() | {"autoRefresh": "10s"}
    wrong["panels"][1]["fieldConfig"]["defaults"]["colour"] = "red"
    read = grafana.Dashboard.from_json(wrong)
    assert list(lost(wrong, json.loads(json.dumps(read, cls=JSONEncoder)))) == [
        "/panels/1/fieldConfig/defaults/colour", "/autoRefresh",
    ]  # fmt: skip


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where `after` lacks what `before` has, or has something else."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{path}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}/{i}")
    elif before != after:
        yield path


def test_queries_are_of_the_runs_that_are_chosen() -> None:
    assert all('run=~"$run"' in target["expr"] for panel in panels() for target in panel["targets"])
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["run"]["query"]["query"] == "label_values(ray_sesa_update, run)"
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    assert "datasource" in variables


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_runs_are_not_added_up() -> None:
    for panel in panels():
        stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
        assert (panel.get("repeat") == "run") == stacked, panel["title"]


def test_a_panels_words_are_the_tables() -> None:
    entropy = next(panel for panel in panels() if panel["title"] == "Entropy")
    assert entropy["description"] == (
        "**entropy** [nats]: Mean entropy of the policy at the trained tokens. "
        "Healthy: falls slowly; near 0 the policy has collapsed."
    )
    units = {panel["title"]: panel["fieldConfig"]["defaults"]["unit"] for panel in panels()}
    assert (units["The learner's time"], units["Queue, bytes"], units["Weight broadcast"]) == (
        "percentunit",
        "bytes",
        "s",
    )
    assert units["Answers to a held-out episode"] == "short"  # answers and nats


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alerts_ask_for_gauges_that_exist_and_say_which_run(alert: dict[str, Any]) -> None:
    assert names_in(alert["expr"]) <= GAUGES
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].startswith("{{ $labels.run }}: ")
    assert alert["annotations"]["description"].endswith(".")


def test_the_worst_is_watched_for() -> None:
    wanted = {"SesaStuck", "SesaLedgerViolated", "SesaEntropyCollapse", "SesaLearnerStarves", "SesaActorsStarve"}
    assert wanted <= {alert["alert"] for alert in ALERTS}
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert [alert["alert"] for alert in ALERTS if f"`{alert['alert']}`" not in page] == []


def test_prometheus_and_grafana_find_their_files() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert [(MONITORING / name).is_file() for name in config["rule_files"]] == [True]
    sources = yaml.safe_load((MONITORING / "grafana/datasources/prometheus.yml").read_text())["datasources"]
    assert [(source["name"], source["url"]) for source in sources] == [("Prometheus", "http://127.0.0.1:9090")]
    providers = yaml.safe_load((MONITORING / "grafana/dashboards/sesa.yml").read_text())["providers"]
    assert {provider["options"]["path"] for provider in providers} == {"$SESA_DASHBOARDS", "$RAY_DASHBOARDS"}
    assert dashboard()["uid"] == UID


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt install prometheus)")
def test_prometheus_takes_the_rules_and_they_fire_when_they_should() -> None:
    tests = ROOT / "tests" / "orchestration" / "alerts.test.yml"
    for arguments in (["check", "config", str(MONITORING / "prometheus.yml")], ["test", "rules", str(tests)]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    fired = set(re.findall(r"alertname: (\w+)", tests.read_text()))
    assert fired == {alert["alert"] for alert in ALERTS}
