"""What it costs that environments live in processes of their own: calls, starts, and whole groups without an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import psutil

from actors.chat import Chat
from actors.engine import Completion
from actors.env_workers import EnvWorkers
from actors.remote_env import RemoteEnv, Workers
from actors.rollout import Rollout, Shared
from actors.samplers.parallel import ParallelSampler
from configs.schema import RunConfig
from envs.registry import make_env
from envs.trajectory import Ints, Ticket
from tests.bench.rounds import interleaved, ratio, rounded
from tests.builders import ThreadWorkers, byte_tokenizer

GOAL_MS, START_GOAL_S = 0.3, 1.0
GAMES = ("frozen_lake", "sokoban")
GROUPS, AT_ONCE, GROUP_SIZE = 32, 8, 8
CALLS = 300
TOKENIZER = byte_tokenizer()


class Walker:
    """Answers at once with a move, by the request's seed: nothing but the environments and the rollout takes time."""

    def __init__(self) -> None:
        self._said = [self._completion(f"<answer>{move}</answer>") for move in ("Left", "Up", "Right", "Down")]

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        await asyncio.sleep(0)
        return self._said[seed % len(self._said)]

    def _completion(self, words: str) -> Completion:
        token_ids = np.array([*TOKENIZER(words)["input_ids"], TOKENIZER.eos_token_id], np.int32)
        n = len(token_ids)
        return Completion(token_ids, np.full(n, -0.5, np.float32), np.zeros(n, np.int32), True)


def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds a call and seconds a start are medians; groups a second also of threads of the same process."""
    figures: dict[str, Any] = {"goal_ms": GOAL_MS, "start_goal_s": START_GOAL_S}
    for game in GAMES:
        config = RunConfig.model_validate({"env": {"name": game}, "model": {"max_model_len": 4096}})
        threads = ThreadWorkers(partial(make_env, config.env), config.rollout.env_timeout_s)
        in_turn: dict[str, Callable[[], float]] = {
            "processes": partial(with_workers, config, groups_a_second),
            "threads": partial(with_threads, config, threads),
        }
        found = interleaved(in_turn, rounds)
        figures[game] = {
            **{f"{name}_ms": rounded(1000 * s) for name, s in with_workers(config, seconds_a_call).items()},
            "start_s": rounded(median(with_workers(config, start_s) for _ in range(rounds))),
            **{f"{name}_groups_per_s": rounded(median(values)) for name, values in found.items()},
            "processes_over_threads": rounded(ratio(found["processes"], found["threads"])),
            "worker_mib": with_workers(config, resident_mib),
        }
    return figures


def with_workers(config: RunConfig, work: Callable[[RunConfig, EnvWorkers], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        workers = EnvWorkers(partial(make_env, config.env), config.rollout)
        try:
            return await work(config, workers)
        finally:
            workers.close()

    return asyncio.run(run())


def with_threads(config: RunConfig, threads: ThreadWorkers) -> float:
    return asyncio.run(groups_a_second(config, threads))


async def start_s(_: RunConfig, workers: EnvWorkers) -> float:
    began = time.perf_counter()
    await workers.ready()
    return time.perf_counter() - began


async def resident_mib(_: RunConfig, workers: EnvWorkers) -> int:
    await workers.ready()
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in workers.process_ids) // 2**20


async def seconds_a_call(config: RunConfig, workers: EnvWorkers) -> dict[str, float]:
    """Of an episode's begin, its first answer, and a question that takes no time itself."""
    await workers.ready()
    seconds: dict[str, list[float]] = {"begin": [], "step": [], "question": []}
    for seed in range(CALLS):
        env = RemoteEnv(config.env.name, workers)
        for name, call in (
            ("begin", lambda e=env, s=seed: e.begin(s)),
            ("question", lambda e=env: e.sketch_request(0)),
            ("step", lambda e=env: e.step("<answer>Left</answer>")),
        ):
            began = time.perf_counter()
            await call()
            seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


async def groups_a_second(config: RunConfig, workers: Workers) -> float:
    shared, places = Shared(config, Chat(TOKENIZER), Walker(), workers), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            rollout = Rollout(Ticket(number, config.env.name, 2 * number), shared)
            await rollout.start()
            await ParallelSampler(GROUP_SIZE).sample_group(rollout)

    await one(GROUPS)  # what is only made once, workers too
    began = time.perf_counter()
    await asyncio.gather(*map(one, range(GROUPS)))
    return GROUPS / (time.perf_counter() - began)
