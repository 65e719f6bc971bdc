"""Hands tickets to actors within the lag bound and books what became of each in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.rollout_actor import Receipt
from configs.schema import RunConfig
from envs.trajectory import Ticket
from orchestration.cluster import cause_of
from orchestration.ledger import Ledger, State
from orchestration.replay_queue import Taken
from orchestration.sampled import Sampled
from orchestration.staleness import capacity
from orchestration.tickets import training_ticket

# Refills of a whole batch without one group to train on, after which the run gives up.
HOPELESS = 4


class RolloutError(RuntimeError):
    """Sampling cannot go on; names the actor."""


class Dispatcher:
    """Keeps every actor's prompts in flight, as many tickets as the lag bound allows; one asyncio task a ticket."""

    def __init__(self, config: RunConfig, actors: Sequence[ActorHandle], ledger: Ledger) -> None:
        self.ledger = ledger
        self._config = config
        self._actors: Sequence[Any] = actors
        self._running: dict[int, asyncio.Task[None]] = {}
        self._load = [0] * len(actors)
        self._next_index = 0
        self._version = 0
        self._queued: set[int] = set()
        self._trained = 0
        self._settled_since_batch = 0
        self._changed = asyncio.Event()
        self._ahead: set[int] = set()
        self._error: BaseException | None = None
        self._stopped = False
        self._last_cause = ""
        self.sampled = Sampled()

    def issue(self) -> None:
        """Issue as many tickets as the lag bound and the actors' places allow, each to the least loaded actor."""
        places = self._config.rollout.prompts_in_flight * len(self._actors)
        # The last updates need no tickets beyond their own: nothing is sampled to be thrown away.
        lag = min(self._config.queue.max_policy_lag, self._config.run.updates - self._version - 1)
        accepted = self._trained + len(self._queued)
        for _ in range(
            capacity(self._version, lag, self._config.grpo.groups_per_update, accepted, len(self._running), places)
        ):
            ticket = training_ticket(self._config.run.seed, self._next_index, self._config.env.name)
            self._next_index += 1
            self.ledger.issue(ticket, self._version)
            self._start(ticket)

    async def batch_ready(self) -> int:
        """Wait until a batch can be taken; its size: groups_per_update, or what there is once refills are spent."""
        settings = self._config.grpo
        while True:
            if self._error is not None:
                raise self._error
            if len(self._queued) >= settings.groups_per_update:
                return settings.groups_per_update
            if self._settled_since_batch >= settings.max_refill * settings.groups_per_update and self._queued:
                return len(self._queued)
            if self._settled_since_batch >= HOPELESS * settings.max_refill * settings.groups_per_update:
                raise RolloutError(
                    f"none of the last {self._settled_since_batch} groups can be trained on "
                    f"({self.sampled.without_signal} without signal, {self.sampled.failed} failed); "
                    f"last cause: {self._last_cause}"
                )
            self._changed.clear()
            await self._wait_for_change()

    def book_batch(self, taken: Taken) -> None:
        """The batch is out of the queue: what was too old is stale and is replaced."""
        # A group may leave the queue before its actor's receipt has come: it is booked as queued now, not twice.
        ahead = [h.index for h in (*taken.fresh, *taken.stale) if h.index not in self._queued]
        self.ledger.move(ahead, State.QUEUED)
        self._ahead.update(ahead)
        self._queued.update(ahead)
        stale = [header.index for header in taken.stale]
        self.ledger.move(stale, State.STALE, "older than queue.max_policy_lag")
        self._queued.difference_update(stale)
        if stale:
            self.issue()

    def book_trained(self, taken: Taken) -> None:
        """The learner has stepped on the batch: its version is one more, so tickets may be issued for the next."""
        trained = [header.index for header in taken.fresh]
        self.ledger.move(trained, State.TRAINED)
        self._queued.difference_update(trained)
        self._trained += len(trained)
        # A batch cut short by the refill bound still uses up a whole update's room.
        self._trained = max(self._trained, (self._version + 1) * self._config.grpo.groups_per_update)
        self._settled_since_batch = 0

    def advance(self, version: int) -> None:
        """The actors hold `version` now."""
        self._version = version
        self.issue()

    def take_sampled(self) -> Sampled:
        """The sums since the last call."""
        sampled, self.sampled = self.sampled, Sampled()
        return sampled

    async def stop(self) -> None:
        """Give up what is still running or queued: counted as cancelled."""
        self._stopped = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Whatever has no end yet, also a batch the learner did not finish and the ticket of an actor that died.
        self.ledger.move(self.ledger.indices(State.IN_FLIGHT, State.QUEUED), State.CANCELLED, "the run ended")

    def _start(self, ticket: Ticket) -> None:
        self._running[ticket.index] = asyncio.create_task(self._follow(ticket))

    async def _follow(self, ticket: Ticket) -> None:
        """One ticket to its end: tried again while it fails, up to rollout.max_attempts."""
        try:
            receipt = await self._sample(ticket)
            while receipt.state == State.FAILED and receipt.ticket.attempt + 1 < self._config.rollout.max_attempts:
                self.ledger.retry(ticket.index, receipt.cause)
                receipt = await self._sample(replace(receipt.ticket, attempt=receipt.ticket.attempt + 1))
            self._book(receipt)
        except Exception as error:
            self._error = error
        finally:
            del self._running[ticket.index]
            self._replace_ended()
            self._changed.set()

    def _replace_ended(self) -> None:
        if self._error is None and not self._stopped:
            try:
                self.issue()
            except Exception as error:
                self._error = error

    async def _sample(self, ticket: Ticket) -> Receipt:
        place = min(range(len(self._load)), key=lambda i: self._load[i])
        self._load[place] += 1
        # Beyond the actor's own limit there is only the wait for room in the queue.
        limit_s = self._config.rollout.ticket_timeout_s + self._config.queue.timeout_s
        answer: Any = self._actors[place].sample.remote(ticket)
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        except asyncio.CancelledError:
            if isinstance(answer, ray.ObjectRef):
                ray.cancel(answer)  # or the actor goes on sampling for nobody
            raise
        except TimeoutError:
            raise RolloutError(
                f"rollout actor {place} did not answer for ticket {ticket.index} within {limit_s:g} s"
            ) from None
        except RayError as error:
            raise RolloutError(f"rollout actor {place} failed at ticket {ticket.index}: {cause_of(error)}") from error
        finally:
            self._load[place] -= 1

    def _book(self, receipt: Receipt) -> None:
        index = receipt.ticket.index
        self.sampled.add(receipt)
        self._settled_since_batch += 1
        self._last_cause = receipt.cause or self._last_cause
        if index in self._ahead:
            self._ahead.remove(index)
            return
        self.ledger.move([index], State(receipt.state), receipt.cause)
        if receipt.state == State.QUEUED:
            self._queued.add(index)

    async def _wait_for_change(self) -> None:
        limit_s = self._config.queue.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        except TimeoutError:
            raise RolloutError(
                f"no ticket ended within {limit_s:g} s (queue.timeout_s): {len(self._running)} in flight on "
                f"{len(self._actors)} actors, {len(self._queued)} groups queued"
            ) from None
