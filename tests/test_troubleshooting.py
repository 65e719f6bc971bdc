"""docs/troubleshooting.md quotes what the program says, and names keys and figures that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.schema import RunConfig
from orchestration.metrics_table import UpdateMetrics, metrics_table
from orchestration.reference import configuration_page

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SAID, FIGURES = PAGE.split("## What the figures say")
QUOTES = re.findall(r"^\| `([^`]+)` \|", SAID, re.MULTILINE)
# Texts of two lines of source are one text.
SOURCES = [
    re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
    for folder in ("actors", "configs", "envs", "learner", "orchestration")
    for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("quote", QUOTES)
def test_what_is_quoted_is_said_by_the_program(quote: str) -> None:
    # The name of what an actor did not do is put into the sentence.
    parts = quote.split("join the weight group") if "join the weight group" in quote else [quote]
    assert all(any(part.strip() in source for source in SOURCES) for part in parts)


def test_keys_and_figures_exist() -> None:
    assert len(QUOTES) > 15
    keys = set(re.findall(r"^\| `([a-z_.]+)` \|", configuration_page(), re.MULTILINE))
    groups = set(RunConfig.model_fields)
    named = {name.split("=")[0] for name in re.findall(r"`([a-z]+\.[a-z_.]+(?:=[^`]*)?)`", PAGE)}
    of_config = {name for name in named if name.split(".")[0] in groups}
    assert {key for key in of_config if not any(k == key or k.startswith(f"{key}.") for k in keys)} == set()
    figures = {metric.name for metric in metrics_table(UpdateMetrics)}
    columns = [line.split("|")[2] for line in FIGURES.splitlines() if line.startswith("| ") and "you see" not in line]
    looked_at = {name for column in columns for name in re.findall(r"`([a-z_]+)`", column)}
    assert len(looked_at) > 8
    assert looked_at <= figures
