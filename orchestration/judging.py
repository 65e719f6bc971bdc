"""Policies, one after another, on the held-out episodes: rollout actors and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console as Terminal

from actors.rollout_actor import RolloutActor
from configs.schema import RunConfig
from envs.codec import decode_group
from orchestration import cluster
from orchestration.evaluation import held_out
from orchestration.fleet import Fleet
from orchestration.held_out import sample, target_count
from orchestration.judgement import Judgement, judge
from orchestration.learners import Learners
from orchestration.plans import Plan
from orchestration.policy import PolicyError, ensure_policy, policy_digest
from orchestration.room import Room, actor_role
from orchestration.session import joined_cluster


@dataclass(frozen=True, slots=True)
class Policy:
    """name: as it was given. config: the run's, with this policy as its model."""

    name: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class JudgedPolicy:
    """digest: of the policy's files. seconds: of sampling and judging, without the engines' start."""

    policy: str
    digest: str
    seconds: float
    judgement: Judgement


def named_policies(config: RunConfig, paths: Sequence[str]) -> list[Policy]:
    """The policies at these paths, or the config's own. A run's folder stands for the policy it left.

    Raises PolicyError, naming the path, for what is no policy.
    """
    if not paths:
        return [Policy(config.model.path or "warmed-up policy", config)]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise PolicyError(f"--policy {twice[0]} is given twice")
    policies = [Policy(path, _with_policy(config, _left_by_run(path))) for path in paths]
    for policy in policies:
        try:
            ensure_policy(policy.config, print)
        except PolicyError as error:
            raise PolicyError(f"--policy {policy.name}: {str(error).removeprefix('model.path: ')}") from None
    return policies


def without_ranks(config: RunConfig) -> RunConfig:
    """For engines alone: those that would share GPUs with a learner's ranks have them for themselves."""
    if not config.shares_gpus:
        return config
    alone = {"rollout": {"gpus_per_actor": 1.0}, "deepspeed": {"gpus_per_rank": 1.0}, "cluster": {"colocated": False}}
    return config.model_copy(
        update={group: getattr(config, group).model_copy(update=values) for group, values in alone.items()}
    )


def judge_policies(config: RunConfig, policies: Sequence[Policy], plan: Plan) -> Iterator[JudgedPolicy]:
    """Every policy on the same episodes, one after another.

    Raises what a run raises (`session.START_ERRORS`, `RUN_ERRORS`).
    """
    terminal = Terminal(highlight=False, soft_wrap=True)
    actors_only = [actor_role(config)]

    def say(text: str) -> None:
        terminal.print(text, markup=False)

    with joined_cluster(config, say, actors_only) as [rooms]:
        for policy in policies:
            yield _judge(policy, plan, rooms, terminal, say)


def _judge(
    policy: Policy, plan: Plan, rooms: Sequence[Room], terminal: Terminal, say: Callable[[str], None]
) -> JudgedPolicy:
    folder, role = ensure_policy(policy.config, say), actor_role(policy.config)
    say(f"judging {policy.name}: {policy.config.eval.episodes} held-out episodes, {plan} of each")
    actors = cluster.spawn(
        RolloutActor, role, rooms, cluster.engine_env(policy.config),
        [(policy.config, str(folder), i) for i in range(role.count)], restarts=True,
    )  # fmt: skip

    async def sampled() -> tuple[list[bytes], float]:
        fleet = Fleet(policy.config, Learners(policy.config, ()), actors, say)
        try:
            await fleet.start()
            fleet.watch()
            began = time.monotonic()
            with terminal.status("") as status:
                payloads = await sample(
                    policy.config, fleet, plan,
                    lambda done, of: status.update(f"{policy.name}: {done} of {of} groups sampled"),
                )  # fmt: skip
            return payloads, began
        finally:
            await fleet.close()

    try:
        payloads, began = asyncio.run(sampled())
    finally:
        cluster.end(actors)
    length = None if plan.settings is None else plan.length
    figures = judge(held_out(decode_group(data) for data in payloads), length, target_count(policy.config.env))
    return JudgedPolicy(policy.name, policy_digest(folder), time.monotonic() - began, figures)


def _left_by_run(path: str) -> str:
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:
        raise PolicyError(f"--policy {path}: {error}") from error
    if (folder / "config.yaml").is_file() and not (folder / "config.json").exists():
        if not (folder / "policy").is_dir():
            raise PolicyError(f"--policy {path}: the run has left no policy/ yet")
        return str(folder / "policy")
    return path


def _with_policy(config: RunConfig, path: str) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
