"""Success on held-out episodes under the plain prompt, whatever the sampler: the same judge before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from ray.actor import ActorHandle

from configs.schema import RunConfig
from envs.codec import decode_group
from envs.trajectory import Group, Trajectory, Verdict
from orchestration.tickets import held_out_tickets

TICKETS_PER_CALL = 16
PAYLOADS_KEPT = 32


class EvaluationError(RuntimeError):
    """The evaluation is not whole; says who was waited for."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """success: mean over episodes of the share of samples that solve it; by_episode: (episodes,) those shares.

    pass_at_k: chance that one of k samples solves an episode. distinct_solutions: mean number of different correct
    answers an episode. payloads: some encoded groups, for comparing log-probs.
    """

    success: float
    by_episode: tuple[float, ...]
    pass_at_k: dict[int, float]
    distinct_solutions: float
    sampled_tokens: int
    payloads: tuple[bytes, ...]


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Unbiased chance that at least one of k draws without replacement is solved: 1 - C(n-c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, equation 1. Raises ValueError when k exceeds the samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


def gain_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean gain over the same episodes: mean +- 1.96 standard errors of the paired differences."""
    gains = np.asarray(after) - np.asarray(before)
    half = 1.96 * float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
    return float(gains.mean() - half), float(gains.mean() + half)


async def evaluate(config: RunConfig, actors: Sequence[ActorHandle]) -> Evaluation:
    """Sample all held-out episodes on all actors. Raises EvaluationError after eval.timeout_s."""
    tickets = held_out_tickets(config.eval.episodes, config.env.name)
    chunks = [tickets[i : i + TICKETS_PER_CALL] for i in range(0, len(tickets), TICKETS_PER_CALL)]
    lanes = [chunks[i :: len(actors)] for i in range(len(actors))]
    try:
        async with asyncio.timeout(config.eval.timeout_s):
            done = await asyncio.gather(
                *(_lane(actor, lane, config) for actor, lane in zip(actors, lanes, strict=True))
            )
    except TimeoutError:
        raise EvaluationError(f"not evaluated within {config.eval.timeout_s:g} s (eval.timeout_s)") from None
    payloads = [data for lane in done for data in lane]
    return summarise([decode_group(data) for data in payloads], payloads)


async def _lane(actor: ActorHandle, chunks: Sequence[Sequence[object]], config: RunConfig) -> list[bytes]:
    payloads: list[bytes] = []
    for chunk in chunks:
        payloads += await actor.sample_plain.remote(chunk, config.eval.samples)
    return payloads


def summarise(groups: Sequence[Group], payloads: Sequence[bytes]) -> Evaluation:
    """Figures of an evaluation; failed episodes are left out of the shares."""
    groups = sorted(groups, key=lambda g: g.ticket.index)
    judged = [[t for t in g.trajectories if t.verdict is not Verdict.FAILED] for g in groups]
    if any(not trajectories for trajectories in judged):
        raise EvaluationError("an environment failed in every sample of a held-out episode")
    solved = [sum(t.verdict is Verdict.SOLVED for t in trajectories) for trajectories in judged]
    shares = tuple(c / len(t) for c, t in zip(solved, judged, strict=True))
    k = max(len(t) for t in judged)
    whole = [c for c, t in zip(solved, judged, strict=True) if len(t) == k]  # a failed sample leaves too few draws
    return Evaluation(
        success=float(np.mean(shares)),
        by_episode=shares,
        pass_at_k={k: float(np.mean([pass_at_k(k, c, k) for c in whole]))},
        distinct_solutions=float(np.mean([_distinct(t) for t in judged])),
        sampled_tokens=sum(g.sampled_tokens for g in groups),
        payloads=tuple(payloads[:PAYLOADS_KEPT]),
    )


def _distinct(trajectories: Sequence[Trajectory]) -> int:
    return len({t.answer for t in trajectories if t.verdict is Verdict.SOLVED})
