"""Environment workers as a pool: calls that go wrong cost themselves alone, whatever way they go wrong."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from actors.env_worker import CallFailed
from actors.env_workers import PATIENCE_S, EnvWorkers
from actors.failures import EnvironmentFailure
from actors.remote_env import RemoteEnv
from configs.environments import FrozenLakeSettings
from configs.schema import RolloutSettings
from envs.base import BadEnvironment
from envs.registry import make_env
from tests.actors.hostile import EndsAtOnce, Hostile, Large, NeverMade, NoMap


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def _leaves_no_process_behind() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


@asynccontextmanager
async def working(make: Callable[[], Any] = Hostile, **limits: float) -> AsyncIterator[EnvWorkers]:
    settings: dict[str, float] = {"env_memory_mib": 64, "env_workers": 1} | limits
    workers = EnvWorkers(make, RolloutSettings.model_validate(settings))
    try:
        yield workers
    finally:
        workers.close()


async def begun(workers: EnvWorkers, seed: int = 1) -> RemoteEnv:
    env = RemoteEnv("hostile", workers)
    await env.begin(seed)
    return env


async def told(workers: EnvWorkers, *answers: str) -> list[str]:
    """What an episode says to these answers."""
    env = await begun(workers)
    return [(await env.step(answer)).message for answer in answers]


FAULTS = {
    "raise no way\nback": r"hostile raised RuntimeError: no way back",
    "leave": r"hostile raised SystemExit: I am off",
    "read": r"hostile raised EOFError: EOF when reading a line",
    "thing": r"hostile raised TypeError: can not serialize 'object' object",
    "reward": r"hostile raised ValueError: could not convert string to float: 'much'",
    "lambda": r"hostile raised TypeError: the episode's state cannot be pickled \(.*\): it must be of plain values",
    "number": r"hostile answered step with int where a text belongs",
    "nan": r"hostile answered step with nan where a finite number belongs",
    "odd": r"hostile answered step with 'splendid' is not a valid Verdict",
    "huge 300000": r"hostile answered step with a text of 300000 characters, more than 262144",
    "huge 17000000": r"hostile raised ValueError: a message of \d+ bytes, at most 16777216 can be sent",
}
DEADLY = {
    "sleep 600": r"hostile did not answer within 3 s \(rollout.env_timeout_s\); its worker was killed"
    r" in _sleep \(hostile.py:\d+\) < step \(hostile.py:\d+\)$",
    "hold 600": r"hostile did not answer within 3 s \(rollout.env_timeout_s\); its worker was killed"
    r" in _hold \(hostile.py:\d+\) < step \(hostile.py:\d+\)$",
    "eat": r"hostile ran out of memory \(rollout.env_memory_mib: 256\); its worker was replaced",
    "exit 3": r"hostile took its worker down, which ended itself with exit code 3 \(rollout.env_memory_mib: 256\)",
    "exit 0": r"hostile took its worker down, which ended itself with exit code 0 \(rollout.env_memory_mib: 256\)",
    "crash": r"hostile took its worker down, which died of SIGSEGV \(rollout.env_memory_mib: 256\)",
    "forge 00": r"hostile (had its worker killed, which said|did not answer within 3 s)",
    "forge ffffffff": r"hostile had its worker killed, which said more than fits into a message \(4294967295 bytes",
    "forge 0100000000": r"hostile had its worker killed, which said what (cannot be read|nobody had asked for)",
}


@pytest.mark.parametrize("fault", [*FAULTS, *DEADLY])
async def test_a_call_that_goes_wrong_costs_its_episode_and_no_other(fault: str) -> None:
    limit_s = 60.0 if fault == "eat" else 3.0  # which takes its time on a busy machine
    async with working(env_timeout_s=limit_s, env_memory_mib=256) as workers:
        alone = await told(workers, "a", "b", "c")
        neighbour = await begun(workers)
        said = [(await neighbour.step("a")).message]
        with pytest.raises(EnvironmentFailure, match=(FAULTS | DEADLY)[fault]):
            await (await begun(workers, seed=2)).step(fault)
        assert (workers.replaced > 0) == (fault in DEADLY)
        assert workers.hung == (fault in ("sleep 600", "hold 600")) or fault.startswith("forge")
        said += [(await neighbour.step(answer)).message for answer in ("b", "c")]
        assert said == alone


async def test_what_is_printed_is_dropped() -> None:
    async with working() as workers:
        here = Hostile()
        here.state = (1, "print 8", "b")
        assert (await told(workers, "print 8", "b"))[1] == here._text()
        assert workers.replaced == 0


# --- whose fault it is -----------------------------------------------------------------------------------------------


async def test_memory_that_others_left_taken_fails_nobody_else() -> None:
    async with working() as workers:
        greedy, modest = await begun(workers, 1), await begun(workers, 2)
        await greedy.step("leak 40")
        await modest.step("take 40")
        assert workers.replaced == 1
        await greedy.step("take 40")


async def test_what_is_loaded_before_the_first_episode_is_not_counted() -> None:
    async with working(Large) as workers:
        await told(workers, "take 40")
        with pytest.raises(EnvironmentFailure, match="ran out of memory"):
            await told(workers, "take 70")


async def test_a_crash_in_a_worker_that_ran_other_calls_is_tried_again_in_a_fresh_one(tmp_path: Path) -> None:
    async with working() as workers:
        expected = (await told(workers, "a", "b"))[1]
        env = await begun(workers)
        await env.step("a")
        step = await env.step(f"once {tmp_path / 'seen'}")
        assert (workers.replaced, step.outcome.answer) == (1, f"a|once {tmp_path / 'seen'}")
        assert (await told(workers, "a", "b"))[1] == expected


async def test_a_crash_in_a_fresh_worker_is_not_tried_again(tmp_path: Path) -> None:
    async with working() as workers:
        env = await begun(workers)
        with pytest.raises(EnvironmentFailure, match="exit code 3"):
            await env.step("exit 3")
        assert workers.replaced == 2
        with pytest.raises(EnvironmentFailure, match="exit code 9"):
            await env.step(f"once {tmp_path / 'seen'}")
        assert workers.replaced == 3
        assert workers.newly_replaced() == 3
        assert workers.newly_replaced() == 0


async def test_a_worker_that_dies_while_nobody_asks_is_nobodys_fault() -> None:
    async with working() as workers:
        env = await begun(workers)
        [pid] = workers.process_ids
        os.kill(pid, signal.SIGKILL)
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
        assert (await env.step("a")).message == (await told(workers, "a"))[0]
        assert workers.process_ids != [pid]
        assert workers.replaced == 0


async def test_whoever_gives_up_leaves_no_answer_to_the_next_one() -> None:
    async with working() as workers:
        env, other = await begun(workers, 1), await begun(workers, 2)
        waiting = asyncio.create_task(env.step("sleep 0.5"))
        await asyncio.sleep(0.1)
        queued = asyncio.create_task(env.step("never asked"))
        await asyncio.sleep(0)
        for task in (waiting, queued):
            task.cancel()
        step = await other.step("a")
        assert (step.outcome.answer, workers.replaced) == ("a", 1)
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(waiting, queued, return_exceptions=True)
        )


# --- time and numbers ------------------------------------------------------------------------------------------------


async def test_waiting_for_a_worker_is_not_counted_against_the_limit() -> None:
    async with working(env_timeout_s=2.0) as workers:
        envs = [await begun(workers, seed) for seed in range(4)]
        began = time.monotonic()
        await asyncio.gather(*(env.step("sleep 0.6") for env in envs))
        assert time.monotonic() - began >= 2.4
        assert workers.hung == 0


async def test_quick_calls_need_one_worker_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.env_workers.PATIENCE_S", 10.0)  # of a busy machine
    async with working(env_workers=4) as workers:
        await workers.ready()
        told_all = await asyncio.gather(*(told(workers, "a", "b") for _ in range(200)))
        assert all(said == told_all[0] for said in told_all)
        assert len(workers.process_ids) == 1


async def test_slow_calls_get_more_workers_but_no_more_than_allowed() -> None:
    async with working(env_workers=2, env_timeout_s=20.0) as workers:
        envs = [await begun(workers, seed) for seed in range(4)]
        slow = [asyncio.create_task(env.step(f"sleep {PATIENCE_S * 8}")) for env in envs]
        quick = await told(workers, "a")
        assert not slow[3].done()
        await asyncio.gather(*slow)
        assert await told(workers, "a") == quick
        assert len(workers.process_ids) == 2


async def test_hung_calls_starve_nobody() -> None:
    async with working(env_workers=2, env_timeout_s=3.0) as workers:
        envs = [await begun(workers, seed) for seed in range(4)]
        hung = await asyncio.gather(*(env.step("hold 600") for env in envs), return_exceptions=True)
        assert all(isinstance(error, EnvironmentFailure) for error in hung)
        assert (workers.hung, len(workers.process_ids)) == (4, 2)
        assert len(await told(workers, "a")) == 1


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (NoMap, r"has no worker: making an environment there raised OSError: no such map"),
        (EndsAtOnce, r"has no worker: its process ended itself with exit code 4; the actor's log may say why"),
        (NeverMade, r"has no worker: it was not up within 0.5 s \(rollout.start_timeout_s\) and was killed"),
    ],
)
async def test_an_environment_that_cannot_be_made_says_why_each_time(make: type[Hostile], cause: str) -> None:
    async with working(make, start_timeout_s=0.5 if make is NeverMade else 60.0) as workers:
        for _ in range(2):
            with pytest.raises(CallFailed, match=cause):
                await workers.ready()
        with pytest.raises(EnvironmentFailure, match=f"hostile {cause}"):
            await begun(workers)


@pytest.mark.parametrize("make", [lambda: Hostile(), partial(Hostile, sys.stdout)])  # type: ignore[call-arg]
def test_what_cannot_be_sent_to_a_process_is_said_in_one_line(make: Callable[[], Any]) -> None:
    with pytest.raises(
        BadEnvironment, match=r"^env: how to make it cannot be sent to a worker process \(.*\): it takes .*$"
    ):
        EnvWorkers(make, RolloutSettings())


async def test_the_environments_own_figures_are_known_once_a_worker_is_up() -> None:
    async with working() as workers:
        assert workers.target_count is None
        await workers.ready()
        assert workers.target_count == 7


async def test_a_real_environment_lives_in_a_worker_as_it_does_here() -> None:
    settings = FrozenLakeSettings(slip=0.3)
    async with working(partial(make_env, settings)) as workers:
        env, here = await begun(workers, 5), make_env(settings)
        assert env.first_message == here.reset(seed=5)[0]
        assert env.rules == here.rules
        for answer in ("<answer>Left</answer>", "nonsense", "<answer>Up</answer>"):
            message, reward, *over, info = here.step(answer)
            step = await env.step(answer)
            assert (step.message, step.reward, step.over, step.outcome) == (message, reward, any(over), info["outcome"])
        assert pickle.loads(env.state).state == here.state
        assert await env.sketch_key("begin Up, Left") == "Up,Left"
        assert await env.sketch_key("anyhow") is None


# --- over and over ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_two_hundred_faults_leave_neither_files_nor_processes_behind() -> None:
    async with working(env_workers=2, env_timeout_s=2.0) as workers:
        neighbour = await begun(workers)
        said = [(await neighbour.step("a")).message]
        files = os.listdir("/proc/self/fd")
        faults = ["exit 1", "raise x", "nan", "thing", "odd", "crash", "raise y", "number", "lambda", "leave"]
        for number in range(200):
            env = await begun(workers, seed=number)
            with pytest.raises(EnvironmentFailure):
                await env.step(faults[number % len(faults)])
        said += [(await neighbour.step(answer)).message for answer in ("b", "c")]
        assert said == await told(workers, "a", "b", "c")
        assert workers.replaced >= 40
        async with asyncio.timeout(20):  # those just killed are looked after a second later, or more
            while len(children()) > len(workers.process_ids):
                await asyncio.sleep(0.1)
        assert len(children()) == len(workers.process_ids) <= 2
        assert len(os.listdir("/proc/self/fd")) <= len(files) + 1  # a second worker may have come


def test_it_all_works_on_the_loop_that_ray_uses() -> None:
    async def scenario() -> None:
        async with working(env_timeout_s=3.0) as workers:
            env = await begun(workers)
            said = [(await env.step("a")).message]
            for fault in ("exit 3", "hold 600", "forge ffffffff", "huge 300000"):
                with pytest.raises(EnvironmentFailure):
                    await (await begun(workers)).step(fault)
            said.append((await env.step("x" * 250_000)).message)
            assert said == await told(workers, "a", "x" * 250_000)

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()
