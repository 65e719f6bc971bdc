"""The design's rules, read off the source: imports go one way, heavy ones where they are named, files are short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# folder -> what of ours it may import; a module names itself and what is under it
MAY_IMPORT = {
    "configs": ("configs",),
    "envs": ("envs", "configs"),
    "actors": ("actors", "envs", "configs"),
    "learner": ("learner", "configs", "envs.trajectory", "envs.codec"),
    "orchestration": ("orchestration", "actors", "learner", "envs", "configs"),
}
# library -> the files that may import it, wherever in the file
HEAVY = {
    "ray": {
        "actors/outbox.py",
        "actors/place.py",
        "actors/rollout_actor.py",
        "learner/rank.py",
        "learner/actors_client.py",
        "learner/weight_sender.py",
        "orchestration/cluster.py",
        "orchestration/room.py",
        "orchestration/comparison_jobs.py",
        "orchestration/driver.py",
        "orchestration/learners.py",
        "orchestration/monitor.py",
        "orchestration/pulse.py",
        "orchestration/fleet.py",
        "orchestration/held_out.py",
        "orchestration/queue_client.py",
        "orchestration/training.py",
        "orchestration/dry_run.py",
        "orchestration/ray_gauges.py",
        "orchestration/recorder.py",
        "orchestration/session.py",
        "orchestration/start.py",
    },
    "vllm": {
        "actors/engine.py",
        "actors/engine_thread.py",
        "actors/nccl_receiver.py",
        "actors/weight_receiver.py",
        "learner/nccl_sender.py",
        "learner/weight_sender.py",
        "learner/weight_source.py",
    },
    "deepspeed": {"learner/checkpoint.py", "learner/zero3.py"},
}
LINES_A_FILE = 400
LINES_OF_THE_LOOP = 40
# From a ticket to the weights it changed: the files to read to know all of it. Beside the way are those of which the
# first line says all a reader needs: text to tokens (actors/chat.py), groups to bytes (envs/codec.py).
WAY_OF_ONE_PROMPT = (
    "orchestration/tickets.py",
    "orchestration/dispatch.py",
    "orchestration/driver.py",
    "orchestration/replay_queue.py",
    "actors/rollout_actor.py",
    "actors/samplers/sesa.py",
    "actors/rollout.py",
    "actors/engine.py",
    "envs/trajectory.py",
    "learner/rows.py",
    "learner/advantages.py",
    "learner/plan.py",
    "learner/batches.py",
    "learner/objective.py",
    "learner/losses.py",
    "learner/update.py",
    "learner/rank.py",
)
LINES_OF_THE_WAY = 2000  # all of them, comments and docstrings too

SOURCES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports(path: Path) -> Iterator[str]:
    """Every module an import statement names, in functions and under TYPE_CHECKING too; relative ones made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join((*package[: -node.level], *filter(None, [node.module]))) if node.level else node.module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_in(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


def test_there_are_sources_in_every_folder() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    ours = [module for module in imports(path) if module.split(".")[0] in {*MAY_IMPORT, "tests"}]
    wrong = [module for module in ours if not any(is_in(module, allowed) for allowed in MAY_IMPORT[folder])]
    assert wrong == [], f"{name_of(path)} may import {', '.join(MAY_IMPORT[folder])}"


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_are_imported_where_they_are_named(library: str) -> None:
    found = {name_of(path) for path in SOURCES if any(is_in(module, library) for module in imports(path))}
    assert found == HEAVY[library]


@pytest.mark.parametrize("module", ["configs.schema", "envs.trajectory"])
def test_settings_and_records_load_without_heavy_libraries(module: str) -> None:
    heavy = ("torch", "transformers", *HEAVY)
    program = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_packages_say_nothing() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py"]
    assert {path.parent for path in packages} == {path.parent for path in SOURCES}
    assert [name_of(path) for path in packages if path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_A_FILE


def test_the_way_of_one_prompt_can_be_read_in_one_sitting(record_property: Callable[[str, object], None]) -> None:
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in WAY_OF_ONE_PROMPT}
    record_property("lines", sum(lines.values()))
    assert sum(lines.values()) < LINES_OF_THE_WAY, lines


def test_the_driver_loop_is_a_table_of_contents() -> None:
    [driver] = [n for n in parsed(ROOT / "orchestration/driver.py").body if isinstance(n, ast.ClassDef)]
    [loop] = [n for n in driver.body if isinstance(n, ast.AsyncFunctionDef) and n.name == "train"]
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 < LINES_OF_THE_LOOP
