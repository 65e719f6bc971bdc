"""What structured exploration costs: seconds a generated token of each sampler, in turn on one actor and its engine."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import ray
from pydantic import TypeAdapter

from actors.samplers.build import build_sampler
from configs.load import load_config
from configs.samplers import SamplerSettings
from orchestration import cluster
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from orchestration.replay_queue import ReplayQueue
from orchestration.tickets import training_ticket
from tests.bench.rollout import BenchedActor
from tests.bench.rounds import interleaved, ratio, rounded

GOAL = 1.25
TICKETS = 32
SAMPLERS: dict[str, dict[str, Any]] = {
    "parallel": {"name": "parallel", "group_size": 8},
    "sesa": {"name": "sesa", "sketches": 8},
    "sesa_of_16": {"name": "sesa", "sketches": 8, "expansions_per_sketch": 2},
    "dde": {"name": "dde", "branches": 4, "max_pivots": 2},
    "tree": {"name": "tree", "trees": 2},
}


class SwitchedActor(BenchedActor):
    """A rollout actor that changes its sampler."""

    async def use(self, settings: dict[str, Any]) -> None:
        self._sampler = build_sampler(TypeAdapter(SamplerSettings).validate_python(settings))


def measure(rounds: int) -> dict[str, Any]:
    always = ["cluster.dashboard=false", "rollout.actors=1", "grpo.drop_zero_signal=false", "queue.max_groups=100000"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", always)
    policy = str(ensure_policy(config, print))
    tickets = [training_ticket(config.run.seed, index, config.env.name) for index in range(TICKETS)]
    cluster.connect(config)
    try:
        queue: Any = ray.remote(ReplayQueue)
        kind: Any = ray.remote(SwitchedActor)
        replay = queue.options(name="replay queue", num_cpus=0).remote(config.queue)
        environment = {"env_vars": dict(cluster.engine_env(config))}
        actor = kind.options(num_cpus=0, runtime_env=environment).remote(config, policy, 0, "replay queue")
        tokens: dict[str, int] = {}

        def seconds_a_token(name: str) -> float:
            ray.get(actor.use.remote(SAMPLERS[name]))
            seconds, tokens[name] = ray.get(actor.played.remote(tickets))
            ray.get(replay.begin.remote(0))
            return float(seconds / tokens[name])

        found = interleaved({name: partial(seconds_a_token, name) for name in SAMPLERS}, rounds)
    finally:
        ray.shutdown()
    return {"goal_sesa_at_most": GOAL, "tickets": TICKETS} | {
        name: {
            "sampled_tokens": tokens[name],
            "tokens_per_s": rounded(1 / median(figures)),
            "seconds_a_token_over_parallel": rounded(ratio(figures, found["parallel"])),
        }
        for name, figures in found.items()
    }
