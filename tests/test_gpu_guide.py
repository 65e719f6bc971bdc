"""docs/gpu.md explains every value of configs/gpu/, and says of it what is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
VALUES = PAGE.split("## Where the values come from")[1].split("\n## ")[0]
FILES = sorted((ROOT / "configs" / "gpu").rglob("*.yaml"))


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_of_a_config_is_in_the_table(file: Path) -> None:
    named = {text.split(":")[0] for row in VALUES.splitlines() for text in re.findall(r"`([^`]+)`", row)}
    assert set(leaves(yaml.safe_load(file.read_text(encoding="utf-8")))) - named == set()


def test_files_are_named() -> None:
    assert len(FILES) == 11
    assert [file.name for file in FILES if f"{file.name}`" not in PAGE] == []


def test_how_much_the_queue_holds_is_as_it_is_said() -> None:
    """Batches of an update, and MiB a group."""
    held = {}
    for file in FILES:
        config = load_config(file, [])
        batches = config.queue.max_groups / config.grpo.groups_per_update
        held[file.stem] = (config.queue.max_policy_lag, batches, config.queue.max_mib / config.queue.max_groups)
    ahead = {"8_gpus", "4x8_gpus", "16x8_gpus"}
    assert {name: held.pop(name) for name in ahead} == dict.fromkeys(ahead, (1, 2, 4))
    assert held.pop("math") == (0, 1, 16)
    assert set(held.values()) == {(0, 8, 4)}
    [row] = [row for row in VALUES.splitlines() if row.startswith("| `queue.max_groups`")]
    assert "two batches where actors may be an update ahead" in row
    assert "eight batches of 8, and one of 64. 4 MiB a group, in maths 16 MiB" in row


@pytest.mark.parametrize("name", ["gpu.md", "cluster.md"])
def test_both_pages_say_the_same_of_a_shared_gpu(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page.count("is implemented and has never run on CUDA") == 1
    assert "not yet run" not in page
