"""One run from its folder to its summary: start what it needs, train between two evaluations, stop everything."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.rollout_actor import RolloutActor
from configs.schema import RunConfig
from configs.watchdog import Watchdog
from learner.rank import LearnerRank
from orchestration import cluster, room
from orchestration.checkpoints import LEARNER, CheckpointError
from orchestration.console import Console
from orchestration.elastic import Elastic, NewActor
from orchestration.evaluation import Evaluation, EvaluationError
from orchestration.fleet import Fleet
from orchestration.held_out import evaluate
from orchestration.interrupt import Interrupt
from orchestration.learners import LearnerError, Learners
from orchestration.ledger import LedgerError
from orchestration.policy import PolicyError, ensure_policy, policy_digest
from orchestration.pulse import queue_lives
from orchestration.queue_client import QueueClient
from orchestration.replay_buffer import QueueError
from orchestration.replay_queue import ReplayQueue
from orchestration.report import write_report
from orchestration.resume import ResumeError, ResumePoint, check_policy
from orchestration.room import ClusterError, Role, Room
from orchestration.run_folder import RunFolder, RunFolderError
from orchestration.start import RolloutError
from orchestration.surroundings import look_around, note
from orchestration.training import Training

START_ERRORS = (ClusterError, PolicyError, RunFolderError, ResumeError)
RUN_ERRORS = (QueueError, RolloutError, LearnerError, LedgerError, EvaluationError, CheckpointError, RayError, OSError)


@dataclass(frozen=True, slots=True)
class Processes:
    """The handles of everything that runs beside the driver.

    rooms: of the actors; none where they are those of the ranks. new_ranks: starts the learner's processes once more.
    new_actor: starts another rollout actor. enough: no more of them are wanted for now.
    """

    replay: ActorHandle
    actors: list[ActorHandle]
    rooms: list[Room]
    ranks: list[ActorHandle]
    new_ranks: Callable[[], list[ActorHandle]]
    new_actor: NewActor
    enough: Callable[[], None]


def run_session(config: RunConfig, config_name: str, resume: ResumePoint | None = None) -> None:
    """The whole run, or the rest of one. What fails before training leaves no new folder, and an old one as it was.

    Raises Interrupted, KeyboardInterrupt and asyncio.CancelledError for a run that was told to end.
    """
    began = time.monotonic()
    folder = RunFolder.reserve(config.run, config_name) if resume is None else resume.folder
    try:
        with Console(config, began) as console:
            if config.model.path is not None:
                ensure_policy(config, console.say)  # a wrong path is said before Ray starts
            with joined_cluster(named(config, folder.path.name), console.say, room.roles(config)) as rooms:
                # And a cluster without room before a policy is warmed up.
                policy = ensure_policy(config, console.say)
                digest = policy_digest(policy)
                if resume is not None:
                    check_policy(resume, str(policy), digest)
                processes = spawn_processes(config, str(policy), rooms, str(folder.stacks))
                asyncio.run(_run(config, folder, processes, console, began, resume, digest))
    except BaseException:
        if not folder.config.exists():
            folder.discard()
        raise
    finally:
        folder.release()


def named(config: RunConfig, name: str) -> RunConfig:
    """For the cluster, where a run without a name in its configuration is called as its folder."""
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


@contextmanager
def joined_cluster(config: RunConfig, say: Callable[[str], None], needed: Sequence[Role]) -> Iterator[list[list[Room]]]:
    """Room for these processes on a Ray cluster, by role, given back at the end."""
    dashboard = cluster.connect(config)
    # `ray job stop` and schedulers end a run by SIGTERM: it is left in as good order as after Ctrl-C. Set behind
    # `ray.init`, which brings a handler of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Ray sets this itself where it turns its authentication on, as it does for one of our own.
        token = " (asks for what `ray get-auth-token` prints)" if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        say(f"Ray dashboard: http://{dashboard}{token}" if dashboard else "Ray runs without its dashboard")
        rooms = room.reserve(config, needed)
        for line in room.placement_plan(config, needed):
            say(line)
        yield rooms
        room.give_back(itertools.chain(*rooms))
    finally:
        ray.shutdown()


def spawn_processes(config: RunConfig, policy: str, rooms: Sequence[Sequence[Room]], stacks: str = "") -> Processes:
    """Start queue, learner ranks and rollout actors; they come up side by side.

    rooms: of the ranks and of the actors. stacks: folder for what those that hang were doing.
    """
    learner_role, actor_role = room.learner_role(config), room.actor_role(config)
    of_ranks, of_actors = room.of_ranks_and_actors(rooms)
    queue = f"replay queue ({os.getpid()})"
    replay = cluster.spawn_beside_driver(ReplayQueue, queue, config.queue, stacks)
    lives = itertools.count()
    new_rooms = room.NewRooms(actor_role, grows=config.cluster.grows)

    def new_ranks() -> list[ActorHandle]:
        return cluster.spawn(
            LearnerRank, learner_role, of_ranks, cluster.learner_env(config),
            [(config, policy, i, stacks) for i in range(learner_role.count)], life=next(lives),
        )  # fmt: skip

    def new_actor(number: int) -> tuple[ActorHandle, Room] | None:
        found = None if config.shares_gpus else new_rooms.next()
        if found is None:
            return None
        [handle] = cluster.spawn(
            RolloutActor, actor_role, [found], cluster.engine_env(config),
            [(config, policy, number, queue, stacks)], restarts=True, first=number,
        )  # fmt: skip
        return handle, found

    ranks = new_ranks()
    actors = cluster.spawn(
        RolloutActor, actor_role, of_actors, cluster.engine_env(config),
        [(config, policy, i, queue, stacks) for i in range(actor_role.count)], restarts=True,
    )  # fmt: skip
    own_rooms = [] if config.shares_gpus else list(of_actors)
    return Processes(replay, actors, own_rooms, ranks, new_ranks, new_actor, new_rooms.forget)


async def _run(
    config: RunConfig, folder: RunFolder, processes: Processes, console: Console, began: float,
    resume: ResumePoint | None, digest: str,
) -> None:  # fmt: skip
    interrupt = Interrupt(console.say)
    learners = Learners(config, processes.ranks)
    fleet = Fleet(config, learners, processes.actors, console.say, processes.rooms)
    if config.cluster.colocated:
        learners.takes_turns_with(fleet.ask_all)
    elastic = Elastic(config, folder.path, fleet, processes.new_actor, console.say, processes.enough)
    fleet.look_after(Watchdog(folder.stacks / "driver.txt").look_after_loop(config.run.hang_timeout_s))
    fleet.look_after(queue_lives(processes.replay, config.rollout.hang_timeout_s, console.say))
    try:
        with interrupt.heard():
            before = await _bring_up(config, fleet, learners, console, resume)
            note(folder.surroundings, look_around(ray.nodes()))
            fleet.look_after(elastic.watch())
            replay = QueueClient(config, processes.replay)
            training = Training(
                config, folder, console, began, learners, fleet, replay, before, digest, interrupt, processes.new_ranks
            )
            summary, after = await training.run(resume)
    finally:
        await fleet.close()
    low, high = summary.success_gain_ci95
    console.say(
        f"success {before.success:.3f} -> {after.success:.3f}: gain {after.success - before.success:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f}) on {len(after.by_episode)} held-out episodes"
    )
    console.say(f"report: {write_report(folder.path)}")


async def _bring_up(
    config: RunConfig, fleet: Fleet, learners: Learners, console: Console, resume: ResumePoint | None
) -> Evaluation:
    """Learner ranks and engines, side by side; the policy as it came is evaluated, once in a run."""
    if config.shares_gpus:
        # An engine measures what is free on its GPU while it starts: nobody else may take of it meanwhile.
        await fleet.start()
    if resume is None:
        # Engines are up before the ranks are: they evaluate while the ranks start.
        return (await asyncio.gather(_first_evaluation(config, fleet, console), _start_learners(learners, console)))[0]
    for line in resume.said:
        console.say(line)
    await asyncio.gather(fleet.start(), _start_learners(learners, console))
    fleet.watch()
    await learners.load(str(resume.checkpoint / LEARNER))
    return resume.state.before


async def _start_learners(learners: Learners, console: Console) -> None:
    parameters = await learners.start()
    console.say(f"learner: {parameters / 1e6:.2f} M parameters on {learners.count} ZeRO-3 ranks")


async def _first_evaluation(config: RunConfig, fleet: Fleet, console: Console) -> Evaluation:
    began = time.monotonic()
    await fleet.start()
    fleet.watch()
    waited_s = time.monotonic() - began
    console.say(f"{len(fleet.members)} rollout actors are up after {waited_s:.0f} s; evaluating the policy as it came")
    before = await evaluate(config, fleet)
    console.say(f"success before training: {before.success:.3f} on {len(before.by_episode)} held-out episodes")
    return before
