"""Every shipped config trains two updates on the real stack: what makes it large is cut down, its method is not.

The runs come one after another to the same processes, which start anew in all but the import of their libraries: most
of a start is that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from configs.load import load_config
from configs.samplers import DdeSettings, SamplerSettings
from configs.schema import RunConfig
from orchestration import cluster, run, session
from orchestration.cluster import ROOT
from orchestration.replay_queue import ReplayQueue
from orchestration.room import reserve
from orchestration.session import Processes, spawn_processes
from tests.envs.cases import QUESTIONS

pytestmark = [pytest.mark.real, pytest.mark.slow]

CONFIGS = ROOT / "configs"
# Comparisons of runs are no runs, and what starts clusters neither; those of configs/gpu/ need GPUs: test_dry_run.py.
NOT_HERE = {"cluster", "compare", "gpu"}
SHIPPED = sorted(
    str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if p.relative_to(CONFIGS).parts[0] not in NOT_HERE
)
MATH = "math"  # the one task without a file of its own: it needs data
UPDATES, GROUPS = 2, 3
TINY = [
    f"run.updates={UPDATES}", f"grpo.groups_per_update={GROUPS}", "eval.episodes=8", "eval.samples=2",
    "cluster.dashboard=false", "observe.console=false", "rollout.actors=1", "deepspeed.ranks=1",
    # The policy is the same for all runs of one environment, also for those that go on from another run's.
    "model.path=null", "model.warmup.layers=1", "model.warmup.hidden=64", "model.warmup.heads=2",
    "model.warmup.demonstrations=400", "model.warmup.skill=0.5",
]  # fmt: skip
SMALLER = {
    "parallel": ["group_size=4"],
    "sequential": ["solutions=4"],
    "sesa": ["sketches=3"],
    "verbalized": ["responses=2"],
    "tree": ["trees=2"],
    "dde": ["branches=2"],
}


class Stage:
    """Ray with a rank and a rollout actor that stay while runs come and go."""

    def __init__(self, config: RunConfig) -> None:
        cluster.connect(config)
        self._rooms = reserve(config)
        self._kept: Processes | None = None
        self._runs = itertools.count(1)

    @contextmanager
    def joined(self, *_: Any) -> Iterator[None]:
        """In place of `session.joined_cluster`: it is joined already, and not left."""
        yield

    def processes(self, config: RunConfig, policy: str, *_: Any) -> Processes:
        """In place of `session.spawn_processes`."""
        if self._kept is None:
            made = spawn_processes(config, policy, self._rooms)
            self._kept = replace(made, new_ranks=nothing_more, new_actor=nothing_more)
            return self._kept
        remote: Any = ray.remote(ReplayQueue)
        queue = f"replay queue of run {next(self._runs)}"
        replay = remote.options(name=queue, num_cpus=0).remote(config.queue)
        begun: list[Any] = [
            process.__ray_call__.remote(begin_anew, config, policy, 0, *more)
            for process, more in ((self._kept.ranks[0], ()), (self._kept.actors[0], (queue,)))
        ]
        ray.get(begun)
        self._kept = replace(self._kept, replay=replay)
        return self._kept

    def drop(self) -> None:
        """Processes in which a run failed are not used again."""
        for process in (*self._kept.ranks, *self._kept.actors) if self._kept else ():
            ray.kill(process)
        self._kept = None


def nothing_more(*_: object) -> Any:
    raise AssertionError("a process of a run without faults is started once more")


def begin_anew(process: Any, *arguments: Any) -> None:
    """Runs inside a rank or a rollout actor: it becomes what a new one would be."""
    if hasattr(process, "_sampler"):
        process._engine.close()
    process.__init__(*arguments)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    settings = {"rollout": {"actors": 1}, "deepspeed": {"ranks": 1}, "cluster": {"dashboard": False}}
    try:
        yield Stage(RunConfig.model_validate(settings))
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


def smaller(sampler: SamplerSettings) -> list[str]:
    """A few trajectories of a prompt, by the method's own knob."""
    own = [f"sampler.{change}" for change in SMALLER[sampler.name]]
    if isinstance(sampler, DdeSettings):
        own += [f"sampler.root.{change}" for change in SMALLER[sampler.root.name]]
    return own


def config_for_math(folder: Path) -> Path:
    records = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(records), encoding="utf-8")
    config = folder / "math.yaml"
    config.write_text(f"env: {{name: math, data: {folder / 'questions.jsonl'}}}\nsampler: {{name: sesa}}\n")
    return config


@pytest.mark.parametrize("name", [*SHIPPED, MATH])
def test_a_config_trains_two_updates(
    name: str, stage: Stage, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_for_math(tmp_path) if name == MATH else CONFIGS / name
    config = load_config(path, [])
    # A hardly taught policy may solve nothing at all. DAPO is about what is done then.
    refill = name == "rivals/dapo.yaml"
    own = [] if refill else ["grpo.drop_zero_signal=false"]
    places = [f"run.root={tmp_path / 'runs'}", "run.name=it", f"model.warmup.cache={cache}"]
    monkeypatch.setattr(session, "joined_cluster", stage.joined)
    monkeypatch.setattr(session, "spawn_processes", stage.processes)
    monkeypatch.chdir(ROOT)
    status = run.main(["--config", str(path), *TINY, *smaller(config.sampler), *own, *places])
    if status:
        stage.drop()
    assert status == 0

    folder = tmp_path / "runs" / "it"
    summary = json.loads((folder / "summary.json").read_text())
    expected = (config.env.name, config.sampler.name, UPDATES)
    assert (summary["env"], summary["sampler"], summary["updates"]) == expected
    assert summary["ledger_balanced"]
    assert summary["tickets"]["failed"] == 0
    trained = summary["tickets"]["trained"]
    assert 0 < trained <= UPDATES * GROUPS if refill else trained == UPDATES * GROUPS
    assert 0 <= summary["success_after"] <= 1
    updates = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [u["update"] for u in updates] == [1, 2]
    assert all(u["skipped_steps"] == 0 for u in updates)
    assert (folder / "policy" / "config.json").is_file()
