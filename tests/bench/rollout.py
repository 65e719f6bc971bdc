"""The rollout actor against the bare engine on the same requests, in one process and on one engine."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import ray

from actors.engine import Completion, Engine
from actors.rollout_actor import RolloutActor
from configs.load import load_config
from configs.schema import RunConfig
from envs.trajectory import Ints, Ticket
from orchestration import cluster
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from orchestration.replay_queue import ReplayQueue
from orchestration.tickets import training_ticket
from tests.bench.rounds import interleaved, ratio, rounded

GOAL = 0.90
TICKETS = 16
# The request whose answer the running task had last: what it asks next could not be asked before.
BEHIND: ContextVar[int | None] = ContextVar("BEHIND", default=None)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was made. behind: the number of the one whose answer it needs."""

    context_ids: list[int]
    max_tokens: int
    seed: int
    behind: int | None


@dataclass
class Recorder:
    """The engine, with a list of what it was asked."""

    engine: Engine
    asked: list[Asked] = field(default_factory=list)

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        number = len(self.asked)
        self.asked.append(Asked(context_ids.tolist(), max_tokens, seed, BEHIND.get()))
        completion = await self.engine.sample(context_ids, max_tokens, seed)
        BEHIND.set(number)
        return completion


class BenchedActor(RolloutActor):
    """A rollout actor whose engine can also be driven bare, through vLLM's own two calls."""

    async def record(self, tickets: Sequence[Ticket]) -> None:
        """Sample the tickets once and keep what the engine was asked."""
        shared, recorder = self._shared, Recorder(self._engine)
        self._shared = replace(shared, policy=recorder)
        await asyncio.gather(*(self.sample(ticket) for ticket in tickets))
        self._shared, self._asked = shared, recorder.asked

    async def played(self, tickets: Sequence[Ticket]) -> tuple[float, int]:
        """Seconds and sampled tokens of the tickets through the actor."""
        thread = self._engine._thread
        await thread.call(lambda: thread.engine.reset_prefix_cache())
        began, before = time.monotonic(), self._engine.clock().sampled_tokens
        receipts = await asyncio.gather(*(self.sample(ticket) for ticket in tickets))
        assert {r.state for r in receipts} == {"queued"}, receipts[0]
        return time.monotonic() - began, self._engine.clock().sampled_tokens - before

    async def bare(self) -> tuple[float, int]:
        """Seconds and sampled tokens of the recorded requests, each asked as soon as the one before it is answered."""
        thread = self._engine._thread
        done: tuple[float, int] = await thread.call(lambda: drive(thread.engine, self._asked, self._config))
        return done


def drive(engine: Any, asked: Sequence[Asked], config: RunConfig) -> tuple[float, int]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    followers: dict[int | None, list[int]] = defaultdict(list)
    for number, one in enumerate(asked):
        followers[one.behind].append(number)
    engine.reset_prefix_cache()
    began, tokens = time.monotonic(), 0

    def ask(numbers: Sequence[int]) -> None:
        for number in numbers:
            one = asked[number]
            params = SamplingParams(
                temperature=config.rollout.temperature, top_p=1.0, top_k=0, seed=one.seed, max_tokens=one.max_tokens,
                logprobs=0, stop_token_ids=[engine.tokenizer.eos_token_id], detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            engine.add_request(f"bare{number}", {"prompt_token_ids": one.context_ids}, params)

    ask(followers[None])
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                tokens += len(output.outputs[0].token_ids)
                ask(followers[int(output.request_id.removeprefix("bare").split("-")[0])])
    return time.monotonic() - began, tokens


def measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"goal_parallel_at_least": GOAL, "tickets": TICKETS}
    samplers = {"parallel": ["sampler={name: parallel, group_size: 8}"], "sesa": []}
    for name, overrides in samplers.items():
        always = [
            "cluster.dashboard=false",
            "rollout.actors=1",
            "grpo.drop_zero_signal=false",
            "queue.max_groups=100000",
        ]
        config = load_config(ROOT / "configs" / "quickstart.yaml", [*always, *overrides])
        policy = str(ensure_policy(config, print))
        cluster.connect(config)
        try:
            figures[name] = compare(config, policy, rounds)
        finally:
            ray.shutdown()
    return figures


def compare(config: RunConfig, policy: str, rounds: int) -> dict[str, Any]:
    queue: Any = ray.remote(ReplayQueue)
    kind: Any = ray.remote(BenchedActor)
    replay = queue.options(name="replay queue", num_cpus=0).remote(config.queue)
    environment = {"env_vars": dict(cluster.engine_env(config))}
    actor = kind.options(num_cpus=0, runtime_env=environment).remote(config, policy, 0, "replay queue")
    tickets = [training_ticket(config.run.seed, index, config.env.name) for index in range(TICKETS)]
    ray.get(actor.record.remote(tickets))
    ray.get(replay.begin.remote(0))
    tokens: dict[str, int] = {}

    def tokens_per_s(name: str, call: Any) -> float:
        seconds, tokens[name] = ray.get(call)
        ray.get(replay.begin.remote(0) if name == "actor" else replay.depth.remote())
        return tokens[name] / seconds

    found = interleaved(
        {
            "actor": lambda: tokens_per_s("actor", actor.played.remote(tickets)),
            "bare": lambda: tokens_per_s("bare", actor.bare.remote()),
        },
        rounds,
    )
    assert tokens["actor"] == tokens["bare"], f"not the same work: {tokens}"
    return {
        "sampled_tokens": tokens["actor"],
        "actor_tokens_per_s": rounded(median(found["actor"])),
        "bare_tokens_per_s": rounded(median(found["bare"])),
        "ratio": rounded(ratio(found["actor"], found["bare"])),
    }
