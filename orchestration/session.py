"""One run from its folder to its summary: start what it needs, train between two evaluations, stop everything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.rollout_actor import RolloutActor
from configs.load import to_yaml
from configs.schema import RunConfig
from learner.durable import replace_durably
from learner.rank import LearnerRank
from orchestration import cluster
from orchestration.budget import is_spent
from orchestration.checkpoints import LEARNER, CheckpointError, Checkpoints, export_policy
from orchestration.cluster import ClusterError
from orchestration.console import Console
from orchestration.dispatch import Dispatcher
from orchestration.driver import Driver
from orchestration.evaluation import Evaluation, EvaluationError
from orchestration.evaluations import Evaluations
from orchestration.held_out import evaluate
from orchestration.learners import LearnerError, Learners
from orchestration.ledger import Ledger, LedgerError
from orchestration.nonfinite import NonfiniteGuard
from orchestration.places import RolloutError
from orchestration.policy import PolicyError, ensure_policy, policy_digest
from orchestration.recorder import Recorder
from orchestration.replay_queue import QueueError, ReplayQueue
from orchestration.report import write_report
from orchestration.resume import ResumeError, ResumePoint, check_policy, roll_back
from orchestration.run_folder import RunFolder, RunFolderError

START_ERRORS = (ClusterError, PolicyError, RunFolderError, ResumeError)
RUN_ERRORS = (QueueError, RolloutError, LearnerError, LedgerError, EvaluationError, CheckpointError, RayError, OSError)


@dataclass(frozen=True, slots=True)
class Processes:
    """The handles of everything that runs beside the driver."""

    replay: ActorHandle
    actors: list[ActorHandle]
    ranks: list[ActorHandle]


def run_session(config: RunConfig, config_name: str, resume: ResumePoint | None = None) -> None:
    """The whole run, or the rest of one. What fails before training leaves no new folder, and an old one as it was."""
    began = time.monotonic()
    folder = RunFolder.reserve(config.run, config_name) if resume is None else resume.folder
    try:
        with Console(config, began) as console:
            if config.model.path is not None:
                ensure_policy(config, console.say)  # a wrong path is said before Ray starts
            with joined_cluster(config, console.say, cluster.roles(config)) as group:
                # And a cluster without room before a policy is warmed up.
                policy = ensure_policy(config, console.say)
                digest = policy_digest(policy)
                if resume is not None:
                    check_policy(resume, str(policy), digest)
                processes = spawn_processes(config, str(policy), group)
                asyncio.run(_run(config, folder, processes, console, began, resume, digest))
    except BaseException:
        if not folder.config.exists():
            folder.discard()
        raise
    finally:
        folder.release()


@contextmanager
def joined_cluster(
    config: RunConfig, say: Callable[[str], None], needed: Sequence[cluster.Role]
) -> Iterator[cluster.PlacementGroup]:
    """Room for these processes on a Ray cluster, given back at the end."""
    dashboard = cluster.connect(config)
    # `ray job stop` and schedulers end a run by SIGTERM: it is left in as good order as after Ctrl-C. Set behind
    # `ray.init`, which brings a handler of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        say(f"Ray dashboard: http://{dashboard}" if dashboard else "Ray runs without its dashboard")
        group = cluster.reserve(config, needed)
        for line in cluster.placement_plan(config, needed):
            say(line)
        yield group
        cluster.remove_placement_group(group)
    finally:
        ray.shutdown()


def spawn_processes(config: RunConfig, policy: str, group: cluster.PlacementGroup) -> Processes:
    """Start queue, learner ranks and rollout actors; they come up side by side."""
    learner_role, actor_role = cluster.roles(config)
    replay: Any = ray.remote(ReplayQueue)
    replay = replay.options(name=f"replay queue ({os.getpid()})", num_cpus=0).remote(config.queue)
    ranks = cluster.spawn(
        LearnerRank, learner_role, 0, group, cluster.learner_env(config),
        [(config, policy, i) for i in range(learner_role.count)],
    )  # fmt: skip
    actors = cluster.spawn(
        RolloutActor, actor_role, learner_role.count, group, cluster.engine_env(config),
        [(config, policy, i, replay) for i in range(actor_role.count)],
    )  # fmt: skip
    return Processes(replay, actors, ranks)


async def _run(
    config: RunConfig, folder: RunFolder, processes: Processes, console: Console, began: float,
    resume: ResumePoint | None, digest: str,
) -> None:  # fmt: skip
    learners = Learners(config, processes.ranks)
    before = await _bring_up(config, processes, learners, console, resume)
    await learners.connect(processes.actors)
    console.say(
        f"weights sent to {len(processes.actors)} actors; "
        f"training begins {time.monotonic() - began:.0f} s after the start"
    )
    if resume is None:
        replace_durably(folder.config, to_yaml(config).encode())  # from here on there is something to keep
    else:
        roll_back(resume)
    with closing(Ledger(folder.ledger)) as ledger:
        dispatcher = Dispatcher(config, processes.actors, ledger)
        figures = None if resume is None else resume.state.recorder
        with Recorder(config, folder, console, processes, learners, dispatcher, began, figures) as recorder:
            in_a_row = 0 if resume is None else resume.state.nonfinite
            guard = NonfiniteGuard(folder.nonfinite, config.optim.max_nonfinite, in_a_row)
            checkpoints = Checkpoints(config, folder, learners, processes.replay, console.say, before, digest, guard)
            evaluations = Evaluations(config, folder, processes.actors, recorder, console.say)
            if resume is None:
                evaluations.write(0, before)
                await recorder.compare_logprobs(before)
            else:
                checkpoints.best = resume.state.best
                for group in resume.queued:
                    await processes.replay.put.remote(group)
            driver = Driver(config, checkpoints, dispatcher, processes.replay, learners, recorder, guard, evaluations)
            try:
                if resume is not None:
                    await dispatcher.pivots.restore(resume.pivots)
                    dispatcher.restore(resume.state.update, resume.state.dispatch)
                await driver.train()
            finally:
                await dispatcher.stop()
            if dispatcher.version < config.run.updates:
                tokens = recorder.totals.sampled_tokens
                cause = "run.max_tokens" if is_spent(config.run, tokens) else "run.stop"
                console.say(f"{cause} reached: {tokens:,} tokens generated in {dispatcher.version} updates")
            await export_policy(folder, learners)
            after = await evaluate(config, processes.actors)
            evaluations.write(dispatcher.version, after)
            await recorder.compare_logprobs(after)
            summary = recorder.write_summary(before, after)
    low, high = summary.success_gain_ci95
    console.say(
        f"success {before.success:.3f} -> {after.success:.3f}: gain {after.success - before.success:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f}) on {len(after.by_episode)} held-out episodes"
    )
    console.say(f"report: {write_report(folder.path)}")


async def _bring_up(
    config: RunConfig, processes: Processes, learners: Learners, console: Console, resume: ResumePoint | None
) -> Evaluation:
    """Learner ranks and engines, side by side; the policy as it came is evaluated, once in a run."""
    if resume is None:
        # Engines are up before the ranks are: they evaluate while the ranks start.
        return (
            await asyncio.gather(_first_evaluation(config, processes, console), _start_learners(learners, console))
        )[0]
    for line in resume.said:
        console.say(line)
    await asyncio.gather(actors_ready(config, processes.actors), _start_learners(learners, console))
    await learners.load(str(resume.checkpoint / LEARNER))
    return resume.state.before


async def _start_learners(learners: Learners, console: Console) -> None:
    parameters = await learners.start()
    console.say(f"learner: {parameters / 1e6:.2f} M parameters on {learners.count} ZeRO-3 ranks")


async def _first_evaluation(config: RunConfig, processes: Processes, console: Console) -> Evaluation:
    await actors_ready(config, processes.actors)
    console.say(f"{len(processes.actors)} rollout actors are up; evaluating the policy as it came")
    before = await evaluate(config, processes.actors)
    console.say(f"success before training: {before.success:.3f} on {len(before.by_episode)} held-out episodes")
    return before


async def actors_ready(config: RunConfig, actors: Sequence[ActorHandle]) -> None:
    """Wait for every engine. Raises RolloutError naming the actors that are late."""
    limit_s = config.rollout.start_timeout_s
    tasks = [asyncio.create_task(_ready(actor)) for actor in actors]
    done, late = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
    if late and all(task.exception() is None for task in done):
        names = ", ".join(str(i) for i, task in enumerate(tasks) if task in late)
        raise RolloutError(f"rollout actor {names} was not up within {limit_s:g} s (rollout.start_timeout_s)")
    for i, task in enumerate(tasks):
        if task.done() and (error := task.exception()) is not None:
            raise RolloutError(f"rollout actor {i} did not start: {cluster.cause_of(error)}") from error


async def _ready(actor: ActorHandle) -> None:
    # Ray's references can be awaited but are no coroutines, which asyncio's tasks ask for.
    await actor.ready.remote()
