"""The run's rollout actors: who gets tickets, who is started again after a fault, and how they come to the weights.

An actor that dies, hangs or breaks costs the tickets it works on another attempt, and nobody else anything. It is let
in again when its new engine holds the learner's weights, which it has to prove.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from actors.engine import EngineClock
from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.trajectory import Ticket
from learner.actors_client import WeightTransferError
from learner.sync_times import SyncTimes
from orchestration.answers import answer_in
from orchestration.cluster import cause_of, end, end_process
from orchestration.learners import LearnerError, Learners
from orchestration.members import Member, Phase, Roster, answer_limit_s, in_phase, in_words
from orchestration.pulse import signs_of_life
from orchestration.room import Room
from orchestration.start import RolloutError, all_up, has_room, up_again

TRIES = 3  # of a broadcast that failed without a culprit


class Fleet:
    """rooms: of the actors, given back when they go; none: they are somebody else's.

    `on_change` is called whenever there is more or less room for tickets. Made and used in the driver's event loop.
    era: how often the run was taken back to a checkpoint; what was sampled in an earlier one is refused by the queue.
    """

    def __init__(
        self,
        config: RunConfig,
        learners: Learners,
        handles: Sequence[ActorHandle],
        say: Callable[[str], None],
        rooms: Sequence[Room] = (),
    ) -> None:
        self._config, self._learners, self._say = config, learners, say
        theirs = rooms or itertools.repeat(None, len(handles))
        self.roster = Roster(
            Member(number, handle, room) for number, (handle, room) in enumerate(zip(handles, theirs, strict=True))
        )
        self.era = 0
        self.on_change: Callable[[], None] = lambda: None
        self._limit_s = answer_limit_s(config)
        self._news = asyncio.Event()
        self._weights = asyncio.Lock()  # one change of the weight group at a time
        self._group: list[tuple[int, int]] = []  # (number, life) of those in it
        self._begun = False  # whether weights have been sent
        self._to_replace = 0  # of those that lost their nodes or are given up, how many have no successor yet
        self._error: BaseException | None = None
        self._told: dict[str, tuple[Any, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for the dispatcher ------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        return self.roster.members

    @property
    def up(self) -> list[Member]:
        return in_phase(self.members, Phase.UP)

    @property
    def room(self) -> int:
        """Tickets that those who are up may work on at once."""
        return self._config.rollout.prompts_in_flight * self.roster.up_count

    def __str__(self) -> str:
        return in_words(self.members)

    async def sample(self, ticket: Ticket) -> Receipt:
        """One attempt; an actor's fault is a failed one, and its cause. Raises RolloutError when nobody is left."""
        self._raise_error()
        member = await self._free()
        life = member.life
        self.roster.set_load(member, member.load + 1)
        answer: Any = member.handle.sample.remote(ticket, self.era)
        try:
            receipt: Receipt = await answer_in(self._limit_s, answer)
            member.failures = 0
            return receipt
        except asyncio.CancelledError:
            if isinstance(answer, ray.ObjectRef):
                ray.cancel(answer)  # or the actor goes on sampling for nobody
            raise
        except TimeoutError:
            cause = f"{member.name} did not answer for ticket {ticket.index} within {self._limit_s:g} s"
            self.lose(member, life, cause)
        except RayError as error:
            cause = f"{member.name} failed at ticket {ticket.index}: {cause_of(error)}"
            self.lose(member, life, cause, dead=isinstance(error, RayActorError))
        finally:
            if member.life == life:  # of another life it has been counted anew
                self.roster.set_load(member, member.load - 1)
            self._news.set()
        return Receipt(ticket, "failed", cause, actor_lost=True)

    async def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of all who are up, side by side; who comes up later is told too."""
        self._told[method] = arguments
        await asyncio.gather(*(self._ask(member, method, *arguments) for member in self.up))

    # --- for the driver ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait for every engine of a run that begins. Raises RolloutError naming the actors that are late or broken."""
        await all_up(self.members, self._config.rollout.start_timeout_s)
        for member in self.members:
            self.roster.move(member, Phase.READY)

    def watch(self) -> None:
        """Look after the actors from now on, until `close`."""
        self._in_background(signs_of_life(self.roster, self._config.rollout.hang_timeout_s, self.lose))

    def look_after(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this beside everything else, until `close`; where it fails the run ends."""
        self._in_background(work)

    async def sync(self, *, anew: bool = False) -> SyncTimes:
        """The learner's weights to all who are up, and to those who wait for them. Raises RolloutError, LearnerError.

        An actor that fails meanwhile is left out, and the others get the weights anew. anew: the learner is another
        one, with which no group is open.
        """
        if anew and isinstance(self._error, LearnerError):
            self._error = None
        self._raise_error()
        for _ in range(TRIES + len(self.members)):
            async with self._weights:
                self._begun = True
                if anew:
                    self._group = []
                members = in_phase(self.members, Phase.UP, Phase.READY)
                if members and (times := await self._give(members)) is not None:
                    return times
            if not members:
                # Whoever comes up is given the weights by `_admit`.
                await self._somebody()
                return SyncTimes()
        raise RolloutError(f"the weights did not reach the rollout actors in {TRIES + len(self.members)} tries")

    async def ask_all(self, method: str) -> None:
        """Call a method of all whose engines are up, side by side; who does not do it has ended when this returns."""
        members = in_phase(self.members, Phase.UP, Phase.READY)
        lives = [member.life for member in members]
        await asyncio.gather(*(self._ask(member, method) for member in members))
        lost = [m for m, life in zip(members, lives, strict=True) if m.life != life and m.place is not None]
        await asyncio.gather(*(end_process(m.handle, m.place) for m in lost if m.place is not None))

    async def clocks(self) -> dict[tuple[int, int], EngineClock]:
        """The engines' clocks by the actors' number and life."""
        members = self.up
        told = await asyncio.gather(*(self._ask(member, "clock") for member in members))
        return {(m.number, m.life): clock for m, clock in zip(members, told, strict=True) if clock is not None}

    async def there(self) -> Mapping[int, ActorHandle]:
        """For an evaluation: the actors that can be asked; before the first weights are sent, all that are ready."""
        phase = Phase.UP if self._begun else Phase.READY  # the policy as it came
        await self._somebody(phase)
        return {member.number: member.handle for member in in_phase(self.members, phase)}

    def lost(self, number: int, error: RayError | TimeoutError) -> None:
        """An actor failed at an evaluation."""
        member = self.members[number]
        cause = f"{member.name} failed at an evaluation: {cause_of(error)}"
        self.lose(member, member.life, cause, dead=isinstance(error, RayActorError))

    async def close(self) -> None:
        """Look after nobody any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- more or fewer -----------------------------------------------------------------------------------------------

    def add(self, handle: ActorHandle, room: Room) -> Member:
        """One more actor, which samples once its engine is up and it has the weights."""
        member = Member(len(self.members), handle, room, since=time.monotonic())
        self._to_replace = max(0, self._to_replace - 1)
        self.roster.add(member)
        self._in_background(self._bring_back(member, dead=True))
        return member

    def dismiss(self, members: Sequence[Member]) -> None:
        """These get no more tickets, and end when they have none left."""
        for member in members:
            self.roster.move(member, Phase.LEAVING)
            member.since = time.monotonic()
            self._in_background(self._see_off(member))
        self._changed()

    def write_off(self, member: Member) -> None:
        """Its node is gone, and its room with it: it does not come back. Whoever waits, waits for a successor."""
        self._to_replace += 1
        self._remove(member)
        self._say(f"warning: {member.name} has lost its node ({self})")

    async def _see_off(self, member: Member) -> None:
        if self._config.cluster.colocated:
            await self._ask(member, "wake")  # no weights will come for it
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limit_s):
                while member.load:
                    self._news.clear()
                    await self._news.wait()
        self._remove(member)
        self._say(f"{member.name} has left ({self})")

    # --- faults ------------------------------------------------------------------------------------------------------

    def lose(self, member: Member, life: int, cause: str, *, dead: bool = False) -> None:
        """An actor is of no use in this life: it is started again. dead: its process has ended by itself."""
        if member.life != life or member.phase not in (Phase.UP, Phase.READY, Phase.LEAVING):
            return  # known already
        member.cause, member.failures = cause, member.failures + 1
        self.roster.set_load(member, 0)  # what it worked on is tried elsewhere
        member.since, member.life = time.monotonic(), member.life + 1
        if member.phase is Phase.LEAVING:
            self._news.set()  # it has nothing left to finish
            return
        self.roster.move(member, Phase.COMING)
        self._say(f"warning: {cause}; it is started again ({self})")
        self._in_background(self._bring_back(member, dead))
        self._changed()

    async def _bring_back(self, member: Member, dead: bool) -> None:
        """Until it samples again, or is given up after rollout.max_restarts starts without a ticket between."""
        while member.phase is Phase.COMING:
            if member.failures > self._config.rollout.max_restarts:
                self._give_up(member)
                return
            try:
                if not dead and member.place is not None:
                    await end_process(member.handle, member.place)
                async with self._learners.at_rest():
                    await up_again(member, self._config.rollout.start_timeout_s, ended=not dead)
            except (RayError, TimeoutError) as error:
                if has_room(member):
                    member.cause, member.failures = cause_of(error), member.failures + 1
                dead = False
                continue
            if member.phase is Phase.COMING:  # and was not dismissed meanwhile
                self.roster.move(member, Phase.READY)
                self._news.set()
                if self._begun:
                    await self._admit()
                return

    def _give_up(self, member: Member) -> None:
        self._to_replace += member.room is not None  # by another one in a room of its own
        self._remove(member)
        self._say(
            f"warning: {member.name} is given up after {member.failures} failures in a row (rollout.max_restarts), "
            f"last: {member.cause} ({self})"
        )

    def _remove(self, member: Member) -> None:
        self.roster.move(member, Phase.GONE)
        end([member.handle], [] if member.room is None else [member.room])
        self._changed()

    async def _admit(self) -> None:
        """Give those who wait for them the weights as they are, in a group of their own: the others sample on."""
        async with self._weights:
            for _ in range(TRIES + len(self.members)):
                if ready := in_phase(self.members, Phase.READY):
                    await self._give(ready)

    async def _give(self, members: Sequence[Member]) -> SyncTimes | None:
        """The learner's weights to these, who then are up; None where one of them failed, which is lost.

        Meanwhile an actor may die and its successor be ready: that one is not in the group, and not to blame.
        """
        lives = {member.number: member.life for member in members}
        group, self._group = self._group, []
        try:
            handles = {member.number: member.handle for member in members}
            times = await self._learners.give(handles, anew=list(lives.items()) != group)
        except WeightTransferError as error:
            original: Any = getattr(error, "cause", error)  # Ray's stands in for it, with a traceback in its text
            for member in (m for m in members if m.number in original.actors):
                self.lose(member, lives[member.number], str(original))
            return None
        joining = [m for m in in_phase(members, Phase.READY) if m.life == lives[m.number]]
        await asyncio.gather(*(self._let_in(member) for member in joining))
        if all(member.phase is Phase.UP for member in members):
            self._group = [(member.number, member.life) for member in members]
        if joining:
            self._changed()
        return times

    async def _let_in(self, member: Member) -> None:
        """An actor proves the version it holds, learns what the others were told, and is up."""
        life, wanted = member.life, self._learners.version
        version = await self._ask(member, "policy_version")
        if version != wanted:
            self.lose(member, life, f"{member.name} holds version {version} instead of {wanted}")
            return
        told: dict[str, tuple[Any, ...]] = {}
        while told != self._told and member.life == life:
            told = dict(self._told)
            for method, arguments in told.items():
                await self._ask(member, method, *arguments)
        if member.phase is Phase.READY and member.life == life:
            self.roster.set_load(member, 0)
            self.roster.move(member, Phase.UP)
            member.life = life + 1
            if member.since:
                seconds = f"{time.monotonic() - member.since:.0f} s"
                what = f"samples again, {seconds} after its fault" if life else f"samples, {seconds} after it was added"
                self._say(f"{member.name} {what} ({self})")

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _free(self) -> Member:
        """Who gets the next ticket. Raises RolloutError when nobody has been up for rollout.start_timeout_s."""
        while (member := self.roster.least_loaded(self._config.rollout.prompts_in_flight)) is None:
            self._raise_error()
            self._news.clear()
            if self.up:
                await self._news.wait()
            else:
                await self._somebody()
        return member

    async def _somebody(self, phase: Phase = Phase.UP) -> None:
        """Wait for an actor in this phase. Raises RolloutError."""
        limit_s = self._config.rollout.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not in_phase(self.members, phase):
                    self._raise_error()
                    if not in_phase(self.members, Phase.COMING, Phase.READY) and not self._to_replace:
                        raise RolloutError(f"no rollout actor is left; last: {self._last_cause()}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise RolloutError(
                f"no rollout actor was up for {limit_s:g} s (rollout.start_timeout_s); last: {self._last_cause()}"
            ) from None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _last_cause(self) -> str:
        return max(self.members, key=lambda m: m.since).cause

    async def _ask(self, member: Member, method: str, *arguments: Any) -> Any:
        """What a method of an actor returns; None from one that does not answer in time or fails, which is lost."""
        life, limit_s = member.life, self._config.sync.timeout_s
        try:
            return await answer_in(limit_s, getattr(member.handle, method).remote(*arguments))
        except TimeoutError:
            self.lose(member, life, f"{member.name} did not answer {method} within {limit_s:g} s (sync.timeout_s)")
        except RayError as error:
            cause = f"{member.name} failed in {method}: {cause_of(error)}"
            self.lose(member, life, cause, dead=isinstance(error, RayActorError))
        return None

    def _changed(self) -> None:
        self._news.set()
        self.on_change()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What ends looking after an actor ends the run: nobody else would hear of it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._news.set()
