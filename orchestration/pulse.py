"""Rollout actors and the replay queue have to give a sign of life in time, whatever else they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError

from actors.place import Place, place_of
from orchestration.answers import answer_in
from orchestration.cluster import cause_of, kill_process
from orchestration.members import Member, Phase, Roster, in_phase
from orchestration.queue_client import AGAIN_S

# Of rollout.hang_timeout_s: an engine that hangs ends its process itself and leaves its stacks before it is ended.
PATIENCE = 1.5


class Lose(Protocol):
    def __call__(self, member: Member, life: int, cause: str, *, dead: bool = False) -> None: ...


async def signs_of_life(roster: Roster, hang_timeout_s: float, lose: Lose) -> None:
    """Ask those who sample, are ready to, or finish what they have, until it is cancelled; `lose`: who gives none."""
    while True:
        await asyncio.sleep(hang_timeout_s / 4)
        members = in_phase(roster.members, Phase.UP, Phase.READY, Phase.LEAVING)
        await asyncio.gather(*(_pulse(member, PATIENCE * hang_timeout_s, lose) for member in members))


async def _pulse(member: Member, limit_s: float, lose: Lose) -> None:
    life = member.life
    try:
        await answer_in(limit_s, member.handle.pulse.remote())
    except TimeoutError:
        key = f"{PATIENCE:g} x rollout.hang_timeout_s"
        lose(member, life, f"{member.name} gave no sign of life for {limit_s:g} s ({key})")
    except RayError as error:
        lose(member, life, f"{member.name}: {cause_of(error)}", dead=isinstance(error, RayActorError))


async def queue_lives(replay: Any, hang_timeout_s: float, say: Callable[[str], None]) -> None:
    """Until it is cancelled: a replay queue that is stuck or stopped is ended, and Ray starts another in its place."""
    limit_s = PATIENCE * hang_timeout_s
    place: Place | None = None  # of one that has answered: what is still coming up is given its time
    since = 0.0  # its fault was noticed; 0: there is none
    while True:
        try:
            place = await answer_in(limit_s, replay.__ray_call__.remote(place_of))
            if since:
                say(f"the replay queue answers again, {time.monotonic() - since:.0f} s after its fault")
            since = 0.0
        except TimeoutError:
            if place is not None:
                key = f"{PATIENCE:g} x rollout.hang_timeout_s"
                say(f"warning: the replay queue gave no sign of life for {limit_s:g} s ({key}); it is started again")
                await asyncio.to_thread(kill_process, place.pid, place.began)  # it is on the driver's machine
                place, since = None, time.monotonic()
        except RayError:
            since = since or (time.monotonic() if place else 0.0)
            place = None
        await asyncio.sleep(AGAIN_S if since else hang_timeout_s / 4)
