"""Figures of held-out episodes, from the groups that were sampled of them; pure.

An episode has n samples that could be judged; k of them are drawn without replacement. `chances` is the estimator all
curves are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, log

import numpy as np
import numpy.typing as npt

from actors.receipt import question_of
from envs.trajectory import Group, Trajectory, Verdict

Curve = npt.NDArray[np.float64]

# Of an episode that is sampled in several lists, list l has the ticket's index + l * LISTS_APART: seeds of its own.
LISTS_APART = 10**10
# Encoded groups an evaluation keeps: enough to compare log-probs on, few enough to send to the learner.
PAYLOADS_KEPT = 32


class EvaluationError(RuntimeError):
    """The evaluation is not whole; says who was waited for."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run's figures. success: mean over episodes of the share of samples that solve it; by_episode: ticket -> share.

    pass_at_k: chance that one of k samples solves an episode, k = 1, 2, 4, ... and all samples. distinct_solutions:
    mean number of different correct answers an episode. answer_entropy, coverage: means of `entropy` and `coverages`.
    sampled_tokens, env_steps: what it cost. unjudged: episodes whose environment failed in every sample, in none of the
    figures; cause: of the first failure. payloads: some encoded groups, for comparing log-probs.
    """

    success: float
    by_episode: dict[int, float]
    pass_at_k: dict[int, float]
    distinct_solutions: float
    answer_entropy: float
    coverage: float
    sampled_tokens: int
    env_steps: int
    payloads: tuple[bytes, ...] = ()
    unjudged: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged sample. answer: canonical form of what was done; empty where nothing could be read."""

    solved: bool
    answer: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What could be judged of one episode, list by list in the order of sampling; plain samples are one list.

    index: of its ticket. question: equal for episodes of the same prompt.
    """

    index: int
    question: str
    lists: tuple[tuple[Sample, ...], ...]

    @property
    def samples(self) -> list[Sample]:
        return [sample for one in self.lists for sample in one]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """All episodes that could be judged, in the order of their tickets, and what sampling them cost."""

    episodes: tuple[Judged, ...]
    unjudged: int
    cause: str
    sampled_tokens: int
    env_steps: int


# --- an episode ------------------------------------------------------------------------------------------------------


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Unbiased chance that at least one of k draws without replacement is solved: 1 - C(n-c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, equation 1. Raises ValueError when k exceeds the samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


@lru_cache(maxsize=4096)
def chances(samples: int, hits: int) -> Curve:
    """(n,) the chance that k = 1 ... n draws hold at least one of `hits` of the n samples."""
    curve = np.array([pass_at_k(samples, hits, k) for k in range(1, samples + 1)])
    curve.flags.writeable = False
    return curve


def distinct_at_k(samples: Sequence[Sample]) -> Curve:
    """(n,) expected number of different correct answers among k = 1 ... n draws: the sum of each answer's chances."""
    counts = Counter(sample.answer for sample in samples if sample.solved)
    return sum((chances(len(samples), count) for count in counts.values()), np.zeros(len(samples)))


def first_k(episode: Judged, length: int) -> tuple[Curve, Curve]:
    """Of the first k = 1 ... length samples of a list: chance that one is solved, number of different correct answers.

    Both (length,), means over the episode's lists. A list that ended early has what it has.
    """
    solved, distinct = np.zeros(length), np.zeros(length)
    for one in episode.lists:
        found: set[str] = set()
        for k in range(length):
            if k < len(one) and one[k].solved:
                found.add(one[k].answer)
            solved[k] += bool(found)
            distinct[k] += len(found)
    return solved / len(episode.lists), distinct / len(episode.lists)


def entropy(answers: Iterable[str]) -> float:
    """Entropy of the answers' shares, nats; what could not be read is one answer.

    The plug-in estimate: of n samples it is at most log(n), and on average below the policy's own.
    """
    counts = Counter(answers)
    n = counts.total()
    return -sum(count / n * log(count / n) for count in counts.values())


# --- all episodes ----------------------------------------------------------------------------------------------------


def coverages(episodes: Sequence[Judged], targets: int | None) -> Curve:
    """Share of the right answers that all samples together found, (questions,) or (episodes,).

    targets: how many right answers a question has for all its episodes alike; then a value a question, the different
    ones found in any of its episodes out of those. Where each episode has its own (None): a value an episode, 1 where
    at least one sample solved it.
    """
    if targets is None:
        return np.array([any(s.solved for s in episode.samples) for episode in episodes], dtype=float)
    found: dict[str, set[str]] = {}
    for episode in episodes:
        found.setdefault(episode.question, set()).update(s.answer for s in episode.samples if s.solved)
    return np.array([len(answers) / targets for answers in found.values()])


def held_out(groups: Iterable[Group]) -> HeldOut:
    """What was sampled, without the samples that failed. Raises EvaluationError when nothing could be judged."""
    lists: dict[int, list[tuple[int, tuple[Sample, ...]]]] = {}
    questions: dict[int, str] = {}
    cause, tokens, env_steps = "", 0, 0
    for group in groups:
        number, index = divmod(group.ticket.index, LISTS_APART)
        judged = tuple(_sample(t) for t in group.trajectories if t.is_solution and t.verdict is not Verdict.FAILED)
        lists.setdefault(index, []).append((number, judged))
        questions[index] = questions.get(index) or question_of(group)  # a list that failed knows none
        tokens, env_steps = tokens + group.sampled_tokens, env_steps + group.stats.env_steps
        cause = cause or next((t.cause for t in group.trajectories if t.verdict is Verdict.FAILED), "")
    episodes = (Judged(i, questions[i], tuple(one for _, one in sorted(lists[i]) if one)) for i in sorted(lists))
    there = tuple(episode for episode in episodes if episode.lists)
    if not there:
        raise EvaluationError(f"the environment failed in every held-out episode: {cause}")
    return HeldOut(there, len(lists) - len(there), cause, tokens, env_steps)


def summarise(groups: Iterable[Group], payloads: Sequence[bytes], targets: int | None) -> Evaluation:
    """A run's figures; failed samples are left out. Raises EvaluationError when nothing could be judged.

    An episode with fewer than k samples, as some failed, is not in pass@k. targets: as of `coverages`.
    """
    sampled = held_out(groups)
    samples = [episode.samples for episode in sampled.episodes]
    solved = [sum(s.solved for s in one) for one in samples]
    shares = {e.index: c / len(s) for e, c, s in zip(sampled.episodes, solved, samples, strict=True)}
    pairs = [(len(s), c) for s, c in zip(samples, solved, strict=True)]
    return Evaluation(
        success=float(np.mean(list(shares.values()))),
        by_episode=shares,
        pass_at_k={
            k: float(np.mean([pass_at_k(n, c, k) for n, c in pairs if n >= k])) for k in doublings(max(pairs)[0])
        },
        distinct_solutions=float(np.mean([len({s.answer for s in one if s.solved}) for one in samples])),
        answer_entropy=float(np.mean([entropy(s.answer for s in one) for one in samples])),
        coverage=float(np.mean(coverages(sampled.episodes, targets))),
        sampled_tokens=sampled.sampled_tokens,
        env_steps=sampled.env_steps,
        payloads=tuple(payloads[:PAYLOADS_KEPT]),
        unjudged=sampled.unjudged,
        cause=sampled.cause,
    )


def gain_interval(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[float, float]:
    """95 % interval of the mean gain over the same episodes: mean +- 1.96 standard errors of the paired differences.

    before, after: share of solved samples by episode; those that are in both count.
    """
    return _interval([after[episode] - before[episode] for episode in before if episode in after])


def success_interval(by_episode: Mapping[int, float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean over episodes, mean +- 1.96 standard errors; of a single episode it is not known."""
    return _interval(list(by_episode.values())) if len(by_episode) > 1 else (None, None)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean +- 1.96 standard errors; NaN for a single value."""
    numbers = np.array(values)
    half = 1.96 * float(numbers.std(ddof=1)) / np.sqrt(len(numbers)) if len(numbers) > 1 else float("nan")
    return float(numbers.mean() - half), float(numbers.mean() + half)


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [*(2**i for i in range((most - 1).bit_length())), most]


def _sample(trajectory: Trajectory) -> Sample:
    return Sample(trajectory.verdict is Verdict.SOLVED, trajectory.answer)
