"""Hands tickets to actors within the lag bound and books what became of each in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace

from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.trajectory import Ticket
from orchestration.fleet import Fleet
from orchestration.ledger import Ledger, State
from orchestration.pivot_memory import PivotMemory
from orchestration.replay_buffer import Taken
from orchestration.sampled import DispatchState, Sampled
from orchestration.staleness import capacity
from orchestration.start import RolloutError
from orchestration.tickets import training_ticket

# Rounds of refills without one group to train on after which the run gives up.
HOPELESS = 4
QUEUE_DIED = "its group was lost with the replay queue"


class Dispatcher:
    """Keeps every actor's prompts in flight, as many tickets as the lag bound allows; one asyncio task a ticket."""

    def __init__(self, config: RunConfig, fleet: Fleet, ledger: Ledger, queue: str = "") -> None:
        self.ledger, self.queue = ledger, queue  # its name: it has another one after it has died
        self._config, self._fleet = config, fleet
        self._dead_queues: set[str] = set()
        # One at a time: a ticket that kills its actor must not take others' last attempts with it.
        self._last_attempts = asyncio.Lock()
        self.taking = asyncio.Lock()  # held from when a batch is asked for until it is booked
        self._running: dict[int, asyncio.Task[None]] = {}
        self._next_index = 0
        self._version = 0
        self._queued: set[int] = set()
        self._trained = 0
        self._settled_since_batch, self._rounds = 0, 1
        self._changed = asyncio.Event()
        self._ahead: set[int] = set()
        self._error: BaseException | None = None
        self._stopped, self._last_cause = False, ""
        self.sampled = Sampled()
        self.pivots = PivotMemory(config, fleet.tell)
        fleet.on_change = self._issue_more

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
        for _ in range(min(capacity(self._version, lag, batch, accepted, running, self._fleet.room), within_refills)):
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
            if not self._running and self._fleet.room and self._rounds < HOPELESS:
                self._rounds += 1
                self.issue()
            if not self._running and self._fleet.room:
                raise RolloutError(
                    f"none of the last {self._settled_since_batch} groups can be trained on "
                    f"({self.sampled.without_signal} without signal, {self.sampled.failed} failed); "
                    f"last cause: {self._last_cause}"
                )
            self._changed.clear()
            await self._wait_for_change()

    @property
    def wanted(self) -> frozenset[int]:
        """Tickets whose groups may be trained on."""
        return frozenset(self._queued | (set(self._running) - self._ahead))

    def book_lost(self, queue: str, there: Collection[int], dead: Collection[str] = ()) -> None:
        """A queue died and `queue` took its place: what is queued and not `there` is tried again. dead: others."""
        self._dead_queues |= {self.queue, *dead} - {queue}
        self.queue = queue
        for index in sorted(self._queued.difference(there)):
            self._queued.remove(index)
            self._settled_since_batch -= 1
            self._start(self.ledger.retry(index, QUEUE_DIED))

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
            receipt = await self._sampled(ticket)
            while cause := self._to_be_tried_again(receipt):
                self.sampled.add_cost(receipt)
                ticket = self.ledger.retry(ticket.index, cause)
                last = ticket.attempt + 1 >= self._config.rollout.max_attempts
                async with self._last_attempts if last and receipt.actor_lost else nullcontext():
                    receipt = await self._sampled(ticket)
            self._book(receipt)
        except Exception as error:
            self._error = error
        finally:
            del self._running[ticket.index]
            self._issue_more()
            self._changed.set()

    async def _sampled(self, ticket: Ticket) -> Receipt:
        """One attempt; known when no batch is being taken, for that may bring the group of an earlier attempt."""
        receipt = await self._fleet.sample(ticket)
        async with self.taking:
            return receipt

    def _to_be_tried_again(self, receipt: Receipt) -> str:
        """Why another attempt is due; empty where none is."""
        if receipt.ticket.index in self._ahead:
            return ""  # the group of an earlier attempt has come through
        if receipt.state == State.QUEUED and receipt.queue in self._dead_queues:
            return QUEUE_DIED
        failed = receipt.state == State.FAILED and receipt.ticket.attempt + 1 < self._config.rollout.max_attempts
        return (receipt.cause or "no cause was given") if failed else ""

    def _issue_more(self) -> None:
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
                f"no ticket ended within {limit_s:g} s (queue.timeout_s): {len(self._running)} in flight, rollout "
                f"actors: {self._fleet}, {len(self._queued)} groups queued"
            ) from None
