"""The Ray actor that samples: one event loop for its tickets, one thread for its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from actors.chat import Chat
from actors.engine import Engine, EngineClock, EngineError
from actors.env_workers import EnvWorkers
from actors.failures import EnvironmentFailure, cause_of
from actors.held_time import HeldTime
from actors.outbox import Outbox
from actors.place import Place
from actors.receipt import Receipt, receipt_of, verdict_on
from actors.rollout import Rollout, Sampler, Shared
from actors.samplers.build import build_sampler
from actors.samplers.dde import DdeSampler
from actors.samplers.parallel import ParallelSampler
from actors.samplers.recoverability import Recoverability
from actors.takes_weights import TakesWeights
from configs.network import speak_from
from configs.samplers import SamplerSettings
from configs.schema import RunConfig
from configs.watchdog import Watchdog
from envs.codec import encode_group
from envs.registry import make_env
from envs.trajectory import Group, Ticket, Trajectory, Verdict


class RolloutActor(TakesWeights):
    """Samples tickets with the run's sampler and queues their groups; between two engine steps it takes weights."""

    # replay: name of the queue; a handle Ray would keep in its object store, and warn that restarts may miss it.
    # stacks: folder for what its threads were doing when the engine hung.
    def __init__(self, config: RunConfig, policy: str, index: int, replay: str = "", stacks: str = "") -> None:
        speak_from(str(ray.util.get_node_ip_address()))
        self._config = config
        self._outbox = Outbox(ray.get_actor(replay) if replay else None, config.queue.timeout_s)
        self._held_time, self._starting = HeldTime(), asyncio.Lock()
        chat = Chat.load(policy)
        # The first of them comes up beside the engine.
        self._workers = EnvWorkers(partial(make_env, config.env), config.rollout)
        watchdog = Watchdog(Path(stacks) / f"rollout-actor-{index}.txt") if stacks else None
        self._engine = Engine(config, policy, index, chat.eos_id, watchdog)
        if not config.shares_gpus:
            self._engine.start()
        self._shared = Shared(config, chat, self._engine, self._workers)
        self._sampler = build_sampler(config.sampler)

    async def ready(self) -> Place:
        """Where the actor runs, once its engine and an environment worker are up.

        An engine on a learner rank's GPU is started here, when it is its turn: it measures what is free there.
        """
        async with self._starting:
            if not self._engine.is_started:
                await asyncio.to_thread(self._engine.start)
        await self._workers.ready()
        return Place.here()

    async def pulse(self) -> None:
        """A sign of life."""

    async def sample(self, ticket: Ticket, era: int = 0) -> Receipt:
        """Sample one ticket and queue its group. Raises EngineError only: then the actor itself is of no use.

        era: how often the run was taken back to a checkpoint; the queue refuses groups of an earlier one.
        """
        receipt = await self._sample(ticket, era)
        return replace(receipt, replaced_workers=self._workers.newly_replaced())

    async def _sample(self, ticket: Ticket, era: int) -> Receipt:
        limit_s = self._config.rollout.ticket_timeout_s
        try:
            group = await self._held_time.within(limit_s, self._sample_group(ticket, self._sampler))
            state, cause = verdict_on(group, self._config.grpo)
            queue = await self._outbox.put(encode_group(group), era) if state == "queued" else ""
            return replace(receipt_of(group, state, cause, self._workers.target_count), queue=queue)
        except EngineError:
            raise
        except TimeoutError:
            return Receipt(ticket, "failed", f"not sampled within {limit_s:g} s (rollout.ticket_timeout_s)")
        except EnvironmentFailure as failure:
            return Receipt(ticket, "failed", str(failure))
        except Exception as error:  # a ticket's trouble is the ticket's: counted, retried, never the actor's end
            return Receipt(ticket, "failed", cause_of(error))

    async def sample_held_out(self, tickets: Sequence[Ticket], samples: int, by: SamplerSettings | None) -> list[bytes]:
        """Encoded groups of held-out tickets: plain-prompt solutions, or `by` a sampler."""
        sampler = ParallelSampler(samples) if by is None else build_sampler(by)
        groups = await asyncio.gather(*(self._sample_insisting(ticket, sampler) for ticket in tickets))
        return [encode_group(group) for group in groups]

    async def use_recoverability(self, model: Recoverability) -> None:
        """Choose pivots by what the driver has fitted to those of all actors; of samplers DDE alone does."""
        if isinstance(self._sampler, DdeSampler):
            self._sampler.recoverability = model

    async def clock(self) -> EngineClock:
        return self._engine.clock()

    async def _sample_group(self, ticket: Ticket, sampler: Sampler) -> Group:
        rollout = Rollout(ticket, self._shared)
        await rollout.start()
        return await sampler.sample_group(rollout)

    async def _sample_insisting(self, ticket: Ticket, sampler: Sampler) -> Group:
        cause = ""
        for _ in range(self._config.rollout.max_attempts):
            try:
                return await self._sample_group(ticket, sampler)
            except EnvironmentFailure as failure:
                cause = str(failure)
        return Group(ticket, "", (Trajectory((), Verdict.FAILED, 0.0, cause=cause),), ())  # cannot be judged
