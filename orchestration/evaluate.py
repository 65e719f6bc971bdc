"""Success on held-out episodes under the plain prompt, whatever the sampler: the same judge before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
    """success: mean over episodes of the share of samples that solve it; by_episode: ticket index -> that share.

    unjudged: episodes whose environment failed in every sample: in none of the figures; cause: of the first failure.
    pass_at_k: chance that one of k samples solves an episode. distinct_solutions: mean number of different correct
    answers an episode. payloads: some encoded groups, for comparing log-probs.
    """

    success: float
    by_episode: dict[int, float]
    pass_at_k: dict[int, float]
    distinct_solutions: float
    sampled_tokens: int
    payloads: tuple[bytes, ...]
    unjudged: int = 0
    cause: str = ""


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Unbiased chance that at least one of k draws without replacement is solved: 1 - C(n-c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, equation 1. Raises ValueError when k exceeds the samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


def gain_interval(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[float, float]:
    """95 % interval of the mean gain over the same episodes: mean +- 1.96 standard errors of the paired differences.

    before, after: share of solved samples by episode; those that are in both count.
    """
    gains = np.array([after[episode] - before[episode] for episode in before if episode in after])
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
    """Figures of an evaluation; failed episodes are left out. Raises EvaluationError when nothing could be judged."""
    groups = sorted(groups, key=lambda g: g.ticket.index)
    all_judged = {g.ticket.index: [t for t in g.trajectories if t.verdict is not Verdict.FAILED] for g in groups}
    by_index = {index: trajectories for index, trajectories in all_judged.items() if trajectories}
    cause = next((t.cause for g in groups for t in g.trajectories if t.verdict is Verdict.FAILED), "")
    if not by_index:
        raise EvaluationError(f"the environment failed in every held-out episode: {cause}")
    judged = list(by_index.values())
    solved = [sum(t.verdict is Verdict.SOLVED for t in trajectories) for trajectories in judged]
    shares = {i: c / len(t) for (i, t), c in zip(by_index.items(), solved, strict=True)}
    k = max(len(t) for t in judged)
    whole = [c for c, t in zip(solved, judged, strict=True) if len(t) == k]  # a failed sample leaves too few draws
    return Evaluation(
        success=float(np.mean(list(shares.values()))),
        by_episode=shares,
        pass_at_k={k: float(np.mean([pass_at_k(k, c, k) for c in whole]))},
        distinct_solutions=float(np.mean([_distinct(t) for t in judged])),
        sampled_tokens=sum(g.sampled_tokens for g in groups),
        payloads=tuple(payloads[:PAYLOADS_KEPT]),
        unjudged=len(groups) - len(by_index),
        cause=cause,
    )


def _distinct(trajectories: Sequence[Trajectory]) -> int:
    return len({t.answer for t in trajectories if t.verdict is Verdict.SOLVED})
