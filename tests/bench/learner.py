"""The learner's ranks against a plain ZeRO-3 loop and a plain torch loop on the same groups."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import ray

from configs.load import load_config
from configs.schema import RunConfig
from envs.codec import decode_group, encode_group
from learner.rank import LearnerRank
from learner.rows import training_rows
from orchestration import cluster
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from tests.bench.messages import made_group
from tests.bench.plain import PlainLearner
from tests.bench.rounds import interleaved, ratio, rounded
from tests.ports import free_port

GOAL = 0.90
GROUPS = 16


def measure(rounds: int) -> dict[str, Any]:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["cluster.dashboard=false"])
    policy = str(ensure_policy(config, print))
    cluster.connect(config)
    try:
        return {"goal_vs_plain_zero3_at_least": GOAL, **compare(config, policy, rounds)}
    finally:
        ray.shutdown()


def compare(config: RunConfig, policy: str, rounds: int) -> dict[str, Any]:
    ours = spawned(
        LearnerRank, [(config, policy, i) for i in range(config.deepspeed.ranks)], cluster.learner_env(config)
    )
    zero3 = spawned(
        PlainLearner, [(config, policy, i) for i in range(config.deepspeed.ranks)], cluster.learner_env(config)
    )
    alone = spawned(PlainLearner, [(config, policy, None)], {})
    for learners in (ours, zero3, alone):
        address, port = ray.util.get_node_ip_address(), free_port()
        ray.get([learner.start.remote(address, port) for learner in learners])
    groups = [made_group(index) for index in range(GROUPS)]
    messages = ray.put([encode_group(group) for group in groups])
    rows = training_rows([decode_group(message) for message in ray.get(messages)], config)
    tokens = sum(len(row.token_ids) for row in rows)

    def tokens_per_s(learners: list[Any]) -> float:
        began = time.monotonic()
        ray.get([learner.update.remote(messages) for learner in learners])
        return tokens / (time.monotonic() - began)

    found = interleaved(
        {
            "ours": lambda: tokens_per_s(ours),
            "plain_zero3": lambda: tokens_per_s(zero3),
            "plain_torch": lambda: tokens_per_s(alone),
        },
        rounds,
    )
    return {
        "ranks": len(ours),
        "tokens": tokens,
        **{f"{name}_tokens_per_s": rounded(median(values)) for name, values in found.items()},
        "vs_plain_zero3": rounded(ratio(found["ours"], found["plain_zero3"])),
        "vs_plain_torch": rounded(ratio(found["ours"], found["plain_torch"])),
    }


def spawned(kind: type, arguments: list[tuple[Any, ...]], environment: dict[str, str]) -> list[Any]:
    remote: Any = ray.remote(kind)
    return [remote.options(num_cpus=0, runtime_env={"env_vars": environment}).remote(*own) for own in arguments]
