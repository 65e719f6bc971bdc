"""The actors as places for tickets: each goes to the one with the fewest, and every answer has a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.trajectory import Ticket
from orchestration.cluster import cause_of


class RolloutError(RuntimeError):
    """Sampling cannot go on; names the actor."""


class Places:
    """Calls of `sample`, spread evenly over the actors."""

    def __init__(self, config: RunConfig, actors: Sequence[ActorHandle]) -> None:
        self._actors: Sequence[Any] = actors
        self._load = [0] * len(actors)
        # Beyond the actor's own limit there is only the wait for room in the queue.
        self._limit_s = config.rollout.ticket_timeout_s + config.queue.timeout_s
        self._tell_limit_s = config.sync.timeout_s
        self.count = config.rollout.prompts_in_flight * len(actors)
        self.actors = len(actors)

    async def sample(self, ticket: Ticket) -> Receipt:
        """One attempt. Raises RolloutError when the actor does not answer in time or has died."""
        place = min(range(len(self._load)), key=lambda i: self._load[i])
        self._load[place] += 1
        answer: Any = self._actors[place].sample.remote(ticket)
        try:
            async with asyncio.timeout(self._limit_s):
                receipt: Receipt = await answer
                return receipt
        except asyncio.CancelledError:
            if isinstance(answer, ray.ObjectRef):
                ray.cancel(answer)  # or the actor goes on sampling for nobody
            raise
        except TimeoutError:
            raise RolloutError(
                f"rollout actor {place} did not answer for ticket {ticket.index} within {self._limit_s:g} s"
            ) from None
        except RayError as error:
            raise RolloutError(f"rollout actor {place} failed at ticket {ticket.index}: {cause_of(error)}") from error
        finally:
            self._load[place] -= 1

    async def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of every actor, side by side. Raises RolloutError when one does not answer in time or died."""
        await asyncio.gather(*(self._tell(place, method, *arguments) for place in range(self.actors)))

    async def _tell(self, place: int, method: str, *arguments: Any) -> None:
        try:
            async with asyncio.timeout(self._tell_limit_s):
                await getattr(self._actors[place], method).remote(*arguments)
        except TimeoutError:
            raise RolloutError(
                f"rollout actor {place} did not answer {method} within {self._tell_limit_s:g} s (sync.timeout_s)"
            ) from None
        except RayError as error:
            raise RolloutError(f"rollout actor {place} failed in {method}: {cause_of(error)}") from error
