"""The driver's side of the ranks: who computes while whom sleeps. The ranks are scripted."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from configs.schema import RunConfig
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from orchestration.learners import LearnerError, Learners, RankError
from tests.orchestration.fleet import through_ray

pytestmark = pytest.mark.timeout(30)


class Rank:
    """`rank.method.remote(...)`, as Ray has it; log: what ranks and engines do, in order."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.error: Exception | None = None
        self.seconds = 0.01

    def __getattr__(self, method: str) -> Any:
        async def answer(*_: Any) -> Any:
            self._log.append(method)
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            self._log.append(f"{method} done")
            return SyncTimes() if method == "broadcast" else UpdateSums()

        return SimpleNamespace(remote=answer)


class Stage:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, turns: bool = True) -> None:
        monkeypatch.setattr(ray, "put", lambda what: what)
        self.log: list[str] = []
        self.rank = Rank(self.log)
        rank: Any = self.rank
        self.learners = Learners(RunConfig(), [rank])
        if turns:
            self.learners.takes_turns_with(self._ask)

    async def _ask(self, method: str) -> None:
        await asyncio.sleep(0)
        self.log.append(method)


async def test_engines_sleep_while_the_ranks_update_until_they_get_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    update = asyncio.create_task(stage.learners.update([]))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await stage.learners.give({}, anew=False)  # to an actor that came up: it waits for its turn
    await update
    assert stage.log == ["sleep", "update", "update done", "broadcast", "broadcast done"]


async def test_engines_are_woken_when_nothing_but_figures_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    await stage.learners.score([])
    assert stage.log == ["sleep", "score", "score done", "wake"]


async def test_a_learner_with_gpus_of_its_own_lets_them_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, turns=False)
    await stage.learners.update([])  # type: ignore[arg-type]
    await stage.learners.score([])
    assert stage.log == ["update", "update done", "score", "score done"]


async def test_a_rank_that_dies_leaves_them_asleep_for_the_ranks_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.rank.error = RayActorError(error_msg="The actor died: out of memory")
    with pytest.raises(LearnerError, match="learner rank 0 failed in update"):
        await stage.learners.update([])  # type: ignore[arg-type]
    assert (stage.log, stage.learners.version) == (["sleep", "update"], 0)


async def test_what_a_living_rank_says_is_told_apart_from_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full disk the next rank would say the same; in the place of a dead one another can be started."""
    stage = Stage(monkeypatch)
    stage.rank.error = through_ray(OSError("No space left on device"))
    with pytest.raises(RankError, match=r"^learner rank 0 failed in save: OSError: No space left on device$"):
        await stage.learners.save("a folder")
    stage.rank.error = RayActorError(error_msg="The actor died: out of memory")
    with pytest.raises(LearnerError, match=r"^learner rank 0 failed in save: The actor died: out of memory$") as died:
        await stage.learners.save("a folder")
    assert not isinstance(died.value, RankError)


async def test_ranks_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.answers.MOMENT_S", 0.1)
    ranks: Any = [Rank([]) for _ in range(3)]
    ranks[0].seconds = ranks[2].seconds = 60.0
    learners = Learners(RunConfig.model_validate({"deepspeed": {"timeout_s": 0.2}}), ranks)
    said = r"^the learner's ranks did not save within 0\.2 s \(deepspeed\.timeout_s\): no answer of rank 0, 2$"
    with pytest.raises(LearnerError, match=said):
        await learners.save("a folder")


async def test_answers_that_came_while_the_driver_stood_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.answers.MOMENT_S", 0.5)
    logs: list[list[str]] = [[], []]
    ranks: Any = [Rank(log) for log in logs]
    learners = Learners(RunConfig.model_validate({"deepspeed": {"timeout_s": 0.1}}), ranks)
    saving = asyncio.create_task(learners.save("a folder"))
    await asyncio.sleep(0)
    time.sleep(0.3)  # longer than the limit, and than the ranks took
    await saving
    assert logs == [["save", "save done"]] * 2


async def test_engines_that_share_gpus_do_not_start_while_ranks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """They measure what is free on their GPU, of which a rank that loads takes more and more."""
    log: list[str] = []
    ranks: Any = [StartingRank(log)]
    sharing = {
        "rollout": {"actors": 1, "gpus_per_actor": 0.5},
        "deepspeed": {"ranks": 1, "gpus_per_rank": 0.5},
        "cluster": {"colocated": True},
    }
    learners = Learners(RunConfig.model_validate(sharing), ranks)

    async def start_an_engine() -> None:
        async with learners.at_rest():
            log.append("engine")

    starting = asyncio.create_task(learners.start())
    await asyncio.sleep(0)
    engine = asyncio.create_task(start_an_engine())
    assert await starting == 7
    await engine
    assert log == ["meet", "__ray_call__", "start", "engine"]


async def test_ranks_that_start_again_wait_for_what_the_old_ones_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails with them, and after it nobody speaks for the old ones any more."""
    monkeypatch.setattr("orchestration.learners.end", lambda _: None)
    log: list[str] = []
    old: Any = Rank(log)
    old.error = RayActorError(error_msg="The actor died: out of memory")
    learners = Learners(RunConfig(), [old])
    saving = asyncio.create_task(learners.save("a folder"))
    while not log:
        await asyncio.sleep(0)
    fresh: Any = StartingRank(log)
    await learners.restart([fresh])
    with pytest.raises(LearnerError):
        await saving
    assert log == ["save", "meet", "__ray_call__", "start"]


class StartingRank:
    """Answers what a rank is asked while it starts."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def __getattr__(self, method: str) -> Any:
        answers = {"meet": ("127.0.0.1", 4711), "__ray_call__": None, "start": 7}

        async def answer(*_: Any) -> Any:
            self._log.append(method)
            await asyncio.sleep(0.01)
            return answers[method]

        return SimpleNamespace(remote=answer)
