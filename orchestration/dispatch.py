"""Hands tickets to actors within the lag bound and books what became of each in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.trajectory import Ticket
from orchestration.ledger import Ledger, State
from orchestration.pivot_memory import PivotMemory
from orchestration.places import Places, RolloutError
from orchestration.replay_queue import Taken
from orchestration.sampled import DispatchState, Sampled
from orchestration.staleness import capacity
from orchestration.tickets import training_ticket

# Rounds of refills without one group to train on after which the run gives up.
HOPELESS = 4


class Dispatcher:
    """Keeps every actor's prompts in flight, as many tickets as the lag bound allows; one asyncio task a ticket."""

    def __init__(self, config: RunConfig, actors: Sequence[Any], ledger: Ledger) -> None:
        self.ledger = ledger
        self._config = config
        self._places = Places(config, actors)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._next_index = 0
        self._version = 0
        self._queued: set[int] = set()
        self._trained = 0
        self._settled_since_batch = 0
        self._rounds = 1
        self._changed = asyncio.Event()
        self._ahead: set[int] = set()
        self._error: BaseException | None = None
        self._stopped = False
        self._last_cause = ""
        self.sampled = Sampled()
        self.pivots = PivotMemory(config, self._places.tell)

    @property
    def version(self) -> int:
        return self._version

    def state(self) -> DispatchState:
        """For a checkpoint, together with the ledger as it is at the same moment."""
        return DispatchState(self._next_index, self._settled_since_batch, self._rounds, replace(self.sampled))

    def restore(self, version: int, state: DispatchState) -> None:
        """Go on from a checkpoint with its ledger: what was in flight is issued again, the same attempts."""
        self._version = version
        self._trained = version * self._config.grpo.groups_per_update
        self._next_index, self._settled_since_batch, self._rounds = state.next_index, state.settled, state.rounds
        self.sampled = replace(state.sampled)
        self._queued.update(self.ledger.indices(State.QUEUED))
        for ticket in self.ledger.tickets(State.IN_FLIGHT):
            self._start(ticket)

    def issue(self) -> None:
        """Issue as many tickets as the lag bound and the actors' places allow, each to the least loaded actor."""
        # The last updates need no tickets beyond their own: nothing is sampled to be thrown away.
        lag = min(self._config.queue.max_policy_lag, self._config.run.updates - self._version - 1)
        batch, running = self._config.grpo.groups_per_update, len(self._running)
        accepted = self._trained + len(self._queued)
        # Counted when issued and not when they end, so that at lag 0 it depends on no timing which tickets there are.
        refills = (self._rounds * self._config.grpo.max_refill + max(lag, 0)) * batch
        within_refills = refills - self._settled_since_batch - running
        for _ in range(min(capacity(self._version, lag, batch, accepted, running, self._places.count), within_refills)):
            ticket = training_ticket(self._config.run.seed, self._next_index, self._config.env.name)
            self._next_index += 1
            self.ledger.issue(ticket, self._version)
            self._start(ticket)

    async def batch_ready(self) -> int:
        """Wait until a batch can be taken; its size: groups_per_update, or what there is once refills are spent."""
        batch = self._config.grpo.groups_per_update
        while True:
            if self._error is not None:
                raise self._error
            if len(self._queued) >= batch:
                return batch
            spent = self._settled_since_batch >= self._config.grpo.max_refill * batch
            # Which groups are there when refills are spent depends on timing: without lag the rest is waited for.
            if self._queued and (not self._running or (spent and self._config.queue.max_policy_lag)):
                return len(self._queued)
            if not self._running and self._rounds < HOPELESS:
                self._rounds += 1
                self.issue()
            if not self._running:
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
        self._book_update(taken, State.TRAINED)

    def book_untrained(self, taken: Taken, reason: str) -> None:
        """The learner has left the batch out and kept its weights; the version is one more all the same."""
        self._book_update(taken, State.FILTERED, reason)

    def _book_update(self, taken: Taken, state: State, reason: str = "") -> None:
        used = [header.index for header in taken.fresh]
        self.ledger.move(used, state, reason)
        self._queued.difference_update(used)
        self._trained += len(used)
        # A batch cut short by the refill bound still uses up a whole update's room.
        self._trained = max(self._trained, (self._version + 1) * self._config.grpo.groups_per_update)
        self._settled_since_batch, self._rounds = 0, 1

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
            receipt = await self._places.sample(ticket)
            while receipt.state == State.FAILED and receipt.ticket.attempt + 1 < self._config.rollout.max_attempts:
                self.ledger.retry(ticket.index, receipt.cause)
                receipt = await self._places.sample(replace(receipt.ticket, attempt=receipt.ticket.attempt + 1))
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

    def _book(self, receipt: Receipt) -> None:
        index = receipt.ticket.index
        self.sampled.add(receipt)
        self.pivots.add(receipt)
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
                f"{self._places.actors} actors, {len(self._queued)} groups queued"
            ) from None
