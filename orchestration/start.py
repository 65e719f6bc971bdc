"""Waits for rollout actors to come up: all at a run's beginning, one after a fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ray.exceptions import ActorDiedError, RayActorError

from orchestration.cluster import cause_of
from orchestration.members import Member
from orchestration.room import is_placed

POLL_S = 0.5  # between looks whether Ray has started an actor again


class RolloutError(RuntimeError):
    """Sampling cannot go on; names the actor."""


async def all_up(members: Sequence[Member], limit_s: float) -> None:
    """Until every engine is up. Raises RolloutError naming the actors that are late or broken."""
    tasks = [asyncio.create_task(_find(member)) for member in members]
    _, late = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
    for member, task in zip(members, tasks, strict=True):
        if task.done() and (error := task.exception()) is not None:
            raise RolloutError(f"{member.name} did not start: {cause_of(error)}") from error
    if late:
        names = ", ".join(str(m.number) for m, task in zip(members, tasks, strict=True) if task in late)
        raise RolloutError(f"rollout actor {names} was not up within {limit_s:g} s (rollout.start_timeout_s)")


async def up_again(member: Member, limit_s: float, *, ended: bool) -> None:
    """Wait for the process that Ray starts in its place. Raises ActorDiedError, and TimeoutError for a late engine.

    As long as the cluster has no room for it there is no limit: the others go on. ended: so that the process before
    does not count; else it may be that it could not be reached for a while.
    """
    before, same_until = member.place, time.monotonic() + limit_s
    while True:
        try:
            async with asyncio.timeout(limit_s):
                await _find(member)
        except ActorDiedError:
            raise
        except TimeoutError:
            raise TimeoutError(f"its engine was not up within {limit_s:g} s (rollout.start_timeout_s)") from None
        except RayActorError as error:  # Ray has not started it yet, or one process after another ends at its start
            if not has_room(member):
                same_until = time.monotonic() + limit_s
            elif time.monotonic() > same_until:
                said = f"its process was not up within {limit_s:g} s (rollout.start_timeout_s): {cause_of(error)}"
                raise TimeoutError(said) from None
        else:
            if not ended or member.place != before:
                return
            if time.monotonic() > same_until:
                raise TimeoutError(f"its process, {before}, did not end within {limit_s:g} s")
        await asyncio.sleep(POLL_S)


def has_room(member: Member) -> bool:
    """Whether it is for Ray to start it: else the cluster has no place for it yet."""
    return member.room is None or is_placed(member.room)


async def _find(member: Member) -> None:
    member.place = await member.handle.ready.remote()
