"""The engine's thread with a scripted engine in vLLM's place: nobody who waits is forgotten, whatever breaks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import engine_thread as engine_module
from actors.engine import Engine, EngineError
from configs.schema import RunConfig

EOS = 2


class ScriptedEngine:
    """Each request ends in one step with tokens [5, EOS]; `gate` holds a step back, `fault` makes it raise."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.requests: list[str] = []
        self.prompts: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.in_step = threading.Event()
        self.version = "0"
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.slept: list[Any] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.requests.append(request_id)
        self.prompts[request_id] = prompt["prompt_token_ids"]

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        self.in_step.set()
        self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        done, self.requests = self.requests, []
        logprobs = [{5: SimpleNamespace(logprob=-0.5)}, {EOS: SimpleNamespace(logprob=-0.25)}]
        spans = [SimpleNamespace(version=self.version, start=0, end=2)]
        answer = SimpleNamespace(token_ids=[5, EOS], logprobs=logprobs, weight_versions=spans)
        return [
            SimpleNamespace(
                request_id=r, finished=True, outputs=[answer], prompt_token_ids=self.prompts[r], num_cached_tokens=1
            )
            for r in done
        ]

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        self.requests = [r for r in self.requests if r not in request_ids]

    def collective_rpc(self, method: Callable[[], Any], kwargs: dict[str, Any]) -> list[Any]:
        return [method(**kwargs)]

    def sleep(self, level: int, mode: str) -> None:
        self.slept.append((level, mode))

    def wake_up(self, tags: list[str] | None) -> bool:
        self.slept.append(tags)
        return True

    def set_weight_version(self, version: str) -> None:
        self.version = version

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        return reset_running_requests


@pytest.fixture
def scripted() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def engine(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engine_module, "start_engine", lambda arguments: scripted)
    engine = Engine(RunConfig(), "policy", 0, EOS)
    engine.start()
    yield engine
    scripted.gate.set()
    engine.close()


def context(n: int = 3) -> Any:
    return np.arange(n, dtype=np.int32)


async def test_a_sample_carries_tokens_logprobs_and_versions(engine: Engine) -> None:
    completion = await engine.sample(context(), 8, seed=1)
    assert completion is not None
    assert (completion.token_ids.tolist(), completion.ended) == ([5, EOS], True)
    assert completion.behaviour_logprobs.tolist() == [-0.5, -0.25]
    assert completion.policy_versions.tolist() == [0, 0]
    clock = engine.clock()
    assert (clock.sampled_tokens, clock.prompt_tokens, clock.cached_tokens) == (2, 3, 1)


async def test_a_context_without_room_is_not_sampled(engine: Engine) -> None:
    assert await engine.sample(context(RunConfig().model.max_model_len), 8, seed=1) is None


async def test_a_paused_engine_keeps_its_requests_and_resumes_as_the_new_version(engine: Engine) -> None:
    await engine.pause()
    sampling = asyncio.create_task(engine.sample(context(), 8, seed=1))
    await asyncio.sleep(0.3)
    assert not sampling.done()
    await engine.resume("7")
    completion = await sampling
    assert completion is not None
    assert completion.policy_versions.tolist() == [7, 7]
    assert engine.clock().paused_s >= 0.3


@pytest.mark.parametrize(("gpus", "asleep", "awake"), [(0.0, (0, "keep"), ["scheduling"]), (0.5, (1, "keep"), None)])
async def test_a_sleeping_engine_keeps_its_requests_and_wakes_paused(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, gpus: float, asleep: Any, awake: Any
) -> None:
    monkeypatch.setattr(engine_module, "start_engine", lambda arguments: scripted)
    rollout, ranks = {"actors": 1, "gpus_per_actor": gpus}, {"ranks": 1, "gpus_per_rank": gpus}
    settings = {"rollout": rollout, "deepspeed": ranks, "cluster": {"colocated": True}}
    engine = Engine(RunConfig.model_validate(settings), "policy", 0, EOS)
    engine.start()
    try:
        await engine.wake()
        await engine.sleep()
        sampling = asyncio.create_task(engine.sample(context(), 8, seed=1))
        await engine.wake()
        await engine.wake()
        await asyncio.sleep(0.3)
        assert not sampling.done()
        assert scripted.slept == [asleep, awake], "it was not asleep at first, and woke once"
        await engine.resume("0")
        assert await sampling is not None
    finally:
        engine.close()


async def test_a_command_given_up_is_skipped_and_the_engine_goes_on(engine: Engine, scripted: ScriptedEngine) -> None:
    scripted.gate.clear()
    first = asyncio.create_task(engine.sample(context(), 8, seed=1))
    await asyncio.to_thread(scripted.in_step.wait, 5)
    ran: list[int] = []
    late = asyncio.create_task(engine.worker_call(lambda: ran.append(1)))
    second = asyncio.create_task(engine.sample(context(), 8, seed=2))
    await asyncio.sleep(0.05)
    late.cancel()
    second.cancel()
    await asyncio.gather(late, second, return_exceptions=True)
    scripted.gate.set()
    assert await first is not None
    assert await engine.sample(context(), 8, seed=3) is not None
    assert ran == []


async def test_a_request_given_up_is_aborted(engine: Engine, scripted: ScriptedEngine) -> None:
    await engine.pause()
    sampling = asyncio.create_task(engine.sample(context(), 8, seed=1))
    await asyncio.sleep(0.3)
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    await engine.resume("0")
    assert scripted.aborted == ["r1"]


async def test_a_step_that_raises_is_told_to_all_who_wait_and_who_come_later(
    engine: Engine, scripted: ScriptedEngine
) -> None:
    scripted.gate.clear()
    sampling = asyncio.create_task(engine.sample(context(), 8, seed=1))
    await asyncio.to_thread(scripted.in_step.wait, 5)
    queued = asyncio.create_task(engine.pause())
    await asyncio.sleep(0.05)
    scripted.fault = RuntimeError("out of blocks")
    scripted.gate.set()
    for waiting in (sampling, queued, engine.sample(context(), 8, seed=2), engine.pause()):
        with pytest.raises(EngineError, match="the engine stopped: out of blocks"):
            await asyncio.wait_for(waiting, 5)


async def test_a_closed_engine_answers_nobody_and_says_so(engine: Engine) -> None:
    engine.close()
    with pytest.raises(EngineError, match="it was closed"):
        await asyncio.wait_for(engine.pause(), 5)


def test_a_start_that_fails_raises_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: Any) -> Any:
        raise ValueError("no such architecture")

    monkeypatch.setattr(engine_module, "start_engine", refuse)
    with pytest.raises(ValueError, match="no such architecture"):
        Engine(RunConfig(), "policy", 0, EOS).start()


# --- under a watchdog ------------------------------------------------------------------------------------------------


class Dog:
    """In place of a watchdog: the limits it was given."""

    def __init__(self) -> None:
        self.limits: list[float] = []

    def feed(self, limit_s: float) -> None:
        self.limits.append(limit_s)

    def rest(self) -> None:
        """There is nothing to look after."""


def watched(scripted: ScriptedEngine, dog: Any, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(engine_module, "start_engine", lambda arguments: scripted)
    config = RunConfig.model_validate({"rollout": {"hang_timeout_s": 3}, "sync": {"timeout_s": 20}})
    engine = Engine(config, "policy", 0, EOS, dog)
    engine.start()
    return engine


async def test_a_step_has_its_limit_and_a_command_that_of_a_broadcast_beside(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = Dog()
    engine = watched(scripted, dog, monkeypatch)
    assert await engine.sample(context(), 8, seed=1) is not None
    # The request came as a command; behind it, and so before the step, the limit is a step's again.
    assert 23.0 in dog.limits
    assert set(dog.limits) == {3.0, 23.0}
    assert dog.limits[0] == 3.0
    engine.close()


async def test_a_step_that_does_not_end_is_not_fed(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    dog = Dog()
    engine = watched(scripted, dog, monkeypatch)
    scripted.gate.clear()
    sampling = asyncio.create_task(engine.sample(context(), 8, seed=1))
    await asyncio.to_thread(scripted.in_step.wait, 5)
    fed = len(dog.limits)
    assert dog.limits[-1] == 3.0
    await asyncio.sleep(0.5)  # an idle engine is fed five times a second
    assert len(dog.limits) == fed
    scripted.gate.set()
    await sampling
    engine.close()


async def test_an_engine_without_work_and_one_that_is_paused_are_fed(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = Dog()
    engine = watched(scripted, dog, monkeypatch)
    for pause in (False, True):
        if pause:
            await engine.pause()
        fed = len(dog.limits)
        ends = time.monotonic() + 10
        while len(dog.limits) < fed + 2 and time.monotonic() < ends:
            await asyncio.sleep(0.05)
        assert len(dog.limits) >= fed + 2
    engine.close()
