"""More or fewer rollout actors while a run goes on: by `python -m orchestration.scale`, and as the cluster has room.

The wish is a file in the run's folder, and so is what came of it: whoever can see the folder can ask.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from configs.schema import RunConfig
from configs.sharing import need_whole_gpus
from learner.durable import replace_durably
from orchestration.fleet import Fleet
from orchestration.members import Phase, in_phase
from orchestration.room import Room, is_lost

LOOK_S = 1.0  # between looks at the wish and at the cluster
MOST_ACTORS = 100_000

NewActor = Callable[[int], tuple[Any, Room] | None]  # number -> handle and room; None: no room now


class Wish(BaseModel):
    """scale.json: how many actors there should be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    actors: PositiveInt


@dataclass(frozen=True, slots=True)
class State:
    """fleet.json. wanted: actors there should be. phases: numbers of those in each. places: `ADDRESS PID`

    by number. told: what stands in the way."""

    wanted: int
    phases: dict[str, list[int]]
    places: dict[str, str]
    told: str = ""

    @property
    def up(self) -> int:
        return len(self.phases[Phase.UP])


class Elastic:
    """`new_actor` starts one more process, if there is room for it; `enough` is called when no more are wanted."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        fleet: Fleet,
        new_actor: NewActor,
        say: Callable[[str], None],
        enough: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._fleet, self._new_actor, self._say = config, fleet, new_actor, say
        self._enough = enough
        self._wish, self._state = folder / "scale.json", folder / "fleet.json"
        self._wish.unlink(missing_ok=True)  # of a process before: the config counts
        self._wanted = config.rollout.actors
        self._asked: bytes | None = None
        self._by_wish = False
        self._written: State | None = None
        self._told = ""

    async def watch(self) -> None:
        """Look after the number of actors until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Once: what is asked for, what there is, and what can be done about it now."""
        self._read_wish()
        self._write_off()
        await self._come_closer()
        self._write_state()

    def _read_wish(self) -> None:
        try:
            asked = self._wish.read_bytes()
        except OSError:
            return
        if asked == self._asked:
            return
        self._asked = asked
        try:
            wish = Wish.model_validate_json(asked)
        except ValidationError as error:
            self._say(f"warning: {self._wish}: {error.errors(include_url=False)[0]['msg']}: it is not followed")
            return
        why = ""
        if self._config.shares_gpus:
            why = "every learner rank has its engine (cluster.colocated)"
        elif need_whole_gpus(self._config, wish.actors):
            why = "no two engines can be on one GPU (rollout.gpus_per_actor)"
        if why:
            self._say(f"warning: {self._wish}: {why}: it is not followed")
            return
        self._by_wish = True
        if wish.actors != self._wanted:
            self._say(f"{wish.actors} rollout actors are asked for instead of {self._wanted} ({self._fleet})")
            self._wanted = wish.actors

    def _write_off(self) -> None:
        """Actors whose node is gone: others take their places as soon as there is room.

        To wait for Ray to start them again would keep their rooms on its list: looking for a place for those, again and
        again without a pause, it takes a whole core of the head.
        """
        for member in in_phase(self._fleet.members, Phase.COMING):
            if member.room is not None and is_lost(member.room):
                self._fleet.write_off(member)

    async def _come_closer(self) -> None:
        there = in_phase(self._fleet.members, Phase.COMING, Phase.READY, Phase.UP)
        most = self._wanted if self._by_wish else max(self._wanted, self._config.rollout.max_actors or 0)
        if len(there) > most:
            self._fleet.dismiss(there[most:])
            self._enough()
            return
        self._told = ""
        while len(there) < most:
            number = len(self._fleet.members)
            made = await asyncio.to_thread(self._new_actor, number)  # the run goes on while Ray looks for room
            if made is None:
                if len(there) < self._wanted:
                    self._told = f"no room on the cluster for rollout actor {number}"
                return
            there.append(self._fleet.add(*made))
        self._enough()

    def _write_state(self) -> None:
        phases = {str(p): [m.number for m in in_phase(self._fleet.members, p)] for p in Phase}
        places = {str(m.number): f"{m.place.address} {m.place.pid}" for m in self._fleet.up if m.place is not None}
        state = State(self._wanted, phases, places, self._told)
        if state != self._written:
            with suppress(OSError):  # a full disk is said where more depends on it
                replace_durably(self._state, json.dumps(asdict(state)).encode())
                self._written = state


def read_state(folder: Path) -> State | None:
    """What the run says of its actors; None while it says nothing, or nothing that can be read."""
    try:
        return State(**json.loads((folder / "fleet.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
