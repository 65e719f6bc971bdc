"""Asks the actors for samples of the held-out episodes: the same episodes for every policy, method and run."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

from ray.exceptions import RayError

from configs.environments import EnvSettings
from configs.schema import RunConfig
from envs.codec import decode_group
from envs.registry import make_env
from envs.trajectory import Ticket
from orchestration.answers import answer_in
from orchestration.cluster import cause_of
from orchestration.evaluation import LISTS_APART, Evaluation, EvaluationError, summarise
from orchestration.plans import Plan
from orchestration.tickets import held_out_tickets

TICKETS_PER_CALL = 16
# Lists are sampled one answer after another: it takes more of them to keep an engine busy.
LISTS_PER_CALL = 64
TRIES = 4  # of one call, on whichever actor: it may be the episodes that no actor gets through


class Lanes(Protocol):
    """The actors that can be asked, by number; one that fails is left out, and its episodes go to the others."""

    async def there(self) -> Mapping[int, Any]:
        """Handles of those who can be asked now, at least one. Raises what the run raises when there is none."""

    def lost(self, number: int, error: RayError | TimeoutError) -> None:
        """This actor failed, or is too slow."""


async def evaluate(config: RunConfig, actors: Lanes) -> Evaluation:
    """All held-out episodes under the plain prompt, whatever the sampler. Raises EvaluationError."""
    payloads = await sample(config, actors, Plan(config.eval.samples))
    groups = [decode_group(data) for data in payloads]
    with_rows = [data for data, group in zip(payloads, groups, strict=True) if group.rows]
    return summarise(groups, with_rows, target_count(config.env))


async def sample(
    config: RunConfig, actors: Lanes, plan: Plan, told: Callable[[int, int], None] = lambda *_: None
) -> list[bytes]:
    """Encoded groups of all held-out episodes, in their order; told: of groups done, out of how many.

    Raises EvaluationError where some episodes fail wherever they are tried, or take longer than eval.timeout_s.
    """
    tickets = list_tickets(config, plan.lists)
    size = TICKETS_PER_CALL if plan.settings is None else LISTS_PER_CALL
    chunks = [tickets[i : i + size] for i in range(0, len(tickets), size)]
    waiting, done, failures = deque(range(len(chunks))), dict[int, list[bytes]](), Counter[int]()

    async def lane(number: int, actor: Any) -> None:
        while waiting:
            chunk = waiting.popleft()
            try:
                done[chunk] = await _answer(config, actor, chunks[chunk], plan)
            except (RayError, TimeoutError) as error:
                actors.lost(number, error)
                failures[chunk] += 1
                if failures[chunk] == TRIES:
                    raise EvaluationError(
                        f"{len(chunks[chunk])} held-out episodes failed for the {TRIES}th time, last on rollout actor "
                        f"{number}: {cause_of(error)}"
                    ) from error
                waiting.append(chunk)
                return
            told(sum(map(len, done.values())), len(tickets))

    while len(done) < len(chunks):
        lanes = [asyncio.create_task(lane(*one)) for one in (await actors.there()).items()]
        try:
            await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
    return [data for chunk in sorted(done) for data in done[chunk]]


def list_tickets(config: RunConfig, lists: int) -> list[Ticket]:
    """One ticket a list: all lists of an episode have its seed, and numbers, so samples, of their own."""
    tickets = held_out_tickets(config.eval.episodes, config.env.name)
    return [replace(t, index=t.index + number * LISTS_APART) for number in range(lists) for t in tickets]


@cache
def target_count(settings: EnvSettings) -> int | None:
    """The environment's. Kept: some environments read files when they are made."""
    return make_env(settings).target_count


async def _answer(config: RunConfig, actor: Any, chunk: Sequence[Ticket], plan: Plan) -> list[bytes]:
    limit_s = config.eval.timeout_s
    try:
        payloads: list[bytes] = await answer_in(
            limit_s, actor.sample_held_out.remote(chunk, plan.length, plan.settings)
        )
        return payloads
    except TimeoutError:
        said = f"it did not sample {len(chunk)} held-out episodes within {limit_s:g} s (eval.timeout_s)"
        raise TimeoutError(said) from None
