"""The pages made from the program say what it does now, and leave nothing out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from orchestration import reference
from orchestration.reference import PAGES, ROOT, configuration_page


def rows(page: str) -> list[list[str]]:
    """The cells of all tables' lines that begin with a key."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_program_is(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name](), "run: python -m orchestration.reference"


@pytest.mark.parametrize("name", [name for name in PAGES if name.endswith(".md")])
def test_every_line_has_all_its_cells(name: str) -> None:
    found = rows(PAGES[name]())
    assert len(found) > 60
    assert [cells for cells in found if len(cells) != 4 or not all(cells)] == []


def leaves(values: dict[str, Any], path: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) and value else {path + name}
    return found


def test_every_key_of_a_default_run_is_there() -> None:
    there = {cells[0].strip("`") for cells in rows(configuration_page())}
    # Kinds of settings that come up again are told once.
    told_elsewhere = re.compile(r"(?:^|\.)name$|^grpo\.streams\.(?:sketch|branch)\.")
    missing = {key for key in leaves(RunConfig().model_dump()) - there if not told_elsewhere.search(key)}
    assert missing <= {"model.lora", "run.stop"}  # whole groups, empty by default; their keys are there
    assert {"model.lora.rank", "run.stop.metric", "sampler.sketches", "env.boxes", "sampler.branches"} <= there


def test_what_comes_up_again_is_referred_to() -> None:
    page = configuration_page()
    assert "## sampler.root, name: sesa\n\nThe keys of *sampler, name: sesa*." in page
    assert "## grpo.streams.branch\n\nThe keys of *grpo.streams.solution*." in page


def test_bounds_choices_and_empty_values_are_said() -> None:
    of = {cells[0]: cells[1:3] for cells in rows(configuration_page())}
    assert of["`run.seed`"] == ["integer ≥ 0", "`0`"]
    assert of["`model.lora.dropout`"] == ["number ≥ 0, < 1", "`0.0`"]
    assert of["`model.dtype`"] == ["`float32`, `bfloat16`", "`float32`"]
    assert of["`observe.wandb`"] == ["text or empty", "empty"]
    assert of["`run.stop.metric`"] == ["text", "required"]


def test_the_pages_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    assert reference.main() == 0
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: path.read_text(encoding="utf-8") for name, path in written.items()} == {
        name: page() for name, page in PAGES.items()
    }
